"""Shards hold a data set as it was; LitData streams them, every picture once an epoch, also after a resume."""

import json
import multiprocessing
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vit.data.augment import TrainingTransform
from vit.data.caching import slot_room
from vit.data.captions import list_captions
from vit.data.config import AugmentConfig, DataConfig, Preprocessing
from vit.data.dataset import Batch, ImageDataset, Loaded, evaluation_loader, picture_source
from vit.data.folders import Listing, Sample, list_evaluation, list_training
from vit.data.layouts import is_shards
from vit.data.module import ImageFolderData
from vit.data.sampling import Draw
from vit.data.shards import ShardListing, list_shards, shard_side, write_caption_shards, write_shards
from vit.errors import ConfigError, DataError

PREPROCESSING = Preprocessing((24, 24))
AUGMENT = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5)
COUNT = 66  # for training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT // 3), ("val", 5)):
        for label in "abc":
            (root / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{index:02}.jpg")
    return root


@pytest.fixture(scope="module")
def listing(folder: Path) -> Listing:
    return list_training(folder, val_fraction=0.2, test_fraction=0.0, seed=0)


@pytest.fixture(scope="module")
def shards(listing: Listing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as shards, made small by hand: LitData's least size is a megabyte."""
    out = tmp_path_factory.mktemp("shards") / "new"
    before = multiprocessing.get_start_method()
    write_shards(listing, str(out), megabytes=1, workers=1)
    assert multiprocessing.get_start_method() == before
    return out


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def loader(where: Path, *, batch_size: int = 8, workers: int = 0, epoch: int = 0, batch: int = 0) -> Any:
    from vit.data.shard_stream import ShardLoader, ShardStream

    stream = ShardStream(list_shards(where).files("train"), TrainingTransform(AUGMENT, PREPROCESSING), seed=5)
    return ShardLoader(stream, batch_size=batch_size, workers=workers, epoch=epoch, batch=batch)


def test_the_manifest_tells_what_the_listing_told(shards: Path, listing: Listing) -> None:
    found = list_training(shards, val_fraction=0.5, test_fraction=0.3, seed=9)  # it has its splits
    assert isinstance(found, ShardListing)
    assert found.classes == listing.classes
    assert found.side == 30
    for split, samples in listing.splits.items():
        assert [sample.label for sample in found.splits[split]] == [sample.label for sample in samples]
    assert is_shards(shards)
    assert is_shards("s3://bucket/name")
    assert not is_shards(shards.parent)


def test_the_files_come_back_byte_for_byte(shards: Path, listing: Listing) -> None:
    found = list_shards(shards)
    for split, samples in listing.splits.items():
        for stored, sample in zip(found.splits[split], samples, strict=True):
            assert picture_source(stored.path) == Path(sample.path).read_bytes()


def test_evaluation_sees_the_same_pictures_in_the_same_order(shards: Path, listing: Listing) -> None:
    found = list_evaluation(shards, listing.classes)
    assert list(found.splits) == ["val"]
    for workers in (0, 2):
        batches = [
            list(evaluation_loader(samples, PREPROCESSING, batch_size=4, workers=workers))
            for samples in (found.splits["val"], listing.splits["val"])
        ]
        for one, other in zip(*batches, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.indices, other.indices)
    with pytest.raises(DataError, match="has other classes than the model, or in another order"):
        list_evaluation(shards, ["b", "a", "c"])


def varied_as_from_the_folder(batches: list[Batch], listing: Listing, epoch: int) -> list[int]:
    """The places of all pictures, each of which must be what the folder gives for that epoch."""
    dataset = ImageDataset(listing.splits["train"], TrainingTransform(AUGMENT, PREPROCESSING), seed=5)
    for batch in batches:
        for image, label, index in zip(batch.images, batch.labels, batch.indices.tolist(), strict=True):
            expected = dataset[Draw(epoch, index, 0)]
            assert isinstance(expected, Loaded)
            assert torch.equal(image, expected.image)
            assert int(label) == expected.label
    return [index for batch in batches for index in batch.indices.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_picture_once_varied_as_from_the_folder(
    shards: Path, listing: Listing, workers: int
) -> None:
    stream = loader(shards, workers=workers)
    orders = []
    for epoch in range(2):
        batches = list(stream)
        assert len(batches) == len(stream) == -(-COUNT // 8)
        order = varied_as_from_the_folder(batches, listing, epoch)
        assert sorted(order) == list(range(COUNT))
        orders.append(order)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
    later = loader(shards, workers=workers, epoch=1)
    assert [index for batch in later for index in batch.indices.tolist()] == orders[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_very_next_picture(shards: Path, workers: int) -> None:
    whole = [batch.indices.tolist() for batch in loader(shards, workers=workers, epoch=1)]
    for done in (1, 3):
        goes_on = loader(shards, workers=workers, epoch=1, batch=done)
        assert [batch.indices.tolist() for batch in goes_on] == whole[done:]
        next_epoch = [batch.indices.tolist() for batch in goes_on]
        assert next_epoch == [batch.indices.tolist() for batch in loader(shards, workers=workers, epoch=2)]


def _rank(rank: int, where: Path, meeting: Path, answers: "multiprocessing.Queue[Any]") -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    stream = loader(where, batch_size=5)
    whole = [batch.indices.tolist() for batch in stream]
    rest = [batch.indices.tolist() for batch in loader(where, batch_size=5, batch=2)]
    torch.distributed.barrier()
    answers.put((rank, whole, whole[:2] + rest))
    torch.distributed.destroy_process_group()


def test_a_process_that_waits_for_a_shard_in_vain_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vit.data.shard_stream import ShardLoader, ShardStream

    monkeypatch.setattr(ShardStream, "__getitem__", lambda self, index: time.sleep(60))
    stream = ShardStream(list_shards(shards).files("train"), TrainingTransform(AUGMENT, PREPROCESSING), seed=5)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(DataError, match=r"\(pid \d+\S*\) gave nothing for 1 seconds"):
            next(iter(ShardLoader(stream, batch_size=8, workers=1, timeout=1)))
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_two_processes_share_an_epoch_and_resume_within_it(shards: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, shards, tmp_path / "meeting", answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    shares = []
    for _, whole, resumed in found:
        assert resumed == whole
        shares.append({index for batch in whole for index in batch})
        assert sum(map(len, whole)) == len(shares[-1])
    assert not shares[0] & shares[1]
    assert len(shares[0]) == len(shares[1]) == COUNT // 2 // 5 * 5  # uneven ends are dropped, on both alike


def test_a_picture_that_cannot_be_decoded_is_named(folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(folder, tmp_path / "broken"))
    (root / "train" / "b" / "03.jpg").write_bytes(b"\xff\xd8\xff no picture")
    write_shards(
        list_training(root, val_fraction=0.2, test_fraction=0.0, seed=0), str(tmp_path / "out"), megabytes=1, workers=1
    )
    failures = [failure for batch in loader(tmp_path / "out", batch_size=COUNT) for failure in batch.failures]
    ((index, reason),) = failures
    assert index == COUNT // 3 + 3
    assert "train/b/03.jpg" in reason


def test_a_chunk_that_is_missing_or_cut_is_an_error_in_words(copy: Path) -> None:
    chunk = next((copy / "train").glob("*.bin"))
    data = chunk.read_bytes()
    chunk.write_bytes(data[: len(data) // 3])
    with pytest.raises(DataError, match=r"copy/train: a shard cannot be read"):
        list(loader(copy))
    chunk.unlink()
    with pytest.raises(DataError, match=r"copy/train: a shard cannot be read"):
        list(loader(copy))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a manifest of shards"),
        ("[]", "not a manifest of shards"),
        ("[" * 100_000, "not a manifest of shards"),
        ('{"format": "vit shards", "version": 1, "classes": ["a"]}', "not a manifest of shards"),
        ('{"format": "vit shards", "version": 7}', "shards of version 7, this is version 1"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(copy: Path, text: str, reason: str) -> None:
    (copy / "vit.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        list_shards(copy)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (
            [[0, 10**12]],
            "copy/train: the manifest names 1000000000000 images, the chunks hold 66; write the shards again",
        ),
        ([[0, 2], [1, 2]], "copy/train: the manifest names 4 images, the chunks hold 66"),
        ([[0, 67], [1, -1]], "not a manifest of shards of pictures with classes"),
        ([[0, 33], [3, 33]], "not a manifest of shards of pictures with classes"),
    ],
)
def test_a_manifest_that_the_chunks_contradict_is_refused(copy: Path, labels: list[list[int]], reason: str) -> None:
    told = json.loads((copy / "vit.json").read_text())
    assert sum(count for _, count in told["splits"]["train"]["labels"]) == 66
    told["splits"]["train"]["labels"] = labels
    (copy / "vit.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=reason):
        list_shards(copy)


def test_shards_are_written_to_a_new_folder_alone(listing: Listing, copy: Path) -> None:
    with pytest.raises(DataError, match="not empty"):
        write_shards(listing, str(copy))


def test_an_address_that_answers_nothing_is_an_error_in_words() -> None:
    with pytest.raises(DataError, match=r"nowhere://bucket/name/vit\.json: "):
        list_shards("nowhere://bucket/name")


class Bucket:
    """A storage that keeps s3://NAME in a folder of that name; `failing` ends what the engine writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failing: Exception | None = None
        self.lost: str | None = None

    def place(self, address: str) -> Path:
        return self.folder / address.removeprefix("s3://")

    def is_empty(self, address: str) -> bool:
        return not self.place(address).exists()

    def exists(self, address: str) -> bool:
        return self.place(address).exists()

    def upload_file(self, local: str, address: str) -> None:
        shutil.copyfile(local, self.place(address))

    def download_file(self, address: str, local: str) -> None:
        shutil.copyfile(self.place(address), local)

    def optimize(self, sample: Any, entries: Any, address: str, **options: Any) -> None:
        import litdata

        if self.failing:
            raise self.failing
        litdata.optimize(sample, entries, str(self.place(address)), **options)
        for chunk in self.place(address).glob(self.lost or "nothing"):
            chunk.unlink()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket(tmp_path)
    monkeypatch.setattr("vit.data.shards._engine", lambda: bucket)
    monkeypatch.setattr("vit.data.shards._storage", lambda address: bucket)
    return bucket


def test_shards_at_an_address_tell_what_the_listing_told(bucket: Bucket, listing: Listing, shards: Path) -> None:
    write_shards(listing, "s3://new/set", megabytes=1, workers=1)
    found, local = list_shards("s3://new/set"), list_shards(shards)
    assert (found.classes, found.side) == (local.classes, local.side)
    assert [s.label for s in found.splits["val"]] == [s.label for s in local.splits["val"]]
    assert found.splits["val"][3].path.endswith("s3://new/set/val#3")
    with pytest.raises(DataError, match="s3://new/set: not empty"):
        write_shards(listing, "s3://new/set", megabytes=1, workers=1)


def test_a_chunk_that_did_not_arrive_leaves_no_data_set(bucket: Bucket, listing: Listing) -> None:
    bucket.lost = "chunk-0-0*"
    with pytest.raises(DataError, match=r"s3://new/set/train: chunk-0-0\S* did not get there"):
        write_shards(listing, "s3://new/set", megabytes=1, workers=1)
    with pytest.raises(DataError, match=r"vit\.json"):
        list_shards("s3://new/set")


def test_what_an_address_refuses_is_an_error_in_words(bucket: Bucket, listing: Listing) -> None:
    bucket.failing = RuntimeError("access\ndenied")
    with pytest.raises(DataError, match="s3://new/set/train: access denied"):
        write_shards(listing, "s3://new/set")


def test_captions_lie_beside_the_shards_of_their_pictures(folder: Path, tmp_path: Path) -> None:
    rows = [
        {
            "file_name": f"{split}/{label}/{index:02}.jpg",
            "split": split,
            "captions": [f"{label} {index}", "caf\u00e9\n1"],
        }
        for split, count in (("train", 4), ("val", 2))
        for label in "abc"
        for index in range(count)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(lines, encoding="utf-8")
    shares = {"val_fraction": 0.5, "test_fraction": 0.0}
    listed = list_captions(folder / "captions.jsonl", **shares, seed=0)
    write_caption_shards(listed, str(tmp_path / "shards"), megabytes=1, workers=1)
    found = list_captions(tmp_path / "shards", **shares, seed=9)  # it has its splits
    assert {split: len(pictures) for split, pictures in found.splits.items()} == {"train": 12, "val": 6}
    for split, pictures in listed.splits.items():
        for picture, stored in zip(pictures, found.splits[split], strict=True):
            assert (stored.captions, stored.id) == (picture.captions, picture.id)
            assert picture_source(stored.path) == Path(picture.path).read_bytes()
    assert shard_side(found.splits["train"][0].path) == 30
    kept = TrainingTransform(AUGMENT, PREPROCESSING)
    rooms = [
        slot_room(ImageDataset([Sample(picture.path, 0) for picture in pictures.splits["train"]], kept))
        for pictures in (listed, found)
    ]
    assert rooms[0] == rooms[1] > 0  # caches have room for pictures of shards as for those of a folder
    with pytest.raises(DataError, match=r"vit\.json: not a manifest of shards of pictures with classes$"):
        list_training(tmp_path / "shards", **shares, seed=0)
    (tmp_path / "shards" / "captions.jsonl").write_text('{"split": "train"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"vit\.json: not a manifest of shards of pictures with captions$"):
        list_captions(tmp_path / "shards", **shares, seed=0)


def test_a_run_that_stopped_within_an_epoch_goes_on_with_as_many_processes_that_read(shards: Path) -> None:
    def data(workers: int) -> ImageFolderData:
        config = DataConfig(batch_size=4, workers=workers)
        return ImageFolderData(
            list_training(shards, val_fraction=0, test_fraction=0, seed=0), config, AUGMENT, PREPROCESSING, 0
        )

    state = data(2).state_dict() | {"batch": 1}
    assert state["workers"] == 2
    data(2).load_state_dict(state)
    data(3).load_state_dict(state | {"batch": 0})
    with pytest.raises(ConfigError, match=r"shards that 2 processes read, not 3; set data\.workers 2$"):
        data(3).load_state_dict(state)
