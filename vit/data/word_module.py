"""Words as Lightning's data module."""

from collections.abc import Sequence

from torch.utils.data import DataLoader

from vit.data.config import DataConfig
from vit.data.module import EpochData
from vit.data.sampling import EpochSampler, ExactSampler
from vit.data.words import WindowDataset, WordBatch, WordDataset, word_loader
from vit.errors import DataError, display_path


class WordsData(EpochData):
    """Training and validation batches of any task with words; those of `WordDataset` hold texts of like length."""

    def __init__(
        self, train: WordDataset | WindowDataset, val: WordDataset | WindowDataset, data: DataConfig, seed: int
    ) -> None:
        super().__init__(data, seed)
        self.train, self.val = train, val

    def train_dataloader(self) -> "DataLoader[WordBatch]":
        """Batches of equal size but for one of an epoch, which holds the rest: every sample is used."""
        self._keep_pictures(self.train, "train")
        rank, world = self._place()
        sampler = EpochSampler(range(len(self.train)), seed=self._seed, rank=rank, world=world)
        sampler.start_at(self._epoch, self._batch * self._data.batch_size)
        return word_loader(
            self.train,
            sampler,
            batch_size=self._data.batch_size,
            workers=self._workers_for(self.train),
            pin_memory=self._on_cuda(),
            bucketed=isinstance(self.train, WordDataset),
            seed=self._seed,
            timeout=self._data.timeout,
        )

    def val_dataloader(self) -> "DataLoader[WordBatch]":
        """Every sample once over all devices."""
        rank, world = self._place()
        if len(self.val) < world:  # Lightning would wait for ever for the device without any
            raise DataError(f"{len(self.val)} samples for validation on {world} devices")
        self._keep_pictures(self.val, "val")
        sampler = ExactSampler(len(self.val), rank=rank, world=world)
        return word_loader(
            self.val,
            sampler,
            batch_size=self._data.batch_size,
            workers=self._workers_for(self.val),
            pin_memory=self._on_cuda(),
            timeout=self._data.timeout,
        )

    def names(self, indices: Sequence[int]) -> list[str]:
        """The paths of training pictures; samples without one by number."""
        images = self.train.images if isinstance(self.train, WordDataset) else None
        return [f"sample {i}" if images is None else display_path(images.path(i)) for i in indices]

    def _keep_pictures(self, dataset: WordDataset | WindowDataset, name: str) -> None:
        if isinstance(dataset, WordDataset) and dataset.images is not None:
            self._keep(dataset.images, name)

    def _workers_for(self, dataset: WordDataset | WindowDataset) -> int:
        """None where there is nothing to decode: starting a process takes longer."""
        return self._workers() if dataset.decodes else 0
