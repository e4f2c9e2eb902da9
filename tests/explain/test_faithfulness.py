"""Faithfulness on planted cases, where which patches decide is known, and against sums by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from vit.explain import faithfulness as f
from vit.explain.maps import attention_maps
from vit.models.architecture import VisionArchitecture
from vit.models.vision import VisionTransformer

TRUTH = torch.tensor([[4.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 2], [1, 0, 0, 0]])
"""how much each of 4 x 4 patches speaks for class 1, in the planted case; all others speak for nothing"""
SIDE = 8  # pixels of a patch


def planted(pictures: Tensor) -> Tensor:
    """Probabilities of two classes by the brightness of the patches that count; black everywhere answers class 0."""
    brightness = pictures.mean(dim=1).unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).mean(dim=(-1, -2)) / 255
    score = 8 * (brightness * TRUTH).sum(dim=(1, 2)) / TRUTH.sum() - 4
    return torch.stack([-score, score], dim=1).softmax(dim=1)


@pytest.fixture
def pictures() -> Tensor:
    return torch.full((64, 3, 4 * SIDE, 4 * SIDE), 255.0)


def maps_by_name(count: int) -> dict[str, Tensor]:
    truth = TRUTH.expand(count, 4, 4)
    return {"perfect": truth, "random": f.noise(range(count), (4, 4), 0), "inverted": -truth}


def ties(count: int, side: int) -> Tensor:
    return f.noise(range(count), (side, side), 1)


def test_the_true_map_scores_best_the_inverted_one_worst_and_a_random_one_between(pictures: Tensor) -> None:
    count, ones = len(pictures), torch.ones(len(pictures), dtype=torch.long)
    pixels, patches = ties(count, 4 * SIDE), ties(count, 4)
    means: dict[str, dict[str, float]] = {}
    for name, maps in maps_by_name(count).items():
        curves = {
            "positive": (f.perturbation(planted, pictures, maps, pixels) == 1).double(),
            "negative": (f.perturbation(planted, pictures, maps, pixels, lowest_first=True) == 1).double(),
            "deletion": f.deletion(planted, pictures, maps, patches, ones, torch.zeros(3)),
            "insertion": f.insertion(planted, pictures * bright_where_it_counts(), maps, patches, ones),
        }
        for what, curve in curves.items():
            shares = f.SHARES if what in ("deletion", "insertion") else f.STEPS
            means.setdefault(what, {})[name] = float(f.area(curve.numpy(), shares).mean())
    for what in ("positive", "deletion"):
        assert means[what]["perfect"] < means[what]["random"] - 0.1 < means[what]["inverted"] - 0.2
    for what in ("negative", "insertion"):
        assert means[what]["perfect"] > means[what]["random"] + 0.03 > means[what]["inverted"] + 0.06


def bright_where_it_counts() -> Tensor:
    """[H, W] 1 on the patches that count, 0 on the others, so that a blur takes from those that count."""
    return (TRUTH > 0).float().repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)


def test_deletion_and_insertion_follow_the_patches_one_share_after_the_other(pictures: Tensor) -> None:
    one, target = pictures[:1], torch.tensor([1])
    curve = f.deletion(planted, one, TRUTH[None], ties(1, 4), target, torch.zeros(3))[0]
    # 0, 2, 3, 5, 6, 8 ... of 16 patches are gone: what is left of 10 parts of brightness is 10, 3, 1, 0, 0 ...
    expected = [float(torch.sigmoid(torch.tensor(2 * (8 * left / 10 - 4)))) for left in [10, 3, 1, *[0] * 8]]
    np.testing.assert_allclose(curve, expected, rtol=1e-5)
    whole = float(planted(one)[0, 1])
    assert f.insertion(planted, one, TRUTH[None], ties(1, 4), target)[0, -1] == pytest.approx(whole)
    blurred = float(planted(f.blurred(one, SIDE))[0, 1])
    assert f.insertion(planted, one, TRUTH[None], ties(1, 4), target)[0, 0] == pytest.approx(blurred)


def test_perturbation_blackens_a_tenth_more_of_the_pixels_at_each_step_and_starts_at_the_right_end() -> None:
    seen: list[Tensor] = []

    def watch(changed: Tensor) -> Tensor:
        seen.append(changed)
        return torch.zeros(len(changed), 2)

    pictures = torch.rand(2, 3, 20, 30) + 1
    maps = torch.arange(6.0).view(1, 2, 3).expand(2, 2, 3)  # the highest below on the right
    f.perturbation(watch, pictures, maps, f.noise([0, 1], (20, 30), 0))
    f.perturbation(watch, pictures, maps, f.noise([0, 1], (20, 30), 0), lowest_first=True)
    for changed, end in zip(seen, (-1, 0), strict=True):
        black = (changed == 0).all(dim=1).unflatten(0, (2, 9))
        assert black.sum(dim=(2, 3)).tolist() == [[60 * step for step in range(1, 10)]] * 2
        assert black[:, :, end, end].all()
        assert not black[:, :, end - 1 if end == 0 else 0, end - 1 if end == 0 else 0].any()
        kept = torch.where(black[:, :, None], 0, pictures[:, None])
        assert torch.equal(changed.unflatten(0, (2, 9)), kept)  # and nothing else changes


def test_equal_values_go_in_an_order_of_their_own_the_same_in_any_batch() -> None:
    flat = torch.zeros(3, 4, 4)
    places = f.order(flat, f.noise([5, 6, 7], (4, 4), 0))
    assert [sorted(p.flatten().tolist()) for p in places] == [list(range(16))] * 3
    assert not torch.equal(places[0], places[1])
    assert torch.equal(f.order(flat[:1], f.noise([6], (4, 4), 0))[0], places[1])
    assert f.order(torch.tensor([[[1.0, 3.0], [2.0, 3.0]]]), torch.tensor([[[0, 2.0], [0, 1.0]]])).tolist() == [
        [[3, 1], [2, 0]]
    ]


def test_the_area_is_that_of_trapezoids_over_the_width() -> None:
    # trapezoids of width 0.1, 0.3 and 0.1: 0.09, 0.15 and 0.01, over a width of 0.5
    assert f.area(np.array([1.0, 0.8, 0.2, 0.0]), (0.2, 0.3, 0.6, 0.7)) == pytest.approx(0.25 / 0.5)
    assert f.area(np.array([[0.4] * 9, [0.0] * 9]), f.STEPS).tolist() == pytest.approx([0.4, 0.0])


def test_pointing_is_the_share_of_the_positive_map_on_the_right_quarter() -> None:
    map_ = torch.tensor([[3.0, 1, 2, 0], [0, 0, 0, 0], [0, 0, -9, 1], [0, 0, 1, 0]])
    maps, cells = map_.expand(4, 4, 4), torch.arange(4)
    assert f.pointing(maps, cells).tolist() == pytest.approx([4 / 8, 2 / 8, 0, 2 / 8])
    raised = map_.clamp(min=0) + 5  # what all patches have in common points nowhere
    assert f.pointing(raised.expand(4, 4, 4), cells).tolist() == pytest.approx([4 / 8, 2 / 8, 0, 2 / 8])
    assert f.pointing(torch.full((4, 2, 6), 7.0), cells).tolist() == [0.25] * 4


def test_a_mosaic_holds_each_picture_whole_in_its_quarter() -> None:
    tiles = torch.rand(2, 4, 3, 6, 8)
    whole = f.mosaic(tiles)
    assert whole.shape == (2, 3, 12, 16)
    quarters = [whole[..., :6, :8], whole[..., :6, 8:], whole[..., 6:, :8], whole[..., 6:, 8:]]
    assert torch.equal(torch.stack(quarters, dim=1), tiles)


def test_blanking_quarters_points_where_the_score_comes_from() -> None:
    def scores(changed: Tensor) -> Tensor:  # of classes 0 to 3: the brightness of a quarter each, but 3 sees all
        quarters = changed.mean(dim=1).unfold(1, 4, 4).unfold(2, 4, 4).mean(dim=(-1, -2)).flatten(1)
        return torch.cat([quarters[:, :3], quarters.sum(dim=1, keepdim=True), 0 * quarters[:, :1]], dim=1)

    bright, targets = torch.full((2, 3, 8, 8), 200.0), torch.tensor([[0, 1, 2, 3], [4, 0, 2, 3]])
    share = f.blanked_quarters(scores, bright, targets, torch.zeros(3))
    assert share.tolist() == [[1, 1, 1, 0.25], [0.25, 0, 1, 0.25]]
    assert float(bright.min()) == 200


def test_rank_correlation_is_that_of_scipy_and_settled_for_flat_maps() -> None:
    torch.manual_seed(0)
    one, other = torch.rand(5, 4, 6), torch.rand(5, 4, 6).mul(4).round()  # with ties
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(f.rank_correlation(one, other), expected, atol=1e-12)
    np.testing.assert_allclose(f.rank_correlation(one, one.exp()), np.ones(5))
    flat = torch.ones(5, 4, 6)
    assert f.rank_correlation(one, flat).tolist() == f.rank_correlation(flat, one).tolist() == [0.0] * 5
    assert f.rank_correlation(flat, 2 * flat).tolist() == [1.0] * 5


def test_a_blur_keeps_a_plain_picture_and_the_mean_of_what_is_far_from_the_edges() -> None:
    plain = torch.full((1, 3, 12, 20), 7.0)
    torch.testing.assert_close(f.blurred(plain, 3), plain)
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    spread = f.blurred(point, 2)[0, 0]
    places = torch.arange(41) - 20.0
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(dim=0) * places**2).sum()) == pytest.approx(4, rel=1e-3)  # sigma squared
    assert float((spread.sum(dim=1) * places**2).sum()) == pytest.approx(4, rel=1e-3)


def test_the_blob_is_highest_in_the_middle_and_alike_on_all_sides() -> None:
    blob = f.centre_blob((5, 8))
    assert blob.argmax() in (2 * 8 + 3, 2 * 8 + 4)
    torch.testing.assert_close(blob, blob.flip(0))
    torch.testing.assert_close(blob, blob.flip(1))


@pytest.fixture
def network() -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer(VisionArchitecture((16, 16), (4, 4), dim=16, depth=4, heads=2, hidden=32, classes=5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


def test_weights_are_shuffled_from_the_answer_down_and_the_network_itself_is_left_alone(
    network: VisionTransformer,
) -> None:
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    changed = []
    for shuffled in f.cascade(network, torch.Generator().manual_seed(0)):
        weights = dict(shuffled.named_parameters())
        changed.append({name for name in weights if not torch.equal(weights[name], before[name])})
        for name, values in weights.items():  # the values are the same ones, in other places
            assert torch.equal(values.flatten().sort().values, before[name].flatten().sort().values)
    upper = {name for name in before if name.startswith(("blocks.2.", "blocks.3."))}
    head = {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    assert changed == [head, head | upper, set(before)]
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


def test_maps_of_shuffled_weights_differ_and_noise_does_not(network: VisionTransformer) -> None:
    images, targets = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    own = attention_maps(network, images, method="generic", targets=targets).values
    *_, shuffled = f.cascade(network, torch.Generator().manual_seed(0))
    other = attention_maps(shuffled, images, method="generic", targets=targets).values
    assert f.rank_correlation(own, other).abs().mean() < 0.5
    assert other.flatten(1).std(dim=1).min() > 0  # it is a map all the same
    assert torch.equal(f.noise([3], (4, 4), 0), f.noise([1, 3], (4, 4), 0)[1:])


def rows(count: int, value: Callable[[np.random.Generator], float]) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.array([[value(random)] * 9 for _ in range(count)])


def test_the_summary_knows_what_lies_apart_from_the_random_map_and_in_which_direction() -> None:
    base = rows(60, lambda random: random.normal(0.5, 0.2))
    table = np.stack([base - 0.1, base + rows(60, lambda r: r.normal(0, 0.1)) - 0.001, base + 0.1, base], axis=1)
    names = ["low", "alike", "high", "random"]
    scores, curves = f.summary({"positive": table, "negative": table}, names, seed=0)
    assert [scores[name]["positive"]["than_random"] for name in names] == ["better", "not apart", "worse", "not apart"]
    assert [scores[name]["negative"]["than_random"] for name in names] == ["worse", "not apart", "better", "not apart"]
    low = scores["low"]["positive"]
    assert low["mean"] == pytest.approx(base.mean() - 0.1)
    assert low["minus_random_interval"] == pytest.approx([-0.1, -0.1])  # paired: what pictures differ in falls out
    half = 1.96 * base[:, 0].std() / np.sqrt(60)
    assert low["interval"] == pytest.approx([low["mean"] - half, low["mean"] + half], abs=0.2 * half)
    assert curves["low"]["positive"]["at"] == list(f.STEPS)
    assert curves["low"]["positive"]["mean"] == pytest.approx([low["mean"]] * 9)
    assert curves["low"]["positive"]["low"] == pytest.approx([low["interval"][0]] * 9)


def test_the_summary_takes_the_mean_of_the_quarters_and_the_correlation_at_the_bottom() -> None:
    pointing = np.tile([[[0.1, 0.3, 0.5, 0.7]], [[0.2, 0.2, 0.2, 0.2]]], (1, 2, 1))
    weights = np.tile([[0.9, 0.5, 0.1]], (3, 2, 1))
    scores, curves = f.summary({"pointing": pointing, "weights": weights}, ["generic", "random"], seed=0)
    assert scores["generic"]["pointing"]["mean"] == pytest.approx(0.3)
    assert scores["generic"]["pointing"]["than_random"] == "too few to tell"
    assert scores["generic"]["weights"] == {"mean": pytest.approx(0.1), "interval": pytest.approx([0.1, 0.1])}
    assert list(curves["generic"]) == ["weights"]
    assert curves["generic"]["weights"]["at"] == ["head", "upper half", "all"]
    assert curves["generic"]["weights"]["mean"] == pytest.approx([0.9, 0.5, 0.1])
