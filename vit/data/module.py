"""Batches as Lightning's data modules: of image folders here, of words in `vit.data.word_module`."""

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from vit.data.caching import keep_pictures
from vit.data.config import AugmentConfig, DataConfig, Preprocessing
from vit.data.dataset import Batch, ImageDataset, image_loader, worker_count
from vit.data.folders import Listing, Sample
from vit.data.sampling import EpochSampler, ExactSampler
from vit.data.shards import ShardListing
from vit.data.transforms import EvaluationTransform
from vit.errors import DataError, display_path

if TYPE_CHECKING:  # imports albumentations
    from vit.data.augment import TrainingTransform
    from vit.data.device import DeviceLoader


class EpochData(L.LightningDataModule):
    """What all data modules share: they know the epoch to go on with, and their place among the devices.

    The samplers share the samples out among the devices themselves: give the Trainer
    `use_distributed_sampler=False`, else Lightning wraps them, and evaluation would count samples twice.
    Lightning calls `set_epoch` of the training sampler before every epoch, which is too late for the first one after a
    resume: by then the workers have drawn from the sampler. So the epoch to go on with is saved in the checkpoint, as
    this module's state, and the sampler starts with it.
    """

    def __init__(self, data: DataConfig, seed: int) -> None:
        super().__init__()
        self._data, self._seed = data, seed
        self._epoch = 0
        self._reserved = 0
        """bytes of memory that caches may come to take"""

    def state_dict(self) -> dict[str, Any]:
        """`epoch`: how many epochs are through, so the number of the one to go on with; Lightning saves this."""
        if self.trainer is None:
            return {"epoch": self._epoch}
        loop = self.trainer.fit_loop
        current = loop.epoch_progress.current
        # A checkpoint may be written when the epoch's last batch is done and the epoch itself is not.
        unfinished = current.started > current.processed
        last_done = unfinished and loop.epoch_loop.batch_progress.is_last_batch
        return {"epoch": current.processed + int(last_done)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the checkpoint says; Lightning calls this before it asks for a loader."""
        self._epoch = state_dict["epoch"]

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes; 0 of 1 outside a Trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _workers(self) -> int:
        return worker_count(self._data.workers, self.trainer.num_devices if self.trainer else 1)

    def _keep(self, dataset: ImageDataset, name: str) -> None:
        """Let `dataset` keep its pictures as the settings say."""
        processes = self.trainer.num_devices if self.trainer else 1
        self._reserved += keep_pictures(
            dataset, self._data.cache, name=name, processes=processes, reserved=self._reserved
        )

    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


class ImageFolderData(EpochData):
    """Training, validation and test batches of one listing."""

    def __init__(
        self, listing: Listing, data: DataConfig, augment: AugmentConfig, preprocessing: Preprocessing, seed: int
    ) -> None:
        super().__init__(data, seed)
        self.listing = listing
        self.preprocessing = preprocessing
        self._augment = augment

    def train_dataloader(self) -> "DataLoader[Batch] | DeviceLoader":
        """Batches of equal size; a folder smaller than one batch gives one smaller batch."""
        from vit.data.augment import TrainingTransform  # takes a second, and evaluation does without

        samples = self._samples("train")
        transform = TrainingTransform(self._augment, self.preprocessing, kept_side=self._data.cache_side)
        if isinstance(self.listing, ShardListing):
            return self._stream(self.listing, transform)
        rank, world = self._place()
        sampler = EpochSampler(
            [sample.label for sample in samples],
            seed=self._seed,
            balanced=self._data.balanced,
            repeats=self._data.repeats,
            rank=rank,
            world=world,
        )
        sampler.set_epoch(self._epoch)
        dataset = ImageDataset(samples, transform, seed=self._seed, max_pixels=self._data.max_pixels)
        self._keep(dataset, "train")
        if self._data.cache == "device":
            return self._on_device(dataset, sampler, drop_last=len(sampler) >= self._data.batch_size)
        return image_loader(
            dataset,
            sampler,
            batch_size=self._data.batch_size,
            workers=self._workers(),
            pin_memory=self._on_cuda(),
            drop_last=len(sampler) >= self._data.batch_size,
        )

    def val_dataloader(self) -> "DataLoader[Batch] | DeviceLoader":
        """Every validation picture once over all devices."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> "DataLoader[Batch] | DeviceLoader":
        """Every test picture once over all devices."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> "DataLoader[Batch] | DeviceLoader":
        rank, world = self._place()
        samples = self._samples(split)
        if len(samples) < world:  # Lightning would wait for ever for the device without any
            raise DataError(
                f"{display_path(self.listing.root)}: {len(samples)} pictures for {split} on {world} devices"
            )
        dataset = ImageDataset(samples, EvaluationTransform(self.preprocessing), max_pixels=self._data.max_pixels)
        sampler = ExactSampler(len(samples), rank=rank, world=world)
        if split == "val":  # the others are read once
            self._keep(dataset, split)
            if self._data.cache == "device":
                return self._on_device(dataset, sampler)
        return image_loader(
            dataset,
            sampler,
            batch_size=self._data.batch_size,
            workers=self._workers(),
            pin_memory=self._on_cuda(),
        )

    def _stream(self, listing: ShardListing, transform: "TrainingTransform") -> "DataLoader[Batch]":
        from vit.data.shard_stream import ShardLoader, ShardStream

        stream = ShardStream(listing.files("train"), transform, seed=self._seed, max_pixels=self._data.max_pixels)
        return ShardLoader(
            stream,
            batch_size=self._data.batch_size,
            workers=self._workers(),
            epoch=self._epoch,
            pin_memory=self._on_cuda(),
        )

    def _on_device(
        self, dataset: ImageDataset, sampler: EpochSampler | ExactSampler, *, drop_last: bool = False
    ) -> "DeviceLoader":
        from vit.data.device import DeviceLoader

        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return DeviceLoader(dataset, sampler, device=device, batch_size=self._data.batch_size, drop_last=drop_last)

    def _samples(self, split: str) -> list[Sample]:
        """The pictures of `split`; DataError where there are none."""
        samples = self.listing.splits.get(split, [])
        if not samples:
            raise DataError(f"{display_path(self.listing.root)}: no pictures for {split}")
        return samples
