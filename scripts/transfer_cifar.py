"""What transfer is worth: weights pretrained on five classes of CIFAR-10, fine-tuned on few pictures of the other five.

    python scripts/transfer_cifar.py CIFAR10 [--per-class 20] [--seeds 3] [--pretrained RUN] [--epochs 12]

CIFAR10 is the folder with `train/CLASS` and `test/CLASS`. The first five classes by name pretrain a model
(configs/classify/cifar10_small.yaml); of the other five, 20 pictures a class train and 20 choose the epoch, drawn anew
for each seed; their 5 000 test pictures are asked once at the end. `--per-class 5000` uses all of them, for a GPU.
"""

import argparse
import csv
import json
import os
import random
import statistics
import tempfile
from pathlib import Path

from vit.cli.main import main as vit

CONFIG = str(Path(__file__).parent.parent / "configs" / "classify" / "cifar10_small.yaml")
SMALL = ["--data.batch_size=20", "--augment.crop=pad", "--train.epochs={epochs}"]
COPIES = 10
WAYS = {
    "from scratch": ["--model.name=micro/4", "--model.image_size=32", "--model.pool=mean", *SMALL],
    "nearest neighbours": ["--model.init={init}", "--tune.method=knn"],
    "linear probe": ["--model.init={init}", "--tune.method=probe"],
    "full, new head": ["--model.init={init}", "--tune.probe_first=false", "--optim.layer_decay=1", *SMALL],
    "full, new head, layer decay": ["--model.init={init}", "--tune.probe_first=false", *SMALL],
    "probe, then full": ["--model.init={init}", "--optim.layer_decay=1", *SMALL],
    "probe, then full, layer decay": ["--model.init={init}", *SMALL],
    "probe, then LoRA": ["--model.init={init}", "--tune.method=lora", *SMALL],
}


def few_shot(cifar: Path, target: Path, classes: list[str], per_class: int, copies: int, seed: int) -> None:
    """A list of the pictures of `classes`, the training ones `copies` times, so that an epoch is long enough."""
    rows = []
    for name in classes:
        names = sorted(os.listdir(cifar / "train" / name))
        random.Random(f"{seed} {name}").shuffle(names)
        held_out = min(per_class, len(names) // 10)
        shots = min(per_class, len(names) - held_out)
        rows += [(cifar / "train" / name / file, name, "train") for file in names[:shots]] * copies
        rows += [(cifar / "train" / name / file, name, "val") for file in names[shots : shots + held_out]]
        rows += [(cifar / "test" / name / file, name, "test") for file in sorted(os.listdir(cifar / "test" / name))]
    with target.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])


def run(*words: str) -> None:
    code = vit(list(words))
    assert code == 0, words


def accuracy(way: str, options: list[str], data: Path, out: Path, seed: int) -> float:
    """Of the test pictures, by the model of the best epoch."""
    run("train", str(data), f"--out={out}", f"--train.seed={seed}", *options)
    if way == "nearest neighbours":
        rows = [line.split(",") for line in (out / "knn.csv").read_text().splitlines()]
        best = max(rows[1:], key=lambda row: float(row[1]))  # chosen on val
        return float(best[2])
    run("evaluate", str(out), str(data), "--split=test", f"--out={out}/test", "--batch-size=250")
    return float(json.loads((out / "test" / "metrics.json").read_text())["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrained", help="a run on the first five classes; made first where it is left out")
    parser.add_argument("--pretraining-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning, each with every picture ten times")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    classes = sorted(os.listdir(options.cifar / "train"))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        work = Path(folder)
        pretrained = options.pretrained or f"{folder}/pretrained"
        if options.pretrained is None:
            (work / "five").mkdir()
            for name in classes[:5]:
                (work / "five" / name).symlink_to((options.cifar / "train" / name).absolute())
            epochs = f"--train.epochs={options.pretraining_epochs}"
            run("train", f"{folder}/five", f"--config={CONFIG}", f"--out={pretrained}", epochs)
        found: dict[str, list[float]] = {way: [] for way in options.ways}
        for seed in range(options.seeds):
            lists = {copies: work / f"few{seed}x{copies}.csv" for copies in (1, COPIES)}
            for copies, path in lists.items():
                few_shot(options.cifar.absolute(), path, classes[5:], options.per_class, copies, seed)
            for way in options.ways:
                data = lists[COPIES if "--train.epochs={epochs}" in WAYS[way] else 1]
                words = [word.format(init=pretrained, epochs=options.epochs) for word in WAYS[way]]
                found[way].append(accuracy(way, words, data, work / f"{seed} {way}", seed))
    print(f"\naccuracy in % of the test pictures of {', '.join(classes[5:])}")
    print(f"{options.per_class} training pictures a class, {options.epochs} epochs of ten times each; mean (each seed)")
    for way, values in found.items():
        shown = ", ".join(f"{100 * value:.1f}" for value in values)
        print(f"{way:32} {100 * statistics.mean(values):5.1f}   ({shown})")


if __name__ == "__main__":
    main()
