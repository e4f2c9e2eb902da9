"""Loading: broken pictures are named and never replaced, and workers change nothing but the speed."""

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from vit.data.augment import TrainingTransform
from vit.data.cache import PixelCache
from vit.data.config import AugmentConfig, Preprocessing
from vit.data.dataset import (
    Batch,
    Failed,
    ImageDataset,
    Loaded,
    Loader,
    collate,
    evaluation_loader,
    image_loader,
    patient,
    start_worker,
    worker_count,
)
from vit.data.folders import Sample
from vit.data.sampling import Draw, EpochSampler, ExactSampler
from vit.data.transforms import EvaluationTransform
from vit.errors import DataError

PREPROCESSING = Preprocessing((16, 16))


def write_pictures(folder, count):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(str(path), i % 3))
    return samples


@pytest.fixture
def samples(tmp_path):
    return write_pictures(tmp_path, 12)


@pytest.fixture
def broken(samples):
    """The samples, of which 2 is no picture, 5 is missing and 7 is empty."""
    with open(samples[2].path, "w") as file:
        file.write("not a picture")
    os.unlink(samples[5].path)
    with open(samples[7].path, "w"):
        pass
    return samples


def test_an_item_is_the_transformed_picture_with_its_label_and_index(samples):
    item = ImageDataset(samples, EvaluationTransform(PREPROCESSING))[Draw(0, 4, 0)]
    assert isinstance(item, Loaded)
    assert (item.label, item.index) == (1, 4)
    with Image.open(samples[4].path) as picture:
        expected = EvaluationTransform(PREPROCESSING)(np.array(picture))
    assert torch.equal(item.image, torch.from_numpy(expected).permute(2, 0, 1))


def test_a_training_item_depends_on_seed_epoch_index_and_copy(samples):
    transform = TrainingTransform(AugmentConfig(crop_scale=(0.1, 0.5)), PREPROCESSING)
    dataset = ImageDataset([samples[0]] * 2, transform, seed=3)
    draws = [Draw(0, 0, 0), Draw(1, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1)]
    images = [dataset[draw].image for draw in draws]
    assert all(torch.equal(dataset[draw].image, image) for draw, image in zip(draws, images, strict=True))
    assert not torch.equal(ImageDataset(samples[:1], transform, seed=4)[draws[0]].image, images[0])
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_broken_pictures_are_named_with_the_reason_and_left_out(broken):
    loader = evaluation_loader(broken, PREPROCESSING, batch_size=6, workers=0)
    first, second = list(loader)
    assert first.indices.tolist() == [0, 1, 3, 4]
    assert first.labels.tolist() == [0, 1, 0, 1]
    assert first.images.shape == (4, 3, 16, 16)
    assert first.images.dtype == torch.uint8
    assert [index for index, _ in first.failures] == [2, 5]
    assert second.indices.tolist() == [6, 8, 9, 10, 11]
    assert [index for index, _ in second.failures] == [7]
    for index, reason in first.failures + second.failures:
        assert reason
        assert "\n" not in reason
        assert broken[index].path not in reason


def test_training_leaves_broken_pictures_out_too(broken):
    dataset = ImageDataset(broken, TrainingTransform(AugmentConfig(), PREPROCESSING))
    sampler = EpochSampler([sample.label for sample in broken], seed=0)
    batches = list(image_loader(dataset, sampler, batch_size=12, workers=0))
    assert sorted(batches[0].indices.tolist()) == [0, 1, 3, 4, 6, 8, 9, 10, 11]
    assert sorted(index for index, _ in batches[0].failures) == [2, 5, 7]


def test_a_batch_of_broken_pictures_alone_is_empty_but_keeps_its_shape(broken):
    (batch,) = evaluation_loader([broken[i] for i in (2, 5, 7)], PREPROCESSING, batch_size=4, workers=0)
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.shape == batch.indices.shape == (0,)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert [index for index, _ in batch.failures] == [0, 1, 2]


