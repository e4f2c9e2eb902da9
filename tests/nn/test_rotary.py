"""Rotary positions: against a loop, the property they are made for, with a cache, and learned."""

import cmath

import pytest
import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from torch import nn

from vit.nn import (
    MLP,
    Attention,
    Block,
    MixedAngles,
    Trace,
    Transformer,
    angles_1d,
    angles_2d,
    centred_coordinates,
    grid_coordinates,
    new_cache,
    rotate,
    rotation,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small_transformer(depth: int = 2) -> Transformer:
    blocks = [Block(Attention(16, 2), MLP(16, 32)) for _ in range(depth)]
    return Transformer(blocks, nn.LayerNorm(16)).eval()


def test_a_pair_of_channels_is_multiplied_by_a_complex_number() -> None:
    x, angles = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    turned = rotate(x, rotation(angles))
    for token in range(5):
        for i in range(4):
            factor = cmath.exp(1j * angles[token, i].item())
            expected = torch.complex(x[..., token, i], x[..., token, i + 4]) * factor
            torch.testing.assert_close(turned[..., token, i], expected.real)
            torch.testing.assert_close(turned[..., token, i + 4], expected.imag)


def test_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    table = rotation(angles_1d(30, 8))

    def product(i: int, j: int) -> float:
        return float((rotate(q, table[:, i : i + 1]) * rotate(k, table[:, j : j + 1])).sum())

    assert product(3, 1) == pytest.approx(product(22, 20), abs=1e-5)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)


def test_tokens_without_a_place_stay_bit_for_bit() -> None:
    x = torch.randn(2, 3, 7, 8)
    turned = rotate(x, rotation(angles_1d(5, 8, start=1), prefix=2))
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    assert not torch.equal(turned[:, :, 2:], x[:, :, 2:])


def test_angles_of_a_sequence_are_those_of_the_paper() -> None:
    angles = angles_1d(4, 8, base=10_000.0, start=3)
    for position in range(4):
        for i in range(4):
            assert angles[position, i].item() == pytest.approx((position + 3) / 10_000 ** (2 * i / 8), rel=1e-6)


@torch.no_grad()
def test_words_with_a_cache_give_what_the_whole_sentence_gives() -> None:
    model, x, length = small_transformer(), torch.randn(2, 6, 16), 6
    whole = model(x, causal=True, rotations=[rotation(angles_1d(length, 8))] * 2)
    cache = new_cache(2)
    steps = []
    for start, end in ((0, 3), (3, 4), (4, 6)):  # a prompt, then a word, then two
        table = rotation(angles_1d(end - start, 8, start=start))
        steps.append(model(x[:, start:end], causal=True, rotations=[table] * 2, cache=cache))
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_trace_holds_turned_queries_and_keys_whose_rows_give_the_output() -> None:
    model, x, trace = small_transformer(1), torch.randn(2, 5, 16), Trace()
    model(x, rotations=[rotation(angles_1d(5, 8))], trace=trace)
    (record,) = trace.self_attention
    torch.testing.assert_close(record.rows() @ record.v, record.output, rtol=0, atol=1e-5)


def halves(table: torch.Tensor) -> torch.Tensor:
    """timm's table [N, 2 K] of sines, then cosines, each for neighbours, as ours [2, N, K / 2]."""
    sin, cos = table.chunk(2, dim=-1)
    return torch.stack([cos[..., ::2], sin[..., ::2]])


@pytest.mark.parametrize("order", ["yx", "xy"])
@pytest.mark.parametrize("reference", [None, (7, 5)])
def test_angles_of_a_grid_equal_timms(order: str, reference: tuple[int, int] | None) -> None:
    indexing = "ij" if order == "yx" else "xy"
    theirs = RotaryEmbeddingCat(
        16,
        in_pixels=False,
        feat_shape=[3, 4],
        ref_feat_shape=reference,
        grid_offset=1.0,
        grid_indexing=indexing,
        temperature=100.0,
    )
    coordinates = grid_coordinates(3, 4, order=order, offset=1.0, reference=reference)  # type: ignore[arg-type]
    ours = rotation(angles_2d(coordinates, 16, base=100.0))
    torch.testing.assert_close(ours, halves(theirs.get_embed()), rtol=0, atol=1e-6)


def test_angles_from_the_middle_equal_timms() -> None:
    theirs = RotaryEmbeddingDinoV3(16, temperature=100.0, feat_shape=[3, 4], rotate_half=False)
    ours = rotation(angles_2d(centred_coordinates(3, 4), 16, base=100.0))
    torch.testing.assert_close(ours, halves(theirs.get_embed()), rtol=0, atol=1e-5)


def test_learned_angles_equal_timms_and_learn() -> None:
    theirs = RotaryEmbeddingMixed(32, depth=3, num_heads=2, feat_shape=[3, 4], grid_indexing="xy")
    ours = MixedAngles(3, 2, 16)
    ours.load_state_dict(theirs.state_dict())
    angles = ours(grid_coordinates(3, 4, order="xy"))
    table = rotation(angles)
    torch.testing.assert_close(table, halves(theirs.get_embed()).detach(), rtol=0, atol=1e-5)
    angles.sum().backward()
    assert ours.freqs.grad is not None
    assert ours.freqs.grad.abs().max() > 0


def test_fresh_learned_frequencies_are_axial_ones_turned_by_a_random_angle() -> None:
    freqs = MixedAngles(2, 3, 16, base=10.0).freqs.detach()
    expected = 10.0 ** (-torch.arange(4) / 4)
    length = freqs.square().sum(0).sqrt()
    torch.testing.assert_close(length[..., :4], expected.expand(2, 3, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(length[..., 4:], expected.expand(2, 3, 4), rtol=0, atol=1e-6)
    first, second = freqs[..., :4], freqs[..., 4:]  # the two halves stand at right angles
    torch.testing.assert_close((first * second).sum(0), torch.zeros(2, 3, 4), rtol=0, atol=1e-6)


def test_rotation_is_kept_in_fp32_and_the_result_in_the_precision_of_x() -> None:
    x = torch.randn(1, 1, 4, 8, dtype=torch.bfloat16)
    turned = rotate(x, rotation(angles_1d(4, 8)))
    assert turned.dtype == torch.bfloat16
    exact = rotate(x.double(), rotation(angles_1d(4, 8).double()))
    assert (turned.double() - exact).abs().max() < 2**-7  # one rounding of values below two
