"""The tokenizer of a model file beside its embedding, and the ids by which a published model starts and ends a text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vit.errors import ModelFileError, display_path
from vit.files import dump_json, read_json
from vit.models.file import ModelFile, first_line
from vit.models.huggingface_folder import GENERATION
from vit.models.notes import note
from vit.names import SPECIAL_IDS

_IGNORED = ("forced_bos_token_id", "forced_eos_token_id", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
"""settings of transformers' `generate` that change what is written, and that ours does not have"""
_PADDING = 128
"""rows by which embeddings of any size are padded; large ones by up to a tenth (Megatron)"""


def check_vocabulary(model: ModelFile, source: object) -> None:
    """Raise ModelFileError where a model file's tokenizer does not belong to its embedding.

    No token may lie beyond the embedding. Of its rows a few may have no token: they are padded to round numbers.
    """
    if model.tokenizer is None:
        return
    a = model.architecture
    parts = [part for part in (a, *(a.get(name) for name in ("encoder", "decoder", "text"))) if isinstance(part, dict)]
    tokens = tokenizer_size(model.tokenizer, source)
    for rows in (part["vocabulary"] for part in parts if "vocabulary" in part):
        if tokens > rows or rows - tokens > max(rows // 10, min(_PADDING - 1, rows // 2)):
            raise ModelFileError(
                f"{display_path(source)}: a tokenizer of {tokens} tokens beside an embedding of {rows}; they do not "
                "belong together"
            )


def tokenizer_size(text: str, source: object) -> int:
    """Return the highest id of a tokenizer's JSON and one. Raises ModelFileError for anything else."""
    try:
        values = json.loads(text)
        values.pop(SPECIAL_IDS, None)
        vocabulary = Tokenizer.from_str(dump_json(values)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelFileError(f"{display_path(source)}: not a tokenizer ({first_line(error)})") from error
    return max(vocabulary.values(), default=-1) + 1


def with_special_ids(tokenizer: str, folder: Path, config: Mapping[str, Any], rows: int) -> str:
    """Add to a tokenizer's JSON the ids by which a model of transformers starts and ends texts, and suppressed ones.

    Of `generation_config.json`, `config.json` and its decoder's part the first that has a key counts; BLIP's are those
    of its text config. What none has follows from the tokens' names. `rows` are those of the embedding. Raises
    ModelFileError for an id that is none.
    """
    if config["model_type"] == "blip":
        text = config["text_config"]
        start, ends = text["bos_token_id"], text["sep_token_id"]
        places: list[Mapping[str, Any]] = []
    else:
        path = folder / GENERATION
        places = [read_json(path) if path.is_file() else {}, config, config.get("decoder") or {}]
        start = None if config["model_type"] == "gpt2" else _first(places, "decoder_start_token_id")
        start = _first(places, "bos_token_id") if start is None else start
        ends = _first(places, "eos_token_id")
    for key in _IGNORED:
        if _first(places, key):
            note(f"{display_path(folder)}: {key} is not supported and has no effect")
    special: dict[str, Any] = {}
    if start is not None:
        what = "start of a text (decoder_start_token_id, bos_token_id)"
        if isinstance(start, list):
            raise ModelFileError(
                f"{display_path(folder)}: {what}: expected one id, got {display_path(str(start)[:60])}"
            )
        (special["start"],) = _ids(start, what, rows, folder)
    if ends is not None:
        special["ends"] = _ids(ends, "end of a text (eos_token_id)", rows, folder)
    suppressed = _first(places, "suppress_tokens")
    suppressed = _ids(suppressed, "suppress_tokens", rows, folder) if suppressed else []
    special["never"] = [*suppressed, *range(tokenizer_size(tokenizer, folder), rows)]
    return dump_json(json.loads(tokenizer) | {SPECIAL_IDS: special})


def _first(places: list[Mapping[str, Any]], key: str) -> Any:
    return next((place[key] for place in places if place.get(key) is not None), None)


def _ids(value: Any, what: str, rows: int, folder: Path) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number < rows for number in ids
    ):
        raise ModelFileError(
            f"{display_path(folder)}: {what}: expected ids of 0 to {rows - 1}, got {display_path(str(value)[:60])}"
        )
    return ids
