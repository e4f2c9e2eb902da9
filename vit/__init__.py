"""vit: one transformer block, from image folders to captions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit.api import Classifier, Prediction, load

__version__ = "0.1.0"
__all__ = ["Classifier", "Prediction", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """The public names are imported when they are first used, so that `vit --help` needs no torch."""
    if name in ("Classifier", "Prediction", "load"):
        from vit import api

        return getattr(api, name)
    raise AttributeError(f"module 'vit' has no attribute {name!r}")
