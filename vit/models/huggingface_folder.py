"""What lies in a folder of transformers: tensors, a tokenizer, how pictures are prepared."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from vit.errors import ConfigError, ModelFileError, display_path
from vit.files import read_json
from vit.models.file import State, first_line, load_plain
from vit.models.tensors import read_safetensors

SAFE, PICKLE = "model.safetensors", "pytorch_model.bin"
GENERATION = "generation_config.json"
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")


def require(holds: bool, option: str) -> None:
    """Raise ConfigError naming the option of transformers that ours does not have."""
    if not holds:
        raise ConfigError(f"not supported from transformers: {display_path(option)}")


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Turns what a misfit of config and tensors raises into a ModelFileError of one line."""
    try:
        yield
    except (ConfigError, ModelFileError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"no tensor or entry {error}" if isinstance(error, KeyError) else str(error).strip().split("\n\t")[-1]
        raise ModelFileError(
            f"{display_path(folder)}: weights and config do not fit: {display_path(reason.strip()[:160])}"
        ) from error


def tensors_in(folder: Path) -> State:
    """All tensors of a folder, of one file or of several with an index; of a pickle only if it holds nothing else."""
    pickled = any(folder.glob(f"{PICKLE}*")) and not any(folder.glob(f"{SAFE}*"))
    whole = PICKLE if pickled else SAFE
    index = folder / f"{whole}.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [whole]
    state: State = {}
    for name in names:
        if not (folder / name).is_file():
            raise ModelFileError(f"{display_path(folder)}: no {display_path(name)} in it")
        state |= _tensors(folder / name)
    return state


def _tensors(path: Path) -> State:
    if path.suffix != ".bin":
        return read_safetensors(path)
    state = load_plain(path)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelFileError(f"{display_path(path)}: no tensors by name")
    return dict(state)


def image_processor(folder: Path) -> Mapping[str, Any]:
    """How pictures are prepared, as far as the folder says; of models of pictures and words it may lie one deeper."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            described = read_json(folder / name)
            return described if name.startswith("pre") else described.get("image_processor") or {}
    return {}


def tokenizer_in(folder: Path, *, gpt2: bool = False, start: int | None = None) -> str | None:
    """The folder's tokenizer as JSON; None where there is none.

    Of GPT-2 its two files are made into one. BLIP's has no token for the `start` of a caption: its first model was
    given one behind BERT's vocabulary, and another that asks for an encoding.
    """
    whole, vocabulary, merges = (folder / name for name in TOKENIZER)
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_str(whole.read_text(encoding="utf-8"))
        elif gpt2 and vocabulary.is_file() and merges.is_file():
            tokenizer = _of_gpt2(vocabulary, merges)
        else:
            return None
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelFileError(f"{display_path(folder)}: no tokenizer that can be read: {first_line(error)}") from error
    if tokenizer.get_vocab_size() == start:
        tokenizer.add_special_tokens(["[DEC]", "[ENC]"])
    return tokenizer.to_str()


def _of_gpt2(vocabulary: Path, merges: Path) -> Tokenizer:
    """Pairs of bytes (Radford et al. 2019)."""
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer
