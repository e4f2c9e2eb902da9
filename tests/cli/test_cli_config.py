"""How files and overrides compose to one configuration, whatever their order, and how it is read back."""

import itertools
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.cli.config import compose, to_yaml
from vit.data.config import AugmentConfig, DataConfig
from vit.tasks.config import Config, OptimConfig, TrainConfig

ROOT = Path(__file__).parent.parent.parent
COMMITTED = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture
def yaml(tmp_path: Path) -> Callable[[str], str]:
    """Write a YAML file; gives its path."""
    numbers = itertools.count()

    def write(text: str) -> str:
        path = tmp_path / f"{next(numbers)}.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_without_files_and_overrides_everything_is_at_its_default() -> None:
    assert compose([], []) == Config()


def test_files_overrides_and_data_in_every_order_give_the_same(yaml: Any, vit: Any) -> None:
    first = yaml("optim:\n  lr: 0.5\n  clip: 2\ntrain:\n  epochs: 7\n")
    second = yaml("optim:\n  lr: 0.25\ntrain:\n  seed: 3\n  epochs: 8\n")
    groups = [["--config", first], [f"--config={second}"], ["--train.epochs", "9"], ["DATA", "--data.workers=0"]]
    expected = Config(
        data=DataConfig(workers=0), optim=OptimConfig(lr=0.25, clip=2.0), train=TrainConfig(seed=3, epochs=9)
    )
    orders = [order for order in itertools.permutations(groups) if order.index(groups[0]) < order.index(groups[1])]
    for order in orders:
        outcome = vit("train", *itertools.chain(*order), "--print-config")
        assert (outcome.code, outcome.out) == (0, to_yaml(expected)), order


def test_the_later_of_two_files_wins_key_by_key(yaml: Any) -> None:
    first, second = yaml("optim: {lr: 0.5, clip: 2}"), yaml("optim: {lr: 0.25}")
    assert compose([first, second], []).optim == OptimConfig(lr=0.25, clip=2)
    assert compose([second, first], []).optim == OptimConfig(lr=0.5, clip=2)


def test_the_later_of_two_overrides_wins() -> None:
    assert compose([], ["--optim.lr=0.5", "--optim.lr", "0.25"]).optim.lr == 0.25


@pytest.mark.parametrize("value", ["-1", "-1.0"])
def test_a_value_may_begin_with_a_minus(value: str) -> None:
    assert compose([], ["--data.workers", "-1"]).data.workers == -1
    assert "must not be negative, got -1.0" in str(_error(["--optim.clip", value]))


def _error(overrides: list[str]) -> Exception:
    with pytest.raises(Exception) as caught:
        compose([], overrides)
    return caught.value


@pytest.mark.parametrize("text", ["", "# nothing but this\n", "optim:\n", "optim: {}\n", "optim: ~\ndata:\n", "---\n"])
def test_what_is_empty_says_nothing(yaml: Any, text: str) -> None:
    assert compose([yaml(text)], []) == Config()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optim: {lr: 1e-4}", "optim.lr", 1e-4),
        ("optim:\n  betas: [.9, 0.95]", "optim.betas", (0.9, 0.95)),
        ("data:\n  mean:\n  - 0.5\n  - .25\n  - 1", "data.mean", (0.5, 0.25, 1.0)),
        ("model: {image_size: 64}", "model.image_size", 64),
        ("model: {image_size: [32, 64]}", "model.image_size", (32, 64)),
        ("model: {dim: null, image_size: }", "model.dim", None),
        ("model: {init: 'a=b, c: [d] #e'}", "model.init", "a=b, c: [d] #e"),
        ("model: {init: --out}", "model.init", "--out"),
        ("model: {init: /photos/día/é}", "model.init", "/photos/día/é"),
        ("model: {init: 007}", "model.init", "007"),
        ("model: {class_token: false, pool: mean}", "model.class_token", False),
        ("train: {devices: 2}", "train.devices", 2),
        ("train: {devices: auto}", "train.devices", "auto"),
        ("optim: {lr: &rate 0.5}\nschedule: {final: *rate}", "schedule.final", 0.5),
    ],
)
def test_yaml_values_arrive_as_written(yaml: Any, text: str, key: str, value: object) -> None:
    part, _, name = key.partition(".")
    found = getattr(getattr(compose([yaml(text)], []), part), name)
    assert (found, type(found)) == (value, type(value))


def test_print_config_reads_back_to_the_same(yaml: Any, vit: Any) -> None:
    words = ["--model.image_size=[64, 32]", "--optim.betas=[0.8,0.9]", "--train.devices=2", "--model.init=a: b"]
    shown = vit("train", *words, "--print-config")
    assert shown.code == 0
    assert compose([yaml(shown.out)], []) == compose([], words)
    assert vit("train", "--config", yaml(shown.out), "--print-config").out == shown.out


spread = st.floats(0, 1, exclude_min=True)
share = st.floats(0, 1, exclude_max=True)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
count = st.integers(1, 2**31)
valid = st.builds(
    Config,
    data=st.builds(
        DataConfig,
        batch_size=count,
        workers=st.integers(-1, 64),
        resize=st.sampled_from(["crop", "letterbox", "squash"]),
        std=st.tuples(spread, spread, spread),
        balanced=st.booleans(),
    ),
    augment=st.builds(AugmentConfig, flip=share, mixup=positive, policy=st.sampled_from(["none", "randaugment"])),
    optim=st.builds(OptimConfig, name=st.sampled_from(["adamw", "lion"]), lr=positive, betas=st.tuples(share, share)),
    train=st.builds(TrainConfig, epochs=count, devices=st.one_of(st.just("auto"), st.integers(1, 9999)), ema=share),
)
path_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda t: t.strip() == t)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=valid, init=st.one_of(st.none(), path_text.map(lambda text: f"/runs/{text}")))
def test_any_configuration_survives_yaml_exactly(
    tmp_path_factory: pytest.TempPathFactory, config: Config, init: str | None
) -> None:
    config = replace(config, model=replace(config.model, init=init))
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert asdict(compose([str(path)], [])) == asdict(config)


def test_there_are_committed_configurations() -> None:
    assert any(path.parent.name == "classify" for path in COMMITTED)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_committed_configurations_are_valid_and_say_what_to_expect(path: Path) -> None:
    compose([str(path)], [])
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    header = "\n".join(lines)
    assert f"--config {path.relative_to(ROOT).as_posix()}" in header
    assert "vit train " in header
    assert re.search(r"^# Hardware: .*[a-z]", header, re.MULTILINE), "the header names the hardware"
    assert re.search(r"^# Expected: .*\d", header, re.MULTILINE), "the header states the number to expect"
