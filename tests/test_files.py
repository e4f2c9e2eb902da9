"""Files that are whole or absent, also when the disk is full, the writer fails, or the user interrupts."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vit.errors import VitError
from vit.files import dump_json, json_line, open_text, whole_file, write_text
from vit.models.file import ModelFile, save_model

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs resource limits and file modes")

# writes twice the size that is allowed, in three ways; says what came of it, and what lies in the folder then
TOO_LARGE = """
import sys
from pathlib import Path
import torch
from vit.errors import VitError
from vit.files import write_text
from vit.models.file import ModelFile, save_model
from vit.tasks.checkpoints import WholeCheckpoints

folder = Path(sys.argv[1])
if sys.argv[2] == "limit":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
weights = {"w": torch.zeros(1 << 20)}
writers = {
    "text": lambda path: write_text(path, "x" * (4 << 20)),
    "model": lambda path: save_model(ModelFile("classifier", {}, [], {}, raw=weights), path),
    "checkpoint": lambda path: WholeCheckpoints().save_checkpoint(weights, path),
}
for kind, write in writers.items():
    path = folder / kind
    path.write_text("old")
    try:
        write(path)
    except VitError as error:
        print(error)
    print(path.read_text(), *sorted(found.name for found in folder.iterdir()))
    path.unlink()
