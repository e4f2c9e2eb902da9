"""What can be set about data and augmentation. Imports no torch, so that `vit --help` answers at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vit.errors import ConfigError

Interpolation = Literal["bicubic", "bilinear"]
Resize = Literal["crop", "letterbox", "squash"]
Crop = Literal["random-resized", "pad", "none"]
GroupDuplicates = Literal["auto"] | bool
Cache = Literal["auto", "none", "ram", "disk", "device"]


LARGEST_INT = 2**31 - 1
"""largest value of an integer setting or option that has no limit of its own"""

LARGEST_SEED = 2**32 - 1
"""largest seed that NumPy's global generator takes, which Lightning seeds too"""

MAX_PIXELS = 100_000_000
"""largest number of pixels of an image, unless a setting or a model says otherwise"""

_LONGEST = 2_000_000
"""seconds; the system's timers count milliseconds in 32 bits"""

_MOST_COPIES = 100
"""of an image in an epoch, and of operations on it"""

MOST_WORKERS = 1024
"""largest number of worker processes; a larger one is a typing error that would exhaust the machine"""

_MOST_PIXELS = 2**26
"""largest input of a model: 0.8 GB as floating-point numbers"""


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Raise `ConfigError` naming the key, its value and the rule it breaks."""
    if not holds:
        shown = repr(value)
        raise ConfigError(f"{key}: {rule}, got {shown if len(shown) <= 80 else shown[:80] + '...'}")


def require_colours(prefix: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raise `ConfigError` for a mean or spread of colours that is not of values from 0 to 1."""
    scale = "divide values on the scale 0..255 by 255"
    require(all(0 <= value <= 1 for value in mean), f"{prefix}mean", mean, f"must be in 0..1 ({scale})")
    require(all(0 < value <= 1 for value in std), f"{prefix}std", std, f"must be above 0 and at most 1 ({scale})")


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded picture becomes the model's input, outside training. Travels in the model file.

    `crop` resizes the short side and cuts the centre; `letterbox` fits the whole picture and pads with the mean colour;
    `squash` ignores the aspect ratio. In each, the picture is fitted to size / crop_fraction and its centre is kept.
    """

    size: tuple[int, int]
    """height, width in pixels"""
    resize: Resize = "crop"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_pixels: int = MAX_PIXELS
    """images of more pixels are refused from their header; older model files do not have it"""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """From JSON, where tuples have become lists."""
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}
        return cls(**values)

    def __post_init__(self) -> None:
        require(min(self.size) >= 1, "size", self.size, "must be positive")
        require(self.size[0] * self.size[1] <= _MOST_PIXELS, "size", self.size, f"at most {_MOST_PIXELS:,} pixels")
        require(0 < self.crop_fraction <= 1, "crop_fraction", self.crop_fraction, "must be in (0, 1]")
        require_colours("", self.mean, self.std)
        valid = type(self.max_pixels) is int and 1 <= self.max_pixels < 2**63
        require(valid, "max_pixels", self.max_pixels, "must be a positive integer")


PREPARED = ("resize", "crop_fraction", "interpolation", "mean", "std", "max_pixels")
"""the settings of `data` that a model file holds as its `Preprocessing`"""


@dataclass
class DataConfig:
    """Which pictures, and how they become batches."""

    batch_size: int = 64
    """pictures per device and step"""
    workers: int = -1
    """processes that decode pictures; -1 shares the cores among devices (at most 8 each), 0 uses the main process"""
    timeout: int = 600
    """seconds after which processes that give no picture end the run; 0 waits for ever"""
    val_fraction: float = 0.2
    """share of each class held out for validation when DATA has no val folder"""
    test_fraction: float = 0.0
    """share of each class held out for a final test when DATA has no test folder"""
    group_duplicates: GroupDuplicates = "auto"
    """keep exact and near-duplicates of an image within one split where a split is held out; this decodes every image
    once before training. auto: up to 50,000 images"""
    resize: Resize = "crop"
    """how pictures of another shape are fitted when not training"""
    crop_fraction: float = 1.0
    """share of each side of the fitted picture that the centre crop keeps"""
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """mean colour of the pictures, red, green, blue in 0..1"""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """standard deviation of the colours"""
    balanced: bool = False
    """draw every class equally often"""
    repeats: int = 1
    """copies of each drawn picture in an epoch's order, each augmented differently (repeated augmentation)"""
    max_pixels: int = MAX_PIXELS
    """images with more pixels are refused from their header, by the trained model too"""
    cache: Cache = "auto"
    """decoded pictures kept for the next epoch: in memory that all workers share (ram), in one file in the user's cache
    folder (disk; `vit data pack` makes it beforehand), all of them on the GPU (device; small pictures); auto: ram
    where they fit into half of the free memory and reading is slower, else none"""
    cache_side: int = 0
    """shrink what is kept of training pictures to this short side; 0 takes 8/7 of the model's"""

    def __post_init__(self) -> None:
        require(self.cache_side >= 0, "data.cache_side", self.cache_side, "must be 0 (automatic) or a number of pixels")
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "must be at least 1")
        allowed = f"must be -1 (automatic), 0 or more, at most {MOST_WORKERS}"
        require(-1 <= self.workers <= MOST_WORKERS, "data.workers", self.workers, allowed)
        allowed = f"must be 0 (never) or a number of seconds, at most {_LONGEST}"
        require(0 <= self.timeout <= _LONGEST, "data.timeout", self.timeout, allowed)
        require(0 < self.val_fraction < 1, "data.val_fraction", self.val_fraction, "must be between 0 and 1")
        require(0 <= self.test_fraction < 1, "data.test_fraction", self.test_fraction, "must be in [0, 1)")
        require(
            self.val_fraction + self.test_fraction < 1,
            "data.val_fraction + data.test_fraction",
            self.val_fraction + self.test_fraction,
            "must leave pictures to train on",
        )
        require(0 < self.crop_fraction <= 1, "data.crop_fraction", self.crop_fraction, "must be in (0, 1]")
        require_colours("data.", self.mean, self.std)
        require(1 <= self.repeats <= _MOST_COPIES, "data.repeats", self.repeats, f"must be from 1 to {_MOST_COPIES}")
        require(self.max_pixels >= 1, "data.max_pixels", self.max_pixels, "must be positive")


