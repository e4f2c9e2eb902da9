"""The training pictures of shards as LitData streams them: shuffled, shared out and resumed by that engine.

Imports LitData, which takes seconds: only who streams imports this.
"""

from collections.abc import Iterator
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset

from vit.data.augment import TrainingTransform
from vit.data.dataset import Batch, Failed, Loaded, collate, start_worker, started, worker_count
from vit.data.sampling import draw_seed
from vit.data.shards import loaded, unreadable


class ShardStream(StreamingDataset):
    """Pictures of one split of shards, each varied by (seed, epoch, index) as everywhere."""

    def __init__(self, files: str, transform: TrainingTransform, *, seed: int) -> None:
        super().__init__(files, shuffle=True, seed=seed)  # of several processes the engine drops the rest
        self._files, self._vary = files, transform

    def __getitem__(self, index: Any) -> Loaded | Failed:
        try:
            sample = super().__getitem__(index)
        except Exception as error:  # the engine raises many kinds
            raise unreadable(self._files, error) from error
        varied = draw_seed(self.seed, self.current_epoch - 1, int(sample["index"]), 0)
        return loaded(sample, lambda data: self._vary.read(data, varied), self._vary.size)


class ShardLoader(StreamingDataLoader):
    """Batches of a stream, from batch `batch` of `epoch` on."""

    def __init__(
        self,
        stream: ShardStream,
        *,
        batch_size: int,
        workers: int,
        epoch: int = 0,
        batch: int = 0,
        pin_memory: bool = False,
        timeout: int = 0,
    ) -> None:
        workers = worker_count(workers)
        super().__init__(
            stream,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            drop_last=stream.drop_last and len(stream) >= batch_size,
            worker_init_fn=start_worker,
            timeout=timeout if workers else 0,
        )
        self.current_epoch = epoch
        self._within = False
        """whether the next epoch is one that goes on"""
        if batch:
            self._begin_at(epoch + 1, batch)  # this engine counts epochs from 1

    def __iter__(self) -> Iterator[Batch]:
        # the engine ends a restored epoch by its last `next`, which nobody asks for who knows the length
        self.restore, self._within = self._within, False
        batches: Iterator[Batch] = super().__iter__()
        return batches

    def _get_iterator(self) -> Any:
        # torch's iterator, which has the processes, lies within the engine's
        return started(super()._get_iterator, self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place is that of the run, since what the engine counts is what was fetched."""
        return {}

    def _begin_at(self, epoch: int, batch: int) -> None:
        assert self.batch_size
        seen = batch * self.batch_size
        self.dataset.set_epoch(epoch)
        state = self.dataset.state_dict(seen, self.num_workers, self.batch_size)
        latest = (batch - 1) % max(1, self.num_workers)
        self.load_state_dict(
            {"dataset": state, "current_epoch": epoch, "num_samples_yielded": seen, "latest_worker_idx": latest}
        )
        self._within = self.restore