"""

# in a mount namespace of its own, so that the small disk goes with the process
ON_A_SMALL_DISK = 'mount -t tmpfs -o size=2m tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1" disk'


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "first")
    write_text(path, "second \N{SNOWMAN}\n")
    assert path.read_text(encoding="utf-8") == "second \N{SNOWMAN}\n"
    assert only(tmp_path) == ["a.txt"]


def test_bytes_that_are_no_utf8_come_back_as_they_were(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", os.fsdecode(b"caf\xe9.png"))
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9.png"


@pytest.mark.parametrize("failure", [ValueError("ours"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_in_the_middle_leaves_the_old_file_and_is_not_disguised(
    failure: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(failure)), whole_file(path) as temporary:  # noqa: PT012  # the body is what is tested
        temporary.write_text("half of the n")
        raise failure
    assert path.read_text() == "old"
    assert only(tmp_path) == ["a.txt"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_body_that_removes_its_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(VitError, match=r"cannot write .*a\.txt: no such file"), whole_file(path) as temporary:
        temporary.unlink()
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["missing/a.txt", "file/a.txt", "folder"])
def test_a_place_that_cannot_be_written_to_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VitError) as caught:
        write_text(tmp_path / name, "text")
    message = str(caught.value)
    assert message.startswith(f"cannot write {tmp_path / name}: ")
    assert "\n" not in message
    assert only(tmp_path) == ["file", "folder"]


@needs_posix
def test_files_get_the_mode_that_new_files_have(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "private") as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)  # as some writers do
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "private")}
    assert len(modes) == 1


@needs_posix
@pytest.mark.parametrize("limit", ["limit", "disk"])
def test_a_full_disk_is_named_and_the_old_file_stays(limit: str, tmp_path: Path) -> None:
    if limit == "disk" and not shutil.which("unshare"):
        pytest.skip("needs unshare for a small disk")
    command = {
        "limit": [sys.executable, "-c", TOO_LARGE, str(tmp_path), "limit"],
        "disk": ["unshare", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh", str(tmp_path), sys.executable, TOO_LARGE],
    }[limit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if limit == "disk" and (done.returncode == 77 or done.stderr.startswith("unshare:")):
        pytest.skip("no right to mount a small disk")
    reason = {"limit": "file too large", "disk": "no space left on the disk"}[limit]
    lines = done.stdout.splitlines()
    if limit == "disk":  # of a checkpoint the room is told as well
        lines[4], _, room = lines[4].partition("; ")
        assert re.fullmatch(r"it needs \d+\.\d MB, \d+\.\d MB are free", room)
    expected = [
        line
        for kind in ("text", "model", "checkpoint")
        for line in (f"cannot write {tmp_path / kind}: {reason}", f"old {kind}")
    ]
    assert lines == expected, done.stderr
    assert done.returncode == 0


def test_a_model_that_cannot_be_saved_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = ModelFile("classifier", {}, [], {}, raw={"w": torch.ones(5)})
    save_model(model, path)
    before = path.read_bytes()
    with pytest.raises(VitError, match=r"cannot write .*: no such file or directory"):
        save_model(model, tmp_path / "absent" / "m.safetensors")
    model.origin = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        save_model(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"loss": [-float("inf")]}])
def test_json_never_holds_nan_or_inf(value: object) -> None:
    for write in (dump_json, json_line):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(value)


def test_json_is_written_by_one_function() -> None:
    root = Path(__file__).parent.parent / "vit"
    writers = [path for path in root.rglob("*.py") if re.search(r"\bjson\.dumps?\(", path.read_text(encoding="utf-8"))]
    assert writers == [root / "files.py"]


@pytest.mark.parametrize("text", ["plain", 'a,"b"', "two\nlines\r\t", "\u2028\x85\x1b[31m", "caf\u00e9", "bad \udcff"])
def test_a_json_line_is_one_printable_line_and_reads_back(text: str) -> None:
    line = json_line({text: text})
    assert line.isprintable()
    assert json.loads(line.encode("utf-8")) == {text: text}


def write_all_ways(path: Path, text: str) -> None:
    """Write by each of the ways that files are written, the last one wins."""
    write_text(path, text)
    with open_text(path) as file:
        file.write(text)
    with whole_file(path) as temporary:
        temporary.write_text(text)


@needs_posix
def test_a_symlink_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for name in ("there", "new"):
        (tmp_path / "target" / "there").write_text("old")
        link = tmp_path / name
        (tmp_path / "between").unlink(missing_ok=True)
        (tmp_path / "between").symlink_to(Path("target", name))  # relative to the folder of the link
        link.symlink_to("between")
        write_all_ways(link, "text")
        assert link.is_symlink()
        assert (tmp_path / "target" / name).read_text() == "text"
        assert not (tmp_path / "target" / name).is_symlink()
    assert only(tmp_path / "target") == ["new", "there"]
    assert only(tmp_path) == ["between", "new", "target", "there"]


@needs_posix
def test_links_in_a_circle_and_names_of_the_greatest_length(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(VitError, match=r"cannot write .*a: too many levels of symbolic links"):
        write_text(tmp_path / "a", "text")
    assert only(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").is_symlink()
    long = tmp_path / ("\N{SNOWMAN}" * 85)  # 255 bytes
    write_text(long, "text")
    assert long.read_text() == "text"


@needs_posix
def test_a_fifo_is_written_into(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor() as pool:
        for _ in range(3):
            read = pool.submit(fifo.read_text)
            write_text(fifo, "text")
            assert read.result() == "text"
            read = pool.submit(fifo.read_text)
            with whole_file(fifo) as temporary:
                temporary.write_text("more")
            assert read.result() == "more"
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert only(tmp_path) == ["fifo"]


@needs_posix
def test_a_device_is_written_into_and_stays(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as the system's null device
        device.write_bytes(b"")
    except (OSError, AttributeError):
        pytest.skip("no right to make a device")
    (tmp_path / "link").symlink_to("null")
    for path in (device, tmp_path / "link"):
        write_all_ways(path, "text")
    assert stat.S_ISCHR(device.stat().st_mode)
    assert only(tmp_path) == ["link", "null"]


@needs_posix
def test_an_open_descriptor_is_appended_to(tmp_path: Path) -> None:
    """As `vit ... --out /dev/stdout >> log`: the file of the shell stays, with what it held."""
    log = tmp_path / "log"
    log.write_text("before\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = """
import sys
from pathlib import Path
from vit.files import open_text, whole_file, write_text
for path in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", sys.argv[1]):
    print("printed")
    write_text(Path(path), "text\\n")
    with whole_file(Path(path)) as temporary:
        temporary.write_text("file\\n")
    with open_text(Path(path)) as file:
        file.write("stream\\n")
print("after")
"""
    number = log.stat().st_ino
    with log.open("a") as file:
        subprocess.run([sys.executable, "-c", code, tmp_path / "link"], stdout=file, check=True, timeout=120)
    assert log.read_text() == "before\n" + 4 * "printed\ntext\nfile\nstream\n" + "after\n"
    assert log.stat().st_ino == number
    assert only(tmp_path) == ["link", "log"]


@needs_posix
def test_a_closed_reader_is_no_failure_to_write(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for write in (lambda path: write_text(path, "text"), lambda path: write_all_ways(path, "text")):
        with pytest.raises(BrokenPipeError):
            write(Path(f"/dev/fd/{writing}"))
    os.close(writing)
    with pytest.raises(VitError, match=rf"cannot write /dev/fd/{writing}: no such file"):
        write_text(Path(f"/dev/fd/{writing}"), "text")
