"""MixUp and CutMix of a batch of pictures, as a function of a seed; the draws of the training go on undisturbed."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms import v2

from vit.data.config import AugmentConfig


class Mix:
    """Blend each picture and its label with those of a partner from the same batch.

    MixUp (Zhang et al. 2018) takes the weighted mean of two pictures, CutMix (Yun et al. 2019) pastes a rectangle of
    one into the other; both mix the labels by the same weights. The weight comes from Beta(alpha, alpha), once a
    batch. Where both are on, `mix_switch` is the share of mixed batches that take CutMix.
    """

    def __init__(self, augment: AugmentConfig, classes: int) -> None:
        self._augment = augment
        self._classes = classes
        self._mixup = v2.MixUp(alpha=augment.mixup, num_classes=classes) if augment.mixup > 0 else None
        self._cutmix = v2.CutMix(alpha=augment.cutmix, num_classes=classes) if augment.cutmix > 0 else None

    def active(self, epoch: int, epochs: int) -> bool:
        """Whether batches of `epoch` (from 0, of `epochs`) can be mixed at all."""
        on = (self._mixup is not None or self._cutmix is not None) and self._augment.mix_probability > 0
        return on and epoch < epochs - self._augment.mix_off_epochs

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix `images` float [B, 3, H, W] and `labels` int64 [B] -> images, soft labels float32 [B, classes].

        The soft labels sum to 1; they are one-hot where the batch is not mixed (`mix_probability`). A mixed batch
        comes in another order.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
            mixed, switched = torch.rand(2).tolist()
            kind = self._cutmix if self._mixup is None or switched < self._augment.mix_switch else self._mixup
            kind = kind or self._mixup
            if kind is None or mixed >= self._augment.mix_probability:
                return images, one_hot(labels, self._classes).float()
            # torchvision pairs neighbours; with repeated augmentation those are copies of one picture
            order = torch.randperm(len(labels))
            if labels.is_cuda:  # from ordinary memory the copy would wait until the GPU has done all that is queued
                order = order.pin_memory().to(labels.device, non_blocking=True)
            images, targets = kind(images[order], labels[order])
        return images, targets.float()
