"""User-facing errors, whose message is all that the command line shows, and what makes any message safe to print.

Every message is one to three lines and names the path or key with the reason. Anything else that is raised is reported
as an internal error.
"""

import shlex


class VitError(Exception):
    """Something the user can mend; the command ends with `exit_code`."""

    exit_code = 1


class ConfigError(VitError, ValueError):
    """A wrong setting or a wrong use of a command."""

    exit_code = 2


class Interrupted(VitError):
    """A signal ended the command in order; `number` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class DataError(VitError):
    """A folder, listing or file of the user's data that cannot serve."""


class UnreadableImage(DataError):
    """One picture that cannot be decoded. `reason` is the part of the message without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{display_path(path)}: {reason}")
        self.path = path
        self.reason = printable(reason)

    def __reduce__(self) -> tuple[type["UnreadableImage"], tuple[str, str]]:
        return UnreadableImage, (self.path, self.reason)  # it crosses from worker processes to the main one


class ModelFileError(VitError):
    """A model file or checkpoint that is damaged, of another kind, or not a model at all."""


class NonFiniteOutput(VitError):
    """A model whose output for some input is NaN or inf: there is no prediction to report."""


class OutOfMemory(VitError):
    """Memory ran out in training; `again`: whether the last checkpoint, or none, is where an epoch begins."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


_OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "failed to map segment",
    "bad_alloc",
    "start new thread",
    "without exception set",  # what extension modules leave that do not check for it
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, in whichever words Python, torch and the loader of libraries say so."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def display_path(path: object) -> str:
    """Return `path` as one printable line: control characters and bytes that are not UTF-8 appear as escapes."""
    return escape_controls(_shortened(str(path), _PATH_LIMIT))


def printable(message: object) -> str:
    """Return a message that is safe to print to a terminal, whatever names and values it quotes.

    Everything but line breaks is escaped as in `display_path`; long lines and long messages are cut, with their length.
    Every message of the command line and of a run's log passes through here.
    """
    text = str(message)
    lines = _shortened(text, _LINES * _LINE_LIMIT).split("\n")
    shown = [escape_controls(_shortened(line, _LINE_LIMIT)) for line in lines[:_LINES]]
    if len(lines) > _LINES:
        shown.append(f"... ({len(lines) - _LINES} more lines)")
    return "\n".join(shown)


_PATH_LIMIT = 4200  # characters; Linux takes paths of up to 4095 bytes
_LINE_LIMIT = 2000
_LINES = 100


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def escape_controls(text: str, keep: str = "") -> str:
    """Return `text` with escapes for what is not printable: control and format characters, bytes that are not UTF-8.

    `keep` lists control characters that stay.
    """
    if text.isprintable():
        return text
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def shell_quote(path: object) -> str:
    """Return `path` as one word of a shell command, for commands that messages suggest.

    Control characters and undecodable bytes appear as escapes in $'...', which bash, zsh and ksh read.
    """
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"  # a path, not an option
    if text.isprintable():
        return shlex.quote(text)
    plain = {*range(32, 127)} - {*b"'\\"}
    return (
        "$'" + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in text.encode("utf-8", "surrogateescape")) + "'"
    )
