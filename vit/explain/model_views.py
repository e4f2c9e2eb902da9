"""What a model has learnt, as arrays: of its weights alone, and of what its layers do to pictures.

Letters: B batch, C channels, L layers, H heads, R rows and S columns of patches, N = R S of them, P prefix tokens,
D dim, K dim of one head; h w height and width of a patch in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.explain.methods import distances, entropies
from vit.models.vision import VisionTransformer
from vit.nn import Trace, grid_coordinates, rotation

QUANTILES = (0.05, 0.5, 0.95, 1.0)
"""which quantiles of a picture's token norms are kept"""
AT_ONCE = 1024
"""patches compared with all others at a time"""
HIGH_NORM = 3.0
"""a token this many times as long as the median one of its picture and layer counts as an artefact"""
_NOTHING = 1e-10  # a component with less of the variance is rounding


@dataclass(frozen=True)
class Components:
    """Principal components: the mean [D], directions [k, D] of unit length, and the share of variance of each [k].

    The sign is fixed: the largest coordinate of every direction is positive.
    """

    mean: Tensor
    directions: Tensor
    shares: Tensor

    def project(self, rows: Tensor) -> Tensor:
        """rows [N, D] -> their coordinates [N, k]."""
        return (rows.cpu().double() - self.mean) @ self.directions.T


class Scatter:
    """Mean and covariance of rows that come in parts, in fp64 and by the memory of one matrix [D, D] (Chan 1983)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in more rows [N, D]."""
        rows = rows.cpu().double()  # not every GPU has fp64
        mean, total = rows.mean(dim=0), self.count + len(rows)
        apart, centred = mean - self.mean, rows - mean
        self.products += centred.T @ centred + torch.outer(apart, apart) * (self.count * len(rows) / total)
        self.mean = self.mean + apart * (len(rows) / total)
        self.count = total

    def components(self, count: int) -> Components:
        """The first `count` principal components of all rows so far, or as many as there are dimensions."""
        variances, vectors = torch.linalg.eigh(self.products)
        return _components(self.mean, vectors.T.flip(0), variances.flip(0).clamp(min=0), count)


def principal_components(rows: Tensor, count: int) -> Components:
    """The first `count` principal components of rows [N, D], or as many as there are."""
    rows = rows.cpu().double()
    mean = rows.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    return _components(mean, directions, lengths.square(), count)


def _components(mean: Tensor, directions: Tensor, variances: Tensor, count: int) -> Components:
    """From all directions, the first ones with their sign settled."""
    shares = variances / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)
    directions, shares = directions[:count], shares[:count]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return Components(mean, directions * largest.sign(), shares)


# positions


def position_grid(network: VisionTransformer) -> Tensor | None:
    """The vectors added to the patches, fp32 [R, S, D], learned or of sines; None for a model that adds none."""
    a = network.architecture
    if a.positions == "none":
        return None
    vectors = network.pos_embed[0, a.positioned :] if a.positions == "learned" else network.sincos[0]
    return vectors.detach().float().cpu().unflatten(0, a.grid)


