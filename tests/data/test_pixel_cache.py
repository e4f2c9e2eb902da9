"""Copy pictures: the same as those read from their files, whole or not there, shared by all who use them."""

import gc
import logging
import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit.data.augment import TrainingTransform
from vit.data.cache import PixelCache, source_mark
from vit.data.caching import cache_path, choose_cache, keep_pictures, seconds_a_picture, slot_room
from vit.data.config import AugmentConfig, Cache, Preprocessing
from vit.data.dataset import Failed, ImageDataset, Loaded, image_loader
from vit.data.decode import Copy
from vit.data.folders import Sample
from vit.data.sampling import Draw, EpochSampler
from vit.data.transforms import EvaluationTransform
from vit.errors import DataError

PREPROCESSING = Preprocessing((32, 32))


def kept(height: int, width: int, seed: int = 0) -> Copy:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Copy(pixels, (2 * height, 3 * width), (height, width))


def same(one: Copy | None, other: Copy) -> bool:
    return one is not None and one.full == other.full and np.array_equal(one.pixels, other.pixels)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Small pictures, which are kept as they are, and larger ones, which are not."""
    rng = np.random.default_rng(0)
    found = []
    for index, shape in enumerate([(30, 36), (36, 30), (180, 240), (240, 180), (400, 90), (33, 33)]):
        small = rng.integers(0, 256, (shape[0] // 30 + 2, shape[1] // 30 + 2, 3), dtype=np.uint8)
        path = tmp_path / f"{index}.{'png' if index % 2 else 'jpg'}"
        Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC).save(path)
        found.append(Sample(str(path), index % 2))
    return found


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_was_put_comes_back_and_what_was_not_is_nothing(where: str, tmp_path: Path) -> None:
    cache = PixelCache(4, 300, None if where == "memory" else tmp_path / "new" / "c.pixels")
    assert cache.get(0) is None
    cache.put(0, kept(10, 10))
    cache.put(3, kept(1, 7, seed=1))
    cache.put(1, kept(11, 10))  # too large for a slot
    cache.put(9, kept(2, 2))  # beyond the last
    assert same(cache.get(0), kept(10, 10))
    assert same(cache.get(3), kept(1, 7, seed=1))
    assert cache.get(1) is cache.get(2) is cache.get(9) is None
    assert cache.filled() == 2
    found = cache.get(0)
    assert found is not None
    assert not found.pixels.flags.writeable


def _use(cache: PixelCache, found: "multiprocessing.Queue[bool]") -> None:
    found.put(same(cache.get(0), kept(5, 5)))
    cache.put(1, kept(4, 4, seed=2))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_processes_share_a_cache(where: str, method: str, tmp_path: Path) -> None:
    cache = PixelCache(2, 300, None if where == "memory" else tmp_path / "c.pixels")
    cache.put(0, kept(5, 5))
    context = multiprocessing.get_context(method)
    found = context.Queue()
    process = context.Process(target=_use, args=(cache, found))
    process.start()
    assert found.get(timeout=60)
    process.join(60)
    assert same(cache.get(1), kept(4, 4, seed=2))


def test_a_file_is_found_again_and_made_anew_where_it_is_another(tmp_path: Path) -> None:
    path = tmp_path / "c.pixels"
    first = PixelCache(2, 300, path, source="a")
    first.put(0, kept(5, 5))
    assert same(PixelCache(2, 300, path, source="a").get(0), kept(5, 5))
    for count, room, source in ((2, 300, "b"), (3, 300, "a"), (2, 301, "a")):
        other = PixelCache(count, room, path, source=source)
        assert other.filled() == 0
        assert same(first.get(0), kept(5, 5))  # whoever uses the old one goes on with it
    for damage in (b"", b"x" * 10_000):
        path.write_bytes(damage)
        assert PixelCache(2, 300, path, source="a").filled() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["c.pixels"]


def test_a_slot_that_is_damaged_or_half_written_is_empty_and_can_be_filled_again(tmp_path: Path) -> None:
    path = tmp_path / "c.pixels"
    cache = PixelCache(3, 300, path)
    for index in range(3):
        cache.put(index, kept(10, 10, seed=index))
    slot = 20 + 300
    with path.open("r+b") as file:
        file.seek(4096 + slot + 60)
        file.write(b"\x55\xaa")  # a bit flipped
        file.seek(4096 + 2 * slot + 100)
        file.write(bytes(220))  # killed while writing
    again = PixelCache(3, 300, path)
    assert same(again.get(0), kept(10, 10))
    assert again.get(1) is again.get(2) is None
    again.put(1, kept(10, 10, seed=1))
    assert same(again.get(1), kept(10, 10, seed=1))


def test_a_full_disk_is_told_once_and_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PixelCache(50, 300, tmp_path / "c.pixels")
    cache.put(0, kept(10, 10))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with caplog.at_level(logging.WARNING, "vit"):
            for index in range(20, 30):
                cache.put(index, kept(10, 10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.getMessage().count("training goes on") for record in caplog.records] == [1]
    assert cache.filled() == 1


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_nothing_stays_open_but_pixels_in_use(where: str, tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to count open files")
    gc.collect()  # what other tests left open
    before = len(os.listdir("/proc/self/fd"))
    cache = PixelCache(4, 300, None if where == "memory" else tmp_path / "c.pixels")
    cache.put(0, kept(10, 10))
    found = cache.get(0)
    del cache
    gc.collect()
    assert same(found, kept(10, 10))
    del found
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"no cache of pictures at .*file/c\.pixels: (file exists|not a directory)"):
        PixelCache(2, 300, tmp_path / "file" / "c.pixels")


def test_a_mark_tells_when_a_picture_was_changed_added_or_taken_away(samples: list[Sample]) -> None:
    paths = [sample.path for sample in samples]
    marks = {source_mark(paths, "so"), source_mark(paths, "otherwise"), source_mark(paths[1:], "so")}
    os.utime(paths[2], (1, 1))
    marks.add(source_mark(paths, "so"))
    os.unlink(paths[0])
    marks.add(source_mark(paths, "so"))
    assert len(marks) == 5


def datasets(samples: list[Sample], mode: Cache, augment: AugmentConfig) -> tuple[ImageDataset, ImageDataset]:
    plain, caching = (ImageDataset(samples, TrainingTransform(augment, PREPROCESSING), seed=1) for _ in range(2))
    keep_pictures(caching, mode, name="train")
    assert caching.cache is not None
    return plain, caching


@pytest.mark.parametrize("mode", ["ram", "disk"])
@pytest.mark.parametrize("crop", ["random-resized", "pad", "none"])
def test_kept_pictures_are_varied_as_those_from_their_files(samples: list[Sample], mode: Cache, crop: str) -> None:
    """Bit for bit where nothing had to be shrunk; else a part lies up to half a pixel of the copy elsewhere, and
    differs by less than sixteen grey values on average of pictures as coarse as these.
    """
    plain, caching = datasets(samples, mode, AugmentConfig(crop=crop, flip=0.5, color_jitter=0.3))  # type: ignore[arg-type]
    for epoch in range(4):
        for index in range(len(samples)):
            expected, found = plain[Draw(epoch, index, 0)], caching[Draw(epoch, index, 0)]
            assert isinstance(expected, Loaded)
            assert isinstance(found, Loaded)
            if crop != "random-resized" or index in (0, 1, 5):
                assert torch.equal(found.image, expected.image)
            else:
                assert (found.image.float() - expected.image.float()).abs().mean() < 16
    assert caching.cache is not None
    assert caching.cache.filled() == len(samples)


def test_kept_pictures_for_evaluation_are_those_that_are_read(samples: list[Sample]) -> None:
    plain, caching = (ImageDataset(samples, EvaluationTransform(PREPROCESSING)) for _ in range(2))
    keep_pictures(caching, "ram", name="val")
    for _ in range(2):
        for index in range(len(samples)):
            one, other = plain[Draw(0, index, 0)], caching[Draw(0, index, 0)]
            assert isinstance(one, Loaded)
            assert isinstance(other, Loaded)
            assert torch.equal(one.image, other.image)


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_any_number_of_workers_gives_the_same_batches_and_fills_one_cache(samples: list[Sample], mode: Cache) -> None:
    batches = []
    for workers in (0, 1, 2):
        _, caching = datasets(samples, mode, AugmentConfig(crop_scale=(0.3, 1.0)))
        sampler = EpochSampler(range(len(samples)), seed=0)
        loader = image_loader(caching, sampler, batch_size=2, workers=workers)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches.append(torch.stack([batch.images for batch in loader]))
        assert caching.cache is not None
        assert caching.cache.filled() == len(samples)
    assert torch.equal(batches[0], batches[2])
    assert torch.equal(batches[0], batches[4])


def test_a_kept_picture_is_not_read_again_and_a_broken_one_never_kept(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    _, caching = datasets([*samples, Sample(str(tmp_path / "broken.jpg"), 0)], "ram", AugmentConfig())
    first = [caching[Draw(0, index, 0)] for index in range(7)]
    for sample in samples:
        os.unlink(sample.path)
    again = [caching[Draw(0, index, 0)] for index in range(7)]
    for one, other in zip(first[:6], again[:6], strict=True):
        assert isinstance(one, Loaded)
        assert isinstance(other, Loaded)
        assert torch.equal(one.image, other.image)
    assert isinstance(first[6], Failed)
    assert isinstance(again[6], Failed)


def test_a_changed_picture_is_decoded_again_by_the_next_run(samples: list[Sample], cache_home: Path) -> None:
    _, first = datasets(samples, "disk", AugmentConfig())
    first[Draw(0, 0, 0)]
    Image.new("RGB", (30, 36), "red").save(samples[0].path)
    plain, second = datasets(samples, "disk", AugmentConfig(flip=0.0))
    found, expected = second[Draw(0, 0, 0)], plain[Draw(0, 0, 0)]
    assert isinstance(found, Loaded)
    assert isinstance(expected, Loaded)
    assert torch.equal(found.image, expected.image)
    assert len(list(cache_home.iterdir())) == 1


def test_auto_keeps_what_fits_and_is_read_again(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageDataset(samples, TrainingTransform(AugmentConfig(), PREPROCESSING))
    monkeypatch.setattr("vit.data.caching.seconds_a_picture", lambda dataset, room: (0.002, 0.0005))
    assert choose_cache(data, times=1).cache == "none"
    choice = choose_cache(data, times=5)
    assert (choice.cache, choice.reason) == ("ram", "reading takes 2.00 ms, from memory 0.50 ms")
    monkeypatch.setattr("vit.data.caching.seconds_a_picture", lambda dataset, room: (0.001, 0.0009))
    assert choose_cache(data, times=5).cache == "none"
    monkeypatch.setattr("vit.data.caching.free_memory", lambda: 6 * slot_room(data))
    choice = choose_cache(data, times=5)
    assert choice.cache == "none"
    assert "more than half of the free memory" in choice.reason


def test_pictures_are_timed_from_file_and_memory(samples: list[Sample]) -> None:
    data = ImageDataset(samples, TrainingTransform(AugmentConfig(), PREPROCESSING))
    read, kept = seconds_a_picture(data, slot_room(data))
    assert read > 0
    assert kept > 0
    assert data.cache is None


def test_memory_that_has_not_room_for_all_keeps_some_and_says_so(
    samples: list[Sample], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageDataset(samples, TrainingTransform(AugmentConfig(), PREPROCESSING))
    monkeypatch.setattr("vit.data.caching.free_memory", lambda: 4 * slot_room(data))
    with caplog.at_level(logging.WARNING, "vit"):
        keep_pictures(data, "ram", name="train")
    assert "the memory has room for 3 of 6 train pictures" in caplog.text
    for index in range(6):
        assert isinstance(data[Draw(0, index, 0)], Loaded)
    assert data.cache is not None
    assert data.cache.filled() == 3


def test_each_way_of_keeping_has_a_file_of_its_own(samples: list[Sample]) -> None:
    augment = AugmentConfig()
    ways = [
        ImageDataset(samples, TrainingTransform(augment, PREPROCESSING)),
        ImageDataset(samples, TrainingTransform(augment, PREPROCESSING, kept_side=64)),
        ImageDataset(samples, TrainingTransform(AugmentConfig(crop="pad"), PREPROCESSING)),
        ImageDataset(samples, EvaluationTransform(Preprocessing((24, 24)))),
    ]
    assert len({cache_path(way, "train") for way in ways}) == 4
