"""METEOR and SPICE through stand-ins for Java that speak their protocols; the real METEOR where it is installed."""

import csv
import gzip
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from vit.errors import ConfigError, DataError, VitError
from vit.evaluate.java_metrics import java_scores

CANDIDATES = {"x": "A dog runs.", "y": "Two (caf\u00e9) cats"}
REFERENCES = {"x": ["The dog runs", "a dog"], "y": ["cats!"]}

STAND_IN = """#!{python}
import sys
sys.stdin.reconfigure(encoding="utf-8")
log = open("heard.txt", "w", encoding="utf-8")
print(*sys.argv[1:], file=log)
for line in sys.stdin:
    print(line.rstrip("\\n"), file=log, flush=True)
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(len(parts), flush=True)
    else:
        print(*(int(part) / 10 for part in parts), 0.75, sep="\\n", flush=True)
"""


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of METEOR's program in a pycocoevalcap of our own; the only programs are those in tmp_path / bin."""
    jar = tmp_path / "site" / "pycocoevalcap" / "meteor" / "meteor-1.5.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    (tmp_path / "site" / "pycocoevalcap" / "__init__.py").write_text("raise ImportError('it must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return jar


def java(tmp_path: Path, program: str) -> None:
    file = tmp_path / "bin" / "java"
    file.write_text(program)
    file.chmod(0o755)


def test_pictures_and_set_are_asked_for_and_told_apart(tmp_path: Path, jar: Path) -> None:
    java(tmp_path, STAND_IN.format(python=sys.executable))
    scores = java_scores("meteor", CANDIDATES, REFERENCES)
    assert scores.score == 0.75
    assert scores.pictures == {"x": 0.3, "y": 0.2}
    assert (jar.parent / "heard.txt").read_text(encoding="utf-8").splitlines() == [
        "-Xmx2G -Dfile.encoding=UTF-8 -jar meteor-1.5.jar - - -stdio -l en -norm",
        "SCORE ||| the dog runs ||| a dog ||| a dog runs",
        "SCORE ||| cats ||| two -lrb- caf\u00e9 -rrb- cats",
        "EVAL ||| 3 ||| 2",
    ]


def test_a_program_that_fails_is_reported_with_its_reason(tmp_path: Path, jar: Path) -> None:
    java(tmp_path, "#!/bin/sh\nread line\necho starting >&2\necho 'no room for the heap' >&2\n")
    with pytest.raises(VitError) as raised:
        java_scores("meteor", CANDIDATES, REFERENCES)
    assert str(raised.value) == f"METEOR failed: no room for the heap\nIts program: {jar}"


def test_a_program_that_ends_early_and_says_nothing_is_reported(tmp_path: Path, jar: Path) -> None:
    java(tmp_path, "#!/bin/sh\nread line\n")
    with pytest.raises(VitError, match="METEOR failed: the program ended before it had answered"):
        java_scores("meteor", CANDIDATES, REFERENCES)


def test_a_program_that_never_answers_is_stopped(tmp_path: Path, jar: Path) -> None:
    java(tmp_path, f"#!/bin/sh\nexec {shutil.which('sleep', path='/bin:/usr/bin')} 600\n")
    with pytest.raises(VitError, match=r"METEOR was stopped: it took longer than 0\.2 seconds"):
        java_scores("meteor", CANDIDATES, REFERENCES, time_limit=0.2)


def test_what_is_missing_is_named(tmp_path: Path, jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="METEOR needs Java, and no program `java` is found"):
        java_scores("meteor", CANDIDATES, REFERENCES)
    java(tmp_path, STAND_IN.format(python=sys.executable))
    jar.unlink()
    with pytest.raises(ConfigError, match=r"METEOR's program is missing from the installed pycocoevalcap: .*5\.jar"):
        java_scores("meteor", CANDIDATES, REFERENCES)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package pycocoevalcap, which is not installed"):
        java_scores("meteor", CANDIDATES, REFERENCES)


SPICE = """#!{python}
import json, sys
asked, answers = sys.argv[4], sys.argv[8]
entries = json.load(open(asked, encoding="utf-8"))
json.dump([sys.argv[1:4] + sys.argv[5:6] + sys.argv[7:8] + sys.argv[9:], entries], open("heard.json", "w"))
told = [
    {{"image_id": entry["image_id"], "scores": {{"All": {{"f": len(entry["refs"]) / 4}}, "Color": {{"f": None}}}}}}
    for entry in reversed(entries)
]
json.dump(told, open(answers, "w"))
"""


@pytest.fixture
def parser(jar: Path) -> Path:
    """The place of SPICE's program in the same pycocoevalcap, with its parser."""
    program = jar.parent.parent / "spice" / "spice-1.0.jar"
    (program.parent / "lib").mkdir(parents=True)
    program.touch()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (program.parent / "lib" / name).touch()
    return program


def test_spice_is_asked_by_a_file_and_is_the_mean_of_the_pictures(tmp_path: Path, parser: Path) -> None:
    java(tmp_path, SPICE.format(python=sys.executable))
    scores = java_scores("spice", CANDIDATES, REFERENCES)
    assert scores.pictures == {"x": 0.5, "y": 0.25}
    assert scores.score == 0.375
    words, entries = json.loads((parser.parent / "heard.json").read_text())
    assert words == ["-Xmx8G", "-jar", "spice-1.0.jar", "-cache", "-out", "-subset", "-silent"]
    assert entries == [
        {"image_id": 0, "test": "a dog runs", "refs": ["the dog runs", "a dog"]},
        {"image_id": 1, "test": "two -lrb- caf\u00e9 -rrb- cats", "refs": ["cats"]},
    ]


def test_spice_that_fails_or_lacks_its_parser_is_told(tmp_path: Path, parser: Path) -> None:
    java(tmp_path, "#!/bin/sh\necho 'no room for the heap' >&2\nexit 1\n")
    with pytest.raises(VitError) as raised:
        java_scores("spice", CANDIDATES, REFERENCES)
    assert str(raised.value) == f"SPICE failed: no room for the heap\nIts program: {parser}"
    java(tmp_path, f"#!/bin/sh\nexec {shutil.which('sleep', path='/bin:/usr/bin')} 600\n")
    with pytest.raises(VitError, match=r"SPICE was stopped: it took longer than 0\.2 seconds"):
        java_scores("spice", CANDIDATES, REFERENCES, time_limit=0.2)
    (parser.parent / "lib" / "stanford-corenlp-3.6.0-models.jar").unlink()
    with pytest.raises(ConfigError, match=r"SPICE needs stanford-corenlp-3\.6\.0-models\.jar in .*/spice/lib"):
        java_scores("spice", CANDIDATES, REFERENCES)


def test_other_metrics_and_captions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="no Java metric is called 'bleu': there are meteor and spice"):
        java_scores("bleu", CANDIDATES, REFERENCES)
    with pytest.raises(DataError, match="1 without references: 'y'"):
        java_scores("meteor", CANDIDATES, {"x": ["a"]})


@pytest.mark.slow
def test_flickr8k_has_the_meteor_of_coco_caption() -> None:
    file = Path(os.environ.get("VIT_TEST_DATA", ""), "flickr8k_captions.csv.gz")
    if not file.is_file():
        pytest.skip("VIT_TEST_DATA names no folder with flickr8k_captions.csv.gz")
    if shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None:
        pytest.skip("Java or the package pycocoevalcap is not installed")
    captions: dict[str, list[str]] = {}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            captions.setdefault(row["image"], []).append(row["caption"])
    first = list(captions)[:1000]
    scores = java_scores("meteor", {i: captions[i][0] for i in first}, {i: captions[i][1:] for i in first})
    assert scores.score == pytest.approx(0.249201, abs=1e-6)
