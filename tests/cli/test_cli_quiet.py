"""How Lightning's own endings of a process reach the user."""

import sys

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vit.cli.quiet import signals_as_errors
from vit.errors import Interrupted


def test_lightnings_way_out_at_a_termination_becomes_143() -> None:
    with pytest.raises(Interrupted, match=r"^terminated$") as caught, signals_as_errors():
        raise SIGTERMException
    assert caught.value.exit_code == 143


def test_lightnings_way_out_at_an_interrupt_becomes_130() -> None:
    def lightning() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(Interrupted, match=r"^interrupted$") as caught, signals_as_errors():
        lightning()
    assert caught.value.exit_code == 130


def test_any_other_exit_stays_what_it_is() -> None:
    with pytest.raises(SystemExit) as caught, signals_as_errors():
        sys.exit(3)
    assert caught.value.code == 3
