"""Where a model comes from: what MODEL means in every command.

| MODEL | what |
| --- | --- |
| `RUN`, `FILE.safetensors`, `FILE.ckpt` | ours |
| `timm:NAME[.TAG]` | pretrained weights of timm, from the hub's cache or downloaded |
| `timm:NAME[.TAG]@FILE` | weights in a file, of timm's architecture NAME: `.safetensors`, or a training checkpoint |
| `timm:FOLDER`, or the folder alone | a `config.json` and `model.safetensors` that timm saved |
| `hf:NAME`, `hf:FOLDER`, or the folder alone | the same of Hugging Face's transformers |
| `hf:NAME@text`, `hf:FOLDER@text` | the side of words of a CLIP, which has both |
| `FILE.npz` | weights of Google's JAX code |

Of transformers: encoders of pictures (ViT, DeiT, DINOv2, CLIP, SigLIP, BLIP) and of texts (BERT, CLIP), GPT-2, and
captioners (ViT or DeiT with GPT-2 or BERT, BLIP), as `vit.models.huggingface` and `huggingface_text` list them.

Nothing here runs code from a file: a pickle is read only if it holds nothing but tensors and plain values.
"""

import contextlib
import re
from dataclasses import replace
from pathlib import Path

from vit.errors import ConfigError, ModelFileError, display_path
from vit.files import read_json
from vit.models.architecture import SIZES
from vit.models.file import ModelFile, check_finite, read_model
from vit.models.hub import download
from vit.models.huggingface import WORDS, read_huggingface_folder
from vit.models.huggingface_folder import GENERATION, PICKLE, TOKENIZER
from vit.models.jax import read_jax
from vit.models.text_architecture import Side
from vit.models.timm_source import WEIGHTS, folder_model, named_model, vit_names
from vit.models.vocabulary import check_vocabulary
from vit.names import near


def load_model(source: str | Path) -> ModelFile:
    """The model that MODEL names. Raises ModelFileError or ConfigError saying what is wrong with it."""
    model = _foreign(str(source))
    if model is None:
        _suggest(str(source))
        model = read_model(Path(source))
    else:
        check_finite(model, source)
    check_vocabulary(model, source)
    return model


def _foreign(source: str) -> ModelFile | None:
    """The model of `source` if somebody else wrote it."""
    kind, colon, name = source.partition(":")
    if colon and kind == "timm":
        return _folder(Path(name), source) if name and Path(name).is_dir() else named_model(name)
    if colon and kind == "hf":
        side: Side = "text" if name.endswith("@text") and not Path(name).is_dir() else "image"
        name = name.removesuffix("@text") if side == "text" else name
        return _folder(Path(name) if name and Path(name).is_dir() else _fetched(name), source, side)
    if source.endswith(".npz"):
        return read_jax(Path(source))
    if (Path(source) / "config.json").is_file():
        return _folder(Path(source), source)
    return None


def _suggest(source: str) -> None:
    """Raise ConfigError for a name of published weights, or of a size, that stands where a path is expected."""
    if Path(source).exists():
        return
    name = re.sub(r"^(hf[-_]hub:|timm:)?timm/", "", source)
    suggestion = None
    if re.fullmatch(rf"({'|'.join(SIZES)})/\d+", source):
        suggestion = f"to train this size from scratch, it is --model.name {source}"
    elif re.fullmatch(r"\w+(\.\w+)?", name) and name.partition(".")[0] in vit_names():
        suggestion = f"weights of timm are timm:{name}"
    elif (
        re.fullmatch(r"[\w.-]+/[\w.-]+", name := re.sub(r"^hf[-_]hub:", "", source)) and not Path(name).parent.is_dir()
    ):
        suggestion = f"weights of the Hugging Face hub are hf:{name}"
    elif re.fullmatch(r"\w+", source) and (similar := near(source, [f"timm:{known}" for known in vit_names()], 0.8)):
        suggestion = similar.removeprefix("; ")
    if suggestion is not None:
        raise ModelFileError(f"{display_path(source)}: no such file or folder; {display_path(suggestion)}")


def _folder(folder: Path, source: str, side: Side = "image") -> ModelFile:
    """What timm or transformers saved; they tell themselves apart by the keys of their `config.json`."""
    config = read_json(folder / "config.json")
    if "architecture" in config:
        return folder_model(folder, config, source)
    return replace(read_huggingface_folder(folder, side=side), origin=source)


def _fetched(name: str) -> Path:
    """The folder in the hub's cache that holds a model's description and weights."""
    if not re.fullmatch(r"([\w.-]{1,96}/)?[\w.-]{1,96}", name, re.ASCII) or name.startswith((".", "/", "-")):
        raise ConfigError(f"hf:{display_path(name)}: not a folder, and not a name on the hub, which is OWNER/NAME")
    config = download(name, ["config.json"])
    of_words = read_json(config).get("model_type") in (*WORDS, "clip")
    for extra in ("preprocessor_config.json", *((GENERATION, *TOKENIZER) if of_words else ())):
        with contextlib.suppress(ModelFileError):  # not every model has one
            download(name, [extra])
    download(name, [*WEIGHTS, PICKLE])
    return config.parent
