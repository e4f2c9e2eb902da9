"""What commands share: argparse whose complaints look like all others, and MODEL."""

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from vit.errors import display_path

if TYPE_CHECKING:
    from vit.models.file import ModelFile

MODEL_HELP = "run folder, .safetensors or .ckpt of ours, timm:NAME[.TAG], hf:NAME, or a folder or .npz file of theirs"


class Parser(argparse.ArgumentParser):
    """Ends a wrong use of a command with one line and the exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vit: {message}; see {self.prog} --help\n")


def announce(model: "ModelFile") -> None:
    """Name weights that others made, and their licence, on standard error: standard output is for results."""
    if model.licence is not None:
        print(f"weights  {display_path(model.origin)}, licence {display_path(model.licence)}", file=sys.stderr)
