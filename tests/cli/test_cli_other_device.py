"""Whole commands on another device than the CPU: they end well there, and say what they say on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vit.data.scenes import make_scenes

SCRIPT = Path(__file__).with_name("other_device.py")
ROOT = SCRIPT.parent.parent.parent
SHAPE = ["--model.depth=1", "--model.dim=32", "--model.heads=2", "--model.hidden=32", "--data.batch_size=8"]
WORDS = ["--text.depth=1", "--text.dim=32", "--text.heads=2", "--text.hidden=32", "--data.workers=0"]


def run_there(folder: Path, *commands: list[object]) -> None:
    """Run commands one after another, in a process of their own: a device cannot be taken back."""
    listed = folder / "commands.json"
    listed.write_text(json.dumps([[str(word) for word in words] for words in commands]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, SCRIPT, listed],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_classifiers(colour_folder: Path, tiny: list[str], vit: Any, tmp_path: Path) -> None:
    tiny = [*tiny, "--train.epochs=1"]
    tuned = ["--model.init=run", "--data.workers=0", "--train.epochs=1"]
    picture = colour_folder / "red" / "00.jpg"
    shutil.copytree(colour_folder, tmp_path / "split" / "val")
    methods = ("raw", "rollout", "gradient-rollout", "generic", "legrad", "grad-cam", "integrated-gradients", "norm")
    run_there(
        tmp_path,
        ["train", colour_folder, *tiny, "--train.ema=0.9", "--augment.mixup=0.2", "--out=run"],
        ["train", colour_folder, *tiny, "--data.cache=device", "--optim.name=muon", "--model.rope=mixed", "--out=muon"],
        ["train", colour_folder, *tiny, "--model.patch_size=4", "--augment.half_size=0.5", "--out=half"],
        ["train", colour_folder, *tuned, "--tune.method=probe", "--out=probe"],
        ["train", colour_folder, *tuned, "--tune.method=knn", "--out=knn"],
        [
            "train",
            colour_folder,
            "--model.init=run",
            "--tune.method=lora",
            *tiny[-1:],
            "--data.workers=0",
            "--out=lora",
        ],
        ["evaluate", "run", colour_folder, "--workers=0"],
        ["predict", "run", colour_folder, "--out=there.jsonl"],
        ["attention", "run", picture, *(f"--method={method}" for method in methods), "--out=maps"],
        ["attention", "run", picture, "--model-report", "--out=report"],
        ["attention", "run", colour_folder, "--explorer=4", "--out=explorer"],
        ["attention", "run", colour_folder, "--score", "--limit=4", "--out=score"],
        ["soup", "run", "lora", "--out=soup.safetensors", "--data=split"],
    )
    assert vit("predict", tmp_path / "run", colour_folder, "--out", tmp_path / "here.jsonl", "--device=cpu").code == 0
    there, here = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("there", "here")
    )
    assert len(there) == 36
    assert there == here


def test_words(vit: Any, tmp_path: Path) -> None:
    make_scenes(tmp_path / "scenes", count=24, seed=0, side=48)
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 60)
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcdefgh" for b in "abcd"))
    eyes = ["--model.name=micro/8", "--model.image_size=48", *SHAPE, *WORDS]
    picture = "scenes/images/val-000000.png"
    letters = ["--text.tokenizer=characters", "--text.length=16", "--text.epoch_steps=4"]
    small = ["--train.epochs=1", "--data.batch_size=8", *WORDS]
    run_there(
        tmp_path,
        ["train", "scenes", "--task=caption", "--train.epochs=2", "--text.reward_epochs=1", *eyes, "--out=captioner"],
        ["train", "scenes/questions.csv", "--task=fuse", "--train.epochs=1", *eyes, "--out=fused"],
        ["train", "text.txt", "--task=language", *letters, *small, "--out=language"],
        ["train", "pairs.tsv", "--task=translate", *small, "--out=translator"],
        ["caption", "captioner", picture, "--beams=3", "--attention=maps", "--out=there.jsonl"],
        ["caption", "captioner", picture, "--prompt=a", "--method=generic", "--attention=more", "--out=more.jsonl"],
        ["caption", "captioner", picture, "--sample", "--n-best=2", "--out=drawn.jsonl"],
        ["evaluate", "captioner", "scenes", "--split=val", "--no-repeat-ngram=3"],
        ["predict", "fused", picture, "--text=what colour is the square?", "--out=fused.jsonl"],
        ["evaluate", "fused", "scenes/questions.csv"],
        ["generate", "language", "--prompt=the ", "--max-length=12", "--sample", "--top-k=3"],
        ["evaluate", "language", "text.txt"],
        ["embed", "language", "--nearest=a"],
        ["generate", "translator", "--prompt=ab", "--beams=2"],
        ["evaluate", "translator", "pairs.tsv"],
    )
    words = ["caption", tmp_path / "captioner", tmp_path / picture, "--beams=3", "--device=cpu"]
    assert vit(*words, "--out", tmp_path / "here.jsonl").code == 0
    there, here = (
        json.loads((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[0])
        for name in ("there", "here")
    )
    assert there["caption"] == here["caption"]
    assert there["tokens"] == here["tokens"]
