"""Fuzz the command line with mutated input files, each in a forked process under memory and time limits.

    python tests/cli/fuzz.py [--kinds model,checkpoint,config,split,tar] [--count 300] [--seed 0] [--keep DIR]

A mutation passes where the command succeeds, or fails with one clean message and a documented exit code. A traceback,
an internal error, a hang, a raw control character or more than 2 GB of memory is a failure. Mutation N of a kind is a
function of (seed, kind, N): `--only N` repeats it. Prints a JSON summary; the exit code is 1 where anything failed.
"""

import argparse
import contextlib
import copy
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MEMORY = 2 << 30
"""bytes that a command may allocate on top of the imported libraries"""
SECONDS = 30
"""CPU seconds a command may take"""
TINY = ["--model.name=micro/8", "--model.image_size=16", "--model.dim=16", "--model.depth=1", "--model.heads=2"]
TINY += ["--model.hidden=16", "--data.workers=0", "--train.accelerator=cpu", "--train.epochs=1", "--data.batch_size=8"]
TEXT = ["--text.dim=16", "--text.depth=1", "--text.heads=2", "--text.hidden=16"]

Command = list[str]
Mutation = Callable[[random.Random, Path], list[Command]]


class Verdict(NamedTuple):
    """What a command did: exit code, or minus the signal; and why that is a failure, "" where it is not."""

    code: int
    fault: str
    err: str


# Values


ABSURD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        2**31,
        2**63,
        10**30,
        -(10**30),
        0.5,
        -1e308,
        1e308,
        math.nan,
        math.inf,
        "",
        "x",
        "x" * 5000,
    ),
    *(
        "\x1b[31mred\x1b[0m",
        "a\nb\r\x07",
        "\u202e\u009b2J",
        "../../x",
        "\ud800",
        [],
        {},
        [[]],
        {"a": {"b": []}},
        [0] * 3000,
    ),
    *(10**9, 65536, 100_000, [10**6, 10**6], [-1, -1], [0, 0], ["a", "b"], "timm:x", "nan", "\0"),
)


def mutate_value(rng: random.Random, value: Any) -> Any:
    """Return a copy of nested dicts and lists with one to three entries replaced, removed, added or swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(ABSURD)
        holder, key = rng.choice(places)
        action = rng.randrange(8)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice(("extra", "\x1b[2J", "", "dim", "x" * 300))] = rng.choice(ABSURD)
        elif action == 2:
            holder[key] = str(holder[key])
        elif action == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * rng.choice((-1, 2, 3, 1000, 10**9)) + rng.choice((0, 1, 0.5))
        elif action == 4:
            other, name = rng.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = copy.deepcopy(rng.choice(ABSURD))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (holder, key) of nested dicts and lists."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip bits, cut, insert, repeat or overwrite a piece of a file."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 64, 1000))
        action = rng.randrange(6)
        if action == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif action == 1:
            del data[at:]
        elif action == 2:
            data[at:at] = rng.randbytes(length)
        elif action == 3:
            del data[at : at + length]
        elif action == 4:
            data[at : at + length] = rng.choice((b"\0", b"\xff", b"9", b"\n", b"\x1b")) * length
        else:
            data[at:at] = data[at : at + length] * rng.choice((1, 3))
    return bytes(data)


def mutate_tensors(rng: random.Random, tensors: dict[str, Any]) -> None:
    """Remove, rename, add, reshape, retype or spoil tensors."""
    import torch

    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(tensors) or [""])
        action = rng.randrange(8)
        if action == 0 or not tensors:
            tensors[rng.choice(("extra", "\x1b[31m", "ema.extra", "network.extra", "x" * 2000))] = torch.zeros(3)
        elif action == 1:
            del tensors[name]
        elif action == 2:
            tensors[rng.choice((name + "\x1b[2J", "ema." + name, name.upper()))] = tensors.pop(name)
        elif not isinstance(tensors[name], torch.Tensor):
            tensors[name] = rng.choice(ABSURD)
        elif action == 3:
            tensors[name] = torch.zeros(rng.choice(((), (0,), (1,), (7, 5), (2, 3, 4, 5))))
        elif action == 4:
            kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.uint8)
            tensors[name] = tensors[name].to(rng.choice(kinds))
        elif action == 5:
            tensors[name] = torch.full_like(tensors[name], rng.choice((math.nan, math.inf, 1e30, -1e38, 0)))
        elif action == 6 and tensors[name].dim():
            tensors[name] = torch.cat([tensors[name]] * 2).contiguous()
        else:
            tensors[name] = tensors[name].double().mul(rng.choice((1e30, 1e-30, 1e20))).to(tensors[name].dtype)


# Kinds of files


def build(root: Path) -> None:
    """Write the valid files that are mutated: two runs, a set of tars, and the data they were made from."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / "data" / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "data" / name / f"{number}.png")
    (root / "captioned").mkdir()
    for number in range(10):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "captioned" / f"{number}.png")
        (root / "captioned" / f"{number}.txt").write_text(f"a {'red' if number % 2 else 'blue'} thing\n")
    (root / "book.txt").write_text("the cat sat on the mat. " * 60)
    text = ["--task=language", "--text.tokenizer=characters", "--text.length=16", "--text.epoch_steps=4"]
    for words in (
        ["train", root / "data", *TINY, "--train.ema=0.9", "--out", root / "classifier"],
        ["train", root / "captioned", "--task=caption", *TINY, *TEXT, "--out", root / "captioner"],
        ["train", root / "book.txt", *text, *TEXT, *TINY[5:], "--out", root / "writer"],
        ["data", "shard", root / "data", "--format", "webdataset", "--out", root / "tars", "--data.workers=1"],
    ):
        subprocess.run(
            [sys.executable, "-m", "vit.cli", *map(str, words)], check=True, stdout=subprocess.DEVNULL, timeout=600
        )