def test_a_picture_with_too_many_pixels_is_a_failure(samples):
    item = ImageDataset(samples, EvaluationTransform(replace(PREPROCESSING, max_pixels=100)))[Draw(0, 0, 0)]
    assert isinstance(item, Failed)


def test_paths_of_any_bytes_and_length_are_found(tmp_path):
    names = [b"a", b"with space", "\u00e4\u6f22".encode(), b"odd\xff\xfe", b"x" * 200]
    folder = os.fsencode(tmp_path)
    samples = []
    for label, name in enumerate(names):
        path = os.path.join(folder, name + b".png")
        with open(path, "wb") as file:
            Image.new("RGB", (8, 8), (label, 0, 0)).save(file, "PNG")
        samples.append(Sample(os.fsdecode(path), label))
    (batch,) = evaluation_loader(samples, PREPROCESSING, batch_size=9, workers=0)
    assert not batch.failures
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def all_epochs(samples, workers, epochs):
    augment = AugmentConfig(crop_scale=(0.2, 1.0), policy="randaugment", erase=0.5)
    dataset = ImageDataset(samples, TrainingTransform(augment, PREPROCESSING), seed=1)
    sampler = EpochSampler([sample.label for sample in samples], seed=1)
    loader = image_loader(dataset, sampler, batch_size=4, workers=workers)
    result = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        result.append(list(loader))
    return result


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_batches_of_the_main_process_and_every_epoch_differs(samples, workers):
    expected, found = all_epochs(samples, 0, 2), all_epochs(samples, workers, 2)
    for batch, other in zip(expected[0] + expected[1], found[0] + found[1], strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)
        assert torch.equal(batch.indices, other.indices)
    for epoch in found:
        assert sorted(torch.cat([batch.indices for batch in epoch]).tolist()) == list(range(12))
    views = [{i: p for b in epoch for i, p in zip(b.indices.tolist(), b.images, strict=True)} for epoch in found]
    assert not any(torch.equal(views[0][i], views[1][i]) for i in range(12)), "each epoch augments anew"


def test_workers_report_broken_pictures_as_the_main_process_does(broken):
    def failures(workers):
        loader = evaluation_loader(broken, PREPROCESSING, batch_size=4, workers=workers)
        return [failure for batch in loader for failure in batch.failures]

    assert failures(2) == failures(0)
    assert len(failures(0)) == 3


class Threads(EvaluationTransform):
    """Tells how many threads torch and OpenCV would use, and whether Ctrl-C is answered, as three grey values."""

    def fit(self, copy):
        import signal

        import cv2

        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return np.full((1, 1, 3), [torch.get_num_threads(), cv2.getNumThreads(), ignored], np.uint8)


def test_a_worker_uses_one_core_and_leaves_ctrl_c_to_the_main_process(samples):
    dataset = ImageDataset(samples, Threads(PREPROCESSING))
    (batch,) = image_loader(dataset, ExactSampler(1), batch_size=1, workers=1)
    assert batch.images.flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_takes_every_picture_once_over_all_ranks(samples, world):
    loaders = [
        evaluation_loader(samples, PREPROCESSING, batch_size=4, workers=0, rank=rank, world=world)
        for rank in range(world)
    ]
    indices = [index for loader in loaders for batch in loader for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(12))


def test_the_dataset_can_be_sent_to_a_spawned_worker(samples):
    dataset = ImageDataset(samples, TrainingTransform(AugmentConfig(), PREPROCESSING), seed=2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == 12
    assert torch.equal(copy[Draw(1, 2, 0)].image, dataset[Draw(1, 2, 0)].image)


def test_a_batch_moves_as_a_whole():
    batch = Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2), torch.arange(2), [(5, "empty")])
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (moved.images, moved.labels, moved.indices)} == {"meta"}
    assert moved.failures == [(5, "empty")]
    assert batch.images.device.type == "cpu"


def test_collating_nothing_gives_an_empty_batch():
    assert collate([]).images.shape[0] == 0


