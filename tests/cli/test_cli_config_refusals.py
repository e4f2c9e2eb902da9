"""Wrong settings: refused before any data is read, by key, value and place, and without importing what they name."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vit.cli.config import compose, leaf_keys
from vit.errors import ConfigError

PARTS = sorted({key.partition(".")[0] for key in leaf_keys() if "." in key})
TEXT_KEYS = {"model.init", "optim.name", "text.init", "text.tokenizer", "train.strategy"}  # what they hold stays text


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears when `marker_module`, which can be imported, is imported; it must not."""
    file = tmp_path / "imported"
    (tmp_path / "marker_module.py").write_text(f"open({str(file)!r}, 'w').close()\nThing = dict\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    assert "marker_module" not in sys.modules
    assert not file.exists()


def refusal(tmp_path: Path, text: str | bytes) -> str:
    """The complaint about a YAML file, with `FILE` for its path."""
    path = tmp_path / "wrong.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        compose([str(path)], [])
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


def override_refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose([], list(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nested(key: str, value: str) -> str:
    part, _, name = key.rpartition(".")
    return f"{part}:\n  {name}: {value}\n" if part else f"{name}: {value}\n"


def test_the_marker_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "marker_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("marker_module")
    assert (tmp_path / "imported").exists()
    del sys.modules["marker_module"]


@pytest.mark.parametrize("key", [*leaf_keys(), *PARTS])
def test_code_named_in_a_yaml_is_refused_at_every_key(tmp_path: Path, marker: Path, key: str) -> None:
    for value in (
        "{class_path: marker_module.Thing}",
        "{class_path: marker_module.Thing, init_args: {x: 1}}",
        "{_target_: marker_module.Thing}",
        "!!python/name:marker_module.Thing",
        "!!python/object/apply:marker_module.Thing []",
        "!!python/object/new:marker_module.Thing {}",
        "!!python/module:marker_module",
        "[!!python/name:marker_module.Thing ]",
        "!marker_module.Thing 1",
    ):
        assert "FILE:" in refusal(tmp_path, nested(key, value)), value


@pytest.mark.parametrize(
    "text",
    [
        "class_path: marker_module.Thing",
        "_target_: marker_module.Thing",
        "!!python/object/new:marker_module.Thing\noptim: {lr: 1}",
        "? !!python/name:marker_module.Thing ''\n: 1",
        "? [!!python/name:marker_module.Thing '']\n: 1",
        "optim: !!python/object:marker_module.Thing {lr: 1}",
        "optim: {class_path: marker_module.Thing, lr: 1}",
        "__default_config__: marker_module",
        "config: other.yaml",
    ],
)
def test_code_named_elsewhere_in_a_yaml_is_refused(tmp_path: Path, marker: Path, text: str) -> None:
    refusal(tmp_path, text)


@pytest.mark.parametrize("key", sorted(set(leaf_keys()) - TEXT_KEYS))
def test_code_named_on_the_command_line_is_refused_at_every_key(marker: Path, key: str) -> None:
    assert key in override_refusal(f'--{key}={{"class_path": "marker_module.Thing"}}')


@pytest.mark.parametrize("key", sorted(TEXT_KEYS))
def test_code_named_at_a_key_that_takes_text_is_just_text(marker: Path, key: str) -> None:
    value = '{"class_path": "marker_module.Thing"}'
    part, _, name = key.partition(".")
    task = "fuse" if part == "text" else "classify"
    assert getattr(getattr(compose([], [f"--{key}={value}", f"--task={task}"]), part), name) == value


@pytest.mark.parametrize(
    "key", [f"{part}{tail}" for part in PARTS for tail in ("", ".class_path", ".init_args.x", "+")]
)
def test_parts_take_no_values_on_the_command_line(marker: Path, key: str) -> None:
    assert f"unknown option --{key}" in override_refusal(f"--{key}=marker_module.Thing")


LISTS = ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(20))
BOMB = f"optim:\n  betas: [{LISTS}]"
"""a list that its aliases would expand to 9 ** 19 entries"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  # rate\n  lrr: 1", "FILE:3: unknown key optim.lrr; did you mean optim.lr?"),
        ("optm:\n  lr: 1", "FILE:1: unknown key optm"),
        ("train: {batch_size: 3}", "FILE:1: unknown key train.batch_size; did you mean data.batch_size?"),
        ("lr: 1", "FILE:1: unknown key lr; did you mean optim.lr?"),
        ("xyzzy: 1", "FILE:1: unknown key xyzzy"),
        ("optim: {lr: 1}\n<<: {task: classify}", "FILE:2: unknown key <<"),
        ("optim:\n  lr: 1\n  clip: 1\n  lr: 2", "FILE:4: key optim.lr stands twice"),
        ("optim: {lr: 1}\ntrain: {seed: 1}\noptim: {clip: 1}", "FILE:3: key optim stands twice"),
        ("optim:\n\tlr: 1", "FILE:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("optim: {lr: 1", "FILE:1: not valid YAML: expected ',' or '}', but got '<stream end>'"),
        ("a: 1\n---\nb: 2", "FILE:2: not valid YAML: but found another document"),
        ("optim: 3", "FILE:1: optim takes keys below it, not a value"),
        ("optim: [1]", "FILE:1: optim takes keys below it, not a value"),
        ("optim:\n  lr: {a: 1}", "FILE:2: optim.lr takes one value or a flat list"),
        ("- optim", "FILE: expected keys and values, such as `optim:` with `lr: 0.001` below it"),
        ("just words", "FILE: expected keys and values, such as `optim:` with `lr: 0.001` below it"),
        ("? [a, b]\n: 1", "FILE:1: a key must be a word"),
        ("optim:\n  betas: &b [0.9, *b]", "FILE:2: optim.betas takes one value or a flat list"),
        ('model:\n  init: "a\\0b"', "FILE:2: model.init holds a null character"),
        (BOMB, "FILE:2: optim.betas takes one value or a flat list"),
        (
            f"optim:\n  name: &a {'x' * 10_000}\n  betas: [{'*a, ' * 1000}*a]",
            "FILE:3: optim.betas is larger than 1,000,000",
        ),
        (f"optim: {{lr: 1}} # {'x' * 1_000_000}", "--config FILE: larger than 1,000,000 bytes, not a configuration"),
        ("x: " + 5000 * "[", "FILE: nested too deeply"),
        (b"\x89PNG\r\n\x1a\n\x00", "--config FILE: not a text file"),
        ("optim:\n  lr: 1".encode("utf-16"), "--config FILE: not a text file"),
        ("# café".encode("latin-1"), "--config FILE: not a text file"),
        (b"a\x00b", "FILE: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
    ],
)
def test_a_wrong_yaml_is_refused_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    # what an unknown part is near to, or what YAML's parser adds, may differ; how it begins may not
    assert refusal(tmp_path, text).startswith(message)


def test_a_missing_file_and_a_folder_are_no_configuration(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError) as caught:
            compose([str(path)], [])
        assert str(caught.value) == f"--config {path}: {reason}"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--optim.lrr=1", "--optim.lr"),
        ("--lr=1", "--optim.lr"),
        ("--batch_size=8", "--data.batch_size"),
        ("--train.epoch", "--train.epochs"),
        ("--resum", "--resume"),
        ("--confg=x.yaml", "--config"),
        ("--print_config", "--print-config"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(refused: Any, word: str, near: str) -> None:
    message = refused("train", "DATA", word, code=2)
    assert message == f"vit: unknown option {word.partition('=')[0]}; did you mean {near}?\n"


@pytest.mark.parametrize("word", ["--optim.lr", "--config", "--out"])
def test_an_option_without_its_value_is_refused(refused: Any, word: str) -> None:
    assert refused("train", "DATA", word, code=2) == f"vit: {word}: a value is missing\n"


WRONG = [
    *[("train.epochs", value) for value in ("0", "-3", "nan", "inf", "1.5", "", "ten", "[1]", "null", "1e400")],
    *[("data.batch_size", value) for value in ("0", "-1", "2.5", "true")],
    *[("optim.lr", value) for value in ("0", "-0.1", "nan", "inf", "-inf", ".nan", ".inf", "1e400", "", "x")],
    *[("optim.weight_decay", value) for value in ("-1", ".nan", ".inf")],
    *[("optim.clip", value) for value in ("-1", ".nan", ".inf")],
    *[("optim.betas", value) for value in ("[0.9]", "[0.9, 1]", "[0.9, 0.9, 0.9]", "[.nan, 0.9]", "0.9", "")],
    *[("schedule.warmup", value) for value in ("-1", ".inf", ".nan")],
    *[("data.mean", value) for value in ("[.nan, 0, 0]", "[.inf, 0, 0]", "[0, 0]")],
    *[("data.std", value) for value in ("[0, 1, 1]", "[1, .nan, 1]", "[1, 1, .inf]", "[1, 1, -1]")],
    *[("augment.crop_scale", value) for value in ("[0.5, 0.4]", "[0, 1]", "[.nan, 1]")],
    *[("augment.crop_ratio", value) for value in ("[1, .inf]", "[2, 1]")],
    *[("augment.mixup", value) for value in ("-1", ".inf")],
    *[("augment.flip", value) for value in ("1.5", "-0.5", ".nan")],
    *[("model.name", value) for value in ("", "S", "S/", "S/0", "S/-4", "S/x", "XXL/16")],
    *[("model.dim", value) for value in ("0", "-64", "1.5")],
    *[("model.layer_scale", value) for value in (".inf", ".nan")],
    *[("model.dropout", value) for value in ("1", "-0.1", ".nan")],
    ("model.image_size", "0"),
    ("model.image_size", "[16]"),
    ("model.pool", "max"),
    ("model.class_token", "maybe"),
    ("loss.name", "mse"),
    ("train.precision", "fp8"),
    ("train.devices", "0"),
    ("train.devices", "some"),
    ("task", "detect"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_refused_by_key_and_value(tmp_path: Path, key: str, value: str) -> None:
    message = override_refusal(f"--{key}={value}")
    assert message.startswith(key)
    first = value.strip("[]").split(",")[0]
    shown = {".nan": "nan", ".inf": "inf", "null": "None", "1e400": "inf", "true": "True"}.get(
        first, first.removeprefix(".")
    )
    assert shown in message.partition(":")[2]
    assert message == refusal(tmp_path, nested(key, value if value else "''"))


def test_shapes_that_do_not_fit_are_refused_before_data_is_looked_for(refused: Any, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for words, message in (
        (["--model.heads=5"], "model.heads: must divide dim 192, got 5"),
        (["--model.name=S/16", "--model.image_size=225"], "model.image_size: must be a multiple of the patch size"),
        (["--model.image_size=[32, 30]"], "model.image_size: must be a multiple of the patch size 4 x 4, got 32 x 30"),
        (["--model.class_token=false"], "model.pool: needs model.class_token, got class"),
        (["--data.val_fraction=0.6", "--data.test_fraction=0.4"], "must leave pictures to train on, got 1.0"),
        (["--optim.lr=0"], "optim.lr: must be positive, got 0.0"),
        (["--optim.lrr=1"], "unknown option --optim.lrr"),
        (["--config", tmp_path / "none.yaml"], "no such file or directory"),
    ):
        for order in itertools.permutations([[nowhere], words]):
            assert message in refused("train", *itertools.chain(*order), code=2)
    assert "no such file or folder" in refused("train", nowhere, code=1)
