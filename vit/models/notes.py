"""What a user should know about a model that was read, each thing said once per process."""

import logging
from functools import cache

log = logging.getLogger("vit.models")
"""its records go to standard error on the command line, where standard output is for results"""


@cache
def note(message: str) -> None:
    """Log a line that is not an error, the first time it is said."""
    log.warning("note       %s", message)
