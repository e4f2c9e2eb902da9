"""Where a model comes from: what MODEL means in every command.

| MODEL | what |
| --- | --- |
| `RUN`, `FILE.safetensors`, `FILE.ckpt` | ours |
| `timm:NAME[.TAG]` | pretrained weights of timm, from the hub's cache or downloaded |
| `timm:NAME[.TAG]@FILE.safetensors` | weights in a file, of timm's architecture NAME |
| `timm:FOLDER`, or the folder alone | a `config.json` and `model.safetensors` that timm saved |
| `hf:NAME`, `hf:FOLDER`, or the folder alone | the same of Hugging Face's transformers |
| `hf:NAME@text`, `hf:FOLDER@text` | the side of words of a CLIP, which has both |
| `FILE.npz` | weights of Google's JAX code |

Of transformers: encoders of pictures (ViT, DeiT, DINOv2, CLIP, SigLIP, BLIP) and of texts (BERT, CLIP), GPT-2, and
captioners (ViT or DeiT with GPT-2 or BERT, BLIP), as `vit.models.huggingface` and `huggingface_text` list them.

Nothing here runs code from a file: of pickles, only transformers' `pytorch_model.bin` is read, and only if it holds
nothing but tensors.
"""

import contextlib
import difflib
import hashlib
import logging
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vit.errors import ConfigError, ModelFileError, display_path
from vit.files import read_json
from vit.models.file import ModelFile, check_finite, read_model
from vit.models.huggingface import WORDS, read_huggingface_folder
from vit.models.huggingface_folder import PICKLE, TOKENIZER
from vit.models.jax import read_jax
from vit.models.preprocessing import timm_preprocessing
from vit.models.text_architecture import Side
from vit.models.timm import architecture_of, to_our_names
from vit.models.vision import with_weights

TIMM_MODULES = ("vision_transformer", "deit", "eva")
"""timm's modules whose models are plain Vision Transformers, most of them"""
_WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")


def load_model(source: str | Path) -> ModelFile:
    """The model that MODEL names. Raises ModelFileError or ConfigError saying what is wrong with it."""
    model = _foreign(str(source))
    if model is None:
        return read_model(Path(source))
    check_finite(model, source)
    return model


def _foreign(source: str) -> ModelFile | None:
    """The model of `source` if somebody else wrote it."""
    kind, colon, name = source.partition(":")
    if colon and kind == "timm":
        return _timm(name)
    if colon and kind == "hf":
        side: Side = "text" if name.endswith("@text") and not Path(name).is_dir() else "image"
        name = name.removesuffix("@text") if side == "text" else name
        return _folder(Path(name) if Path(name).is_dir() else _fetched(name), source, side)
    if source.endswith(".npz"):
        return read_jax(Path(source))
    if (Path(source) / "config.json").is_file():
        return _folder(Path(source), source)
    return None


def _folder(folder: Path, source: str, side: Side = "image") -> ModelFile:
    """What timm or transformers saved; they tell themselves apart by the keys of their `config.json`."""
    config = read_json(folder / "config.json")
    if "architecture" not in config:
        return replace(read_huggingface_folder(folder, side=side), origin=source)
    described = config.get("pretrained_cfg", config)
    cfg = {**described, "num_classes": config.get("num_classes", described.get("num_classes"))}
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelFileError(f"{display_path(folder)}: no {_WEIGHTS[0]} in it; pickled weights are not read")
    labels = config.get("label_names", described.get("label_names"))
    return _timm_model(config["architecture"], cfg, weights, source, config.get("model_args", {}), labels)


def _timm(text: str) -> ModelFile:
    if text and Path(text).is_dir():
        return _folder(Path(text), f"timm:{text}")
    name, _, file = text.partition("@")
    if not name:
        raise ConfigError("timm: a name is missing, such as timm:vit_small_patch16_224; `vit models '*'` lists them")
    cfg = _timm_cfg(name, with_weights=not file)
    if file:
        if not Path(file).is_file():
            raise ModelFileError(f"{display_path(file)}: no such file")
        return _timm_model(cfg["architecture"], cfg, Path(file), f"timm:{text}")
    if not cfg.get("hf_hub_id"):
        raise ModelFileError(f"timm:{name}: its weights are published as a pickle alone, which is not read")
    names = [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else _WEIGHTS
    return _timm_model(cfg["architecture"], cfg, _download(cfg["hf_hub_id"], names), f"timm:{name}.{cfg['tag']}")


def _timm_cfg(name: str, *, with_weights: bool) -> dict[str, Any]:
    """timm's description of the weights `NAME[.TAG]`. Raises ConfigError naming the nearest where there are none."""
    import timm

    architecture, _, tag = name.partition(".")
    known = [model for module in TIMM_MODULES for model in timm.list_models(module=module)]
    if not timm.is_model(architecture):
        raise ConfigError(
            f"timm:{display_path(name)}: timm has no model {display_path(architecture)}{near(architecture, known)}"
        )
    if not tag and not with_weights:
        return {"architecture": architecture, "tag": "", **_plain(timm.models.get_pretrained_cfg(architecture, True))}
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if not tags and with_weights:
        architecture_of(_timm_module(architecture, {"num_classes": 0}, {}, {}))  # what cannot be loaded, says so first
        raise ConfigError(f"timm:{name}: timm has no pretrained weights of this model; give a file: timm:{name}@FILE")
    if tag and tag not in tags:
        raise ConfigError(f"timm:{display_path(name)}: no weights {display_path(tag)}; there are {', '.join(tags)}")
    cfg = timm.models.get_pretrained_cfg(name)
    return {**_plain(cfg), "architecture": architecture, "tag": tag or cfg.tag}


def _plain(cfg: Any) -> dict[str, Any]:
    return {} if cfg is None else dict(cfg.to_dict())


def _timm_model(
    name: str,
    cfg: Mapping[str, Any],
    weights: Path,
    source: str,
    options: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
) -> ModelFile:
    """The model file of timm's architecture `name`, described by `cfg`, with the tensors of a file."""
    state = _tensors(weights)
    module = _timm_module(name, cfg, state, options or {})
    architecture = architecture_of(module)
    try:
        state = _filter_of(module)(state, module)
        if "head.weight" not in state:
            architecture = replace(architecture, classes=0)
        ours = to_our_names({key: tensor.float() for key, tensor in state.items()}, architecture)
        with_weights(architecture, ours)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{display_path(weights)}: no weights of {name}: {_misfit(error)}") from error
    names, descriptions = _class_names(architecture.classes, labels)
    if not names:  # a projection, or classes that nobody has named
        architecture = replace(architecture, classes=0)
        ours = {key: tensor for key, tensor in ours.items() if not key.startswith("head")}
    return ModelFile(
        kind="classifier",
        architecture=asdict(architecture),
        classes=names,
        preprocessing=asdict(timm_preprocessing(cfg, architecture.image_size)),
        raw=ours,
        descriptions=descriptions,
        licence=cfg.get("license"),
        origin=source,
    )


def _timm_module(
    name: str, cfg: Mapping[str, Any], state: Mapping[str, Tensor], options: Mapping[str, Any]
) -> nn.Module:
    """timm's module without its weights: shapes and options alone, made in no time."""
    import timm

    head = next((state[key] for key in ("head.weight", "visual.head.weight") if key in state), None)
    classes = cfg.get("num_classes") if head is None else head.shape[0]
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            return timm.create_model(name, **{"num_classes": classes, **options})
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"timm:{name}: timm cannot make this model: {error}") from error


