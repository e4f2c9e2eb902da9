"""Checkpoints that are whole or absent."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vit.files import whole_file
from vit.models.file import load_checkpoint


class WholeCheckpoints(TorchCheckpointIO):
    """Writes to the folder of the checkpoint, syncs, renames.

    Lightning writes to the folder for temporary files and moves: across file systems that is a copy over the old
    file, and a full disk then costs the only good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))
