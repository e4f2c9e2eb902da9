"""Pictures with texts to one class: questions about pictures and their answers."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from vit.data.config import Preprocessing
from vit.data.normalise import Normalise
from vit.data.sampling import draw_seed
from vit.data.tokenizer import Tokenizer
from vit.data.words import WordBatch
from vit.errors import DataError
from vit.evaluate.classification import point_metrics
from vit.models.file import ModelFile
from vit.models.fusion import FusedClassifier
from vit.nn import padding_mask
from vit.tasks.base import Loss, Losses, Task, diverged
from vit.tasks.config import Config
from vit.tasks.rows import Rows


class Fuse(Task):
    """One class a picture with its text, by cross-entropy.

    Some training steps lack their pictures, some their texts (`text.drop_side`), a function of the step alone, so
    that the model can answer without either. After validation, `gathered` holds the result rows of all processes, one a
    text.
    """

    def __init__(
        self,
        network: FusedClassifier,
        classes: Sequence[str],
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        config: Config,
    ) -> None:
        super().__init__(network, network.architecture.depth, config)
        self.classes, self.tokenizer, self.preprocessing = list(classes), tokenizer, preprocessing
        self.normalise = Normalise(preprocessing)
        self.rows = Rows()
        self.licence: str | None = None
        self.origin = "trained by vit"
        self.unreadable: dict[tuple[str, int], str] = {}
        """reason by split and place in its list"""

    def scores(self, network: torch.nn.Module, batch: WordBatch, *, image: bool = True, text: bool = True) -> Tensor:
        """Class scores [R, classes] of a batch's texts, from its pictures, its texts, or both."""
        assert batch.images is not None
        images = self.normalise(batch.images) if image else None
        tokens = batch.tokens if text else None
        mask = padding_mask(batch.lengths, batch.tokens.shape[1]) if text else None
        even = batch.even and text
        scores: Tensor = network(images, tokens, text_mask=mask, owners=None if even else batch.owners)
        return scores

    def losses(self, batch: WordBatch) -> Losses:
        """Cross-entropy of a training batch, which may lack one side."""
        self.unreadable.update({("train", index): reason for index, reason in batch.failures})
        if not len(batch):
            return {"loss": Loss.over(self.zero_loss(), 0)}
        drop = self.config.text.drop_side
        # one draw per step: its micro-batches and devices lack the same side
        chance = draw_seed(self.config.train.seed, self.global_step, 0, 2) / 2**32
        image, text = chance >= drop, not drop <= chance < 2 * drop
        scores = self.scores(self.network, batch, image=image, text=text)
        labels, smoothing = _labels(batch), self.config.loss.smoothing
        total = torch.nn.functional.cross_entropy(scores, labels, label_smoothing=smoothing, reduction="sum")
        return {"loss": Loss.over(total, len(labels))}

    def on_validation_epoch_start(self) -> None:
        self.rows = Rows()

    def validation_step(self, batch: WordBatch, batch_index: int) -> None:
        if len(batch):
            self.rows.add(self.scores(self.evaluated, batch), _labels(batch), batch.places, batch.failures)
        else:
            self.rows.failures += batch.failures

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
            self.log(f"val/{'accuracy' if name == 'top1' else name}", metrics[name], sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside the state, what `vit.load` needs: a checkpoint is a model too."""
        checkpoint["vit"] = self.file().header()

    def file(self) -> ModelFile:
        """The model as it would lie in a file."""
        network = self.network
        assert isinstance(network, FusedClassifier)
        architecture = network.architecture
        return ModelFile(
            kind="fused",
            architecture=asdict(replace(architecture, image=replace(architecture.image, classes=0))),
            classes=self.classes,
            preprocessing=asdict(self.preprocessing),
            raw=network.state_dict(),
            licence=self.licence,
            origin=self.origin,
            tokenizer=self.tokenizer.to_json(),
        )


def _labels(batch: WordBatch) -> Tensor:
    assert batch.labels is not None
    return batch.labels
