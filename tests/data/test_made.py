"""Data sets that are written whole or not at all, and never over anything."""

from collections.abc import Iterator

import numpy as np
import pytest

from vit.data.decode import decode
from vit.data.made import write_set
from vit.errors import DataError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
FILES = {"a/grey.png": GREY, "a/b/rgb.png": np.stack([GREY, GREY + 1, GREY + 2], axis=2), "list.txt": b"two\n"}


def test_a_set_is_written_once_and_known_again(tmp_path):
    out = tmp_path / "out"
    assert write_set(out, FILES.items()) is True
    assert (out / "list.txt").read_bytes() == b"two\n"
    assert np.array_equal(decode(out / "a/grey.png")[..., 1], GREY)
    assert np.array_equal(decode(out / "a/b/rgb.png"), FILES["a/b/rgb.png"])
    assert write_set(out, FILES.items()) is False
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["bytes", "pixels", "missing", "more", "broken"])
def test_a_set_that_differs_in_one_file_is_refused_and_stays(change: str, tmp_path):
    write_set(tmp_path, FILES.items())
    if change == "bytes":
        (tmp_path / "list.txt").write_bytes(b"two")
    elif change == "pixels":
        (tmp_path / "a/grey.png").write_bytes((tmp_path / "a/b/rgb.png").read_bytes())
    elif change == "missing":
        (tmp_path / "a/b/rgb.png").unlink()
    elif change == "more":
        (tmp_path / "a/more.txt").touch()
    else:
        (tmp_path / "a/grey.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="already there and not this set; name a new or empty folder"):
        write_set(tmp_path, FILES.items())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(failure: BaseException, empty: bool, tmp_path):
    def files() -> Iterator[tuple[str, bytes]]:
        yield "first.txt", b"1"
        raise failure

    out = tmp_path / "out"
    if empty:
        out.mkdir()
    with pytest.raises((DataError, KeyboardInterrupt)) as caught:
        write_set(out, files())
    if isinstance(failure, OSError):
        assert str(caught.value) == f"{out}: no space left on device"
    assert [path.name for path in tmp_path.rglob("*")] == ["out"] * empty


def test_an_empty_folder_is_filled_and_a_file_in_its_place_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert write_set(out, FILES.items()) is True
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="already there"):
        write_set(tmp_path / "file", FILES.items())
    assert (tmp_path / "file").read_text() == "mine"