class Fuzzer:
    """Makes mutation N of a kind below `folder` from the valid files in `root`."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def mutate(self, kind: str, seed: int, number: int) -> Command:
        rng = random.Random(f"{seed} {kind} {number}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        words: list[str | Path] = getattr(self, kind)(rng)
        return [str(word) for word in words]

    def _use(self, rng: random.Random, run: str, model: Path) -> list[str | Path]:
        image, out = self.root / "data" / "cat" / "0.png", self.folder / "out"
        if run == "classifier":
            return rng.choice(
                (
                    ["predict", model, image, "--top", "5"],
                    ["predict", model, image, "--weights", "raw", "--format", "csv"],
                    ["evaluate", model, self.root / "data", "--out", out],
                    ["attention", model, image, "--out", out],
                    ["export", model, "--format", "timm", "--out", out],
                    ["soup", model, self.root / "classifier" / "model.safetensors", "--out", out],
                )
            )
        if run == "captioner":
            return rng.choice(
                (
                    ["caption", model, image],
                    ["embed", model, "--nearest", "red"],
                    ["caption", model, image, "--beams", "3"],
                )
            )
        return rng.choice((["generate", model, "--prompt", "the"], ["embed", model, "--nearest", "a"]))

    def model(self, rng: random.Random) -> list[str | Path]:
        """A model file: raw bytes, or header and tensors with a valid checksum."""
        from safetensors import safe_open

        from vit.models import file as files

        run = rng.choice(("classifier", "classifier", "captioner", "writer"))
        source, target = self.root / run / "model.safetensors", self.folder / "model.safetensors"
        if rng.random() < 0.25:
            target.write_bytes(mutate_bytes(rng, source.read_bytes()))
            return self._use(rng, run, target)
        with safe_open(source, framework="pt") as opened:
            header = json.loads(opened.metadata()["vit"])
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        if rng.random() < 0.75:
            header = mutate_header(rng, header)
        else:
            mutate_tensors(rng, tensors)
        text = header if isinstance(header, str) else json.dumps(header, sort_keys=True)
        metadata = {"vit": text, "sha256": files._checksum(text, tensors)}
        files.save_file(tensors, target, metadata=metadata)
        return self._use(rng, run, target)

    def checkpoint(self, rng: random.Random) -> list[str | Path]:
        """A checkpoint: used as a model, or resumed from, with the other files of its run mutated as well."""
        import torch

        from vit.models.file import seal

        run = rng.choice(("classifier", "captioner"))
        copied = self.folder / "run"
        shutil.copytree(self.root / run, copied, ignore=shutil.ignore_patterns("tensorboard", "model.safetensors"))
        target = copied / "checkpoints" / "last.ckpt"
        choice = rng.random()
        if choice < 0.2:
            target.write_bytes(mutate_bytes(rng, target.read_bytes()))
        elif choice < 0.8:
            state = torch.load(target, weights_only=True)
            part = rng.choice(("vit", "state_dict", "loops", "callbacks", "optimizer_states", "all"))
            if part == "state_dict":
                mutate_tensors(rng, state["state_dict"])
            elif part == "all":
                key = rng.choice(list(state))
                state[key] = rng.choice((None, 1, "x", [], {}))
            else:
                state[part] = mutate_value(rng, state[part])
            with contextlib.suppress(RuntimeError):
                torch.save(state, target)
            seal(target)
        else:
            names = (
                ["classes.json", "split.csv", "config.yaml"] if run == "classifier" else ["data.json", "tokenizer.json"]
            )
            name = copied / rng.choice([*names, "metrics.csv"])
            if name.suffix == ".json" and rng.random() < 0.7:
                name.write_text(json.dumps(mutate_value(rng, json.loads(name.read_text()))))
            else:
                name.write_bytes(mutate_bytes(rng, name.read_bytes()))
        if choice >= 0.8 or rng.random() < 0.5:
            return ["train", "--out", copied, "--resume", "--train.epochs=2"]
        return self._use(rng, run, target)

    def config(self, rng: random.Random) -> list[str | Path]:
        """A configuration file with every key."""
        import yaml

        source, target = self.root / "classifier" / "config.yaml", self.folder / "config.yaml"
        text, choice = source.read_text(encoding="utf-8"), rng.random()
        if choice < 0.3:
            target.write_bytes(mutate_bytes(rng, text.encode()))
        elif choice < 0.9:
            value = mutate_value(rng, yaml.safe_load(text))
            with contextlib.suppress(UnicodeEncodeError):
                target.write_text(yaml.safe_dump(value, allow_unicode=rng.random() < 0.5), encoding="utf-8")
            if not target.exists():
                target.write_text(json.dumps(value))
        else:
            key = rng.choice(("lr: ", "seed: ", "betas: "))
            nested = "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i},' * 9}*a{i}]\n" for i in range(9))
            absurd = rng.choice(("[" * 50000, "&a [*a]", "!!python/object:os.system [x]", "1" * 100000, "'\\x1b[2J'"))
            target.write_text("a0: &a0 x\n" + nested if rng.random() < 0.3 else f"optim:\n  {key}{absurd}\n")
        show = rng.random() < 0.7
        if show:
            return ["train", self.root / "data", "--config", target, "--print-config"]
        return ["data", "preview", self.root / "data", "--config", target, "--out", self.folder / "preview.png"]

    def split(self, rng: random.Random) -> list[str | Path]:
        """A list of labeled images: the split.csv of a run, or the same as .jsonl."""
        source = self.root / "classifier" / "split.csv"
        lines = source.read_text(encoding="utf-8").split("\n")
        if rng.random() < 0.5:
            target = self.folder / "split.csv"
            if rng.random() < 0.5:
                target.write_bytes(mutate_bytes(rng, "\n".join(lines).encode()))
            else:
                rows = [line.split(",") for line in lines]
                for _ in range(rng.choice((1, 2, 5))):
                    row = rng.choice(rows)
                    row[rng.randrange(len(row))] = str(rng.choice(ABSURD)).encode("utf-8", "replace").decode()
                target.write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
        else:
            target = self.folder / "split.jsonl"
            names = lines[0].strip().split(",")
            records = [dict(zip(names, line.strip().split(","), strict=True)) for line in lines[1:] if line.strip()]
            text = "\n".join(json.dumps(record) for record in mutate_value(rng, records))
            target.write_bytes(mutate_bytes(rng, text.encode()) if rng.random() < 0.3 else text.encode())
        if rng.random() < 0.2:
            return ["train", target, *TINY, "--out", self.folder / "run"]
        if rng.random() < 0.5:
            return rng.choice((["predict", self.root / "classifier", target], ["data", "check", target]))
        return [
            "evaluate",
            self.root / "classifier",
            target,
            "--split",
            rng.choice(("val", "train")),
            "--out",
            self.folder / "out",
        ]

    def tar(self, rng: random.Random) -> list[str | Path]:
        """A tar of a WebDataset: raw bytes, or members renamed, repeated, emptied, or with absurd headers."""
        shutil.copytree(self.root / "tars", self.folder / "tars")
        target = rng.choice(sorted((self.folder / "tars").rglob("*.tar")))
        if rng.random() < 0.5:
            target.write_bytes(mutate_bytes(rng, target.read_bytes()))
        else:
            with tarfile.open(target) as opened:
                members = [(info, opened.extractfile(info).read()) for info in opened if info.isfile()]  # type: ignore[union-attr]
            with tarfile.open(target, "w") as made:
                for info, content in members:
                    self._member(rng, made, info, content)
        tars = self.folder / "tars"
        if rng.random() < 0.2:
            return ["train", tars, *TINY, "--out", self.folder / "run"]
        return rng.choice(
            (
                ["evaluate", self.root / "classifier", tars, "--out", self.folder / "out"],
                ["data", "check", tars],
                ["predict", self.root / "classifier", f"{target}#0+{rng.choice((100, 10**13, -1))}"],
            )
        )

    def _member(self, rng: random.Random, made: tarfile.TarFile, info: tarfile.TarInfo, content: bytes) -> None:
        if rng.random() < 0.2:
            name = rng.choice(
                ("x.png", "x.seg.png", "a/../b.cls", "\x1b[2J.png", ".png", "x", "0.json", "x.cls", "y" * 300 + ".png")
            )
            info = tarfile.TarInfo(name)
        if rng.random() < 0.15:
            content = rng.choice(
                (b"", b"[" * 500_000, b'{"a":', b"\xff\xfe", rng.randbytes(200), b"\x1b[31m", b"9" * 400)
            )
        info.size = len(content)
        if rng.random() < 0.1:
            info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"S", b"Z"))
            info.linkname = rng.choice(("x.png", "../../../x", ""))
        if rng.random() < 0.1:
            info.pax_headers = {
                rng.choice(("GNU.sparse.size", "size", "path", "GNU.sparse.realsize")): rng.choice(
                    ("1125899906842624", "-1", "x", "\x1b")
                )
            }
        made.addfile(info, io.BytesIO(content))


def mutate_header(rng: random.Random, header: dict[str, Any]) -> Any:
    """A header with wrong fields, or what is no header at all."""
    if rng.random() < 0.05:
        return rng.choice(("[" * 100_000, "", "null", "[]", "{", '{"format": 1}', "\x1b[2J"))
    if rng.random() < 0.3 and isinstance(header.get("tokenizer"), str):
        tokenizer = mutate_value(rng, json.loads(header["tokenizer"]))
        return {**header, "tokenizer": json.dumps(tokenizer)}
    key = rng.choice(("all", "architecture", "architecture", "preprocessing"))
    return mutate_value(rng, header) if key == "all" else {**header, key: mutate_value(rng, header[key])}


# Running


def run(words: Command, folder: Path) -> Verdict:
    """Run `vit` with words in a forked process, and judge how it ended."""
    folder.mkdir(exist_ok=True)
    out, err = folder / "stdout", folder / "stderr"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            for path, number in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            resource.setrlimit(resource.RLIMIT_DATA, (_data_size() + 2 * MEMORY,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(20 * SECONDS)
            from vit.cli.main import main

            try:
                code = main(words)
            except SystemExit as end:
                code = int(end.code or 0)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    grown = usage.ru_maxrss * 1024 - _resident()
    said, text = (path.read_bytes().decode("utf-8", "surrogateescape") for path in (out, err))
    return Verdict(code, _fault(code, said, text, grown, time.monotonic() - started), text[-2000:])


def _fault(code: int, out: str, err: str, grown: int, seconds: float) -> str:
    if code < 0:
        return f"ended by signal {-code} after {seconds:.0f} s"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if grown > MEMORY:
        return f"took {grown >> 20} MiB"
    for mark in ("Traceback", "internal error", "Error:", "Warning:", "out of memory"):
        if mark in err + out:
            return mark
    raw = {c for c in err + out if not (c.isprintable() or c in "\n\t\r")}
    if raw and not out.startswith("{"):
        return f"control characters {sorted(raw)!r}"
    if code and "vit: " not in err and "must be mended" not in out:
        return "no message"
    messages = [line for line in err.split("\n") if line.startswith("vit: ")]
    return "a message longer than 2,500 characters" if any(len(line) > 2500 for line in messages) else ""


def _data_size() -> int:
    """Bytes of this process that RLIMIT_DATA counts."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmData"))


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


