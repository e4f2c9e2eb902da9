"""How faithful a map is: what an answer does as the pixels that the map names go or come, and where the map points.

From tensors to numbers, a picture at a time; nothing here knows how a map was made. Letters: B batch, H W height and
width in pixels, R C rows and columns of a map, S shares of a picture.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vit.evaluate.bootstrap import mean_intervals
from vit.models.vision import VisionTransformer

Answers = Callable[[Tensor], Tensor]
"""pictures float [B, 3, H, W] in 0..255, of any number -> class probabilities, or scores, [B, classes]"""

STEPS = tuple(i / 10 for i in range(1, 10))
"""shares of the pixels that perturbation takes away"""
SHARES = tuple(i / 10 for i in range(11))
"""shares of the patches that deletion takes away, and insertion brings"""
BASELINES = ("random", "centre")
BETTER = {
    "positive": "lower",
    "negative": "higher",
    "deletion": "lower",
    "insertion": "higher",
    "pointing": "higher",
    "weights": "lower",
}
"""the scores, and which of two numbers is the better"""
DEPTHS = ("head", "upper half", "all")
"""how far down from the answer `cascade` has shuffled the weights"""


def perturbation(
    answers: Answers, pictures: Tensor, maps: Tensor, ties: Tensor, *, lowest_first: bool = False
) -> Tensor:
    """Answered classes [B, S] as 10 to 90 % of the pixels turn black (Chefer et al. 2021, CVPR).

    pictures [B, 3, H, W] in 0..255, black before normalisation as there; maps [B, R, C], brought to pixels bilinearly;
    ties [B, H, W] as in `order`. Highest first (positive perturbation) a faithful map ends the right answers soon;
    lowest first (negative), late.
    """
    large = F.interpolate(maps[:, None], pictures.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    masks = first(order(-large if lowest_first else large, ties), STEPS)
    return replaced(answers, pictures, torch.zeros_like(pictures[:1]), masks).argmax(dim=2)


def deletion(answers: Answers, pictures: Tensor, maps: Tensor, ties: Tensor, targets: Tensor, colour: Tensor) -> Tensor:
    """Probability of the classes `targets` [B, S] as whole patches take one colour, the highest first.

    RISE's deletion (Petsiuk et al. 2018) by patches, the smallest thing that a map tells apart. colour [3] in 0..255,
    the mean that the model's pictures are normalised by; ties [B, R, C].
    """
    masks = _to_pixels(first(order(maps, ties), SHARES), pictures)
    return _chosen(replaced(answers, pictures, colour.view(1, 3, 1, 1), masks), targets)


def insertion(answers: Answers, pictures: Tensor, maps: Tensor, ties: Tensor, targets: Tensor) -> Tensor:
    """Probability of the classes `targets` [B, S] as patches come into a blurred picture, the highest first.

    RISE's insertion (Petsiuk et al. 2018). The blur is as wide as a patch, so that a patch's own shapes are gone until
    it comes.
    """
    masks = _to_pixels(first(order(maps, ties), SHARES), pictures)
    patch = max(pictures.shape[-2] / maps.shape[-2], pictures.shape[-1] / maps.shape[-1])
    return _chosen(replaced(answers, blurred(pictures, patch), pictures, masks), targets)


def area(curves: NDArray[np.float64], shares: Sequence[float]) -> NDArray[np.float64]:
    """The area under curves [..., S], by trapezoids, over the width, which is the mean height [...]."""
    return np.asarray(np.trapezoid(curves, shares, axis=-1)) / (shares[-1] - shares[0])


def mosaic(tiles: Tensor) -> Tensor:
    """Four pictures each [B, 4, 3, H, W] -> side by side and below each other [B, 3, 2 H, 2 W].

    Pictures keep their size, as in the paper (Boehle et al. 2021), and positions are resampled for the larger input.
    Shrinking them to the model's size instead confuses it more: a model of 32 x 32 digits that is right in 99 of 100
    pictures answers with one of the four classes in 65 % of mosaics of full size and in 43 % of shrunk ones.
    """
    upper, lower = (torch.cat([tiles[:, i], tiles[:, i + 1]], dim=-1) for i in (0, 2))
    return torch.cat([upper, lower], dim=-2)


def blanked_quarters(scores: Answers, mosaics: Tensor, targets: Tensor, colour: Tensor) -> Tensor:
    """How far the model itself looks at the right quarter: the pointing score [B, 4] of its quarters blanked.

    For each class of targets [B, 4], the share that its own quarter has of what the class's score falls by as one
    quarter after the other takes the colour [3]. A model that answers by something else than the picture in the
    quarter leaves no map to point there.
    """
    plain = colour.view(1, 3, 1, 1).expand(len(mosaics), -1, mosaics.shape[-2] // 2, mosaics.shape[-1] // 2)
    whole = scores(mosaics).gather(1, targets)
    falls = []
    for cell in range(4):
        tiles = _tiles(mosaics)
        tiles[cell] = plain
        falls.append((whole - scores(mosaic(torch.stack(tiles, dim=1))).gather(1, targets)).clamp(min=0))
    by_cell = torch.stack(falls, dim=2)  # [B, class, cell]
    total = by_cell.sum(dim=2)
    return (by_cell.diagonal(dim1=1, dim2=2) / total.where(total > 0, 1)).where(total > 0, 0.25)


def pointing(maps: Tensor, cells: Tensor) -> Tensor:
    """Share of the maps [B, R, C] of mosaics that lies in the right quarter, cells [B] of 0 to 3: 0.25 is chance.

    The grid pointing game (Boehle et al. 2021). What counts is the positive part, less its lowest value: what all
    patches have in common points nowhere, and the maps of models that pool by the mean hold 1/N everywhere. A map
    without any height has pointed to all quarters alike.
    """
    height = maps.clamp(min=0)
    height = height - height.amin(dim=(1, 2), keepdim=True)
    rows, columns = maps.shape[1] // 2, maps.shape[2] // 2
    quarters = height.unfold(1, rows, rows).unfold(2, columns, columns).sum(dim=(-1, -2)).flatten(1)
    total = quarters.sum(dim=1)
    share = quarters.gather(1, cells[:, None])[:, 0] / total.where(total > 0, 1)
    return share.where(total > 0, 0.25)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of maps [B, R, C], pair by pair [B], on the CPU: not every GPU has fp64.

    Of a map that is the same all over it is 0, or 1 where both are: the map has stayed as it was.
    """
    a, b = (_ranks(maps.cpu().flatten(1)) for maps in (one, other))
    a, b = (ranks - ranks.mean(dim=1, keepdim=True) for ranks in (a, b))
    flat = (a.norm(dim=1) == 0) & (b.norm(dim=1) == 0)
    spread = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(dim=1) / spread.where(spread > 0, 1)).clamp(-1, 1).where(~flat, 1.0)


