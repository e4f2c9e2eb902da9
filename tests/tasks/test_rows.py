"""Result rows: one a picture, in the order of the list, with the failures."""

import numpy as np
import torch

from vit.tasks.rows import Rows


def test_rows_come_out_in_the_order_of_the_list() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 9), torch.randint(0, 9, (7,))
    order = torch.tensor([5, 0, 6, 2, 4, 1, 3])
    rows = Rows()
    for part in order.split(3):
        rows.add(logits[part], labels[part], part, [])
    gathered = rows.gather(9)
    assert gathered.indices.tolist() == list(range(7))
    found = gathered.predictions
    assert found.labels.tolist() == labels.tolist()
    chances = np.exp(logits.double().numpy())
    chances /= chances.sum(axis=1, keepdims=True)
    best = np.argsort(-chances, axis=1)[:, :5]
    assert found.top.tolist() == best.tolist()
    np.testing.assert_allclose(found.probabilities, np.take_along_axis(chances, best, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.losses, -np.log(chances[range(7), labels.numpy()]), rtol=1e-5)


def test_fewer_than_five_classes_keep_all_of_them() -> None:
    rows = Rows()
    rows.add(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), torch.arange(4), [])
    assert rows.gather(2).predictions.top.shape == (4, 2)


def test_half_precision_logits_give_probabilities_in_full() -> None:
    rows = Rows()
    logits = torch.randn(3, 4)
    rows.add(logits.bfloat16(), torch.tensor([0, 1, 2]), torch.arange(3), [])
    found = rows.gather(4).predictions.probabilities
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_failures_are_sorted_and_leave_no_rows() -> None:
    rows = Rows()
    rows.add(torch.randn(2, 3), torch.tensor([1, 2]), torch.tensor([4, 1]), [(3, "cut"), (0, "empty file")])
    rows.add(torch.empty(0, 3), torch.empty(0).long(), torch.empty(0).long(), [(2, "cut")])
    gathered = rows.gather(3)
    assert gathered.indices.tolist() == [1, 4]
    assert gathered.failures == [(0, "empty file"), (2, "cut"), (3, "cut")]


def test_nothing_at_all_gathers_to_empty_arrays() -> None:
    gathered = Rows().gather(12)
    assert gathered.indices.shape == (0,)
    assert gathered.predictions.top.shape == gathered.predictions.probabilities.shape == (0, 5)
    assert gathered.predictions.labels.dtype == np.int64
