"""What can be asked for: the options of every command, held here so that adding one is a deliberate act, and help."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vit.cli import attention, caption, data, embed, evaluate, export, generate, models, predict, soup
from vit.cli.config import leaf_keys

ROOT = Path(__file__).parent.parent.parent

KEYS = """
task
data.batch_size data.workers data.timeout data.val_fraction data.test_fraction data.group_duplicates data.resize
data.crop_fraction
data.interpolation
data.mean data.std data.balanced data.repeats data.max_pixels data.cache data.cache_side
augment.crop augment.crop_scale augment.crop_ratio augment.flip augment.vertical_flip augment.color_jitter
augment.policy augment.policy_ops augment.policy_magnitude augment.erase augment.mixup augment.cutmix
augment.mix_probability augment.mix_switch augment.mix_off_epochs augment.half_size
model.name model.image_size model.patch_size model.dim model.depth model.heads model.hidden model.class_token
model.registers model.positions model.rope model.pool model.mlp model.activation model.norm model.patch_norm
model.qk_norm model.layer_scale model.dropout model.attention_dropout model.drop_path model.patch_dropout
model.head_bias model.init
optim.name optim.lr optim.lr_base_batch optim.weight_decay optim.betas optim.eps optim.layer_decay optim.clip
schedule.name schedule.unit schedule.warmup schedule.final schedule.decay_fraction
loss.name loss.smoothing loss.whole loss.class_weights
train.epochs train.seed train.accelerator train.devices train.nodes train.strategy train.precision train.compile
train.accumulate train.checkpointing train.ema train.monitor train.patience train.validate_every train.save_minutes
train.save_steps train.keep train.on_nan train.nan_limit train.on_memory
tune.method tune.probe_first tune.freeze tune.unfreeze_after tune.lora_rank tune.lora_alpha tune.probe_rates
tune.probe_epochs tune.neighbours
text.tokenizer text.vocabulary text.length text.dim text.depth text.heads text.hidden text.positions text.rope
text.dropout text.word_dropout text.init text.per_picture text.freeze_encoder text.epoch_steps text.reward_epochs
text.fusion_depth text.attends text.drop_side
"""

GENERATION = (
    "--beams --n-best --sample --temperature --top-k --top-p --min-p --length-penalty --early-stopping "
    "--repetition-penalty --no-repeat-ngram --min-length --max-length --seed"
)
OPTIONS = {
    "evaluate": "MODEL DATA --out --split --weights --batch-size --workers "
    "--accelerator --devices --beams --no-repeat-ngram --java --csv-raw --precision --max-pixels",
    "predict": "MODEL PATH --text --top --format --csv-raw --out --batch-size --weights --max-pixels --device",
    "data check": "DATA --json --html --list --max-pixels",
    "data preview": "DATA --config --out --epoch",
    "data pack": "DATA --config",
    "data shard": "DATA --config --out --format --megabytes",
    "data make digits": "OUT",
    "data make scenes": "OUT --count --seed --size --simple",
    "data make dates": "OUT --count --seed",
    "attention": "MODEL IMAGE --method --layer --head --query --fusion --discard --class --compare --explorer "
    "--score --limit --model-report --out --weights --max-pixels --device",
    "caption": f"MODEL IMAGE --prompt {GENERATION} --out --attention --method --batch-size --weights --max-pixels "
    "--device",
    "generate": f"MODEL --prompt {GENERATION} --weights --device",
    "embed": "MODEL --nearest --analogy --top --weights",
    "models": "PATTERN",
    "export": "MODEL --format --out --weights",
    "soup": "MODEL --data --split --out --batch-size --workers --accelerator",
}
MAINS = {
    module.__name__.rpartition(".")[2]: module
    for module in (attention, caption, data, embed, evaluate, export, generate, models, predict, soup)
}

COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "data check",
    "data preview",
    "data pack",
    "data shard",
    "data make digits",
    "data make scenes",
    "models",
    "export",
    "soup",
    "attention",
    "caption",
    "generate",
    "embed",
]


def test_the_keys_of_a_configuration_are_these() -> None:
    assert leaf_keys() == KEYS.split()


class Parsed(Exception):
    """Carries the parser of a command out of it."""


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_command_are_these(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def catch(self: argparse.ArgumentParser, *_: object) -> None:
        raise Parsed(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
    name, *below = command.split()
    with pytest.raises(Parsed) as caught:
        MAINS[name].main([])
    parser = caught.value.args[0]
    for word in below:
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[word]
    found = [a.option_strings[-1] if a.option_strings else a.metavar for a in parser._actions]
    assert found == ["--help", *OPTIONS[command].split()]


def test_the_options_of_train_beside_the_keys_are_these(vit: Any) -> None:
    usage = vit("train", "--help").out.partition("Settings, with their defaults:")[0]
    found = sorted({word.strip("[],;.") for word in usage.split() if word.strip("[").startswith("--")})
    assert found == ["--config", "--out", "--part.key", "--print-config", "--resume", "--task"]


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_names_every_command_and_the_exit_codes(vit: Any, words: list[str]) -> None:
    outcome = vit(*words)
    assert (outcome.code, outcome.err) == (0, "")
    for command in COMMANDS:
        assert f"\n  vit {command}" in outcome.out
    for code in ("0 done", "1 failed", "2 wrong usage", "130 interrupted", "143 terminated", "--debug"):
        assert code in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 120


def test_train_help_names_every_key_once_with_its_default(vit: Any) -> None:
    outcome = vit("train", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    settings = outcome.out.partition("Settings, with their defaults:")[2]
    listed = [line.split()[0] for line in settings.splitlines() if line.lstrip().startswith("--")]
    assert listed == [f"--{key}" for key in leaf_keys()]
    told = " ".join(settings.split())
    assert "default: 0.05" in told
    assert "highest learning rate; null takes 0.001 from scratch" in told


@pytest.mark.parametrize("command", [*OPTIONS, "data", "data make"])
def test_help_of_a_command_names_what_it_takes(vit: Any, command: str) -> None:
    outcome = vit(*command.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"usage: vit {command} ")
    for word in OPTIONS.get(command, "").split():
        assert word in outcome.out


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["micro", "mini", "lite", "Ti", "S", "B", "L", "H", "So400m"]),
        ("m*", ["micro", "mini"]),
        ("b", ["B"]),
        ("S*", ["S", "So400m"]),
    ],
)
def test_models_lists_the_sizes_that_match(vit: Any, pattern: str, names: list[str]) -> None:
    outcome = vit("models", pattern)
    assert outcome.code == 0
    table = outcome.out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table] == ["size", *names]


def test_models_states_the_parameters_of_the_blocks(vit: Any) -> None:
    import torch

    from vit.models.architecture import ModelConfig
    from vit.models.vision import VisionTransformer

    with torch.device("meta"):
        network = VisionTransformer(ModelConfig(name="B/16").resolve(classes=0, picture_size=224))
    millions = sum(p.numel() for p in network.blocks.parameters()) / 1e6
    assert f" {millions:.1f} M" in vit("models", "B").out


HEAVY = ["torch", "lightning", "timm", "numpy", "PIL", "albumentations", "torchvision"]


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], [*HEAVY, "jsonargparse", "yaml"]),
        (["--version"], HEAVY),
        (["train", "--help"], ["torch", "lightning", "timm", "albumentations"]),
        (["train", "DATA", "--print-config"], ["torch", "lightning", "timm", "albumentations"]),
        (["evaluate", "--help"], ["torch", "lightning", "timm", "albumentations"]),
        (["predict", "--help"], ["torch", "lightning", "timm", "albumentations"]),
        (["data", "--help"], ["torch", "lightning", "timm", "albumentations"]),
        (["models"], HEAVY),
    ],
    ids=" ".join,
)
def test_what_needs_no_model_answers_without_heavy_imports(words: list[str], absent: list[str]) -> None:
    code = (
        "import json, sys\nfrom vit.cli.main import main\ntry: main(sys.argv[1:])\n"
        "except SystemExit: pass\nprint('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=environment
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "vit" in loaded
    assert [name for name in absent if name in loaded] == []