def position_similarity(grid: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Cosine similarity of positions [R, S, D] (Dosovitskiy et al. 2020, fig. 7): [len(rows), len(columns), R, S].

    Of those at the given rows and columns, each to all.
    """
    unit = F.normalize(grid, dim=-1)
    return torch.einsum("ijd,rsd->ijrs", unit[list(rows)][:, list(columns)], unit)


def similarity_by_distance(similarity: Tensor, rows: Sequence[int], columns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean similarity to patches of the same column 0 ... R - 1 rows apart [R], and of the same row by columns [S].

    From the given patches, whose rows and columns hold the first ones.
    """
    down = similarity[:, torch.arange(len(columns)), :, list(columns)].transpose(0, 1)  # [rows, columns, R]
    across = similarity[torch.arange(len(rows)), :, list(rows)]  # [rows, columns, S]
    return _by_distance(down.mean(dim=1), rows), _by_distance(across.mean(dim=0), columns)


def nearest_are_neighbours(similarity: Tensor, rows: Sequence[int], columns: Sequence[int]) -> float:
    """Share of the given positions whose most similar other position is one of the up to eight beside it."""
    _, _, height, width = similarity.shape
    if height * width == 1:
        return 1.0
    hits = 0
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            others = similarity[i, j].clone()
            others[row, column] = -2.0
            nearest_row, nearest_column = divmod(int(others.argmax()), width)
            hits += max(abs(nearest_row - row), abs(nearest_column - column)) == 1
    return hits / (len(rows) * len(columns))


@torch.no_grad()
def rotary_similarity(network: VisionTransformer) -> Tensor | None:
    """How much of q k^T rotary positions leave by offset, fp32 [L or 1, 2 R - 1, 2 S - 1]; None without them.

    The mean cosine of the angles between two patches, over the channels and the heads: what the product of a query and
    an equal key, of the same length in every channel, is multiplied by. The middle is offset 0; one map serves all
    layers but for learned frequencies.
    """
    a = network.architecture
    if a.rope is None:
        return None
    if a.rope.kind == "mixed":
        turns = rotation(network.rope(grid_coordinates(*a.grid, order=a.rope.order)))  # [2, L, H, N, K / 2]
    else:
        turns = network.rotation[:, None, None, a.prefix :]
    grid = turns.float().unflatten(-2, a.grid)  # [2, L, H, R, S, K / 2]

    def seen_from(column: int) -> Tensor:  # a patch of the first row; cos(a - b) = cos a cos b + sin a sin b
        return (grid * grid[:, :, :, :1, column : column + 1]).sum(dim=0).mean(dim=(1, -1))

    left = seen_from(a.grid[1] - 1)[..., :-1]  # from the last column: offsets to the left
    below = torch.cat([left, seen_from(0)], dim=-1)  # [L, R, 2 S - 1], offsets of 0 and more rows
    return torch.cat([below[:, 1:].flip(1, 2), below], dim=1).cpu()  # the cosine of an offset is that of its opposite


def _by_distance(similarity: Tensor, places: Sequence[int]) -> Tensor:
    """Similarity [places, n] of some places on a line to all -> mean by how far apart they are [n]."""
    count = similarity.shape[1]
    apart = (torch.arange(count) - torch.tensor(places)[:, None]).abs()
    return torch.stack([similarity[apart == distance].mean() for distance in range(count)])


# filters


def patch_filters(network: VisionTransformer) -> Tensor:
    """The patch embedding's filters, fp32 [D, C, h, w]."""
    return network.patch_embed.proj.weight.detach().float().cpu()


def filter_components(filters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Principal components of filters [D, C, h, w] (Dosovitskiy et al. 2020, fig. 7): [k, C, h, w], shares [k].

    Components that are nothing but rounding are left out.
    """
    found = principal_components(filters.flatten(1), count)
    there = found.shares > _NOTHING
    return found.directions[there].unflatten(1, filters.shape[1:]).float(), found.shares[there].float()


def strongest(filters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers of the filters of largest norm, the largest first, and their norms."""
    norms = filters.flatten(1).norm(dim=1)
    order = norms.argsort(descending=True, stable=True)[:count]
    return order, norms[order]


def channel_colours(filters: Tensor) -> Tensor:
    """What of filters [D, C, h, w] is shown as red, green and blue: [3, C].

    One channel is grey, three are the colours themselves. Of any other number, the three mixtures of channels with the
    most energy over all filters, which of two channels leaves blue empty.
    """
    channels = filters.shape[1]
    if channels == 1:
        return torch.ones(3, 1)
    if channels == 3:
        return torch.eye(3)
    energy = torch.einsum("dchw,dehw->ce", filters.double(), filters.double())
    _, vectors = torch.linalg.eigh(energy)
    zero = torch.zeros(channels, dtype=torch.float64)
    mixtures = _components(zero, vectors.T.flip(0), torch.ones(channels, dtype=torch.float64), 3).directions
    return F.pad(mixtures, (0, 0, 0, 3 - len(mixtures))).float()


def as_colours(filters: Tensor, colours: Tensor) -> Tensor:
    """Filters [k, C, h, w] as pictures [k, h, w, 3] in 0 ... 1 by `channel_colours`: 0 is middle grey, each fills the
    range."""
    pictures = torch.einsum("kchw,ec->khwe", filters, colours)
    reach = pictures.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(pictures.dtype).tiny)
    return 0.5 + 0.5 * pictures / reach


# what the layers do to pictures


@dataclass(frozen=True)
class Measures:
    """What a pass over pictures showed, on the CPU in fp32: a row a picture.

    `distances` and `entropies` [B, L, H] of attention, in pixels and nats. Lengths of the tokens after every layer:
    `patch_norms` [B, L, 4], the `QUANTILES` over the patches, `high` [B, L], the share of patches above `HIGH_NORM`
    times their median, `prefix_norms` [B, L, P]. `features` [B, N, D] are the patches after the last norm of tokens.
    """

    distances: Tensor
    entropies: Tensor
    patch_norms: Tensor
    high: Tensor
    prefix_norms: Tensor
    features: Tensor


@torch.no_grad()
def measured(network: VisionTransformer, images: Tensor) -> Measures:
    """Attention, token norms and features of normalised images [B, C, H, W]; the network in evaluation mode."""
    a = network.architecture
    places = patch_places(images.shape[-2:], a.patch_size).to(images.device)
    trace = Trace()
    tokens = network.encode(images.to(network.patch_embed.proj.weight.dtype), trace=trace)
    norms = torch.stack([layer.float().norm(dim=-1) for layer in trace.tokens], dim=1).cpu()  # [B, L, P + N]
    prefix_norms, patch_norms = norms[..., : a.prefix], norms[..., a.prefix :]
    quantiles = patch_norms.quantile(torch.tensor(QUANTILES), dim=-1).movedim(0, -1)
    middle = patch_norms.median(dim=-1, keepdim=True).values
    return Measures(
        torch.stack([distances(record, places, a.prefix) for record in trace.self_attention], dim=1).cpu(),
        torch.stack([entropies(record) for record in trace.self_attention], dim=1).cpu(),
        quantiles,
        (patch_norms > HIGH_NORM * middle).float().mean(dim=-1),
        prefix_norms,
        tokens[:, a.prefix :].float().cpu(),
    )


def patch_places(image_size: Sequence[int], patch_size: tuple[int, int]) -> Tensor:
    """Where patches stand, row and column in pixels from the first one, [N, 2]."""
    (height, width), (rows, columns) = image_size, patch_size
    return grid_coordinates(height // rows, width // columns) * torch.tensor(patch_size)


def distance_of_uniform(places: Tensor) -> float:
    """The mean attention distance if every patch attended to all patches alike, for comparison; places [N, 2]."""
    return float(torch.cat([torch.cdist(part, places).mean(dim=1) for part in places.split(AT_ONCE)]).mean())


def feature_colours(features: Sequence[Tensor], components: Components) -> list[Tensor]:
    """Patches [R, S, D] of pictures -> [R, S, 3] in 0 ... 1: three components as colours (Oquab et al. 2023, fig. 1).

    Each component reaches from its 2nd to its 98th percentile over all the pictures, so that single patches do not
    decide. One that is nothing but rounding is even.
    """
    found = [components.project(grid.flatten(0, 1)) for grid in features]
    together = torch.cat(found)
    low, high = (torch.quantile(together, share, dim=0) for share in (0.02, 0.98))
    even = (components.shares <= _NOTHING) | (high <= low)
    coloured = []
    for grid, values in zip(features, found, strict=True):
        scaled = ((values - low) / (high - low).where(~even, torch.ones_like(low))).clamp(0, 1)
        scaled = scaled.where(~even, torch.full_like(scaled, 0.5))
        missing = 3 - scaled.shape[1]
        coloured.append(F.pad(scaled, (0, missing), value=0.5).unflatten(0, grid.shape[:2]).float())
    return coloured