@dataclass
class AugmentConfig:
    """How training pictures are varied. Every draw is a function of (seed, epoch, index)."""

    crop: Crop | None = None
    """random-resized: a random part, resized; pad: resized, padded by an eighth, cropped back; none: as evaluated; null
    takes random-resized to classify, none where words tell of the whole picture"""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """area of the random part, as a share of the picture"""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """aspect ratio (width / height) of the random part"""
    flip: float | None = None
    """probability of a left-right flip; null takes 0.5 to classify, 0 where words may tell left from right"""
    vertical_flip: float = 0.0
    """probability of an upside-down flip"""
    color_jitter: float = 0.0
    """strength of random brightness, contrast and saturation"""
    policy: Literal["none", "randaugment", "trivialaugment", "three-augment"] = "none"
    """randaugment (Cubuk 2020), trivialaugment (Mueller 2021), three-augment (DeiT III, Touvron 2022)"""
    policy_ops: int = 2
    """operations a picture (randaugment)"""
    policy_magnitude: float = 9.0
    """strength of the operations, 0 to 10 (randaugment)"""
    erase: float = 0.0
    """probability of erasing a random rectangle"""
    mixup: float = 0.0
    """alpha of MixUp's Beta(alpha, alpha); 0 is off"""
    cutmix: float = 0.0
    """alpha of CutMix's Beta(alpha, alpha); 0 is off"""
    mix_probability: float = 1.0
    """share of batches that are mixed"""
    mix_switch: float = 0.5
    """share of mixed batches that take CutMix when both are on"""
    mix_off_epochs: int = 0
    """last epochs in which nothing is mixed"""
    half_size: float = 0.0
    """share of the epochs, from the first, in which pictures are shrunk to half their sides: a quarter of the patches
    (progressive resolution)"""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "must rise within (0, 1]")
        low, high = self.crop_ratio
        require(0 < low <= high, "augment.crop_ratio", self.crop_ratio, "must rise and be positive")
        for name in ("flip", "vertical_flip", "erase", "mix_probability", "mix_switch", "half_size"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"augment.{name}", value, "must be a probability in [0, 1]")
        require(self.color_jitter >= 0, "augment.color_jitter", self.color_jitter, "must not be negative")
        ops = self.policy_ops
        require(1 <= ops <= _MOST_COPIES, "augment.policy_ops", ops, f"must be from 1 to {_MOST_COPIES}")
        require(0 <= self.policy_magnitude <= 10, "augment.policy_magnitude", self.policy_magnitude, "must be 0 to 10")
        require(self.mixup >= 0, "augment.mixup", self.mixup, "must not be negative")
        require(self.cutmix >= 0, "augment.cutmix", self.cutmix, "must not be negative")
        require(self.mix_off_epochs >= 0, "augment.mix_off_epochs", self.mix_off_epochs, "must not be negative")

    def settled(self, *, words: bool = False) -> "AugmentConfig":
        """With what was left open for classes, or for words."""
        crop: Crop = "none" if words else "random-resized"
        flip = 0.0 if words else 0.5
        return replace(
            self, crop=crop if self.crop is None else self.crop, flip=flip if self.flip is None else self.flip
        )
