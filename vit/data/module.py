"""Batches as Lightning's data modules: of image folders here, of words in `vit.data.word_module`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
from vit.errors import ConfigError, DataError, display_path

if TYPE_CHECKING:  # imports albumentations
    from vit.data.augment import TrainingTransform
    from vit.data.device import DeviceLoader


def place_of(trainer: L.Trainer) -> tuple[int, int]:
    """Epochs that are through, and batches of the next one that are done; when all are, validation may not be."""
    progress = trainer.fit_loop.epoch_progress.current
    within = progress.started > progress.processed
    return progress.processed, trainer.fit_loop.epoch_loop.batch_progress.current.processed if within else 0


class EpochData(L.LightningDataModule):
    """What all data modules share: they know the epoch to go on with, and their place among the devices.

    The samplers share the samples out among the devices themselves: give the Trainer
    `use_distributed_sampler=False`, else Lightning wraps them, and evaluation would count samples twice.
    Lightning calls `set_epoch` of the training sampler before every epoch, which is too late for the first one after a
    resume: by then the workers have drawn from the sampler. So the place to go on from is saved in the checkpoint, as
    this module's state, and the sampler starts with it.
    """

    def __init__(self, data: DataConfig, seed: int) -> None:
        super().__init__()
        self._data, self._seed = data, seed
        self._epoch = self._batch = 0
        self._reserved = 0
        """bytes of memory that caches may come to take"""

    def state_dict(self) -> dict[str, int]:
        """How many epochs are through, how many batches of the next one, and on how many devices; Lightning saves it.

        That holds between two steps, and nothing is saved within one.
        """
        epoch, batch = (self._epoch, self._batch) if self.trainer is None else place_of(self.trainer)
        if batch and self.trainer is not None and batch == self.trainer.num_training_batches:
            epoch, batch = epoch + 1, 0  # whatever is left of the epoch, no batch is
        return {"epoch": epoch, "batch": batch, "world": self._place()[1], "workers": self._workers()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on as the checkpoint says; Lightning calls this before it asks for a loader.

        Raises ConfigError within an epoch that other devices began: they share its samples out in another way.
        """
        self._epoch, self._batch = state_dict["epoch"], state_dict.get("batch", 0)
        before, now = state_dict.get("world", 1), self._place()[1]
        if self._batch and before != now:
            raise ConfigError(
                f"--resume: the run stopped within an epoch on {before} devices, not {now}; end the epoch on {before}"
            )

    def names(self, indices: Sequence[int]) -> list[str]:
        """What the training samples of these places are called."""
        raise NotImplementedError

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
    """Training and validation batches of one listing."""

    def __init__(
        self, listing: Listing, data: DataConfig, augment: AugmentConfig, preprocessing: Preprocessing, seed: int
    ) -> None:
        super().__init__(data, seed)
        self.listing = listing
        self.preprocessing = preprocessing
        self._augment = augment

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Of shards, whose engine shares them out among the processes that read, neither may these be others."""
        super().load_state_dict(state_dict)
        now = self._workers()
        before = state_dict.get("workers", now)
        if self._batch and before != now and isinstance(self.listing, ShardListing):
            raise ConfigError(
                f"--resume: the run stopped within an epoch of shards that {before} processes read, not {now}; "
                f"set data.workers {before}"
            )

    def train_dataloader(self) -> "DataLoader[Batch] | DeviceLoader":
        """Batches of equal size but for the last one of an epoch: every image is used."""
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
        sampler.start_at(self._epoch, self._batch * self._data.batch_size)
        dataset = ImageDataset(samples, transform, seed=self._seed)
        self._keep(dataset, "train")
        if self._data.cache == "device":
            return self._on_device(dataset, sampler)
        return image_loader(
            dataset,
            sampler,
            batch_size=self._data.batch_size,
            workers=self._workers(),
            pin_memory=self._on_cuda(),
            timeout=self._data.timeout,
        )

    def names(self, indices: Sequence[int]) -> list[str]:
        """The paths of training pictures."""
        return [display_path(self.listing.splits["train"][index].path) for index in indices]

    def val_dataloader(self) -> "DataLoader[Batch] | DeviceLoader":
        """Every validation picture once over all devices."""
        rank, world = self._place()
        samples = self._samples("val")
        if len(samples) < world:  # Lightning would wait for ever for the device without any
            raise DataError(f"{display_path(self.listing.name)}: {len(samples)} pictures for val on {world} devices")
        dataset = ImageDataset(samples, EvaluationTransform(self.preprocessing))
        sampler = ExactSampler(len(samples), rank=rank, world=world)
        self._keep(dataset, "val")
        if self._data.cache == "device":
            return self._on_device(dataset, sampler)
        return image_loader(
            dataset,
            sampler,
            batch_size=self._data.batch_size,
            workers=self._workers(),
            pin_memory=self._on_cuda(),
            timeout=self._data.timeout,
        )

    def _stream(self, listing: ShardListing, transform: "TrainingTransform") -> "DataLoader[Batch]":
        from vit.data.shard_stream import ShardLoader, ShardStream

        stream = ShardStream(listing.files("train"), transform, seed=self._seed)
        return ShardLoader(
            stream,
            batch_size=self._data.batch_size,
            workers=self._workers(),
            epoch=self._epoch,
            batch=self._batch,
            pin_memory=self._on_cuda(),
            timeout=self._data.timeout,
        )

    def _on_device(self, dataset: ImageDataset, sampler: EpochSampler | ExactSampler) -> "DeviceLoader":
        from vit.data.device import DeviceLoader

        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return DeviceLoader(dataset, sampler, device=device, batch_size=self._data.batch_size)

    def _samples(self, split: str) -> list[Sample]:
        """The pictures of `split`; DataError where there are none."""
        samples = self.listing.splits.get(split, [])
        if not samples:
            raise DataError(f"{display_path(self.listing.name)}: no pictures for {split}")
        return samples