def _filter_of(module: nn.Module) -> Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]:
    """timm's own reading of the layouts in which the authors of its models published them."""
    from timm.models import eva, vision_transformer

    if isinstance(module, eva.Eva):
        return eva.checkpoint_filter_fn
    of_deit = str(getattr(module, "pretrained_cfg", {}).get("architecture", "")).startswith("deit")
    return partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=of_deit)


def _class_names(count: int, labels: Sequence[str] | None) -> tuple[list[str], list[str] | None]:
    """Names of the classes, and what they are in words where the names are WordNet's ids; none where unknown."""
    from timm.data import ImageNetInfo

    if labels is not None and len(labels) == count:
        return list(labels), None
    subset = {
        1000: "imagenet1k",
        11221: "imagenet21k-miil",
        11821: "imagenet12k",
        21841: "imagenet22k",
        21843: "imagenet21k-goog",
    }
    if count not in subset:
        return [], None
    info = ImageNetInfo(subset[count])
    return list(info.label_names()), [info.index_to_description(i) for i in range(count)]


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            start = file.read(8)
        pickled = start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04") or path.suffix in (".pth", ".pt", ".bin")
        hint = "a pickle, which is not read" if pickled else f"no whole safetensors file: {error}"
        raise ModelFileError(f"{display_path(path)}: {hint}") from error


def _fetched(name: str) -> Path:
    """The folder in the hub's cache that holds a model's description and weights."""
    config = _download(name, ["config.json"])
    of_words = read_json(config).get("model_type") in (*WORDS, "clip")
    for extra in ("preprocessor_config.json", *(TOKENIZER if of_words else ())):
        with contextlib.suppress(ModelFileError):  # not every model has one
            _download(name, [extra])
    _download(name, [*_WEIGHTS, PICKLE])
    return config.parent


def _download(repository: str, names: Sequence[str]) -> Path:
    """The first of the files that the hub has, in its cache; downloaded if it is not there yet.

    The hub's client writes to a temporary file and renames. It names large files by their SHA-256, so a damaged one is
    noticed here. Raises ModelFileError in one line without a network, or where there is no such file.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    cached = (try_to_load_from_cache(repository, name) for name in names)
    if (there := next((path for path in cached if isinstance(path, str)), None)) is not None:
        _check_hash(Path(there))
        return Path(there)
    _require_network(repository)
    for name in names:
        try:
            path = Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:
            raise ModelFileError(f"{repository}: not in the cache, and it cannot be downloaded: no network") from error
        except RepositoryNotFoundError as error:
            raise ModelFileError(f"{repository}: the hub has no such model, or not for everyone") from error
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{repository}: cannot be downloaded: {_misfit(error)}") from error
        _check_hash(path)
        return path
    raise ModelFileError(f"{repository}: none of {', '.join(names)} in it; no other weights are read")


def _require_network(repository: str) -> None:
    """Raise ModelFileError at once where the hub has no address here; its client would try for half a minute."""
    from huggingface_hub import constants

    if urllib.request.getproxies() or constants.HF_HUB_OFFLINE:
        return
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError as error:
        raise ModelFileError(f"{repository}: not in the cache, and it cannot be downloaded: no network") from error


def _check_hash(path: Path) -> None:
    """Compare a file of the hub's cache with the SHA-256 that is its name. Raises ModelFileError."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) is None:
        return
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        raise ModelFileError(f"{display_path(blob)}: damaged in the cache; delete it, and it is downloaded again")


def near(name: str, known: Sequence[str]) -> str:
    """`; near it: ...`, or nothing."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; near it: {', '.join(found)}" if found else ""


def _misfit(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines[0]
    return line if len(line) <= 160 else line[:157] + "..."
