"""The recipes of configs/: read, trained for some steps at reduced size, and their schedules against the papers'."""

import itertools
import math
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from vit.cli.config import compose
from vit.cli.main import main
from vit.data.config import Preprocessing
from vit.data.dates import make_dates
from vit.data.scenes import make_scenes
from vit.models.architecture import ModelConfig, VisionArchitecture
from vit.models.file import classifier_file, read_model, save_model
from vit.models.vision import VisionTransformer
from vit.tasks.callbacks import Pictures
from vit.tasks.config import Config
from vit.tasks.optim import make_optimizer, make_schedule, parameter_groups

ROOT = Path(__file__).parent.parent
ALL = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = [path for path in ALL if path.parent.name != "trainer"]
IMAGENET = 1_281_167
"""training pictures of ImageNet-1k"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.14
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step.*"),
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(path: Path) -> list[list[str]]:
    """The words after `vit train` of every command in a header, whatever starts it."""
    header = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = "\n".join(line.removeprefix("#").strip() for line in header).replace("\\\n", "")
    found = []
    for line in text.splitlines():
        for start in ("vit train ", "vit.cli train "):
            if start in line and "--config" in line:
                found.append(shlex.split(line.partition(start)[2].rstrip('"')))
    return found


def read(words: list[str]) -> Config:
    """The configuration of a command: what `vit train` composes of its files and settings."""
    files, settings, rest = [], [], iter(words[1:])  # after DATA
    for word in rest:
        if word == "--config":
            files.append(str(ROOT / next(rest)))
        elif word == "--out":
            next(rest)
        else:
            settings += [word, next(rest)]
    return compose(files, settings)


def recipe(file: str) -> Config:
    return compose([str(ROOT / "configs" / file)], [])


@pytest.mark.parametrize("path", ALL, ids=name)
def test_the_commands_of_a_header_are_understood_and_one_uses_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert any(name(path) in words for words in commands(path))
    for words in commands(path):
        assert main(["train", *words, "--print-config"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("file", ["one_gpu", "ddp_8gpu", "slurm_2nodes"])
def test_a_trainer_leaves_the_batch_of_all_devices_as_the_recipe_has_it(file: str) -> None:
    for words in commands(ROOT / "configs" / "trainer" / f"{file}.yaml"):
        config = read(words)
        assert config.data.batch_size * int(config.train.devices) * config.train.nodes * config.train.accumulate == 1024


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> dict[str, Path]:
    """Small data for each task, and as `init` a random model of other classes to start from."""
    root = tmp_path_factory.mktemp("recipes")
    make_scenes(root / "scenes", count=10, side=48)
    make_dates(root / "dates", count=20)
    (root / "text.txt").write_text("What is the city but the people?\n" * 100, encoding="utf-8")
    architecture = VisionArchitecture((16, 16), (8, 8), 32, 2, 2, 48, classes=2)
    network = VisionTransformer(architecture)
    save_model(classifier_file(network, ["cat", "dog"], asdict(Preprocessing((16, 16)))), root / "init.safetensors")
    return {
        "init": root / "init.safetensors",
        "classify": colour_folder,
        "caption": root / "scenes",
        "fuse": root / "scenes",
        "translate": root / "dates",
        "language": root / "text.txt",
    }


SMALL = ["--data.batch_size=4", "--data.workers=0", "--train.epochs=1", "--train.devices=1"]
SMALL += ["--train.accelerator=cpu", "--train.precision=fp32"]
PICTURES = ["--model.image_size=16", "--model.patch_size=8"]
SHAPE = ["--model.dim=32", "--model.depth=2", "--model.heads=2", "--model.hidden=48"]
TEXT = [f"--text.{key}={value}" for key, value in {"dim": 32, "depth": 1, "heads": 2, "hidden": 48}.items()]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_trains(
    path: Path,
    data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    untouched_process: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = compose([str(path)], [])
    words = [*SMALL]
    if config.task in ("classify", "caption", "fuse"):
        words += PICTURES
        words += SHAPE if config.model.init is None else [f"--model.init={data['init']}"]
        if config.tune.method == "probe" or (
            config.model.init and config.tune.method == "full" and config.tune.probe_first
        ):
            words += ["--tune.probe_epochs=1"]
    if config.task != "classify":
        words += TEXT
    if config.text.epoch_steps:
        words += ["--text.epoch_steps=3"]
    monkeypatch.setattr(Pictures, "_due", lambda *_: False)  # a second for each, and no part of a recipe
    assert main(["train", str(data[config.task]), "--config", str(path), *words, "--out", str(tmp_path)]) == 0
    if config.tune.method == "knn":
        assert (tmp_path / "knn.csv").read_text(encoding="utf-8").count("\n") > 1
        return
    model = read_model(tmp_path)
    assert all(tensor.isfinite().all() for tensor in model.weights().values())
    used = compose([str(tmp_path / "config.yaml")], [])  # of all that makes a recipe, nothing was changed
    for part in ("optim", "schedule", "loss", "augment"):
        for key, value in vars(getattr(config, part)).items():
            assert value is None or getattr(getattr(used, part), key) == value, f"{part}.{key}"
    assert (used.train.ema, used.model.drop_path) == (config.train.ema, config.model.drop_path)
    if config.tune.method == "full":
        checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] >= 2
        moments = [m for state in checkpoint["optimizer_states"][0]["state"].values() for m in state.values()]
        assert any(bool(m.any()) for m in moments if isinstance(m, torch.Tensor) and m.dim()), "nothing was learned"


def rates(config: Config, *, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step of a whole run."""
    steps = steps_per_epoch * config.train.epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.optim.rates()[0])
    schedule = make_schedule(optimizer, config.schedule, steps=steps, steps_per_epoch=steps_per_epoch)
    base, factor = schedule.base_lrs[0], schedule.lr_lambdas[0]
    return [base * factor(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("file", "batch", "total"), [("imagenet_s16_90ep", 1024, 112_590), ("imagenet_augreg_s16", 4096, 93_600)]
)
def test_big_visions_rate_rises_for_ten_thousand_steps_then_falls_to_zero(file: str, batch: int, total: int) -> None:
    config = recipe(f"classify/{file}.yaml")
    found = rates(config, steps_per_epoch=IMAGENET // batch)
    assert len(found) == total

    def published(step: int) -> float:  # utils.create_learning_rate_schedule, decay_type cosine
        warmup = 10_000
        progress = min(max((step - warmup) / (total - warmup), 0.0), 1.0)
        return 0.001 * 0.5 * (1.0 + math.cos(math.pi * progress)) * min(1.0, step / warmup)

    for step in (0, 1, 4_999, 9_998, 9_999, 10_000, 30_000, total // 2, total - 2, total - 1):
        # theirs begins with a step of rate 0, ours one step on
        assert found[step] == pytest.approx(published(step + 1), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("file", "batch", "highest"),
    [("imagenet_deit", 1024, 0.001), ("imagenet_deit3_small", 2048, 0.004), ("imagenet_deit3_base", 2048, 0.003)],
)
def test_deits_rate_is_timms_cosine_within_what_the_header_says(file: str, batch: int, highest: float) -> None:
    config = recipe(f"classify/{file}.yaml")
    optim = config.optim.scaled(batch)
    assert optim.rates()[0] == pytest.approx(highest)
    config.optim = optim
    per_epoch, epochs, lowest = 7, config.train.epochs, 1e-5
    found = rates(config, steps_per_epoch=per_epoch)

    def published(epoch: int) -> float:  # timm's CosineLRScheduler(warmup_t=5, warmup_lr_init=1e-6, lr_min=1e-5)
        if epoch < 5:
            return 1e-6 + epoch * (highest - 1e-6) / 5
        return lowest + 0.5 * (highest - lowest) * (1 + math.cos(math.pi * epoch / epochs))

    for epoch in range(epochs):
        within = found[per_epoch * epoch : per_epoch * (epoch + 1)]
        if epoch < 5:  # a rise in a line, by steps where theirs goes by epochs
            assert published(epoch) - 1e-6 <= within[0] <= within[-1] <= published(epoch) + highest / 5 + 1e-12
        else:
            assert within == pytest.approx([published(epoch)] * per_epoch, abs=0.013 * highest)
    assert found[5 * per_epoch - 1] == pytest.approx(highest)
    assert found[-1] == pytest.approx(lowest, rel=0.02)


@pytest.mark.parametrize(("file", "steps"), [("gpu", 5_000), ("cpu", 2_000)])
def test_nanogpts_rate(file: str, steps: int) -> None:
    config = recipe(f"language/shakespeare_char_{file}.yaml")
    found = rates(config, steps_per_epoch=config.text.epoch_steps)
    assert len(found) == steps

    def get_lr(it: int) -> float:
        if it < 100:
            return 1e-3 * it / 100
        ratio = (it - 100) / (steps - 100)
        return 1e-4 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (1e-3 - 1e-4)

    for step in (0, 50, 98, 99, 100, 1_000, steps // 2, steps - 1):
        assert found[step] == pytest.approx(get_lr(step + 1), rel=1e-9)


def test_wsd_is_stable_for_four_fifths_then_falls_in_a_line() -> None:
    config = compose([], ["--schedule.name=wsd", "--schedule.unit=steps", "--schedule.warmup=10", "--optim.lr=0.002"])
    config.train.epochs = 10
    found = rates(config, steps_per_epoch=10)
    expected = [0.0002 * s for s in range(1, 11)] + [0.002] * 70
    expected += [0.002 * (0.01 + 0.99 * (20 - s) / 20) for s in range(1, 21)]
    assert found == pytest.approx(expected)


def test_the_decay_of_each_step_is_big_visions() -> None:
    """0.1 here is 0.0001 there, where the decay comes after the rate: adam, x lr, + wd * weight, x schedule, x -1."""
    config = recipe("classify/imagenet_s16_90ep.yaml")
    config.schedule.warmup = 2
    weight = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(weight.weight, 3.0)
    optimizer = make_optimizer(parameter_groups(weight, 0, config.optim), config.optim, fused=False)
    schedule = make_schedule(optimizer, config.schedule, steps=6, steps_per_epoch=6)
    expected, first, second = 3.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -0.2, 0.1, 0.0, 0.3, -0.4), start=1):
        weight.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        schedule.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        update = (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
        scheduled = min(1.0, step / 2) * 0.5 * (1 + math.cos(math.pi * max(0.0, (step - 2) / 4)))
        expected -= scheduled * (0.001 * update + 0.0001 * expected)
        assert weight.weight.item() == pytest.approx(expected, rel=1e-9)


def test_the_sum_over_classes_is_clipped_as_their_mean_is_here() -> None:
    """AugReg's loss is a sum over 1 000 classes, ours a mean: the same steps by a thousandth of clip and eps."""
    config = recipe("classify/imagenet_augreg_s16.yaml").optim
    weights = []
    for scale, clip, eps in ((1.0, 1.0, 1e-8), (0.001, config.clip, config.eps)):
        weight = nn.Linear(2, 2, bias=False).double()
        nn.init.constant_(weight.weight, 1.0)
        config.eps = eps
        optimizer = make_optimizer(parameter_groups(weight, 0, config), config, fused=False)
        for size in (3.0, 0.2, 7.0):  # above and below the clip
            weight.weight.grad = size * scale * torch.tensor([[1.0, -2.0], [0.5, 0.1]], dtype=torch.float64)
            nn.utils.clip_grad_norm_(weight.parameters(), clip)
            optimizer.step()
        weights.append(weight.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-7, atol=0)


def test_layer_decay_is_maes() -> None:
    """MAE's util/lr_decay.py: 0.65 ** (13 - layer) for ViT-B, embeddings being layer 0 and block i layer i + 1."""
    config = recipe("finetune/finetune_imagenet.yaml")
    assert config.optim.lr == pytest.approx(5e-4 * 1024 / 256)
    with torch.device("meta"):
        network = VisionTransformer(ModelConfig(name="B/16", pool="mean").resolve(classes=10, picture_size=224))
    groups = parameter_groups(network, 12, config.optim)
    found = {key: group["lr"] for group in groups for key in group["names"]}
    for key, layer in {"patch_embed.proj.weight": 0, "pos_embed": 0, "blocks.0.attn.qkv.weight": 1}.items():
        assert found[key] == pytest.approx(0.002 * 0.65 ** (13 - layer))
    assert found["blocks.11.mlp.fc2.bias"] == pytest.approx(0.002 * 0.65)
    assert found["head.weight"] == pytest.approx(0.002)
