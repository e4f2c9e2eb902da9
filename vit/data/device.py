"""A whole set of small pictures on the device, cut out and turned there: no file is read and nothing is copied again.

Letters: S pictures of the set, B of a batch; h, w the model's height and width.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Sampler

from vit.data.augment import TrainingTransform
from vit.data.dataset import Batch, ImageDataset, patient
from vit.data.decode import Copy
from vit.data.normalise import as_tensor
from vit.data.sampling import Draw, draw_seed
from vit.data.views import View
from vit.errors import ConfigError, UnreadableImage


class DeviceLoader:
    """Batches of `Batch` in the sampler's order, on `device`; the draws are those of `image_loader`.

    Padded and plain crops give the same pixels as `image_loader`, random-resized parts are interpolated without
    antialiasing. Everything is read when the first batch is asked for; pictures that cannot be read are named in the
    first batch of every epoch that draws them. Raises ConfigError for pictures that are kept in different sizes.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: Sampler[Draw],
        *,
        device: torch.device,
        batch_size: int,
        drop_last: bool = False,
    ) -> None:
        transform = dataset.transform
        if isinstance(transform, TrainingTransform) and transform.colours:
            settings = "augment.policy, color_jitter, erase"
            raise ConfigError(f"data.cache: device does not vary colours and does not erase ({settings}); take ram")
        self.dataset, self.sampler = dataset, sampler  # Lightning sets the sampler's epoch
        self.batch_sampler = None  # and looks for one here
        self.device, self.batch_size, self.drop_last = device, batch_size, drop_last
        self._images: Tensor | None = None
        self._failures: dict[int, str] = {}

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return patient(self._batches())

    def _batches(self) -> Iterator[Batch]:
        images = self._loaded()
        draws = iter(self.sampler)
        done = getattr(self.sampler, "start", 0) // self.batch_size
        whole = range(done, len(self) - (not self.drop_last))
        batches = [[next(draws) for _ in range(self.batch_size)] for _ in whole]
        if not self.drop_last and done < len(self):
            batches.append(list(draws))
        with ThreadPoolExecutor(1) as ahead:  # views are drawn while the device works on the batch before
            waiting = None
            for draws_of_batch in [*batches, None]:
                coming = None if draws_of_batch is None else ahead.submit(self._drawn, draws_of_batch)
                if waiting is not None:
                    yield self._batch(images, *waiting.result())
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
            self._failures[index] = getattr(error, "reason", None) or str(error)
            return None

    def _drawn(self, draws: Sequence[Draw]) -> tuple[list[int], list[View], list[tuple[int, str]]]:
        """Places, views and failures of a batch."""
        transform, read = self.dataset.transform, [draw for draw in draws if draw.index not in self._failures]
        views = []
        if isinstance(transform, TrainingTransform):
            full = self._full if transform.parts else transform.size
            views = [transform.view(*full, draw_seed(self.dataset.seed, *draw))[0] for draw in read]
        failures = [(draw.index, self._failures[draw.index]) for draw in draws if draw.index in self._failures]
        return [draw.index for draw in read], views, failures

    def _batch(self, images: Tensor, indices: list[int], views: list[View], failures: list[tuple[int, str]]) -> Batch:
        places = _sent(torch.tensor(indices, dtype=torch.int64), self.device)
        transform = self.dataset.transform
        if not isinstance(transform, TrainingTransform):
            seen = images[places]
        elif transform.parts:
            seen = parts(images[places], views, self._full, transform.size)
        else:
            seen = shifted(images, places, views, transform.margin)
        return Batch(seen, self._labels[places], places, failures)


def shifted(images: Tensor, places: Tensor, views: Sequence[View], margin: tuple[int, int]) -> Tensor:
    """Views [B] of fitted pictures, images uint8 [S, 3, h, w] with margins that mirror them -> uint8 [B, 3, h, w]."""
    height, width = images.shape[2:]
    rows, columns = (
        _mirrored([start(view) for view in views], [turns(view) for view in views], side, edge).to(images.device)
        for start, turns, side, edge in (
            (lambda view: view.top, lambda view: view.upside_down, height, margin[0]),
            (lambda view: view.left, lambda view: view.mirrored, width, margin[1]),
        )
    )
    channels = torch.arange(3, device=images.device)[None, :, None, None]
    return images[places[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]


def _mirrored(starts: list[int], turns: list[bool], side: int, margin: int) -> Tensor:
    """Which pixels of a side make up each view of it: int64 [B, side]."""
    steps = torch.arange(side)
    turned = torch.tensor(turns, dtype=torch.bool)[:, None]
    steps = torch.where(turned, side - 1 - steps, steps)
    place = (torch.tensor(starts, dtype=torch.int64)[:, None] - margin + steps).abs()
    return torch.where(place >= side, 2 * (side - 1) - place, place)


def parts(images: Tensor, views: Sequence[View], full: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The parts that views [B] show of images uint8 [B, 3, H, W] of pictures whose whole shape is `full`, bicubically
    resized -> uint8 [B, 3, h, w].
    """
    table = torch.tensor(
        [(v.top, v.left, v.height, v.width, -1 if v.upside_down else 1, -1 if v.mirrored else 1) for v in views],
        dtype=torch.float32,
    ).view(-1, 6)
    table = _sent(table, images.device)
    top, left, height, width, down, across = table.unbind(1)
    theta = torch.zeros(len(table), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = across * width / full[1], (2 * left + width) / full[1] - 1
    theta[:, 1, 1], theta[:, 1, 2] = down * height / full[0], (2 * top + height) / full[0] - 1
    grid = F.affine_grid(theta, [len(table), 3, *size], align_corners=False)
    seen = F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)
    return seen.round_().clamp_(0, 255).byte()


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory, so that nothing waits for what is queued there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
