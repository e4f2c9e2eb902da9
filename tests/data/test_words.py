"""Batches of words: what is padded, what is drawn, in which order."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vit.data.config import Preprocessing
from vit.data.dataset import ImageDataset
from vit.data.folders import Sample
from vit.data.sampling import Draw, EpochSampler, ExactSampler
from vit.data.transforms import EvaluationTransform
from vit.data.words import LengthBatches, Texts, WindowDataset, WordDataset, collate_words, word_loader


def dataset(*, training: bool) -> WordDataset:
    texts = Texts([[1, 5, 2], [1, 6, 7, 2], [1, 2], [1, 8, 8, 8, 2]])
    return WordDataset([[0, 1], [2], [3]], texts, sources=Texts([[4], [], [5, 6]]), training=training, seed=3)


def test_texts_come_back_as_they_went_in() -> None:
    texts = Texts([[3, 1], [], [2]])
    assert [text.tolist() for text in (texts[0], texts[1], texts[2])] == [[3, 1], [], [2]]
    assert texts.lengths.tolist() == [2, 0, 1]
    assert len(texts) == 3


def test_in_evaluation_all_texts_of_a_sample_come_each_knowing_its_owner() -> None:
    data = dataset(training=False)
    batch = collate_words([data[Draw(0, index, 0)] for index in range(3)])
    assert batch.tokens.tolist() == [[1, 5, 2, 0, 0], [1, 6, 7, 2, 0], [1, 2, 0, 0, 0], [1, 8, 8, 8, 2]]
    assert batch.lengths.tolist() == [3, 4, 2, 5]
    assert batch.owners.tolist() == [0, 0, 1, 2]
    assert batch.indices.tolist() == [0, 1, 2]
    assert batch.source is not None
    assert batch.source.tolist() == [[4, 0], [0, 0], [5, 6]]
    assert batch.source_lengths is not None
    assert batch.source_lengths.tolist() == [1, 0, 2]
    assert len(batch) == 3


def test_in_training_one_text_of_a_sample_is_drawn_by_seed_and_draw_alone() -> None:
    data = dataset(training=True)
    drawn = [data[Draw(epoch, 0, 0)].texts for epoch in range(40)]
    assert all(len(texts) == 1 for texts in drawn)
    assert {tuple(text.tolist()) for (text,) in drawn} == {(1, 5, 2), (1, 6, 7, 2)}
    again = dataset(training=True)
    assert all(np.array_equal(again[Draw(epoch, 0, 0)].texts[0], text) for epoch, (text,) in enumerate(drawn))


def test_several_different_texts_of_a_sample_can_be_drawn_and_fewer_are_all_given() -> None:
    texts = Texts([[1, word, 2] for word in (5, 6, 7, 8)])
    data = WordDataset([[0, 1, 2], [3]], texts, training=True, drawn=2, seed=3)
    pairs = {tuple(text[1] for text in data[Draw(epoch, 0, 0)].texts) for epoch in range(60)}
    assert pairs == {(5, 6), (6, 5), (5, 7), (7, 5), (6, 7), (7, 6)}
    assert [text.tolist() for text in data[Draw(0, 1, 0)].texts] == [[1, 8, 2]]
    assert collate_words([data[Draw(0, 0, 0)], data[Draw(1, 0, 0)]]).even
    assert not collate_words([data[Draw(0, 0, 0)], data[Draw(0, 1, 0)]]).even


def test_each_text_that_is_drawn_brings_its_place_and_its_label() -> None:
    texts = Texts([[1, word, 2] for word in (5, 6, 7, 8)])
    data = WordDataset([[0, 1, 2], [3]], texts, labels=[50, 60, 70, 80], training=True, drawn=2, seed=3)
    for epoch in range(10):
        batch = collate_words([data[Draw(epoch, 0, 0)], data[Draw(epoch, 1, 0)]])
        assert batch.labels is not None
        assert (batch.tokens[:, 1] * 10).tolist() == batch.labels.tolist()
        assert (batch.places + 5).tolist() == batch.tokens[:, 1].tolist()
        assert batch.owners.tolist() == [0, 0, 1]


def test_a_picture_that_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    samples = [Sample(str(tmp_path / name), 0) for name in ("bad.png", "good.png")]
    images = ImageDataset(samples, EvaluationTransform(Preprocessing((8, 8))))
    data = WordDataset([[0], [1]], Texts([[1, 2], [1, 5, 2]]), images=images, labels=[4, 7], training=False)
    batch = collate_words([data[Draw(0, 0, 0)], data[Draw(0, 1, 0)]])
    assert batch.tokens.tolist() == [[1, 5, 2]]
    assert batch.places.tolist() == [1]
    assert batch.images is not None
    assert batch.images.shape == (1, 3, 8, 8)
    assert batch.labels is not None
    assert batch.labels.tolist() == [7]
    ((index, reason),) = batch.failures
    assert index == 0
    assert reason
    nothing = collate_words([data[Draw(0, 0, 0)]])
    assert (len(nothing), nothing.tokens.shape) == (0, (0, 0))
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images)  # type: ignore[arg-type]
    assert moved.failures == batch.failures


def test_windows_of_evaluation_predict_every_token_once() -> None:
    tokens = np.arange(23)
    data = WindowDataset(tokens, 5, (len(tokens) - 1) // 5, training=False)
    windows = [data[Draw(0, index, 0)].texts[0] for index in range(len(data))]
    assert [window[0] for window in windows] == [0, 5, 10, 15]
    assert np.concatenate([window[1:] for window in windows]).tolist() == list(range(1, 21))


def test_windows_of_training_begin_anywhere_and_stay_inside() -> None:
    data = WindowDataset(np.arange(9), 5, 200, training=True, seed=1)
    windows = [data[Draw(0, index, 0)].texts[0] for index in range(200)]
    assert all(np.array_equal(window, np.arange(window[0], window[0] + 6)) for window in windows)
    assert {int(window[0]) for window in windows} == {0, 1, 2, 3}
    other = [int(data[Draw(1, index, 0)].texts[0][0]) for index in range(200)]
    assert other != [int(window[0]) for window in windows]


def test_batches_hold_texts_of_like_length_and_every_sample_once() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 400)
    sampler = EpochSampler(range(400), seed=0)
    batches = LengthBatches(sampler, lambda draw: int(lengths[draw.index]), 16, seed=0)
    seen = list(batches)
    assert len(seen) == len(batches) == 25
    assert sorted(draw.index for batch in seen for draw in batch) == list(range(400))
    spread = np.mean([np.ptp([lengths[draw.index] for draw in batch]) for batch in seen])
    assert spread < 5
    assert seen == list(batches)
    sampler.set_epoch(1)
    assert seen != list(batches)


def test_samples_that_fill_no_batch_are_a_smaller_one_and_a_resumed_epoch_has_the_same_rest() -> None:
    sampler = EpochSampler(range(70), seed=0)
    batches = LengthBatches(sampler, lambda draw: draw.index % 7, 8, seed=0)
    whole = list(batches)
    assert len(whole) == len(batches) == 9
    assert sorted(len(batch) for batch in whole) == [6, *[8] * 8]
    assert len({draw for batch in whole for draw in batch}) == 70
    for done in range(1, 9):
        sampler.start_at(0, done * 8)
        assert list(batches) == whole[done:]


def test_a_loader_gives_the_same_batches_with_workers() -> None:
    sampler = EpochSampler(range(3), seed=0)
    first, second = (
        list(word_loader(dataset(training=True), sampler, batch_size=2, workers=workers, bucketed=True))
        for workers in (0, 1)
    )
    assert [batch.tokens.tolist() for batch in first] == [batch.tokens.tolist() for batch in second]
    plain = list(word_loader(dataset(training=False), ExactSampler(3), batch_size=2, workers=0))
    assert [batch.indices.tolist() for batch in plain] == [[0, 1], [2]]
