"""`vit soup MODEL MODEL... --data DATA --out FILE`."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli.arguments import Parser, check_out, integer, model_files, run_of, seen_in_training
from vit.data.config import MOST_WORKERS, DataConfig, Preprocessing
from vit.errors import ConfigError, display_path
from vit.tasks.config import Config, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from vit.models.file import ModelFile

log = logging.getLogger("vit")

_IN_TRAINING = ("dropout", "attention_dropout", "drop_path", "patch_dropout", "layer_scale", "timm")
"""keys of an architecture that say nothing about what it computes"""


def main(argv: list[str]) -> int:
    """Parse, then average. Returns the exit code."""
    parser = Parser(
        prog="vit soup",
        description="Average the weights of runs that started from the same ones (Wortsman 2022, model soups).",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="run folders, .safetensors or .ckpt files")
    parser.add_argument("--data", help="pictures to choose by: best first, each is kept if accuracy does not fall")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="of DATA (default: val)")
    parser.add_argument("--out", required=True, help="model file to write: FILE.safetensors")
    parser.add_argument("--batch-size", type=integer(1), default=64)
    parser.add_argument(
        "--workers", type=integer(-1, MOST_WORKERS), default=-1, help="processes that decode pictures (-1: by cores)"
    )
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu", "mps"), default="auto")
    options = parser.parse_args(argv)
    if len(options.models) < 2:
        parser.error("there must be at least two models")
    if not options.out.endswith(".safetensors"):
        parser.error("--out must end in .safetensors")
    check_out(options.out, inputs=[file for model in options.models for file in model_files(model)])
    if options.data is None:
        parser.refuse_idle(("split", "batch_size", "workers", "accelerator"), "without --data")
    config = Config(
        data=DataConfig(batch_size=options.batch_size, workers=options.workers),
        train=TrainConfig(accelerator=options.accelerator),
    )
    return soup(options.models, options.data, options.split, Path(options.out), config)


def soup(models: list[str], data: str | None, split: str, out: Path, config: Config) -> int:
    """Average all `models`, or greedily those that help on `data`; writes `out`. Returns the exit code."""
    from vit.models.build import build_model
    from vit.models.file import save_model
    from vit.models.soup import greedy_soup, uniform_soup
    from vit.models.sources import load_model

    files = [load_model(model) for model in models]
    for name, file in zip(models, files, strict=True):
        build_model(file, source=name)  # names the first tensor that its architecture does not have
        if other := _difference(file, files[0]):
            raise ConfigError(f"{display_path(name)}: other {other} than {display_path(models[0])}")
    states = [file.weights() for file in files]
    if data is None:
        state, kept = uniform_soup(states), list(range(len(models)))
    else:
        state, kept = greedy_soup(states, _scorer(files[0], models, data, split, config))
    log.info("kept       %s", ", ".join(display_path(models[index]) for index in kept))
    origin = f"soup of {len(kept)}: {files[0].origin}"
    save_model(replace(files[0], raw=state, ema=None, origin=origin), out)
    log.info("model      %s", display_path(out))
    return 0


def _difference(one: "ModelFile", other: "ModelFile") -> str:
    """What two models do not share, without which weights of equal shapes still mean other things."""
    if _prepared(one) != _prepared(other):
        return "preprocessing"
    for name in ("kind", "classes", "tokenizer"):
        if getattr(one, name) != getattr(other, name):
            return name
    return "" if _computed(one.architecture) == _computed(other.architecture) else "architecture"


def _prepared(file: "ModelFile") -> dict[str, Any]:
    return {name: value for name, value in file.preprocessing.items() if name != "max_pixels"}


def _computed(architecture: dict[str, Any]) -> dict[str, Any]:
    """What an architecture says about what is computed, other than while learning."""
    kept = {key: value for key, value in architecture.items() if key not in _IN_TRAINING}
    return {key: _computed(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _scorer(
    file: "ModelFile", models: "Sequence[str]", data: str, split: str, config: Config
) -> "Callable[[Mapping[str, Tensor], Sequence[int]], float]":
    """A function from weights, and the places of the models in them, to the accuracy on a split, which it tells too."""
    from vit.data.folders import list_evaluation
    from vit.models.build import build_network
    from vit.tasks.devices import device_for
    from vit.tasks.evaluation import outputs_of

    (samples,) = list_evaluation(data, file.classes, split=split).splits.values()
    preprocessing = Preprocessing.from_json(file.preprocessing)
    for model in models:
        if trained := seen_in_training(run_of(Path(model)), samples).get("train"):
            told = "note       %s was trained on %d of the %d pictures to choose by; they flatter it"
            log.info(told, display_path(model), trained, len(samples))

    def score(state: "Mapping[str, Tensor]", places: "Sequence[int]") -> float:
        network = build_network(replace(file, raw=dict(state), ema=None)).to(
            device_for(config.train.accelerator, config.train.devices)
        )
        logits, labels = outputs_of(network, samples, preprocessing, config)
        accuracy = float((logits.argmax(dim=1) == labels).float().mean())
        log.info("accuracy   %6.2f %%   %s", 100 * accuracy, " + ".join(display_path(models[i]) for i in places))
        return accuracy

    return score
