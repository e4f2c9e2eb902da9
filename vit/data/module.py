"""The image folders of a listing as Lightning's data module."""

import lightning as L
from torch.utils.data import DataLoader

from vit.data.augment import TrainingTransform
from vit.data.config import AugmentConfig, DataConfig, Preprocessing
from vit.data.dataset import Batch, ImageDataset, evaluation_loader, image_loader
from vit.data.folders import Listing, Sample
from vit.data.sampling import EpochSampler
from vit.errors import DataError, display_path


class ImageFolderData(L.LightningDataModule):
    """Training, validation and test batches of one listing.

    The samplers share the pictures out among the devices themselves: give the Trainer
    `use_distributed_sampler=False`, else Lightning wraps them, and evaluation would count pictures twice.
    Lightning calls `set_epoch` of the training sampler before every epoch, also after a resume.
    """

    def __init__(
        self, listing: Listing, data: DataConfig, augment: AugmentConfig, preprocessing: Preprocessing, seed: int
    ) -> None:
        super().__init__()
        self.listing = listing
        self.preprocessing = preprocessing
        self._data = data
        self._augment = augment
        self._seed = seed

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Batches of equal size; a folder smaller than one batch gives one smaller batch."""
        samples = self._samples("train")
        rank, world = self._place()
        sampler = EpochSampler(
            [sample.label for sample in samples],
            seed=self._seed,
            balanced=self._data.balanced,
            repeats=self._data.repeats,
            rank=rank,
            world=world,
        )
        transform = TrainingTransform(self._augment, self.preprocessing)
        dataset = ImageDataset(samples, transform, seed=self._seed, max_pixels=self._data.max_pixels)
        return image_loader(
            dataset,
            sampler,
            batch_size=self._data.batch_size,
            workers=self._data.workers,
            pin_memory=self._on_cuda(),
            drop_last=len(sampler) >= self._data.batch_size,
        )

    def val_dataloader(self) -> "DataLoader[Batch]":
        """Every validation picture once over all devices."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> "DataLoader[Batch]":
        """Every test picture once over all devices."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> "DataLoader[Batch]":
        rank, world = self._place()
        samples = self._samples(split)
        if len(samples) < world:  # Lightning would wait for ever for the device without any
            raise DataError(
                f"{display_path(self.listing.root)}: {len(samples)} pictures for {split} on {world} devices"
            )
        return evaluation_loader(
            samples,
            self.preprocessing,
            batch_size=self._data.batch_size,
            workers=self._data.workers,
            rank=rank,
            world=world,
            max_pixels=self._data.max_pixels,
            pin_memory=self._on_cuda(),
        )

    def _samples(self, split: str) -> list[Sample]:
        """The pictures of `split`; DataError where there are none."""
        samples = self.listing.splits.get(split, [])
        if not samples:
            raise DataError(f"{display_path(self.listing.root)}: no pictures for {split}")
        return samples

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes; 0 of 1 outside a Trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
