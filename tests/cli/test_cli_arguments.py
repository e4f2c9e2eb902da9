"""Parsing shared by all commands: the order of words, bounds of numbers, quoting of suggested commands."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from vit.cli.arguments import Parser, finite, integer
from vit.cli.data import _split_settings
from vit.data.config import LARGEST_INT, LARGEST_SEED


def parser() -> Parser:
    made = Parser(prog="vit x")
    made.add_argument("model", metavar="MODEL")
    made.add_argument("images", metavar="IMAGE", nargs="+")
    made.add_argument("--method", action="append")
    made.add_argument("--discard", type=finite, default=0.0)
    made.add_argument("--score", action="store_true")
    made.add_argument("--out", required=True)
    words = made.add_mutually_exclusive_group(required=True)
    words.add_argument("--nearest")
    words.add_argument("--analogy", nargs=3)
    return made


def test_options_stand_anywhere_among_positionals() -> None:
    options = [["--method", "raw"], ["--discard", "-1e-3"], ["--score"], ["--out=o"], ["--analogy", "a", "b", "c"]]
    for order in itertools.permutations([["M"], ["I", "J"], *options]):
        words = [word for part in order for word in part]
        if words.index("M") > words.index("I"):
            continue
        found = parser().parse_args(words)
        assert vars(found) == {
            "model": "M",
            "images": ["I", "J"],
            "method": ["raw"],
            "discard": -0.001,
            "score": True,
            "out": "o",
            "nearest": None,
            "analogy": ["a", "b", "c"],
        }, words


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["M", "I", "--out", "o", "--nearest", "x", "J"], ["I", "J"]),
        (["--out", "o", "--nearest", "x", "--", "M", "--out"], ["--out"]),
        (["M", "--out", "o", "--nearest", "x", "I", "--", "-J"], ["I", "-J"]),
        (["M", "-", "--out", "o", "--nearest", "x"], ["-"]),
        (["M", "--out", "o", "-5", "--nearest", "x"], ["-5"]),
    ],
)
def test_words_after_two_dashes_are_positionals(words: list[str], images: list[str]) -> None:
    found = parser().parse_args(words)
    assert (found.model, found.images, found.out) == ("M", images, "o")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: MODEL, IMAGE, --out"),
        (["M", "--out", "o"], "the following arguments are required: IMAGE"),
        (["M", "I", "--", "--out", "o"], "the following arguments are required: --out"),
        (["M", "--out", "o", "I"], "one of the arguments --nearest --analogy is required"),
        (["--nearest", "x", "M", "--analogy", "a", "b", "c", "I"], "--analogy: not allowed with argument --nearest"),
        (["M", "I", "--out", "o", "--nearst", "x", "--nearest", "y"], "did you mean --nearest?"),
        (["M", "--discard", "nan", "I"], "argument --discard: expected a number, got nan"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse_args(words)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_help_shows_which_options_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["M", "--help"])
    usage = " ".join(capsys.readouterr().out.split())
    assert " --out OUT (--nearest NEAREST | --analogy ANALOGY ANALOGY ANALOGY) MODEL IMAGE [IMAGE ...]" in usage


def test_settings_of_train_are_separated_from_the_words_of_a_data_command() -> None:
    words = ["preview", "--augment.crop", "none", "DATA", "--task=caption", "--out", "o", "--", "--data.x", "--task"]
    assert _split_settings(words) == (
        ["preview", "DATA", "--out", "o", "--", "--data.x", "--task"],
        ["--augment.crop", "none", "--task=caption"],
    )


ALL = {
    "evaluate": (["M", "D"], {"--batch-size": 1, "--workers": -1, "--beams": 1, "--no-repeat-ngram": 0}),
    "predict": (["M", "P"], {"--batch-size": 1, "--top": 1}),
    "attention": (["M", "P"], {"--layer": 0, "--head": 0, "--explorer": 0, "--limit": 1}),
    "caption": (["M", "P"], {"--batch-size": 1, "--beams": 1, "--n-best": 1, "--seed": 0, "--max-length": 1}),
    "generate": (["M"], {"--top-k": 0, "--seed": 0, "--min-length": 0, "--no-repeat-ngram": 0}),
    "embed": (["M", "--nearest", "x"], {"--top": 1}),
    "soup": (["M", "M", "--out", "o.safetensors"], {"--batch-size": 1, "--workers": -1}),
    "data preview": (["D"], {"--epoch": 0}),
    "data shard": (["D", "--out", "o"], {"--megabytes": 1}),
    "data make scenes": (["o"], {"--count": 1, "--seed": 0, "--size": 1}),
    "data make dates": (["o"], {"--count": 1, "--seed": 0}),
}


@pytest.mark.parametrize(("command", "option"), [(c, option) for c, (_, bounds) in ALL.items() for option in bounds])
def test_integer_options_have_bounds(refused: Callable[..., str], command: str, option: str) -> None:
    words, bounds = ALL[command]
    low = bounds[option]
    for value, rule in (
        (low - 1, f"must be at least {low}, got {low - 1}"),
        (2**63, "must be at most "),
        (10**4299, "must be at most "),
        (10**5000, "expected an integer, got 1000"),
        ("1.5", "expected an integer, got 1.5"),
        ("a\x1bb", r"expected an integer, got a\x1bb"),
    ):
        text = "1" + 5000 * "0" if value == 10**5000 else str(value)
        message = refused(*command.split(), *words, f"{option}={text}", code=2)
        assert f"argument {option}: {rule}" in message
        assert len(message) < 200


def test_integers_at_their_bounds_are_taken() -> None:
    assert [integer(0)("0"), integer(0)(str(LARGEST_INT)), integer(0, LARGEST_SEED)(str(2**32 - 1))] == [
        0,
        2**31 - 1,
        2**32 - 1,
    ]


@pytest.mark.parametrize("value", [2**31, 2**63, -(2**63) - 1, 10**400])
def test_integer_settings_have_bounds(refused: Callable[..., str], value: int) -> None:
    keys: list[Any] = ["data.batch_size", "train.epochs", "text.vocabulary", "data.workers", "augment.policy_ops"]
    acting = ["--task=caption", "--augment.policy=randaugment"]
    for key in keys:
        message = refused("train", "DATA", *acting, f"--{key}={value}", "--print-config", code=2)
        assert message.startswith(f"vit: {key}: must be ")
        assert len(message) < 200
    assert "train.seed: must " in refused("train", "DATA", f"--train.seed={2 * value}", "--print-config", code=2)


def test_large_seeds_and_pixel_limits_are_taken(vit: Callable[..., Any]) -> None:
    words = (f"--train.seed={LARGEST_SEED}", "--data.max_pixels=1000000000000", "--print-config")
    assert vit("train", "DATA", *words).code == 0


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("data.timeout", 2_000_001, "must be 0 (never) or a number of seconds, at most 2000000"),
        ("data.repeats", 101, "must be from 1 to 100"),
        ("augment.policy_ops", 101, "must be from 1 to 100"),
        ("data.workers", 1025, "must be -1 (automatic), 0 or more, at most 1024"),
    ],
)
def test_settings_that_would_hang_or_exhaust_the_machine_are_refused(
    refused: Callable[..., str], key: str, value: int, rule: str
) -> None:
    message = refused("train", "DATA", f"--{key}={value}", "--print-config", code=2)
    assert message == f"vit: {key}: {rule}, got {value}\n"
