"""The JSON header of a model file as typed dataclasses: every field is checked before anything is built from it."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from vit.data.config import Preprocessing
from vit.errors import ConfigError
from vit.models.architecture import VisionArchitecture
from vit.models.text_architecture import EncoderDecoderArchitecture, FusionArchitecture, TextArchitecture

Architecture: TypeAlias = VisionArchitecture | TextArchitecture | EncoderDecoderArchitecture | FusionArchitecture
T = TypeVar("T")

_MOST_SHOWN = 60
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def architecture_of(kind: str, values: Any) -> Architecture:
    """Return the architecture of a model of `kind` from plain JSON values.

    Raises ConfigError naming the field, its value and what it must be.
    """
    where = "architecture"
    if kind == "classifier":
        return read_fields(VisionArchitecture, values, where)
    if kind in ("language", "text-encoder"):
        return read_fields(TextArchitecture, values, where)
    if kind == "fused":
        return read_fields(FusionArchitecture, values, where)
    if kind not in ("captioner", "translator"):
        raise ConfigError(f"kind: unknown kind {kind!r}")
    _require_keys(values, {"encoder", "decoder"}, {"encoder", "decoder"}, where)
    encoder: VisionArchitecture | TextArchitecture
    if kind == "captioner":
        encoder = read_fields(VisionArchitecture, values["encoder"], f"{where}.encoder")
    else:
        encoder = read_fields(TextArchitecture, values["encoder"], f"{where}.encoder")
    decoder = read_fields(TextArchitecture, values["decoder"], f"{where}.decoder")
    return EncoderDecoderArchitecture(encoder, decoder)


def check_header(header: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first field of a header whose type or value is wrong. Unknown kinds pass."""
    names, described = header["classes"], header.get("descriptions")
    for key, values in (("classes", names), ("descriptions", described)):
        if values is not None and not (isinstance(values, list) and all(isinstance(name, str) for name in values)):
            raise ConfigError(f"{key}: expected a list of texts, got {_shown(values)}")
    if described is not None and len(described) != len(names):
        raise ConfigError(f"descriptions: {len(described)} for {len(names)} classes")
    for key in ("licence", "origin", "tokenizer"):
        if not isinstance(header.get(key), str | None):
            raise ConfigError(f"{key}: expected text, got {_shown(header[key])}")
    if header["kind"] in ("classifier", "captioner", "translator", "language", "text-encoder", "fused"):
        architecture = architecture_of(header["kind"], header["architecture"])
        if isinstance(architecture, VisionArchitecture | FusionArchitecture) and len(names) != architecture.classes:
            raise ConfigError(f"classes: {len(names)} class names for {architecture.classes} outputs")
    if header["preprocessing"] or header["kind"] in ("classifier", "captioner", "fused"):
        read_fields(Preprocessing, header["preprocessing"], "preprocessing")


def read_fields(cls: type[T], values: Any, where: str) -> T:
    """Build a dataclass from JSON values, where tuples are lists. Raises ConfigError naming the first wrong field."""
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    needed = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    _require_keys(values, needed, known.keys(), where)
    hints: dict[str, Any] = get_type_hints(cls)
    return cls(**{name: _converted(value, hints[name], f"{where}.{name}") for name, value in values.items()})


def _require_keys(values: Any, needed: set[str], known: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected an object, got {_shown(values)}")
    missing, unknown = sorted(needed - values.keys()), sorted(values.keys() - known)
    if missing or unknown:
        raise ConfigError(f"{where}.{(missing or unknown)[0]}: {'missing' if missing else 'unknown field'}")


def _converted(value: Any, hint: Any, where: str) -> Any:
    """Return a JSON value as `hint` wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return read_fields(hint, value, where)  # type: ignore[arg-type]
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not NoneType)
        return _converted(value, hint, where)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1:] == (...,) and isinstance(value, list) else arguments
        if isinstance(value, list | tuple) and len(value) == len(kinds):
            return tuple(_converted(item, kind, where) for item, kind in zip(value, kinds, strict=True))
        raise ConfigError(f"{where}: expected a list of {len(arguments)}, got {_shown(value)}")
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
        raise ConfigError(f"{where}: expected one of {', '.join(map(str, arguments))}, got {_shown(value)}")
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {_NAMES.get(hint, hint)}, got {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: must be finite, got {value}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
