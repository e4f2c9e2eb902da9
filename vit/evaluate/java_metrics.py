"""METEOR from its authors' Java program, which an installed pycocoevalcap brings along; nothing of it is ours.

No letters: this file knows strings and numbers only.
"""

import importlib.util
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

_SEPARATOR = " ||| "  # no token holds it: the tokenizer takes bars one by one


@dataclass(frozen=True, eq=False)
class JavaScores(Generic[Id]):
    """METEOR of the whole set, from the statistics of all pictures summed up, and of each picture."""

    score: float
    pictures: dict[Id, float] = field(repr=False)


def java_scores(
    metric: str, candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]], *, time_limit: float = 600
) -> JavaScores[Id]:
    """`metric` "meteor": METEOR 1.5 (Denkowski & Lavie 2014) with its paraphrases, as coco-caption runs it.

    The program starts in a process of its own and is stopped after `time_limit` seconds; a thousand pictures take
    some twenty. The captions are tokenized by `ptb_tokens`.

    Raises ConfigError where Java or pycocoevalcap is missing, and for "spice", which is not offered; DataError as
    `caption_scores`; VitError where the program fails or takes longer than the limit.
    """
    if metric == "spice":
        raise ConfigError(
            "SPICE is not offered: pycocoevalcap comes without the parser it needs, stanford-corenlp-3.6.0.jar and\n"
            "stanford-corenlp-3.6.0-models.jar in its folder spice/lib; the package's own spice.Spice() downloads them"
        )
    if metric != "meteor":
        raise ConfigError(f"no Java metric is called {metric!r}: there is meteor")
    check_captions(candidates, references)
    scored = [
        _SEPARATOR.join(["SCORE", *map(_line, references[i]), _line(caption)]) for i, caption in candidates.items()
    ]
    total, single = _meteor(scored, time_limit)
    return JavaScores(total, dict(zip(candidates, single, strict=True)))


def _meteor(scored: Sequence[str], time_limit: float) -> tuple[float, list[float]]:
    """The score of the set, and of each of the pictures whose questions are `scored`."""
    java, jar = _java(), _meteor_jar()
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


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise ConfigError("METEOR needs Java, and no program `java` is found: install a Java runtime")
    return java


def _meteor_jar() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")  # found, not imported: its code needs more packages than its jar
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise ConfigError("METEOR needs the package pycocoevalcap, which is not installed: pip install pycocoevalcap")
    jar = Path(folders[0], "meteor", "meteor-1.5.jar")
    if not jar.is_file():
        raise ConfigError(f"METEOR's program is missing from the installed pycocoevalcap: {jar}")
    return jar
