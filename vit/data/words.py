"""Words to batches: captions with their pictures, pairs of texts, questions about pictures, windows of one long text.

All texts are token ids when a dataset is made, kept in one block of numbers. Letters: B pictures (or texts to read), R
texts to write, N, M tokens.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vit.data.dataset import ImageDataset, Loaded, Loader, start_worker, worker_count
from vit.data.sampling import Draw, EpochSampler, draw_seed
from vit.data.transfer import sent


class Texts:
    """Token ids of many texts in one array: a million lists would be copied into every worker process."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._ends = np.cumsum([0, *(len(text) for text in texts)])
        self._tokens = np.fromiter((token for text in texts for token in text), np.int32, self._ends[-1])
        self.lengths = np.diff(self._ends)
        """tokens of each text"""

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self._tokens[self._ends[index] : self._ends[index + 1]]


@dataclass(slots=True)
class WordItem:
    """What one draw gives: the picture or the source to read, texts with their places, the class to answer to each."""

    index: int
    image: Tensor | None = None
    source: np.ndarray | None = None
    texts: list[np.ndarray] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    labels: list[int] | None = None
    failure: str | None = None
    """why the picture could not be read"""


@dataclass(slots=True)
class WordBatch:
    """tokens int64 [R, N], padding behind, and how many are none, `lengths` [R]; `owners` [R], rising, tells which of
    the B pictures or sources each text is of, `places` [R] where it stands among all texts, `labels` [R] its class;
    `even` whether all pictures have the same number of texts. images uint8 [B, 3, H, W]; source int64 [B, M] with
    `source_lengths` [B]; indices int64 [B]; failures: (index, reason) of the pictures left out.
    """

    tokens: Tensor
    lengths: Tensor
    owners: Tensor
    places: Tensor
    even: bool
    indices: Tensor
    images: Tensor | None = None
    source: Tensor | None = None
    source_lengths: Tensor | None = None
    labels: Tensor | None = None
    failures: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> "WordBatch":
        """The batch on `device`, as `sent` takes it there."""
        tensors = self._tensors()
        there: dict[str, Any] = dict(zip(tensors, sent(list(tensors.values()), device), strict=True))
        return replace(self, **there)

    def pin_memory(self) -> "WordBatch":
        """The batch in page-locked memory; DataLoader calls this where `pin_memory` is on."""
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, **pinned)

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class WordDataset(Dataset[WordItem]):
    """Pictures or sources with texts about them, to be written or to be answered.

    `groups` holds each sample's places in `texts`, `labels` the class of each of those. In training `drawn` texts of a
    sample are given, a function of (seed, draw); in evaluation all are.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        texts: Texts,
        *,
        images: ImageDataset | None = None,
        sources: Texts | None = None,
        labels: Sequence[int] | None = None,
        training: bool,
        drawn: int = 1,
        seed: int = 0,
    ) -> None:
        self.texts = texts
        self._groups = Texts(groups)
        self.images, self._sources = images, sources
        self._labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self._training, self._drawn, self._seed = training, drawn, seed

    @property
    def decodes(self) -> bool:
        """Whether there are pictures to decode, which is work for several processes."""
        return self.images is not None

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, draw: Draw) -> WordItem:
        item = WordItem(draw.index)
        if self.images is not None:
            loaded = self.images[draw]
            if not isinstance(loaded, Loaded):
                return WordItem(draw.index, failure=loaded.reason)
            item.image = loaded.image
        if self._sources is not None:
            item.source = self._sources[draw.index]
        item.places = self.chosen(draw)
        item.texts = [self.texts[place] for place in item.places]
        item.labels = None if self._labels is None else self._labels[item.places].tolist()
        return item

    def chosen(self, draw: Draw) -> list[int]:
        """The places of the texts that a draw gives: some at random in training, else all."""
        group = self._groups[draw.index].tolist()
        if not self._training or len(group) <= self._drawn:
            return group
        return random.Random(draw_seed(self._seed + 1, *draw)).sample(group, self._drawn)

    def length(self, draw: Draw) -> int:
        """Tokens that a draw brings to its batch."""
        written = max((int(self.texts.lengths[place]) for place in self.chosen(draw)), default=0)
        return written + (0 if self._sources is None else len(self._sources[draw.index]))


class WindowDataset(Dataset[WordItem]):
    """Windows of one long text, tokens [T]: each has `length` tokens and the one after it.

    In training a window begins anywhere, a function of (seed, draw); in evaluation they follow one another, so that
    every token but the first is predicted once; the last window may be shorter.
    """

    def __init__(self, tokens: np.ndarray, length: int, count: int, *, training: bool, seed: int = 0) -> None:
        self._tokens, self._length, self._count = tokens, length, count
        self._training, self._seed = training, seed

    decodes = False

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, draw: Draw) -> WordItem:
        if self._training:
            start = draw_seed(self._seed, *draw) % (len(self._tokens) - self._length)
        else:
            start = draw.index * self._length
        return WordItem(draw.index, texts=[self._tokens[start : start + self._length + 1]], places=[draw.index])


def collate_words(items: Sequence[WordItem]) -> WordBatch:
    """Stack what was read, padding texts with zeros behind; pictures that could not be read are named and left out."""
    read = [item for item in items if item.failure is None]
    texts = [text for item in read for text in item.texts]
    owners = [place for place, item in enumerate(read) for _ in item.texts]
    tokens, lengths = _padded(texts)
    batch = WordBatch(
        tokens,
        lengths,
        torch.tensor(owners, dtype=torch.int64),
        torch.tensor([place for item in read for place in item.places], dtype=torch.int64),
        len({len(item.texts) for item in read}) < 2,
        torch.tensor([item.index for item in read], dtype=torch.int64),
        failures=[(item.index, item.failure) for item in items if item.failure is not None],
    )
    if read and read[0].image is not None:
        batch.images = torch.stack([item.image for item in read if item.image is not None])
    if read and read[0].source is not None:
        batch.source, batch.source_lengths = _padded([item.source for item in read if item.source is not None])
    if read and read[0].labels is not None:
        batch.labels = torch.tensor([label for item in read for label in item.labels or ()], dtype=torch.int64)
    return batch


def _padded(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    tokens = torch.zeros(len(texts), int(lengths.max()) if len(texts) else 0, dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.from_numpy(text.astype(np.int64))
    return tokens, lengths


class LengthBatches(Sampler[list[Draw]]):
    """Batches of draws of like length, so that little is padded: a window of batches is sorted, then shuffled again.

    From the sampler's order alone, so the same with any number of workers.
    """

    WINDOW = 32  # batches

    def __init__(self, sampler: EpochSampler, length: Callable[[Draw], int], batch_size: int, *, seed: int) -> None:
        self.sampler = sampler  # Lightning sets its epoch
        self.batch_size = batch_size
        self._length, self._seed = length, seed

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = list(self.sampler.whole())  # which batch a draw is in goes by all of them
        rng = np.random.default_rng((self._seed, draws[0].epoch if draws else 0))
        window = self.WINDOW * self.batch_size
        done = self.sampler.start // self.batch_size
        for start in range(0, len(draws), window):
            order = rng.permutation(-(-len(draws[start : start + window]) // self.batch_size))
            if done >= len(order):
                done -= len(order)
                continue
            part = sorted(draws[start : start + window], key=self._length)
            batches = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            for place in order[done:]:
                yield batches[place]
            done = 0


def word_loader(
    dataset: WordDataset | WindowDataset,
    sampler: Sampler[Draw],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    bucketed: bool = False,
    seed: int = 0,
    timeout: int = 0,
) -> "DataLoader[WordBatch]":
    """A loader of `WordBatch`; `bucketed` puts texts of like length together, else the sampler's order holds."""
    count = len(sampler)  # type: ignore[arg-type]
    workers = min(worker_count(workers), -(-count // batch_size))
    shared: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory, "persistent_workers": workers > 0}
    shared["timeout"] = timeout if workers else 0
    if bucketed:
        assert isinstance(dataset, WordDataset)
        assert isinstance(sampler, EpochSampler)
        batches = LengthBatches(sampler, dataset.length, batch_size, seed=seed)
        return Loader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate_words,
            worker_init_fn=start_worker,
            **shared,
        )
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate_words,
        worker_init_fn=start_worker,
        **shared,
    )
