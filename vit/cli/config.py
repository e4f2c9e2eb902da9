"""YAML files and `--part.key value` overrides, composed into one `Config`.

Files are read in their order, later ones win; overrides win over files wherever they stand. A YAML holds plain
values for keys that exist: it is turned into `--part.key=value` words and goes the way of the command line, so
nothing in it can name code. Unknown keys are refused with the nearest one that exists.
"""

import difflib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from vit.data.config import LARGEST_INT, LARGEST_SEED, require
from vit.errors import ConfigError, display_path
from vit.tasks.config import Config

# Its hints to programmers come up even where torch.compile pickles, and are no business of a user's.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}

_KINDS = {  # how Python's types are called in messages
    "typing.Literal": "one of ",
    "tuple[int, int]": "[number, number]",
    "NoneType": "null",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
}
_LARGEST = {"train.seed": LARGEST_SEED, "data.max_pixels": 2**63 - 1}
"""limits of integer settings other than `LARGEST_INT`"""

_MOST_BYTES = 1_000_000
"""largest configuration file"""

_OPTIONS = ["config", "out", "resume", "print-config"]  # of vit train, beside the keys


def leaf_keys(part: type = Config, prefix: str = "") -> list[str]:
    """Every key that can be set, dotted: `optim.lr`."""
    keys = []
    for field in fields(part):
        if isinstance(field.type, type) and is_dataclass(field.type):
            keys += leaf_keys(field.type, f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


@cache
def config_parser() -> ArgumentParser:
    """Takes `--part.key=value` for every key of `Config`. Making it takes five times as long as using it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, add_help=False, usage="", default_env=False)
    parser.add_class_arguments(Config)
    return parser


def compose(files: list[str], overrides: list[str]) -> Config:
    """The configuration of YAML files, then `--part.key=value` words. Raises ConfigError with the key in it."""
    words = [word for file in files for word in yaml_words(Path(file))]
    parser = config_parser()
    try:
        namespace = parser.parse_args(words + _checked(overrides))
        config = Config(**parser.instantiate(namespace).as_dict())
    except ConfigError:
        raise
    except Exception as error:  # jsonargparse raises several kinds
        raise ConfigError(_in_one_line(error)) from error
    for key in leaf_keys():
        value = attrgetter(key)(config)
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, float):
                require(math.isfinite(number), key, value, "must be finite")
            elif isinstance(number, int):
                largest = _LARGEST.get(key, LARGEST_INT)
                require(abs(number) <= largest, key, value, f"must be at most {largest}")
    return config


def yaml_words(path: Path) -> list[str]:
    """A YAML file as `--part.key=value` words. Raises ConfigError naming file and line."""
    try:
        root = _read(path)
        return [f"--{key}={value}" for key, value in _leaves(root, "", path)] if root else []
    except RecursionError as error:  # brackets by the hundred, or a list that holds itself
        raise ConfigError(f"{display_path(path)}: nested too deeply") from error


def _read(path: Path) -> yaml.MappingNode | None:
    """The mapping that a YAML file holds, None for an empty one."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"--config {display_path(path)}: larger than {_MOST_BYTES:,} bytes, not a configuration")
        root = yaml.compose(content.decode("utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not a text file"
        if path.parts[:1] == ("configs",) and (repository := Path(__file__).parents[2] / path).is_file():
            reason += f"; from this folder it is {display_path(repository)}"
        raise ConfigError(f"--config {display_path(path)}: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {problem}") from error
    if root is None or root.tag.endswith(":null"):
        return None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected keys and values, such as `optim:` with `lr: 0.001` below it")
    return root


def _leaves(node: yaml.MappingNode, prefix: str, path: Path) -> Iterator[tuple[str, str]]:
    known = leaf_keys()
    seen = set()
    _refuse_tags(node, prefix.removesuffix(".") or "the file", f"{path}:{node.start_mark.line + 1}")
    for key_node, value in node.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{where}: a key must be a word")
        key = f"{prefix}{key_node.value}"
        if key in seen:
            raise ConfigError(f"{where}: key {key} stands twice")
        seen.add(key)
        is_part = any(name.startswith(key + ".") for name in known)
        if is_part and isinstance(value, yaml.MappingNode):
            yield from _leaves(value, key + ".", path)
        elif is_part:
            if not value.tag.endswith(":null"):  # `optim:` with nothing below it says nothing
                raise ConfigError(f"{where}: {key} takes keys below it, not a value")
        elif key in known:
            yield key, _value_text(value, key, where)
        else:
            raise ConfigError(f"{where}: unknown key {key}{_nearest(key)}")


def _value_text(node: yaml.Node, key: str, where: str) -> str:
    """Return a scalar as it is written, a flat list in brackets.

    The size is checked before the text is made, which aliases could let grow far beyond the file.
    """
    _refuse_tags(node, key, where)
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:  # no path can hold it
            raise ConfigError(f"{where}: {key} holds a null character")
        return "null" if node.tag.endswith(":null") else str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        if sum(len(item.value) for item in node.value) > _MOST_BYTES:
            raise ConfigError(f"{where}: {key} is larger than {_MOST_BYTES:,} bytes")
        return "[" + ", ".join(_value_text(item, key, where) for item in node.value) + "]"
    raise ConfigError(f"{where}: {key} takes one value or a flat list")


def _refuse_tags(node: yaml.Node, key: str, where: str) -> None:
    """YAML's tags can name code; they are refused wherever they stand."""
    if node.tag not in _PLAIN_TAGS:
        raise ConfigError(f"{where}: {key} has the tag {node.tag}; only plain values are read")


def _checked(overrides: list[str]) -> list[str]:
    """`--key value` and `--key=value` words as `--key=value`; unknown keys are refused."""
    known = set(leaf_keys())
    words = []
    rest = iter(overrides)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key not in known:
            raise ConfigError(f"unknown option {word.partition('=')[0]}{_nearest(key, '--')}")
        if not equals:
            try:
                value = next(rest)
            except StopIteration:
                raise ConfigError(f"{word}: a value is missing") from None
        words.append(f"--{key}={value}")
    return words


def _nearest(key: str, dashes: str = "") -> str:
    known = leaf_keys() + (_OPTIONS if dashes else [])
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # the right name under the wrong part
        near = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f"; did you mean {dashes}{near[0]}?" if near else ""


def _in_one_line(error: Exception) -> str:
    """jsonargparse's several lines as `key: expected a number, got abc`."""
    text = " ".join(str(error).split())
    key, value = re.search(r'key "([\w.]+)"', text), re.search(r"(?:Got|Given) value: ?(.*)$", text)
    if key is None or value is None:
        return text
    expected = re.search(r"Subtypes: \[(.*?)\] Errors", text) or re.search(r"Expected an? (.*?)\. Got", text)
    kind = re.sub(r"<class '(\w+)'>", r"\1", expected.group(1) if expected else "another kind of value")
    for name, words in _KINDS.items():
        kind = kind.replace(name, words)
    return f"{key.group(1)}: expected {kind}, got {value.group(1) or 'nothing'}"


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `--config` reads back to the same."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
