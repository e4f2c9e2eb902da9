"""The Python face of the project: `vit.load(path)` and what it returns."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit.data.config import Preprocessing
from vit.data.dataset import picture_source
from vit.data.decode import upright_rgb
from vit.data.normalise import Normalise, as_tensor
from vit.data.transforms import EvaluationTransform
from vit.errors import ConfigError, display_path
from vit.explain.maps import Maps, Query
from vit.explain.maps import attention_maps as maps_of
from vit.explain.methods import Fusion
from vit.models.build import build_network
from vit.models.file import ModelFile, Weights
from vit.models.outputs import require_finite, top_classes
from vit.models.sources import load_model
from vit.models.vision import VisionTransformer
from vit.names import class_name, near

if TYPE_CHECKING:
    from vit.writers import Captioner, FusedModel, Writer

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
"""a file, or a picture of any size in memory"""


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, best first; in words too where the names are codes, as ImageNet's are."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    descriptions: tuple[str, ...] | None = None


class PictureReader:
    """What every model of pictures needs to read them.

    Wherever images are asked for: one or a list of paths, PIL images, or uint8 arrays [H, W, 3]; uint8 tensors
    [3, H, W] or [B, 3, H, W]; or a float tensor [B, 3, H, W] that is already preprocessed. Arrays and tensors are in
    RGB (OpenCV reads BGR: turn it by `[..., ::-1]`) and upright; files and PIL images are turned as their metadata say.
    """

    def __init__(self, preprocessing: Preprocessing, device: str, dtype: torch.dtype) -> None:
        self.preprocessing = preprocessing
        self.device, self.dtype = torch.device(device), dtype
        self.transform = EvaluationTransform(preprocessing)
        self.normalise = Normalise(preprocessing, dtype).to(device)

    def prepare(self, image: Picture) -> Tensor:
        """One picture of any size and kind -> uint8 [3, H, W] of the model's size."""
        if isinstance(image, str | Path):
            return as_tensor(self.transform.read(picture_source(os.fspath(image))))
        return as_tensor(self.transform(_as_array(image)))

    def batches(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        """Pictures of any kind as the network takes them, float [B, 3, H, W] on its device."""
        if isinstance(images, Tensor) and images.is_floating_point():
            if images.dim() != 4:
                raise ValueError(f"preprocessed images must be float [B, 3, H, W], got {list(images.shape)}")
            yield from images.to(self.device, self.dtype).split(batch_size)
            return
        if isinstance(images, Tensor) and images.dim() == 4:
            images = list(images)
        pictures = [images] if _is_one(images) else list(images)
        for start in range(0, len(pictures), batch_size):
            batch = torch.stack([self.prepare(picture) for picture in pictures[start : start + batch_size]])
            yield self.normalise(batch.to(self.device))


class Classifier(PictureReader):
    """A trained network with what it needs to read pictures and to name classes."""

    def __init__(
        self,
        network: VisionTransformer,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        device: str = "cpu",
        *,
        descriptions: Sequence[str] | None = None,
    ) -> None:
        self.network = network.to(device).eval()
        super().__init__(preprocessing, device, next(self.network.parameters()).dtype)
        self.classes = tuple(classes)
        self.descriptions = None if descriptions is None else tuple(descriptions)

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        return f"Classifier({len(self.classes)} classes, {height} x {width} pixels, {self.device})"

    def predict(self, images: Picture | Sequence[Picture], *, top: int = 5, batch_size: int = 32) -> list[Prediction]:
        """The `top` likeliest classes of every image, best first; of equal logits the lower class index comes first.

        Raises UnreadableImage for a file that cannot be decoded, NonFiniteOutput where the model gives NaN or inf.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self.require_classes()
        predictions = []
        with torch.inference_mode():
            for batch in self.batches(images, batch_size):
                predictions += self.named(require_finite(self.network(batch)), top)
        return predictions

    def features(self, images: Picture | Sequence[Picture], *, batch_size: int = 32) -> Tensor:
        """One vector a picture [B, D], fp32 on the CPU: what the head sees. Raises NonFiniteOutput for NaN or inf."""
        with torch.inference_mode():
            parts = [require_finite(self.network.features(b)).float().cpu() for b in self.batches(images, batch_size)]
        return torch.cat(parts) if parts else torch.empty(0, self.network.architecture.dim)

    def named(self, logits: Tensor, top: int) -> list[Prediction]:
        """logits [B, classes] -> the `top` likeliest by name."""
        indices, values = top_classes(logits, top)
        predictions = []
        for row, chances in zip(indices.tolist(), values.tolist(), strict=True):
            words = None if self.descriptions is None else tuple(self.descriptions[i] for i in row)
            predictions.append(Prediction(tuple(self.classes[i] for i in row), tuple(chances), words))
        return predictions

    def class_number(self, name: str | int) -> int:
        """The number of a class by its name, or by what it is in words. Raises ConfigError naming the nearest."""
        if isinstance(name, int):
            return name
        name = class_name(name)
        known = [class_name(text) for text in (*self.classes, *(self.descriptions or ()))]
        if name not in known:
            there = ", ".join(map(display_path, self.classes[:8])) + (", ..." if self.classes[8:] else "")
            raise ConfigError(f"no class {display_path(name)}{near(name, known)}; there are {there}")
        return known.index(name) % len(self.classes)

    def require_classes(self) -> None:
        """Raise ConfigError for a model without a head, which has features and no classes."""
        if not self.classes:
            raise ConfigError("the model has no classes; `vit train DATA --model.init MODEL` gives it yours")


def load(
    source: str | Path, *, weights: Weights | None = None, device: str | None = None
) -> "Classifier | Captioner | Writer | FusedModel":
    """Load a model: a run folder, a file of ours, `timm:NAME[.TAG]`, `hf:NAME`, or a folder or file of theirs.

    `vit.models.sources` lists all that MODEL can be. What comes back depends on the model: a Classifier for pictures,
    or one of `vit.writers` for words.

    `weights` chooses the averaged (`ema`) or the `raw` ones; None takes the averaged where there are any. `device`
    None takes a GPU if there is one. Raises ModelFileError saying what is wrong with the file.
    """
    model = load_model(source)
    if model.kind == "classifier":
        return classifier_of(model, source, weights=weights, device=device)
    from vit.writers import words_of

    return words_of(model, source, weights=weights, device=device)


def classifier_of(
    model: ModelFile, source: object, *, weights: Weights | None = None, device: str | None = None
) -> Classifier:
    """The classifier that a model file describes; `source` is what messages call it."""
    network = build_network(model, weights, source=source)
    preprocessing = Preprocessing.from_json(model.preprocessing)
    return Classifier(network, model.classes, preprocessing, device or best_device(), descriptions=model.descriptions)


def attention_maps(
    model: Classifier,
    images: Picture | Sequence[Picture],
    *,
    method: str = "generic",
    layer: int | None = None,
    head: int | None = None,
    query: Query = "cls",
    target: str | int | None = None,
    fusion: Fusion = "mean",
    discard: float = 0.0,
) -> Maps:
    """Which patches mattered: `.values` float32 [B, rows, columns] of the part of each picture that the model sees.

    `method` is one of `vit.explain.METHODS`; `layer` and `head` are for "raw", `layer` also for "norm"; `query` is
    "cls", for what the model pools by, or (row, column) of a patch; `target` is a class, by name or number, None for
    the predicted one. For "rollout", `fusion` makes one of all heads ("mean", "max", "min"), and `discard` leaves out
    this share of each row's weights, the lowest ones. Raises ConfigError for what does not exist, UnreadableImage for
    a file that cannot be decoded.
    """
    parts = []
    for batch in model.batches(images, batch_size=8):
        targets = None if target is None else torch.full((len(batch),), model.class_number(target))
        parts.append(
            maps_of(
                model.network,
                batch,
                method=method,
                layer=layer,
                head=head,
                query=query,
                targets=targets,
                fusion=fusion,
                discard=discard,
            )
        )
    if not parts:
        raise ConfigError("images: there are none")
    values = torch.cat([part.values.cpu() for part in parts])
    asked = [number for part in parts for number in part.targets or ()]
    return Maps(values, method, asked or None, parts[0].settings)


def best_device() -> str:
    """`cuda` or `mps` where there is one, else `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_one(images: Any) -> bool:
    return isinstance(images, str | Path | Image.Image | Tensor) or (
        isinstance(images, np.ndarray) and images.ndim <= 3
    )


def _as_array(image: Image.Image | np.ndarray | Tensor) -> np.ndarray:
    """A picture in memory -> uint8 [H, W, 3]."""
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    array: np.ndarray = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    return array
