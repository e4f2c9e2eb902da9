"""Image classification."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.data.config import Preprocessing
from vit.data.dataset import Batch
from vit.data.mix import Mix
from vit.data.normalise import Normalise
from vit.data.sampling import draw_seed
from vit.errors import DataError
from vit.evaluate.classification import point_metrics
from vit.models.file import classifier_file
from vit.models.vision import VisionTransformer, with_weights
from vit.tasks.base import Loss, Losses, Task, diverged
from vit.tasks.config import Config
from vit.tasks.rows import Rows


class Classify(Task):
    """One class a picture, by cross-entropy or by a yes or no for every class.

    `counts` holds the training pictures of each class, for `loss.class_weights: balanced`. After validation,
    `gathered` holds the result rows of all processes.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        network: VisionTransformer,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        config: Config,
        *,
        counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__(network, network.architecture.depth, config)
        self.classes = list(classes)
        self.preprocessing = preprocessing
        self.normalise = Normalise(preprocessing)
        self.mix = Mix(config.augment, len(classes))
        weights = None
        if config.loss.class_weights == "balanced" and counts is not None:
            present = sum(count > 0 for count in counts)
            # mean 1 over the training images, as scikit-learn's `compute_class_weight`
            weights = torch.tensor([sum(counts) / (present * max(1, count)) for count in counts])
        self.register_buffer("class_weights", weights, persistent=False)
        self.licence: str | None = None
        self.origin = "trained by vit"
        self.rows = Rows()
        self.whole: list[nn.Module] | None = None
        """of shared-out weights a copy in one piece, while it is validated; in a list, as it is no part of the task"""
        self.unreadable: dict[tuple[str, int], str] = {}
        """reason by split and place in its list"""

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B, 3, H, W] -> logits [B, classes] of the network that is validated."""
        return self.evaluated(self.normalise(images))

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy or binary cross-entropy of a training batch, against soft labels where it is mixed."""
        self.unreadable.update({("train", index): reason for index, reason in batch.failures})
        images, targets = self.inputs(batch)
        logits = self.network(images)
        total = self._loss(logits, targets) if len(batch) else logits.sum() * 0.0  # all images may be unreadable
        return {"loss": Loss.over(total, len(batch))}

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the network sees of a training batch: images float [B, 3, H, W], and labels [B] or [B, classes]."""
        images = self.normalise(batch.images)
        if self.current_epoch < self.config.augment.half_size * self.config.train.epochs:
            images = F.avg_pool2d(images, 2)
        if not self.mix.active(self.current_epoch, self.config.train.epochs):
            return images, batch.labels
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed = draw_seed(self.config.train.seed, step, self.global_rank, 0)
        return self.mix(images, batch.labels, seed)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum over the batch. Class weights average to 1 over the data, so its mean is over samples, weighted or not.

        Thus a class index and its one-hot vector give the same loss; torch's own mean is over the weights for the one
        and over the samples for the other.
        """
        smoothing = self.config.loss.smoothing
        if self.config.loss.name == "cross-entropy":
            return F.cross_entropy(
                logits, targets, weight=self.class_weights, label_smoothing=smoothing, reduction="sum"
            )
        if targets.dim() == 1:
            targets = F.one_hot(targets, logits.shape[1])
        targets = targets.float()
        asked = (targets > 0).float() if self.config.loss.whole else targets
        smooth = asked * (1 - smoothing) + smoothing / logits.shape[1]
        loss = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=1)
        if self.class_weights is not None:
            # a weight a picture: a weight a class would count its yes and its no alike, and balance nothing
            loss = loss * (targets @ self.class_weights)
        return loss.sum()

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated, whole: devices have different numbers of pictures, and some ask alone."""
        return super().evaluated if self.whole is None else self.whole[0]

    def on_validation_epoch_start(self) -> None:
        self.rows = Rows()
        if self.device_mesh is not None:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

            options = StateDictOptions(full_state_dict=True)
            state: dict[str, Any] = get_model_state_dict(super().evaluated, options=options)
            self.whole = [with_weights(self._network.architecture, state).eval()]

    def on_validation_end(self) -> None:
        self.whole = None

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        logits = self(batch.images)
        self.rows.add(logits, batch.labels, batch.indices, batch.failures)
        return logits

    def on_validation_epoch_end(self) -> None:
        self.gathered = self.rows.gather(len(self.classes))
        if not len(self.gathered.indices):
            raise DataError("no picture for validation could be read; `vit data check` names the reasons")
        loss = float(self.gathered.predictions.losses.mean())
        if not math.isfinite(loss):
            raise diverged(loss, self.current_epoch, self.config)
        self.unreadable.update({("val", index): reason for index, reason in self.gathered.failures})
        self.validated = self.current_epoch
        metrics = point_metrics(self.gathered.predictions, self.classes)
        for name in ("loss", "top1", "top5", "balanced_accuracy", "macro_f1"):
            shown = "accuracy" if name == "top1" else name
            self.log(f"val/{shown}", metrics[name], sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside the state, what `vit.load` needs: a checkpoint is a model too."""
        preprocessing = asdict(self.preprocessing)
        model = classifier_file(self._network, self.classes, preprocessing, licence=self.licence, origin=self.origin)
        checkpoint["vit"] = model.header()

    @property
    def _network(self) -> VisionTransformer:
        assert isinstance(self.network, VisionTransformer)
        return self.network
