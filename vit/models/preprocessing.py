"""How pictures were prepared for a model of timm, said in our terms."""

from collections.abc import Mapping
from typing import Any

from vit.data.config import Interpolation, Preprocessing, Resize, require

_RESIZES: dict[str, Resize] = {"center": "crop", "squash": "squash", "border": "letterbox"}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def timm_preprocessing(cfg: Mapping[str, Any], size: tuple[int, int] | None = None) -> Preprocessing:
    """What timm's `resolve_data_config` reads from a model's `pretrained_cfg` for evaluation.

    `size`, height and width, stands in for the one that `cfg` names. A key that is missing or None takes timm's
    default: 224 x 224 pixels, the centre at a crop fraction of 0.875, bicubic, the colours of ImageNet.

    `test_input_size` and `test_crop_pct` are left aside: `resolve_data_config` heeds them only with
    `use_test_size=True`. timm's own validate.py asks for that; its vision transformers come out the same either way,
    because none of them has these keys. Raises ConfigError for what our transform would do otherwise than timm's.
    """
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    require(channels == 3, "pretrained_cfg.input_size", cfg.get("input_size"), "must have 3 channels")
    mode = cfg.get("crop_mode") or "center"
    require(mode in _RESIZES, "pretrained_cfg.crop_mode", mode, f"must be one of {', '.join(_RESIZES)}")
    interpolation: Interpolation = cfg.get("interpolation") or "bicubic"
    known = interpolation in ("bicubic", "bilinear")
    require(known, "pretrained_cfg.interpolation", interpolation, "must be bicubic or bilinear")
    return Preprocessing(
        size=size or (height, width),
        resize=_RESIZES[mode],
        crop_fraction=cfg.get("crop_pct") or 0.875,
        interpolation=interpolation,
        mean=_colour(cfg, "mean"),
        std=_colour(cfg, "std"),
    )


def _colour(cfg: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    values = cfg.get(key) or _IMAGENET[key]
    require(len(values) == 3, f"pretrained_cfg.{key}", values, "must be three numbers")
    red, green, blue = values
    return red, green, blue