def test_the_number_of_workers_is_the_number_of_usable_cores_or_what_is_asked_for():
    assert worker_count(0) == 0
    assert worker_count(13) == 13
    assert 1 <= worker_count(-1) <= 8
    assert worker_count(-1, processes=1000) == 1
    assert worker_count(13, processes=1000) == 13


def test_no_more_workers_are_started_than_there_are_batches(samples):
    assert evaluation_loader(samples, PREPROCESSING, batch_size=8, workers=6).num_workers == 2
    assert evaluation_loader([], PREPROCESSING, batch_size=8, workers=6).num_workers == 0


def test_evaluation_does_not_wait_for_albumentations_to_be_imported():
    program = "import sys, vit.data.dataset; assert not {'albumentations', 'cv2', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("crop", ["pad", "none", "random-resized"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_batch_is_what_its_pictures_are_one_by_one(crop, cached, broken):
    augment = AugmentConfig(crop=crop, flip=0.5, vertical_flip=0.5, color_jitter=0.3)
    dataset = ImageDataset(broken, TrainingTransform(augment, Preprocessing((16, 24))), seed=4)
    if cached:
        dataset.cache = PixelCache(len(broken), 3 * 64 * 64)
    draws = [Draw(epoch, index, copy) for epoch in (0, 1) for index in range(len(broken)) for copy in (0, 2)]
    batch = dataset.__getitems__(draws)
    assert sum(isinstance(item, Failed) for item in batch) == 3 * 4
    for together, draw in zip(batch, draws, strict=True):
        alone = dataset[draw]
        if isinstance(alone, Failed):
            assert together == alone
        else:
            assert torch.equal(together.image, alone.image)
            assert (together.label, together.index) == (alone.label, alone.index)


def test_a_batch_whose_worker_died_before_it_was_opened_is_an_error_that_names_it():
    """The worker answers for the memory of its batch: without it the system only says that nobody is there."""

    class Batches:
        _timeout = 5

        def __init__(self, error):
            self._workers = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)) for _ in "ab"]
            self._error = error
            for worker in self._workers:
                worker.start()

        def __iter__(self):
            return self

        def __next__(self):
            self._workers[1].kill()
            raise self._error

    for error in (ConnectionRefusedError("refused"), EOFError()):
        batches = Batches(error)
        try:
            with pytest.raises(DataError, match=rf"\(pid {batches._workers[1].pid}\) died; if memory ran out"):
                next(patient(batches))
        finally:
            for worker in batches._workers:
                worker.kill()
                worker.join()


def test_no_room_for_semaphores_is_said_before_torch_leaves_half_an_iterator(monkeypatch):
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing, "Lock", full)
    batches = iter(Loader([1, 2], num_workers=1))
    with pytest.raises(DataError, match=r"^/dev/shm is too small for the batches of .*; lower data\.workers "):
        next(batches)
    assert [int(batch) for batch in Loader([1, 2], num_workers=0)] == [1, 2]  # needs none


class Unsent(Dataset):
    """What it gives cannot be handed to another process, as torch says it where /dev/shm is full, or otherwise."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> "Unsent":
        return self

    def __reduce__(self) -> Any:
        if multiprocessing.parent_process() is None:
            return super().__reduce__()
        raise RuntimeError(self.reason)


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        (
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)",
            DataError,
            r"^/dev/shm is too small for the batches of the processes that read images \(pid \d+\); lower data",
        ),
        ("cannot be pickled", RuntimeError, r"DataLoader worker \(pid.* exited unexpectedly"),
    ],
)
def test_a_batch_that_cannot_be_handed_over_ends_its_worker(reason, error, message, capfd):
    loader = Loader(Unsent(reason), batch_size=2, num_workers=1, collate_fn=itemgetter(0), worker_init_fn=start_worker)
    with pytest.raises(error, match=message):
        next(iter(loader))
    assert ("Traceback" in capfd.readouterr().err) == (error is RuntimeError)
