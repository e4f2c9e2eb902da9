"""METEOR and SPICE from their authors' Java programs, which an installed pycocoevalcap brings along; nothing is ours.

No letters: this file knows strings and numbers only.
"""

import importlib.util
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Generic

from vit.errors import ConfigError, VitError
from vit.evaluate.captions import Id, check_captions
from vit.evaluate.ptb import ptb_tokens
from vit.files import dump_json

_SEPARATOR = " ||| "  # no token holds it: the tokenizer takes bars one by one


@dataclass(frozen=True, eq=False)
class JavaScores(Generic[Id]):
    """The metric of the whole set, and of each picture: METEOR's is of their statistics summed up, SPICE's the mean."""

    score: float
    pictures: dict[Id, float] = field(repr=False)


def java_scores(
    metric: str, candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]], *, time_limit: float = 600
) -> JavaScores[Id]:
    """`metric` "meteor": METEOR 1.5 (Denkowski & Lavie 2014) with its paraphrases; "spice": SPICE 1.0 (Anderson et al.
    2016), F of the scene graphs. Both as coco-caption runs them.

    The program starts in a process of its own and is stopped after `time_limit` seconds; METEOR of a thousand pictures
    takes some twenty. The captions are tokenized by `ptb_tokens`. SPICE needs a parser that pycocoevalcap comes
    without, stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar in its folder spice/lib: the package's
    own spice.Spice() downloads them.

    Raises ConfigError where Java, pycocoevalcap or the parser is missing; DataError as `caption_scores`; VitError where
    the program fails or takes longer than the limit.
    """
    if metric not in ("meteor", "spice"):
        raise ConfigError(f"no Java metric is called {metric!r}: there are meteor and spice")
    check_captions(candidates, references)
    if metric == "spice":
        single = _spice(
            [(_line(caption), [*map(_line, references[i])]) for i, caption in candidates.items()], time_limit
        )
        total = sum(single) / len(single)
    else:
        scored = [
            _SEPARATOR.join(["SCORE", *map(_line, references[i]), _line(caption)]) for i, caption in candidates.items()
        ]
        total, single = _meteor(scored, time_limit)
    return JavaScores(total, dict(zip(candidates, single, strict=True)))


def check_java(metric: str) -> None:
    """Raise ConfigError where Java or pycocoevalcap is missing, without which there is no `metric`."""
    _java(metric)
    _jar(metric, "meteor/meteor-1.5.jar")


def _spice(asked: Sequence[tuple[str, Sequence[str]]], time_limit: float) -> list[float]:
    """The score of each caption against its references, by a file of questions and one of answers."""
    java, jar = _java("SPICE"), _jar("SPICE", "spice/spice-1.0.jar")
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        if not (jar.parent / "lib" / name).is_file():
            raise ConfigError(f"SPICE needs {name} in {jar.parent / 'lib'}; pycocoevalcap's own spice.Spice() gets it")
    with tempfile.TemporaryDirectory() as folder:
        questions, answers, cache = (Path(folder, name) for name in ("asked.json", "told.json", "cache"))
        cache.mkdir()
        entries = [{"image_id": n, "test": caption, "refs": known} for n, (caption, known) in enumerate(asked)]
        questions.write_text(dump_json(entries), encoding="utf-8")
        command = [java, "-Xmx8G", "-jar", jar.name, questions, "-cache", cache, "-out", answers, "-subset", "-silent"]
        try:
            done = subprocess.run(
                [*map(str, command)], cwd=jar.parent, capture_output=True, text=True, timeout=time_limit, check=False
            )
            told = json.loads(answers.read_text(encoding="utf-8"))
            found = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in told}
            return [found[n] for n in range(len(asked))]
        except subprocess.TimeoutExpired as error:
            raise VitError(f"SPICE was stopped: it took longer than {time_limit:g} seconds") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), str(error))
            raise VitError(f"SPICE failed: {said}\nIts program: {jar}") from error


def _meteor(scored: Sequence[str], time_limit: float) -> tuple[float, list[float]]:
    """The score of the set, and of each of the pictures whose questions are `scored`."""
    java, jar = _java("METEOR"), _jar("METEOR", "meteor/meteor-1.5.jar")
    command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    late = threading.Event()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            command,
            cwd=jar.parent,  # it looks for its paraphrases beside itself
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
        ) as process,
    ):

        def stop() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(time_limit, stop)
        clock.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            return _converse(process.stdin, process.stdout, scored)
        except (OSError, ValueError) as error:
            if late.is_set():
                raise VitError(f"METEOR was stopped: it took longer than {time_limit:g} seconds") from error
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)  # until it has said why
            raise VitError(f"METEOR failed: {_last_line(complaints) or error}\nIts program: {jar}") from error
        finally:
            clock.cancel()
            process.kill()
            with suppress(OSError):  # what could not be sent to it is lost
                process.stdin.close()


def _converse(questions: IO[str], answers: IO[str], scored: Sequence[str]) -> tuple[float, list[float]]:
    """Ask for a line of statistics a picture, then to evaluate them all: a score a picture, at last that of the set."""

    def ask(question: str) -> str:
        questions.write(question + "\n")
        questions.flush()
        return _answer(answers)

    statistics = [ask(question) for question in scored]
    questions.write(_SEPARATOR.join(["EVAL", *statistics]) + "\n")
    questions.flush()
    single = [float(_answer(answers)) for _ in scored]
    return float(_answer(answers)), single


def _answer(answers: IO[str]) -> str:
    line = answers.readline()
    if not line:
        raise ValueError("the program ended before it had answered")
    return line.strip()


def _line(caption: str) -> str:
    return " ".join(ptb_tokens(caption))


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    return next((line.strip() for line in reversed(file.readlines()) if line.strip()), "")


def _java(metric: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise ConfigError(f"{metric} needs Java, and no program `java` is found: install a Java runtime")
    return java


def _jar(metric: str, place: str) -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")  # found, not imported: its code needs more packages than its jars
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise ConfigError(
            f"{metric} needs the package pycocoevalcap, which is not installed: pip install pycocoevalcap"
        )
    jar = Path(folders[0], place)
    if not jar.is_file():
        raise ConfigError(f"{metric}'s program is missing from the installed pycocoevalcap: {jar}")
    return jar
