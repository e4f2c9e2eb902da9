"""vit: one transformer block, from image folders to captions."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit.api import Classifier, Prediction, attention_maps, load
    from vit.models.huggingface import from_huggingface
    from vit.models.timm import from_timm, to_timm
    from vit.writers import Caption, Captioner, FusedModel, Writer

__version__ = "0.1.0"
__all__ = [
    "Caption",
    "Captioner",
    "Classifier",
    "FusedModel",
    "Prediction",
    "Writer",
    "__version__",
    "attention_maps",
    "from_huggingface",
    "from_timm",
    "load",
    "to_timm",
]

_PLACES = {
    "vit.api": ("Classifier", "Prediction", "attention_maps", "load"),
    "vit.models.huggingface": ("from_huggingface",),
    "vit.models.timm": ("from_timm", "to_timm"),
    "vit.writers": ("Caption", "Captioner", "FusedModel", "Writer"),
}


def __getattr__(name: str) -> Any:
    """The public names are imported when they are first used, so that `vit --help` needs no torch."""
    for place, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(place), name)
    raise AttributeError(f"module 'vit' has no attribute {name!r}")
