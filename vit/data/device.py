"""A whole set of small pictures on the device, cut out and turned there: no file is read and nothing is copied again.

Letters: S pictures of the set, B of a batch; h, w the model's height and width.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.data.augment import TrainingTransform
from vit.data.dataset import Batch, ImageDataset, patient, reason_of
from vit.data.decode import Copy
from vit.data.device_policy import DevicePolicy
from vit.data.normalise import as_tensor
from vit.data.sampling import EpochSampler, ExactSampler, draw_seed
from vit.errors import ConfigError, UnreadableImage


class DeviceLoader:
    """Batches of `Batch` in the sampler's order, on `device`; the draws are those of `image_loader`.

    Padded and plain crops give the same pixels as `image_loader`, random-resized parts are interpolated without
    antialiasing; what varies colours, `DevicePolicy`, draws from the same distributions. Everything is read when the
    first batch is asked for; pictures that cannot be read are named in the batch that draws them.
    Raises ConfigError for pictures that are kept in different sizes.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: EpochSampler | ExactSampler,
        *,
        device: torch.device,
        batch_size: int,
    ) -> None:
        transform = dataset.transform
        self._policy = None
        if isinstance(transform, TrainingTransform) and transform.colours:
            self._policy = DevicePolicy(transform.augment, transform.fill)
        self.dataset, self.sampler = dataset, sampler  # Lightning sets the sampler's epoch
        self.batch_sampler = None  # and looks for one here
        self.device, self.batch_size = device, batch_size
        self._images: Tensor | None = None
        self._failures: dict[int, str] = {}

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return patient(self._batches())

    def _batches(self) -> Iterator[Batch]:
        images = self._loaded()
        indices, copies = self.sampler.order()
        first = getattr(self.sampler, "start", 0) // self.batch_size + 1
        ends = range(first * self.batch_size, len(self) * self.batch_size + 1, self.batch_size)
        with ThreadPoolExecutor(1) as ahead:  # views are drawn while the device works on the batch before
            waiting = None
            for end in [*ends, None]:
                coming = None
                if end is not None:
                    batch = slice(end - self.batch_size, end)
                    coming = ahead.submit(self._drawn, indices[batch], copies[batch])
                if waiting is not None:
                    yield self._batch(images, waiting.result())
                waiting = coming

    def _loaded(self) -> Tensor:
        """All pictures, uint8 [S, 3, H, W]; zeros where one cannot be read."""
        if self._images is None:
            with ThreadPoolExecutor() as pool:  # the decoders let go of the interpreter
                kept = list(pool.map(self._kept, range(len(self.dataset))))
            sizes = {copy.pixels.shape for copy in kept if copy is not None}
            if len(sizes) > 1:
                raise ConfigError(f"data.cache: device is for pictures of one size, these have {len(sizes)}; take ram")
            nothing = np.zeros(next(iter(sizes), (*self.dataset.transform.size, 3)), np.uint8)
            tensors = [as_tensor(nothing if copy is None else copy.pixels) for copy in kept]
            self._images = torch.stack(tensors).to(self.device)
            self._full = next((copy.full for copy in kept if copy is not None), self.dataset.transform.size)
            self._labels = torch.from_numpy(self.dataset.labels).to(self.device)
        return self._images

    def _kept(self, index: int) -> Copy | None:
        try:
            return self.dataset.kept(index)
        except (UnreadableImage, OSError) as error:
            self._failures[index] = reason_of(error)
            return None

    def _drawn(self, indices: np.ndarray, copies: np.ndarray) -> "_Drawn":
        transform = self.dataset.transform
        failures = [(index, self._failures[index]) for index in indices.tolist() if index in self._failures]
        if failures:
            read = ~np.isin(indices, list(self._failures))
            indices, copies = indices[read], copies[read]
        views = colours = None
        if isinstance(transform, TrainingTransform):
            places = indices.astype(np.uint64), copies.astype(np.uint64)
            seeds = np.broadcast_to(draw_seed(self.dataset.seed, self.sampler.epoch, *places), indices.shape)
            views = transform.views(*(self._full if transform.parts else transform.size), seeds)
            colours = None if self._policy is None else self._policy.draw(seeds)
        return _Drawn(indices, views, colours, failures)

    def _batch(self, images: Tensor, drawn: "_Drawn") -> Batch:
        places = _sent(torch.from_numpy(drawn.indices), self.device)
        transform = self.dataset.transform
        if drawn.views is None or not isinstance(transform, TrainingTransform):
            seen = images[places]
        elif transform.parts:
            seen = parts(images[places], drawn.views, self._full, transform.size)
        else:
            seen = shifted(images, places, drawn.views, transform.margin)
        if drawn.colours is not None and self._policy is not None:
            seen = self._policy(seen, *(_sent(torch.from_numpy(table), self.device) for table in drawn.colours))
        return Batch(seen, self._labels[places], places, drawn.failures)


@dataclass
class _Drawn:
    """What is decided of a batch before the device sees it: places in the set, views [B, 6], a policy's draws."""

    indices: np.ndarray
    views: np.ndarray | None
    colours: tuple[np.ndarray, ...] | None
    failures: list[tuple[int, str]]


def shifted(images: Tensor, places: Tensor, views: np.ndarray, margin: tuple[int, int]) -> Tensor:
    """Views [B, 6] of fitted pictures, uint8 [S, 3, h, w] with margins that mirror them -> uint8 [B, 3, h, w]."""
    height, width = images.shape[2:]
    top, left, _, _, mirrored, upside_down = _sent(torch.from_numpy(views), images.device).unbind(1)
    rows = _mirrored(top - margin[0], upside_down, height)
    columns = _mirrored(left - margin[1], mirrored, width)
    channels = torch.arange(3, device=images.device)[None, :, None, None]
    return images[places[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]


def _mirrored(starts: Tensor, turns: Tensor, side: int) -> Tensor:
    """Which pixels of a side make up each view of it, those outside mirrored: int64 [B, side]."""
    steps = torch.arange(side, device=starts.device)
    steps = torch.where(turns[:, None] > 0, side - 1 - steps, steps)
    place = (starts[:, None] + steps).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def parts(images: Tensor, views: np.ndarray, full: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The parts that views [B, 6] show of images uint8 [B, 3, H, W] of pictures whose whole shape is `full`,
    bicubically resized -> uint8 [B, 3, h, w].
    """
    table = _sent(torch.from_numpy(views), images.device).float()
    top, left, height, width, mirrored, upside_down = table.unbind(1)
    down, across = 1 - 2 * upside_down, 1 - 2 * mirrored
    theta = torch.zeros(len(table), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = across * width / full[1], (2 * left + width) / full[1] - 1
    theta[:, 1, 1], theta[:, 1, 2] = down * height / full[0], (2 * top + height) / full[0] - 1
    grid = F.affine_grid(theta, [len(table), 3, *size], align_corners=False)
    seen = F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)
    return seen.round_().clamp_(0, 255).byte()


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory, so that nothing waits for what is queued there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
