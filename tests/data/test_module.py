"""The data module under Lightning: epochs, splits, equal batches."""

import os
import subprocess
import sys
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from vit.data.config import AugmentConfig, DataConfig, Preprocessing
from vit.data.dataset import Batch
from vit.data.folders import Listing, Sample
from vit.data.module import ImageFolderData
from vit.errors import DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning 2.6 under torch 2.14
]


@pytest.fixture
def listing(tmp_path):
    rng = np.random.default_rng(0)
    splits = {"train": [], "val": []}
    for split, count in (("train", 10), ("val", 5)):
        for i in range(count):
            path = tmp_path / f"{split}{i}.png"
            Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(path)
            splits[split].append(Sample(str(path), i % 2))
    return Listing(root=str(tmp_path), classes=("a", "b"), splits=splits, left_out=[], unknown={})


def data_module(listing, seed=0, augment=None, **settings):
    settings = {"batch_size": 4, "workers": 0} | settings
    return ImageFolderData(listing, DataConfig(**settings), augment or AugmentConfig(), Preprocessing((8, 8)), seed)


class Recorder(L.LightningModule):
    """Learns one number, and records every training batch and the validation indices."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, _):
        assert isinstance(batch, Batch)
        self.trained.append((self.current_epoch, batch.indices.tolist(), batch.images.clone()))
        return (self.weight - batch.images.float().mean()) ** 2

    def validation_step(self, batch, _):
        self.validated.append((self.current_epoch, batch.indices.tolist()))

    def configure_optimizers(self):
        # As the real tasks do for their schedules: Lightning makes the training loader and starts its workers here.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def train(listing, tmp_path, epochs=2, resume=None, save=None, callbacks=(), **settings):
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, datamodule=data_module(listing, **settings), ckpt_path=resume)
    if save:
        trainer.save_checkpoint(save)
    return recorder


@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_gives_every_epoch_a_new_order_and_a_second_run_the_same(listing, tmp_path, workers):
    first, second = (train(listing, tmp_path, workers=workers).trained for _ in range(2))
    orders = [[index for e, indices, _ in first if e == epoch for index in indices] for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [[*range(10)]] * 2
    assert orders[0] != orders[1]
    assert [record[:2] for record in first] == [record[:2] for record in second]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True))


SAVES = {
    "at an epoch's end": {"save_on_train_epoch_end": True},
    "after the validation": {"save_on_train_epoch_end": False},
    "after the last batch": {"every_n_train_steps": 3},
}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the second part keeps no checkpoints
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("when", ["after the run", *SAVES])
def test_a_run_resumed_between_epochs_goes_on_with_the_order_it_would_have_had(listing, tmp_path, when, workers):
    whole = train(listing, tmp_path, epochs=4, workers=workers).trained
    if when == "after the run":
        checkpoint = tmp_path / "two.ckpt"
        train(listing, tmp_path, epochs=2, save=checkpoint, workers=workers)
    else:
        keep = ModelCheckpoint(tmp_path / "kept", "{epoch}", save_top_k=-1, **SAVES[when])
        train(listing, tmp_path, epochs=3, callbacks=[keep], workers=workers)
        checkpoint = tmp_path / "kept" / "epoch=1.ckpt"
    rest = train(listing, tmp_path, epochs=4, resume=checkpoint, workers=workers).trained
    expected = [record for record in whole if record[0] > 1]
    assert [record[:2] for record in rest] == [record[:2] for record in expected]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(rest, expected, strict=True))


def test_a_run_resumed_twice_goes_on_where_the_second_part_ended(listing, tmp_path):
    whole = train(listing, tmp_path, epochs=3).trained
    train(listing, tmp_path, epochs=1, save=tmp_path / "1.ckpt")
    train(listing, tmp_path, epochs=2, resume=tmp_path / "1.ckpt", save=tmp_path / "2.ckpt")
    rest = train(listing, tmp_path, epochs=3, resume=tmp_path / "2.ckpt", workers=2).trained
    assert [record[:2] for record in rest] == [record[:2] for record in whole if record[0] == 2]


def test_another_seed_gives_another_order(listing, tmp_path):
    first, second = (train(listing, tmp_path, epochs=1, seed=seed).trained for seed in (0, 1))
    assert [record[1] for record in first] != [record[1] for record in second]


def test_a_picture_is_augmented_anew_in_every_epoch(listing, tmp_path):
    views = {}
    for epoch, indices, images in train(listing, tmp_path, workers=1).trained:
        for index, image in zip(indices, images, strict=True):
            views[epoch, index] = image
    both = [index for index in range(10) if (0, index) in views and (1, index) in views]
    assert len(both) > 3
    assert not any(torch.equal(views[0, index], views[1, index]) for index in both)


def test_training_and_validation_keep_their_last_batch(listing, tmp_path):
    recorder = train(listing, tmp_path, epochs=1)
    assert [len(indices) for _, indices, _ in recorder.trained] == [4, 4, 2]
    assert [indices for _, indices in recorder.validated] == [[0, 1, 2, 3], [4]]


def test_fewer_pictures_than_a_batch_still_train(listing, tmp_path):
    recorder = train(listing, tmp_path, epochs=1, batch_size=64)
    assert [len(indices) for _, indices, _ in recorder.trained] == [10]


def test_ranks_share_training_and_validation(listing):
    parts = []
    for rank in (0, 1):
        module = data_module(listing)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_devices=2, strategy=strategy)
        parts.append(
            [
                [i for batch in loader for i in batch.indices.tolist()]
                for loader in (module.train_dataloader(), module.val_dataloader())
            ]
        )
    assert sorted(parts[0][1] + parts[1][1]) == [0, 1, 2, 3, 4]
    assert not set(parts[0][0]) & set(parts[1][0])
    assert len(parts[0][0]) == len(parts[1][0]) == 5


def test_balance_and_repeats_reach_the_order(listing):
    listing.splits["train"] = listing.splits["train"][:9]
    indices = [i for b in data_module(listing, repeats=3, batch_size=9).train_dataloader() for i in b.indices.tolist()]
    assert len(indices) == 9
    assert len(set(indices)) == 3
    lopsided = [Sample(s.path, 0 if i < 8 else 1) for i, s in enumerate(listing.splits["train"])]
    listing.splits["train"] = lopsided
    (batch,) = data_module(listing, balanced=True, batch_size=9).train_dataloader()
    assert 3 <= (batch.labels == 1).sum() <= 5


def test_a_split_without_pictures_is_refused_by_name(listing):
    listing.splits.pop("val")
    with pytest.raises(DataError, match="no pictures for val"):
        data_module(listing).val_dataloader()


def test_the_processes_of_one_machine_share_its_cores(listing, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module = data_module(listing, batch_size=1, workers=-1)
    assert module.train_dataloader().num_workers == 6
    for devices, workers in ((2, 3), (16, 1)):
        module.trainer = SimpleNamespace(global_rank=0, world_size=2, num_devices=devices, strategy=strategy)
        assert module.train_dataloader().num_workers == workers


def test_the_module_does_not_wait_for_albumentations_to_be_imported():
    program = "import sys, vit.data.module; assert not {'albumentations', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
