"""What a model has learnt: against sklearn's PCA, sums by hand and plain loops."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor

from vit.explain import model_views
from vit.explain.model_plots import (
    FeaturePicture,
    attention_plot,
    features_plot,
    norms_plot,
    positions_plot,
    rotary_plot,
    shown,
)
from vit.explain.model_views import (
    Scatter,
    as_colours,
    channel_colours,
    distance_of_uniform,
    feature_colours,
    filter_components,
    measured,
    nearest_are_neighbours,
    patch_filters,
    patch_places,
    position_grid,
    position_similarity,
    principal_components,
    rotary_similarity,
    similarity_by_distance,
    strongest,
)
from vit.explain.pictures import Box
from vit.models.architecture import Rope, VisionArchitecture
from vit.models.timm import from_timm
from vit.models.vision import VisionTransformer
from vit.nn import Trace, rotate

TINY = VisionArchitecture((16, 24), (4, 8), dim=32, depth=2, heads=4, hidden=48, classes=3)  # 4 x 3 patches
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled with registers": {"distilled": True, "registers": 2},
    "mean, without class token": {"pool": "mean", "class_token": False, "final_norm": "pooled"},
    "attention": {"pool": "attention", "class_token": False, "positions": "sincos"},
    "rotary, no head": {"positions": "none", "rope": Rope("mixed"), "classes": 0},
    "positions of patches alone": {"prefix_positions": False, "registers": 1, "rope": Rope("centred")},
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def build(**changes: Any) -> VisionTransformer:
    model = VisionTransformer(replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


# principal components


def unsigned(directions: np.ndarray) -> np.ndarray:
    """Each row turned so that its largest coordinate is positive."""
    largest = directions[range(len(directions)), np.abs(directions).argmax(axis=1)]
    return np.asarray(directions * np.sign(largest)[:, None])


def test_components_are_sklearns_whole_or_in_parts() -> None:
    rows = torch.randn(50, 8) @ torch.randn(8, 8) + 100  # a mean far off, which naive sums would drown in
    theirs = PCA(3, svd_solver="full").fit(rows.double().numpy())
    scatter = Scatter(8)
    for part in rows.split([1, 20, 29]):
        scatter.add(part)
    for ours in (principal_components(rows, 3), scatter.components(3)):
        np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-12)
        np.testing.assert_allclose(ours.directions, unsigned(theirs.components_), atol=1e-9)
        np.testing.assert_allclose(ours.shares, theirs.explained_variance_ratio_, rtol=1e-9)
        signs = np.sign((theirs.components_ * ours.directions.numpy()).sum(axis=1))
        np.testing.assert_allclose(ours.project(rows), theirs.transform(rows.double().numpy()) * signs, atol=1e-9)


def test_the_order_of_the_parts_does_not_matter() -> None:
    rows = torch.randn(30, 5)
    forwards, backwards = Scatter(5), Scatter(5)
    for i in range(0, 30, 10):
        forwards.add(rows[i : i + 10])
        backwards.add(rows[20 - i : 30 - i])
    torch.testing.assert_close(forwards.components(2).directions, backwards.components(2).directions)


# positions


def test_similarity_is_the_cosine_computed_by_hand() -> None:
    model = build()
    vectors = torch.zeros(1, 13, 32)
    vectors[0, 0] = 7.0  # the class token's, which is no patch's
    vectors[0, 1, :2] = torch.tensor([3.0, 4.0])  # row 0, column 0
    vectors[0, 6, :2] = torch.tensor([4.0, 3.0])  # row 1, column 2
    with torch.no_grad():
        model.pos_embed.copy_(vectors)
    grid = position_grid(model)
    assert grid is not None
    similarity = position_similarity(grid, range(4), range(3))
    assert similarity.shape == (4, 3, 4, 3)
    expected = torch.zeros(4, 3, 4, 3)
    expected[0, 0, 0, 0] = expected[1, 2, 1, 2] = 1
    expected[0, 0, 1, 2] = expected[1, 2, 0, 0] = 0.96
    torch.testing.assert_close(similarity, expected)
    assert torch.equal(position_similarity(grid, [0, 3], [2]), similarity[[0, 3]][:, [2]])


def test_sines_are_most_like_themselves_then_their_neighbours_and_symmetric() -> None:
    grid = position_grid(build(positions="sincos", image_size=(28, 40)))
    assert grid is not None
    assert grid.shape == (7, 5, 32)
    similarity = position_similarity(grid, range(7), range(5))
    flat = similarity.reshape(35, 35)
    torch.testing.assert_close(flat, flat.T)
    assert torch.equal(flat.argmax(dim=1), torch.arange(35))
    torch.testing.assert_close(flat.diagonal(), torch.ones(35))
    assert nearest_are_neighbours(similarity, range(7), range(5)) == 1.0
    by_rows, by_columns = similarity_by_distance(similarity, range(7), range(5))
    torch.testing.assert_close(by_rows, similarity[0, 0, :, 0])  # of sines, by the distance alone
    torch.testing.assert_close(by_columns, similarity[3, 0, 3])


def test_positions_in_disorder_are_not_most_like_their_neighbours() -> None:
    grid = position_grid(build(positions="sincos", image_size=(28, 40)))
    assert grid is not None
    mixed = grid.flatten(0, 1)[torch.randperm(35)].unflatten(0, (7, 5))
    assert nearest_are_neighbours(position_similarity(mixed, range(7), range(5)), range(7), range(5)) < 0.6


def test_means_by_distance_are_those_of_a_loop_over_the_patches_shown() -> None:
    grid, rows, columns = torch.randn(4, 6, 8), [0, 2], [0, 1, 5]
    unit = grid / grid.norm(dim=-1, keepdim=True)
    down: dict[int, list[float]] = {}
    across: dict[int, list[float]] = {}
    for r in rows:
        for c in columns:
            for other in range(4):
                down.setdefault(abs(other - r), []).append(float(unit[r, c] @ unit[other, c]))
            for other in range(6):
                across.setdefault(abs(other - c), []).append(float(unit[r, c] @ unit[r, other]))
    by_rows, by_columns = similarity_by_distance(position_similarity(grid, rows, columns), rows, columns)
    np.testing.assert_allclose(by_rows, [np.mean(down[i]) for i in range(4)], atol=1e-6)
    np.testing.assert_allclose(by_columns, [np.mean(across[i]) for i in range(6)], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["grid", "centred", "mixed"])
def test_rotary_similarity_is_what_turning_leaves_of_equal_queries_and_keys(kind: Any) -> None:
    model = build(positions="none", rope=Rope(kind))
    assert position_grid(model) is None
    maps = rotary_similarity(model)
    assert maps is not None
    assert maps.shape == (2 if kind == "mixed" else 1, 7, 5)
    torch.testing.assert_close(maps[:, 3, 2], torch.ones(len(maps)))
    torch.testing.assert_close(maps, maps.flip(1, 2))
    rotations = model._rotations((4, 3))
    assert rotations is not None
    ones = torch.ones(1, 4, 13, 8)
    for layer in range(len(maps)):
        turned = rotate(ones, rotations[layer])[0, :, 1:]  # without the class token
        scores = (turned @ turned.transpose(-2, -1) / 8).mean(dim=0)
        for a in range(12):
            for b in range(12):
                offset = (b // 3 - a // 3 + 3, b % 3 - a % 3 + 2)
                assert float(maps[layer][offset]) == pytest.approx(float(scores[a, b]), abs=1e-5)


def test_without_rotary_positions_there_is_no_rotary_similarity() -> None:
    assert rotary_similarity(build()) is None


# filters


def test_all_components_together_rebuild_the_filters() -> None:
    filters = patch_filters(build(channels=2))
    components, shares = filter_components(filters, 1000)
    assert len(components) == 31  # of 32 filters around their mean
    assert float(shares.sum()) == pytest.approx(1)
    mean = filters.mean(dim=0)
    coordinates = torch.einsum("dchw,kchw->dk", filters - mean, components)
    torch.testing.assert_close(mean + torch.einsum("dk,kchw->dchw", coordinates, components), filters)


def test_planted_filters_are_found_and_the_strongest_are_first() -> None:
    pattern = torch.randn(3, 4, 8)
    filters = torch.linspace(-2, 3, 32)[:, None, None, None] * pattern
    components, shares = filter_components(filters, 28)
    assert len(components) == 1  # what is left is rounding
    assert float(shares[0]) == pytest.approx(1)
    cosine = torch.cosine_similarity(components.flatten(), pattern.flatten(), dim=0)
    assert abs(float(cosine)) == pytest.approx(1)
    order, norms = strongest(filters, 3)
    assert order.tolist() == [31, 30, 29]
    torch.testing.assert_close(norms, filters[[31, 30, 29]].flatten(1).norm(dim=1))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_filters_of_any_number_of_channels_become_colours(channels: int) -> None:
    filters = torch.randn(32, channels, 4, 8) * torch.arange(1.0, channels + 1)[:, None, None]
    colours = channel_colours(filters)
    pictures = as_colours(filters, colours)
    assert pictures.shape == (32, 4, 8, 3)
    assert (pictures.sub(0.5).abs().amax(dim=(1, 2, 3)) == 0.5).all()  # each fills the range around middle grey
    if channels == 1:
        assert (pictures[..., 0] == pictures[..., 2]).all()
    elif channels == 3:
        reach = filters.abs().amax(dim=(1, 2, 3), keepdim=True)
        torch.testing.assert_close(pictures, 0.5 + 0.5 * (filters / reach).permute(0, 2, 3, 1))
    else:
        count = min(3, channels)
        flat = filters.double().movedim(1, -1).flatten(0, 2).numpy()
        directions = np.linalg.svd(flat, full_matrices=False)[2][:count]
        np.testing.assert_allclose(colours[:count], unsigned(directions), atol=1e-5)
        assert not colours[count:].any()


# what the layers do


@pytest.mark.parametrize("name", VARIANTS)
def test_measures_are_those_of_plain_loops(name: str) -> None:
    model, images = build(**VARIANTS[name]), torch.randn(2, 3, 16, 24)
    a, trace = model.architecture, Trace()
    with torch.no_grad():
        tokens = model.encode(images, trace=trace)
    measures = measured(model, images)
    assert torch.equal(measures.features, tokens[:, a.prefix :])
    for layer, record in enumerate(trace.self_attention):
        for head in range(4):
            matrices = (record.q[:, head] @ record.k[:, head].transpose(-2, -1) / math.sqrt(8)).softmax(dim=-1)
            for picture, matrix in enumerate(matrices.double()):
                entropy = float(-(matrix * matrix.log()).sum(dim=1).mean())
                assert float(measures.entropies[picture, layer, head]) == pytest.approx(entropy, rel=1e-4)
                among = matrix[a.prefix :, a.prefix :]
                total = 0.0
                for i in range(12):
                    for j in range(12):
                        apart = math.hypot(4 * (i // 3 - j // 3), 8 * (i % 3 - j % 3))
                        total += apart * float(among[i, j] / among[i].sum()) / 12
                assert float(measures.distances[picture, layer, head]) == pytest.approx(total, rel=1e-4)
        norms = np.linalg.norm(trace.tokens[layer].numpy(), axis=-1)
        patches = norms[:, a.prefix :]
        quantiles = np.quantile(patches, [0.05, 0.5, 0.95, 1], axis=1).T
        np.testing.assert_allclose(measures.patch_norms[:, layer], quantiles, rtol=1e-5)
        np.testing.assert_allclose(measures.prefix_norms[:, layer], norms[:, : a.prefix], rtol=1e-5)
    assert not measures.high.any()


def test_an_artefact_among_the_patches_is_counted() -> None:
    model, images = build(), torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        model.pos_embed[0, 5] *= 1000
    assert measured(model, images).high[0].tolist() == pytest.approx([1 / 12, 1 / 12])


def test_bf16_weights_give_nearly_the_same_in_fp32() -> None:
    model, images = build(rope=Rope("mixed")), torch.randn(1, 3, 16, 24)
    exact, coarse = measured(model, images), measured(model.bfloat16(), images)
    for name, values in vars(coarse).items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, getattr(exact, name), rtol=0.1, atol=0.1)
    maps, grid = rotary_similarity(model), position_grid(model)
    assert maps is not None
    assert grid is not None
    assert maps.dtype == grid.dtype == patch_filters(model).dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224", "vit_small_patch16_dinov3"]
)
def test_models_of_timm_are_measured(name: str) -> None:
    theirs: Any = timm.create_model(name, img_size=(32, 48), depth=2, num_heads=3, embed_dim=192, num_classes=0)
    ours, images = from_timm(theirs), torch.randn(1, 3, 32, 48)
    measures = measured(ours, images)
    with torch.no_grad():
        tokens = theirs.forward_features(images)
    torch.testing.assert_close(measures.features, tokens[:, theirs.num_prefix_tokens :], rtol=1e-3, atol=1e-4)
    assert measures.distances.shape == (1, 2, 3)
    assert patch_filters(ours).shape == (192, 3, 16, 16)


def test_uniform_attention_is_as_far_as_a_loop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_views, "AT_ONCE", 5)
    places = patch_places((16, 24), (4, 8))
    assert places[4].tolist() == [4, 8]  # row 1, column 1
    total = sum(math.dist(a, b) for a in places.tolist() for b in places.tolist())
    assert distance_of_uniform(places) == pytest.approx(total / 144)


def test_feature_colours_are_sklearns_scaled_by_percentiles() -> None:
    pictures = [torch.randn(4, 3, 16) @ torch.randn(16, 16) for _ in range(5)]
    rows = torch.cat([grid.flatten(0, 1) for grid in pictures])
    colours = feature_colours(pictures, principal_components(rows, 3))
    theirs = PCA(3, svd_solver="full").fit(rows.double().numpy())
    signs = np.sign(theirs.components_[range(3), np.abs(theirs.components_).argmax(axis=1)])
    values = theirs.transform(rows.double().numpy()) * signs
    low, high = np.percentile(values, [2, 98], axis=0)
    expected = np.clip((values - low) / (high - low), 0, 1).reshape(5, 4, 3, 3)
    np.testing.assert_allclose(torch.stack(colours), expected, atol=1e-5)


def test_patches_that_do_not_differ_are_grey() -> None:
    even = [torch.full((4, 3, 16), 0.7)]
    scatter = Scatter(16)
    scatter.add(even[0].flatten(0, 1))
    assert (feature_colours(even, scatter.components(3))[0] == 0.5).all()
    line = [torch.arange(12.0).reshape(4, 3, 1) * torch.ones(16)]  # one component and no more
    colours = feature_colours(line, principal_components(line[0].flatten(0, 1), 3))[0]
    assert colours[..., 0].unique().numel() > 6
    assert (colours[..., 1:] == 0.5).all()
    assert feature_colours([torch.randn(4, 3, 2)], principal_components(torch.randn(12, 2), 3))[0].shape == (4, 3, 3)


# pictures


def test_all_rows_are_shown_or_some_with_both_ends() -> None:
    assert shown(1) == [0]
    assert shown(16) == list(range(16))
    assert shown(37) == [0, 4, 9, 14, 18, 22, 27, 32, 36]


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (7, 3), (20, 40)])
def test_positions_of_any_grid_are_drawn_at_a_size_that_can_be_opened(grid: tuple[int, int], tmp_path: Path) -> None:
    rows, columns = shown(grid[0]), shown(grid[1])
    similarity = position_similarity(torch.randn(*grid, 8), rows, columns).numpy()
    positions_plot(similarity, rows, columns, "learned", tmp_path / "p.png")
    assert all(200 < side < 2000 for side in pixels(tmp_path / "p.png").shape[:2])
    maps = np.cos(np.arange(2 * grid[0] - 1))[:, None] * np.ones((3, 1, 2 * grid[1] - 1))
    rotary_plot(maps, tmp_path / "r.png")
    assert all(150 < side < 2000 for side in pixels(tmp_path / "r.png").shape[:2])


def share_of(path: Path, colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels(path).astype(int) - np.array(colour)).max(axis=2) <= 2).mean())


def test_the_colours_of_patches_lie_beside_the_picture_where_the_model_saw_it(tmp_path: Path) -> None:
    green = np.full((40, 80, 3), (0, 200, 0), np.uint8)
    red = np.zeros((2, 2, 3))
    red[..., 0] = 1
    for box, name in ((Box(0, 0, 1, 1), "whole"), (Box(0, 0.25, 1, 0.75), "half"), (Box(-1, 0, 2, 1), "beyond")):
        features_plot([FeaturePicture(green, box, "$x", red)], [0.5, 0.2, 0.1], tmp_path / f"{name}.png")
    whole, half, beyond = (tmp_path / f"{name}.png" for name in ("whole", "half", "beyond"))
    lit = share_of(whole, (0, 200, 0))
    assert lit > 0.2
    assert share_of(whole, (255, 0, 0)) == pytest.approx(lit, rel=0.02)
    assert share_of(beyond, (255, 0, 0)) == pytest.approx(lit, rel=0.02)  # margins are no part of the picture
    assert share_of(half, (255, 0, 0)) == pytest.approx(lit / 2, rel=0.05)
    assert share_of(half, (0, 200, 0)) == pytest.approx(lit / 2, rel=0.05)
    assert share_of(half, (0, 60, 0)) == pytest.approx(lit / 2, rel=0.05)  # what was not seen is dark


def test_lengths_far_apart_and_no_prefix_tokens_are_drawn(tmp_path: Path) -> None:
    norms = np.sort(np.random.default_rng(0).random((3, 4)), axis=1)
    norms_plot(norms, norms[:, :3], ["class token", "register", "register"], 2, tmp_path / "near.png")
    norms_plot(10_000**norms, norms[:, :0], [], 1, tmp_path / "far.png")
    orange = [share_of(tmp_path / f"{name}.png", (0xE6, 0x9F, 0x00)) for name in ("near", "far")]
    assert orange[0] > 0.001  # the class token's line
    assert orange[1] == 0
    assert share_of(tmp_path / "far.png", (0x00, 0x72, 0xB2)) > 0.001


def test_every_value_of_attention_is_within_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, float]] = []

    def kept(figure: Any, _: Any) -> None:
        limits.extend(axes.get_ylim() for axes in figure.axes)

    monkeypatch.setattr("vit.explain.model_plots.save_png", kept)
    values: Tensor = torch.tensor([[3.0, 9.0]])
    attention_plot(values.numpy(), values.numpy() / 9, (5.0, 2.0), 1, tmp_path / "x.png")
    assert limits[0][0] == 0
    assert limits[0][1] > 9
    assert limits[1][1] > 2
