"""One result row a picture: what evaluation keeps while it runs, and gathers from all processes at the end."""

from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from vit.evaluate.classification import Predictions
from vit.models.outputs import NON_FINITE, finite_rows, top_classes

T = TypeVar("T")


@dataclass
class Rows:
    """Result rows of classification. Holds a few numbers a picture, never a tensor of the batch."""

    indices: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    top: list[np.ndarray] = field(default_factory=list)
    probabilities: list[np.ndarray] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    refuse_non_finite: bool = False
    """list images whose logits or loss are NaN or inf among `failures`; training stops at such a loss instead"""

    def add(self, logits: Tensor, labels: Tensor, indices: Tensor, failures: list[tuple[int, str]]) -> None:
        """Keep the rows of a batch: logits [B, classes], labels [B], indices [B] of the pictures in their list."""
        self.failures += failures
        top, probabilities = top_classes(logits, 5)
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        usable = (finite_rows(logits) & losses.isfinite()).cpu()
        if not self.refuse_non_finite:
            usable = torch.ones_like(usable)
        self.failures += [(index, NON_FINITE) for index in indices.cpu()[~usable].tolist()]
        for kept, values in (
            (self.indices, indices),
            (self.labels, labels),
            (self.top, top),
            (self.probabilities, probabilities),
            (self.losses, losses),
        ):
            kept.append(values.cpu()[usable].numpy())

    def gather(self, classes: int) -> "Gathered":
        """All processes' rows in the order of the list, each picture once."""
        k = min(5, classes)
        part = Gathered(
            indices=_joined(self.indices, (0,), np.int64),
            predictions=Predictions(
                labels=_joined(self.labels, (0,), np.int64),
                top=_joined(self.top, (0, k), np.int64),
                probabilities=_joined(self.probabilities, (0, k), np.float32),
                losses=_joined(self.losses, (0,), np.float32),
            ),
            failures=self.failures,
        )
        return _in_order(from_all_processes(part))


def from_all_processes(value: T) -> list[T]:
    """What every process of a distributed run has of the same kind, by rank; a list of one outside of one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return cast(list[T], values)


@dataclass(frozen=True)
class Gathered:
    """Rows in the order of the list of pictures: `predictions` row i is of picture `indices[i]`."""

    indices: np.ndarray
    predictions: Predictions
    failures: list[tuple[int, str]]


def _joined(parts: list[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(empty, dtype)


def _in_order(parts: list[Gathered]) -> Gathered:
    indices = np.concatenate([part.indices for part in parts])
    order = np.argsort(indices, kind="stable")

    def ordered(name: str) -> np.ndarray:
        return np.concatenate([getattr(part.predictions, name) for part in parts])[order]

    predictions = Predictions(ordered("labels"), ordered("top"), ordered("probabilities"), ordered("losses"))
    failures = sorted(failure for part in parts for failure in part.failures)
    return Gathered(indices[order], predictions, failures)
