"""What a finished run reports of its metrics.csv, which somebody may have edited meanwhile."""

from pathlib import Path

from vit.cli.report import best_epoch

HEADER = "epoch,seconds,val/loss,val/accuracy\n"


def test_the_best_epoch_is_of_the_monitored_metric(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(HEADER + "1,2.0,0.5,0.9\n2,4.0,0.4,0.8\n3,6.5,0.6,\n")
    assert best_epoch(tmp_path, "loss") == {
        "epoch": 2,
        "seconds": 4,
        "val/loss": 0.4,
        "val/accuracy": 0.8,
        "total": 6.5,
    }
    best = best_epoch(tmp_path, "accuracy")
    assert best is not None
    assert (best["epoch"], best["total"]) == (1, 4)


def test_rows_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(HEADER.encode() + b"1,2.0,0.5,0.9\n\xff,x,nan,\n2,4.0,inf,1\n3,5,,,,,\n")
    best = best_epoch(tmp_path, "loss")
    assert best is not None
    assert best["epoch"] == 1
    (tmp_path / "metrics.csv").write_bytes(b"\x00\xff\n")
    assert best_epoch(tmp_path, "loss") is None