MODULES = """
vit.cli.main vit.cli.predict vit.cli.evaluate vit.cli.attention vit.cli.export vit.cli.soup vit.cli.caption
vit.cli.generate vit.cli.embed vit.cli.train vit.cli.train_words vit.cli.data vit.cli.data_pictures vit.writers
vit.tasks.run vit.tasks.tune vit.tasks.words vit.explain.maps vit.data.check vit.evaluate.plots
lightning timm albumentations matplotlib.pyplot torch._dynamo
"""

KINDS = ("model", "checkpoint", "config", "split", "tar")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--count", type=int, default=300, help="mutations per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this mutation alone")
    parser.add_argument("--files", type=Path, help="keep the valid files in this folder, or take those that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.files or Path(scratch, "files")).absolute()
        if not root.is_dir():
            build(root)
        _import()
        fuzzer, failures = Fuzzer(root, Path(scratch, "mutated")), []
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in options.kinds.split(",")}
        for kind in counts:
            for number in range(options.count) if options.only is None else [options.only]:
                words = fuzzer.mutate(kind, options.seed, number)
                verdict = run(words, fuzzer.folder)
                counts[kind][f"exit {verdict.code}" if not verdict.fault else "failed"] += 1
                if verdict.fault:
                    failures.append({"kind": kind, "number": number, "words": words, **verdict._asdict()})
                    print(json.dumps(failures[-1]), file=sys.stderr, flush=True)
                elif options.only is not None:
                    print(verdict, file=sys.stderr)
    print(json.dumps({"counts": counts, "failures": failures}))
    return 1 if failures else 0


def _import() -> None:
    """Import once what commands import, so that a forked process starts at once; threads would not survive the fork."""
    import importlib

    import torch

    torch.set_num_threads(1)
    for name in MODULES.split():
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
