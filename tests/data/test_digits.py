"""The small default data set: complete, stratified, the same every time, and never written over anything."""

import builtins
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vit.cli.data import main
from vit.data.decode import decode
from vit.data.digits import make_digits
from vit.data.folders import list_training
from vit.errors import DataError, VitError

datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "deep" / "digits"
    assert make_digits(out) is True
    return out


def test_all_digits_are_there_in_both_splits(digits):
    listing = list_training(digits, val_fraction=0.2, test_fraction=0.0, seed=0)
    assert listing.classes == tuple("0123456789")
    assert {split: len(samples) for split, samples in listing.splits.items()} == {"train": 1438, "val": 359}
    whole = Counter(s.label for samples in listing.splits.values() for s in samples)
    assert whole == Counter(datasets.load_digits().target.tolist())
    held_out = Counter(s.label for s in listing.splits["val"])
    assert all(abs(held_out[label] / whole[label] - 0.2) < 0.005 for label in whole)
    assert listing.left_out == []


def test_a_picture_is_the_scan_of_its_number_enlarged(digits):
    source = datasets.load_digits()
    for path in sorted(digits.glob("*/*/*.png"))[::150]:
        number = int(path.stem)
        assert path.parent.name == str(source.target[number])
        pixels = decode(path)
        assert pixels.shape == (32, 32, 3)
        small = pixels[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(small.ravel(), source.images[number].ravel())[0, 1] > 0.97


def test_a_complete_set_is_left_as_it_is(digits, capsys):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert make_digits(digits) is False
    assert main(["make", "digits", str(digits)]) == 0
    assert "already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_anything_else_is_never_written_over(digits, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="already there and not this set"):
        make_digits(out)
    (out / "notes.txt").unlink()
    out.rmdir()
    out.write_text("a file")
    with pytest.raises(DataError, match="already there and not this set"):
        make_digits(out)
    assert out.read_text() == "a file"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_set_with_a_picture_changed_is_not_taken_for_complete(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert make_digits(out) is True
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    one, other = sorted(out.glob("train/3/*.png"))[:2]
    one.write_bytes(other.read_bytes())
    with pytest.raises(DataError):
        make_digits(out)
    one.write_bytes(b"")
    with pytest.raises(DataError):
        make_digits(out)


def test_the_digits_pass_their_own_check(digits, capsys):
    assert main(["check", str(digits)]) == 0
    assert "nothing must be mended" in capsys.readouterr().out


def test_two_runs_make_the_same_files(digits, tmp_path):
    make_digits(tmp_path / "again")
    for path in digits.rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(digits)).read_bytes()


def test_a_missing_scikit_learn_is_named_with_the_remedy(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(VitError, match="pip install scikit-learn"):
        make_digits(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
