"""The process around a command: encoding of names, standard streams that the shell has closed."""

import codecs
import os
import sys


def prepare_process() -> None:
    """Make file names UTF-8, every character printable, and standard streams safe to use."""
    _restart_in_utf8()
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as in a Latin-1 locale


def _restart_in_utf8() -> None:
    """Start Python again in UTF-8 mode where the C locale makes it ASCII, which is possible only at its start.

    Names of classes would otherwise differ from those of the same folders in another locale.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _replace_closed_streams() -> None:
    """Occupy descriptors 0 to 2 where they are closed: else a file opened later gets what is printed.

    Writing to a closed standard output fails then, as it must for results; what goes to standard error is dropped.
    """
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            closed.append(number)
            opened = os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
    if 1 in closed:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # for the whole process
    if 2 in closed:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # for the whole process