def cascade(network: VisionTransformer, generator: torch.Generator) -> Iterator[VisionTransformer]:
    """The network with ever more of its weights shuffled, from the answer down: one for each of DEPTHS.

    For the sanity check of Adebayo et al. 2018: a map that stays the same does not tell what the model has learnt.
    Each tensor's values change places, which keeps their spread; fresh ones would make the head zero, and all gradients
    with it. The three are the same copy: use one before taking the next.
    """
    network = copy.deepcopy(network)
    for depth in range(len(DEPTHS)):
        for name, parameter in network.named_parameters():
            if _depth(name, network.architecture.depth) == depth:
                places = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.data = parameter.data.flatten()[places].view_as(parameter)
        yield network


def summary(
    rows: Mapping[str, NDArray[np.float64]], names: Sequence[str], *, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores and curves by method, their means and 95 % bootstrap intervals over pictures, as plain numbers.

    rows [N, methods, points] by score: a curve of every picture, the shares of pointing, the correlations of weights.
    Beside each score stands its difference to the random map's, pair by pair, and whether the method is `better` or
    `worse` by that interval. Shuffled weights have none, since what a random map makes of them is no bar to pass; nor
    have fewer than ten pictures, whose bootstrap interval is too narrow.
    """
    scores: dict[str, Any] = {name: {} for name in names}
    curves: dict[str, Any] = {name: {} for name in names}
    for what, points in rows.items():
        at, numbers = _numbers(what, points)
        apart = numbers - numbers[:, [list(names).index("random")]]
        stacked = np.concatenate([numbers, apart, points.reshape(len(points), -1)], axis=1)
        low, high = mean_intervals(stacked, seed=seed)
        mean, m = stacked.mean(axis=0), len(names)
        for i, name in enumerate(names):
            scores[name][what] = {"mean": mean[i].item(), "interval": [low[i].item(), high[i].item()]}
            if what != "weights":
                ends = [low[m + i].item(), high[m + i].item()]
                enough = len(points) >= 10
                verdict = _verdict(ends, BETTER[what.removesuffix("_true_class")]) if enough else "too few to tell"
                scores[name][what] |= {"minus_random": mean[m + i].item(), "minus_random_interval": ends}
                scores[name][what] |= {"than_random": verdict}
            if at:
                part = slice(2 * m + i * len(at), 2 * m + (i + 1) * len(at))
                ends_of_curve = {"low": low[part].tolist(), "high": high[part].tolist()}
                curves[name][what] = {"at": list(at), "mean": mean[part].tolist(), **ends_of_curve}
    return scores, curves


def noise(numbers: Sequence[int], size: Sequence[int], seed: int) -> Tensor:
    """Uniform noise [B, R, C], the same for a picture's number whatever else is in the batch.

    As a map it is what any method has to beat; as `ties`, it decides between equal values.
    """
    generators = (torch.Generator().manual_seed(1_000_003 * seed + number) for number in numbers)
    return torch.stack([torch.rand(*size, generator=generator) for generator in generators])


def centre_blob(grid: tuple[int, int]) -> Tensor:
    """A Gaussian on the centre [R, C], a quarter of each side wide: knows only that photographers aim."""
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in grid)
    return torch.exp(-(rows[:, None] ** 2 + columns**2) / 2)


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """Pictures [B, 3, H, W] under a Gaussian of `sigma` pixels, weighed anew at the edges: no colour comes in there."""
    rows, columns = (_gaussian(side, sigma).to(pictures) for side in pictures.shape[-2:])
    return rows @ pictures @ columns.mT


def order(values: Tensor, ties: Tensor) -> Tensor:
    """The place of each value [B, R, C] in its picture, the highest 0; `ties` [B, R, C] decide between equal ones.

    Bilinear maps are flat along the edges: without that, equal pixels would go in reading order.
    """
    by_ties = ties.flatten(1).argsort(dim=1)
    by_value = values.flatten(1).gather(1, by_ties).argsort(dim=1, descending=True, stable=True)
    return by_ties.gather(1, by_value).argsort(dim=1).view_as(values)


def first(places: Tensor, shares: Sequence[float]) -> Tensor:
    """Which are among the first share: places [B, R, C] -> bool [B, S, R, C]."""
    size = places[0].numel()
    counts = torch.tensor([round(share * size) for share in shares], device=places.device)
    return places[:, None] < counts[:, None, None]


def replaced(answers: Answers, pictures: Tensor, by: Tensor, masks: Tensor) -> Tensor:
    """Probabilities [B, S, classes] of pictures [B, 3, H, W] that are `by` where masks [B, S, H, W] say so."""
    changed = torch.where(masks[:, :, None], by[:, None], pictures[:, None])
    return answers(changed.flatten(0, 1)).unflatten(0, masks.shape[:2])


def _numbers(what: str, points: NDArray[np.float64]) -> tuple[Sequence[Any], NDArray[np.float64]]:
    """Where the points of a score lie, none for pointing, and the score of every picture [N, methods]."""
    if what == "pointing":
        return (), points.mean(axis=2)
    if what == "weights":
        return DEPTHS, points[:, :, -1]
    shares = STEPS if what.startswith(("positive", "negative")) else SHARES
    return shares, area(points, shares)


def _verdict(ends: Sequence[float], better: str) -> str:
    """Whether an interval of differences to random lies on one side of zero; what is only rounding lies on none."""
    if ends[0] > 1e-9:
        return "better" if better == "higher" else "worse"
    if ends[1] < -1e-9:
        return "better" if better == "lower" else "worse"
    return "not apart"


def _chosen(probabilities: Tensor, targets: Tensor) -> Tensor:
    """[B, S, classes] -> those of one class a picture [B, S]."""
    return probabilities.gather(2, targets[:, None, None].expand(-1, probabilities.shape[1], 1))[..., 0]


def _tiles(mosaics: Tensor) -> list[Tensor]:
    """The four pictures of `mosaic` again."""
    return [tile for half in mosaics.chunk(2, dim=-2) for tile in half.chunk(2, dim=-1)]


def _to_pixels(masks: Tensor, pictures: Tensor) -> Tensor:
    """Masks of patches [B, S, R, C] -> of pixels [B, S, H, W]."""
    rows, columns = (pictures.shape[i] // masks.shape[i] for i in (-2, -1))
    return masks.repeat_interleave(rows, dim=-2).repeat_interleave(columns, dim=-1)


def _gaussian(side: int, sigma: float) -> Tensor:
    places = torch.arange(side)
    weights = torch.exp(-(((places[:, None] - places) / sigma) ** 2) / 2)
    return weights / weights.sum(dim=1, keepdim=True)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from the lowest of each row [B, M], equal values sharing the mean of theirs."""
    values = values.contiguous()
    ordered = values.sort(dim=1).values
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).double() / 2


def _depth(name: str, blocks: int) -> int:
    """At which of DEPTHS a parameter is shuffled."""
    if name.startswith("blocks."):
        return 1 if 2 * int(name.split(".")[1]) >= blocks else 2
    return 0 if name.startswith(("norm.", "fc_norm.", "attn_pool.", "head")) else 2
