"""argparse whose complaints look like all others: one line, no usage text."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Ends a wrong use of a command with one line and the exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vit: {message}; see {self.prog} --help\n")
