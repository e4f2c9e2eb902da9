"""`python -m vit.cli`, the same as the console script."""

from vit.cli.main import run

run()
