"""The command `vit`: finds the part that was asked for, and turns failures into one clear line and an exit code."""

import difflib
import errno
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable

from vit.cli.console import prepare_process
from vit.errors import ConfigError, VitError, display_path, is_out_of_memory, printable
from vit.signals import Stop, unwinding

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "attention",
    "caption",
    "generate",
    "embed",
    "data",
    "models",
    "export",
    "soup",
)

HELP = """usage: vit COMMAND ...

One transformer block, from image folders to captions.

  vit train DATA              train a Vision Transformer on a folder of pictures, a folder a class
  vit evaluate MODEL DATA     honest numbers of a trained model: accuracy, per class, calibration, worst mistakes
  vit predict MODEL PATH...   labels for pictures, as JSON lines or CSV
  vit attention MODEL IMAGE...  what a model looks at: maps over pictures
  vit caption MODEL IMAGE...  describe pictures in words, and show where each word came from
  vit generate MODEL          go on with a text, or answer it
  vit embed MODEL             words by their embeddings: nearest ones, analogies
  vit data check DATA         broken files, duplicates across splits, class counts
  vit data preview DATA       a training batch as the network will see it, as a picture
  vit data pack DATA          all pictures decoded beforehand, for training from disk
  vit data shard DATA         all pictures as a few large files, to stream from
  vit data make digits OUT    a small data set of real handwritten digits to try things with
  vit data make scenes OUT    coloured shapes with captions and questions; `make dates`: pairs of texts
  vit models [PATTERN]        the named sizes, and the pretrained weights there are
  vit export MODEL --out DIR  give a model back to timm
  vit soup MODEL... --out F   average the weights of several runs

`vit COMMAND --help` says more. --debug shows the traceback of a failure.
Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 129 hung up, 130 interrupted, 138 requeued, 143 terminated.
"""


def run() -> None:
    """The console script."""
    prepare_process()
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        try:
            _flush()
        except OSError:
            _discard_output()


def main(argv: list[str]) -> int:
    """Run one command. Returns the exit code; failures are one to three lines on standard error."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    debug = "--debug" in options
    try:
        with unwinding():
            code = _main([word for word in options if word != "--debug"] + argv[len(options) :])
            _flush()
        return code
    except VitError as error:
        if debug:
            raise
        return _fail(_own_words(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Stop as stop:
        return _fail({1: "hung up", 2: "interrupted"}.get(stop.number, "terminated"), 128 + stop.number)
    except BrokenPipeError:
        _discard_output()
        return 0
    except Exception as error:
        if debug:
            raise
        return _fail(_in_words(error), 1)


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from vit import __version__

        print(__version__)
        return 0
    try:
        os.getcwd()
    except OSError as error:  # MKL would end the process while torch is imported
        raise ConfigError("the current folder no longer exists; change to another one by cd") from error
    _log_to_stdout()
    return _command(argv[0])(argv[1:])


def _command(name: str) -> Callable[[list[str]], int]:
    """The command's function; imported only now, since `vit --help` must answer at once."""
    if name in COMMANDS:
        command: Callable[[list[str]], int] = importlib.import_module(f"vit.cli.{name}").main
        return command
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    raise ConfigError(
        f"no command {display_path(name)}" + (f"; did you mean {near[0]}?" if near else "; see vit --help")
    )


def _fail(message: str, code: int) -> int:
    print(f"vit: {printable(message)}", file=sys.stderr)
    return code


def _own_words(error: VitError) -> str:
    """The message of an error of ours; torch puts a traceback before it where a worker process raised it."""
    lines = str(error).splitlines()
    if len(lines) > 1 and lines[0].startswith("Caught ") and "worker process" in lines[0]:
        return lines[-1].partition(": ")[2]
    return str(error)


def _in_words(error: Exception) -> str:
    """What a user can do about an exception that is not one of ours."""
    text = (str(error).strip().splitlines() or [""])[0]
    if died := re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", text):
        told = f"a process that reads pictures (pid {died[1]}) {died[2].rstrip('. ')}"
        full = ("bus error", "shared memory", f"exit code {errno.ENOSPC}.")  # that code: `start_worker`
        if any(sign in str(error).lower() for sign in full):
            told = told.partition(". ")[0]
            return f"{told}; /dev/shm is too small for its batches: lower data.workers, or set it to 0"
        return f"{told}; if memory ran out, lower data.workers or data.batch_size; --resume goes on with the run"
    if is_out_of_memory(error):
        return "out of memory; lower data.batch_size or --batch-size, or set train.checkpointing true"
    if isinstance(error, OSError) and error.errno is not None:
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else (error.strerror or "").lower()
        if error.errno == errno.EBADF and not error.filename:
            reason = "standard output is closed"
        return f"{display_path(error.filename)}: {reason}" if error.filename else reason
    return f"internal error: {type(error).__name__}: {text} (--debug shows the traceback)"


def _log_to_stdout() -> None:
    """What commands tell goes to standard output, through the logger `vit`, so that a run's log.txt holds it too."""
    logging.raiseExceptions = False  # a full disk under log.txt is told once, by the writer of a checkpoint
    log = logging.getLogger("vit")
    if not any(isinstance(handler, _Print) for handler in log.handlers):
        log.addHandler(_Print())
        log.addFilter(_make_printable)
    log.setLevel(logging.INFO)
    log.propagate = False


def _make_printable(record: logging.LogRecord) -> bool:
    """Escape what a message quotes, for the terminal and for log.txt alike."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


class _Print(logging.Handler):
    """Prints to what is standard output at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        # A reader that has gone, as in `vit train DATA | head`, does not end the work; log.txt holds the rest.
        stream = sys.stderr if record.name == "vit.models" else sys.stdout  # where results may be piped
        try:
            print(self.format(record), file=stream, flush=True)
        except OSError as error:
            if stream is sys.stdout and error.errno in (errno.EPIPE, errno.EBADF):
                _discard_output()


def _flush() -> None:
    if sys.stdout is not None:  # None where the shell has closed it
        sys.stdout.flush()


def _discard_output() -> None:
    """Whoever read the output has seen enough; nothing more can be written, nor need be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
