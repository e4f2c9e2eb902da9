"""Messages are safe to print and of bounded length, whatever they quote."""

import logging
from pathlib import Path
from typing import Any

import pytest

from vit.errors import UnreadableImage, display_path, escape_controls, printable

HOSTILE = "\x1b]0;title\x07\x1b[2Jred\u202e\u009b31m\r\udcff\x00"
ESCAPED = r"\x1b]0;title\x07\x1b[2Jred\u202e\x9b31m\r\udcff\x00"


def test_control_and_format_characters_are_escaped() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert display_path(HOSTILE) == ESCAPED
    assert printable("caf\u00e9 \N{CAT FACE}\nsecond line") == "caf\u00e9 \N{CAT FACE}\nsecond line"
    assert display_path("two\nlines") == r"two\nlines"
    assert escape_controls("a\tb\x1b\n", keep="\t\n") == "a\tb\\x1b\n"


def test_long_messages_are_cut_and_say_how_long_they_were() -> None:
    label = "x" * 150_000_000
    assert len(printable(f"no class {label}")) < 3000
    assert printable(f"no class {label}").endswith("... (150,000,009 characters)") or "characters)" in printable(label)
    assert len(display_path(label)) < 5000
    path = "/" + "d/" * 2047  # the longest path that Linux takes is shown whole
    assert display_path(path) == path
    many = printable("line\n" * 5000)
    assert many.count("\n") == 100
    assert many.endswith("more lines)")


def test_an_unreadable_image_keeps_a_printable_reason() -> None:
    assert UnreadableImage("a\x1b.png", HOSTILE).reason == ESCAPED
    assert str(UnreadableImage("a\x1b.png", "bad")) == r"a\x1b.png: bad"


@pytest.mark.parametrize(
    "words", [["predict", HOSTILE, "x.png"], ["train", f"--{HOSTILE}=1"], [HOSTILE], ["data", HOSTILE]]
)
def test_no_message_of_the_command_line_holds_a_raw_escape(vit: Any, words: list[str]) -> None:
    outcome = vit(*words)
    assert outcome.code in (1, 2)
    assert outcome.err.startswith("vit: ")
    assert all(c.isprintable() or c == "\n" for c in outcome.err + outcome.out)


def test_what_is_logged_is_escaped_in_the_file_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vit.cli.main import _log_to_stdout

    _log_to_stdout()
    handler = logging.FileHandler(tmp_path / "log.txt", encoding="utf-8")
    log = logging.getLogger("vit")
    log.addHandler(handler)
    try:
        log.info("%-10s %s", "data", HOSTILE)
    finally:
        log.removeHandler(handler)
        handler.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == f"data       {ESCAPED}\n"
    assert capsys.readouterr().out == f"data       {ESCAPED}\n"
