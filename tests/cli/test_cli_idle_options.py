"""Options and settings that would have no effect are refused, also at their default value."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vit.data.tokenizer import Tokenizer
from vit.models.file import ModelFile, save_model
from vit.models.text import LanguageModel
from vit.models.text_architecture import TextArchitecture


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of two characters."""
    tokenizer = Tokenizer.train(["abab"], "characters", vocabulary=8)
    architecture = TextArchitecture(vocabulary=len(tokenizer), length=8, dim=8, depth=1, heads=1, hidden=8)
    raw = LanguageModel(architecture).state_dict()
    path = tmp_path_factory.mktemp("language") / "model.safetensors"
    save_model(ModelFile("language", asdict(architecture), [], {}, raw, tokenizer=tokenizer.to_json()), path)
    return path


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["caption", "M", "I", "--method", "cross"], "--method: has no effect without --attention"),
        (["caption", "M", "I", "--seed", 0], "--seed: has no effect without sampling"),
        (["caption", "M", "I", "--temperature=0", "--seed=3"], "--seed: has no effect without sampling"),
        (["soup", "A", "B", "--out=o.safetensors", "--split=val"], "--split: has no effect without --data"),
        (["soup", "A", "B", "--out=o.safetensors", "--batch-size=64"], "--batch-size: has no effect without --data"),
        (["soup", "A", "B", "--out=o.safetensors", "--acc", "cpu"], "--accelerator: has no effect without --data"),
        (["attention", "M", "--model-report", "--method=rollout"], "--method: has no effect with --model-report"),
        (
            ["attention", "M", "--model-report", "--max-pixels=9"],
            "--max-pixels: has no effect on a report without images",
        ),
        (["predict", "M", "I", "--csv-raw"], "--csv-raw: has no effect without --format csv"),
    ],
)
def test_options_are_refused_before_anything_is_read(
    words: list[Any], complaint: str, refused: Callable[..., str]
) -> None:
    assert refused(*words, code=2) == f"vit: {complaint}\n"


@pytest.mark.parametrize("option", [["--beams", 4], ["--no-repeat-ngram", 0], ["--java"]])
def test_options_of_other_models_are_refused_at_their_default_too(
    option: list[Any], refused: Callable[..., str], trained_run: Path, colour_folder: Path
) -> None:
    said = refused("evaluate", trained_run, colour_folder, *option, code=2)
    assert said == f"vit: {option[0]}: has no effect on a classifier\n"


@pytest.mark.parametrize("greedy", [["--temperature", 0], ["--beams", 2]])
def test_a_seed_acts_on_sampling_alone(
    greedy: list[Any], vit: Callable[..., Any], refused: Callable[..., str], language: Path
) -> None:
    words = ("generate", language, "--prompt", "a", "--max-length", 2, "--device=cpu")
    assert refused(*words, *greedy, "--seed", 0, code=2) == "vit: --seed: has no effect without sampling\n"
    assert vit(*words, "--seed", 1).code == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["tune.lora_rank=4"], "without tune.method lora, got 4"),
        (["tune.lora_alpha=8", "model.init=M"], "without tune.method lora, got 8.0"),
        (["tune.neighbours=[3]", "model.init=M", "tune.method=probe"], "without tune.method knn, got (3,)"),
        (["tune.probe_epochs=9"], "where no head is fitted: that takes tune.method probe, or model.init with"),
        (["tune.probe_rates=[0.1]", "model.init=M", "tune.probe_first=false"], "where no head is fitted"),
        (["schedule.decay_fraction=0.5"], "without schedule.name wsd, got 0.5"),
        (["augment.policy_ops=3", "augment.policy=trivialaugment"], "without augment.policy randaugment, got 3"),
        (["augment.mix_off_epochs=3"], "without augment.mixup or augment.cutmix, got 3"),
        (["augment.mix_switch=0.3", "augment.mixup=0.8"], "without both augment.mixup and augment.cutmix, got 0.3"),
        (["text.depth=3"], "on task classify, got 3"),
        (["text.tokenizer=bpe"], "on task classify, got 'bpe'"),
        (["text.epoch_steps=3", "task=caption"], "except on task language, got 3"),
        (["text.per_picture=3", "task=translate"], "except on tasks caption and fuse, got 3"),
        (["text.attends=text", "task=caption"], "except on task fuse, got 'text'"),
        (["text.word_dropout=0.3", "task=fuse"], "except on tasks caption, language and translate, got 0.3"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    settings: list[str], reason: str, refused: Callable[..., str]
) -> None:
    said = refused("train", "DATA", "--print-config", *(f"--{setting}" for setting in settings), code=2)
    assert said.startswith(f"vit: {settings[0].partition('=')[0]}: has no effect {reason}")


@pytest.mark.parametrize(
    "settings",
    [
        ["tune.lora_rank=4", "model.init=M", "tune.method=lora"],
        ["tune.neighbours=[3]", "model.init=M", "tune.method=knn"],
        ["tune.probe_epochs=9", "model.init=M"],
        ["tune.probe_epochs=9", "model.init=M", "tune.method=probe", "tune.probe_first=false"],
        ["schedule.decay_fraction=0.5", "schedule.name=wsd"],
        ["augment.policy_ops=3", "augment.policy=randaugment"],
        ["augment.mix_off_epochs=3", "augment.cutmix=1"],
        ["text.epoch_steps=3", "task=language"],
        ["text.attends=text", "task=fuse"],
        ["text.word_dropout=0.3", "task=translate"],
        ["tune.lora_rank=8", "text.per_picture=1"],  # their defaults, as a run's config.yaml holds them
    ],
)
def test_settings_that_act_are_taken(settings: list[str], vit: Callable[..., Any]) -> None:
    assert vit("train", "DATA", "--print-config", *(f"--{setting}" for setting in settings)).code == 0
