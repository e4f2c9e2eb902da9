"""The tables of BENCHMARKS.md: written between their marks and nowhere else, with the right ratios."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

import bench_all
import bench_report

PAGE = """# Title\r
\r
<!-- table: one -->\r
old, and 1.5 of old\r
<!-- end -->\r
prose  with trailing blanks  \r

<!-- table: two -->
| kept |
<!-- end -->
last line without an end"""

REPORT = {
    "title": "Speed",
    "machine": {"processor": "A Processor", "instructions": ["AVX2"], "cores": 2, "threads": 1, "gpu": None},
    "versions": {"torch": "9.8.7"},
    "date": "2026-01-02",
    "command": "scripts/bench_it.py --rounds 3",
    "columns": {"what": "name", "theirs": "theirs", "vit": "ours", "ratio": "ratio", "meant to be": "aim"},
    "rows": [
        {"name": "a", "theirs": 1234.5, "ours": 0.05, "ratio": [2.0, 1.0, 1.5], "aim": 5},
        {"name": "b", "theirs": 12.34, "ours": 1.234, "ratio": [12.34], "aim": "2.3"},
    ],
}


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = bench_report.page_with(PAGE, "one", "| new |")
    before, after = PAGE.split("\r\nold, and 1.5 of old\r\n")
    assert page == f"{before}\n\n| new |\n\n{after}"
    assert bench_report.page_with(page, "one", "| new |") == page


def test_files_are_kept_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_bytes(PAGE.encode())
    bench_report.write_json(REPORT, tmp_path / "two.json")
    monkeypatch.setattr(bench_all, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(bench_all, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_all, "JOBS", {"one": None, "two": None})
    monkeypatch.setattr(sys, "argv", ["bench_all.py", "--render"])
    assert bench_all.main() == 0
    written = (tmp_path / "page.md").read_bytes().decode()
    start, end = PAGE.index("\n| kept |"), PAGE.index("\nlast line")
    assert written.startswith(PAGE[:start])
    assert written.endswith("<!-- end -->" + PAGE[end:])
    assert "| kept |" not in written


def test_a_table_states_its_source_and_the_right_numbers() -> None:
    source, _, heading, _, *rows = bench_report.markdown(REPORT).splitlines()
    assert source == (
        "2026-01-02, A Processor with AVX2 (2 cores, 1 thread), torch 9.8.7: `scripts/bench_it.py --rounds 3`."
    )
    assert heading == "| what | theirs | vit | ratio | meant to be |"
    assert rows == [
        "| a | 1 234 | 0.05 | 1.50 (1.00 to 2.00) | 5 |",
        "| b | 12.3 | 1.23 | 12.3 (12.3 to 12.3) | 2.3 |",
    ]


def test_a_ratio_above_one_is_in_our_favour(tmp_path: Path) -> None:
    table = bench_report.Table("Title", {"what": "name", "ratio": "ratio"})
    table.compare("seconds", [4.0, 6.0, 8.0], [2.0, 6.0, 1.0])
    table.compare("rates", [2.0, 6.0, 1.0], [4.0, 6.0, 8.0], rates=True)
    table.write(tmp_path / "table.json")
    seconds, rates = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert seconds == {"name": "seconds", "theirs": 6.0, "ours": 2.0, "ratio": [2.0, 1.0, 8.0]}
    assert rates["ratio"] == seconds["ratio"]


def test_measurements_take_turns() -> None:
    order: list[str] = []
    measures = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert bench_report.in_turn(measures, rounds=2, warm_up=1) == {"a": [3, 6], "b": [4, 5]}
    assert "".join(order) == "baabba"


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("text", "the page needs the mark <!-- table: one --> once, and has it 0 times"),
        (PAGE + PAGE, "the page needs the mark <!-- table: one --> once, and has it 2 times"),
        (PAGE.replace("<!-- end -->\r", ""), "the mark <!-- table: one --> has no <!-- end --> after it"),
    ],
)
def test_a_missing_mark_is_refused(page: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        bench_report.page_with(page, "one", "new")


def test_the_page_has_a_mark_for_every_script() -> None:
    page = bench_all.PAGE.read_text(encoding="utf-8")
    for name in bench_all.JOBS:
        bench_report.page_with(page, name, "")


def test_a_table_of_training_on_a_gpu() -> None:
    row = {"name": "S/16", "side": 224, "batch": 256, "drop_path": 0.1, "ours": [200.0, 300.0], "timm": [100.0, 100.0]}
    row |= {"flops": 1e9, "ours_gb": 10.0, "timm_gb": 12.5, "waits_in_steps": [0, 12]}
    report = {"device": "A GPU", "torch": "9.8.7", "timm": "1.2.3", "matrix_peak": 1e12, "rows": [row]}
    table = bench_report.markdown(report)
    assert table.startswith("A GPU, torch 9.8.7, timm 1.2.3. A bf16 product of 8192 x 8192 matrices: 1 TFLOP/s.\n\n")
    assert table.splitlines()[-1] == (
        "| S/16, 224 pixels, batches of 256 | 0.1 | 100 | 250 | 2.500 (2.000 to 3.000) | 25.0% (10.0%) "
        "| 10.0 GB (12.5 GB) |"
    )
    assert bench_report.markdown(bench_report.with_gpu_columns(report)) == table


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_a_script_that_fails_or_takes_too_long_is_told() -> None:
    assert bench_all.run([sys.executable, "-c", "pass"], 60) is None
    assert bench_all.run([sys.executable, "-c", "raise SystemExit(3)"], 60) == "exit code 3"
    assert bench_all.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.1) == "not done after 0 seconds"


def test_a_command_names_no_place_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    words = ["--photos", str(tmp_path / "photos"), "--names", "S/16", "--json", str(tmp_path / "out.json"), "--train"]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bench_it.py"), *words])
    assert bench_report.command() == "scripts/bench_it.py --photos photos --names S/16 --train"
