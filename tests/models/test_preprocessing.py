"""Preprocessing of pretrained models, against what timm reads from the same entries. Nothing is downloaded."""

import pytest
import timm
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from vit.data.config import Preprocessing
from vit.errors import ConfigError
from vit.models.preprocessing import timm_preprocessing

MODULES = ["vision_transformer", "deit", "eva"]
MODES = {"crop": "center", "squash": "squash", "letterbox": "border"}
FULL = {
    "input_size": (3, 384, 256),
    "crop_pct": 0.95,
    "crop_mode": "border",
    "interpolation": "bilinear",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.25, 0.2, 0.1),
}


def in_timms_words(preprocessing: Preprocessing) -> dict[str, object]:
    return {
        "input_size": (3, *preprocessing.size),
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_pct": preprocessing.crop_fraction,
        "crop_mode": MODES[preprocessing.resize],
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_pretrained_entry_is_read_as_timm_reads_it(module: str) -> None:
    names = {*timm.list_models(module=module, pretrained=True), *timm.list_models(module=module)}
    assert len(names) > 30
    for name in sorted(names):
        cfg = get_pretrained_cfg(name).to_dict()
        assert in_timms_words(timm_preprocessing(cfg)) == resolve_data_config(pretrained_cfg=cfg), name
        # timm's validate.py asks for the size at test time, which no vision transformer sets apart
        assert resolve_data_config(pretrained_cfg=cfg) == resolve_data_config(pretrained_cfg=cfg, use_test_size=True)


@pytest.mark.parametrize("left_out", [set(), *({key} for key in FULL), set(FULL)])
@pytest.mark.parametrize("size", [None, (96, 160)])
def test_what_is_missing_takes_timms_default(left_out: set[str], size: tuple[int, int] | None) -> None:
    args = {} if size is None else {"input_size": (3, *size)}
    for cfg in (
        {key: value for key, value in FULL.items() if key not in left_out},
        {key: None if key in left_out else value for key, value in FULL.items()},
    ):
        # beside another key, for resolve_data_config refuses an empty cfg
        expected = resolve_data_config(args, pretrained_cfg={**cfg, "num_classes": 1000})
        assert in_timms_words(timm_preprocessing(cfg, size)) == expected


def test_the_size_and_crop_at_test_time_are_left_aside() -> None:
    cfg = {**FULL, "test_input_size": (3, 512, 512), "test_crop_pct": 1.0}
    assert in_timms_words(timm_preprocessing(cfg)) == resolve_data_config(pretrained_cfg=cfg)


def test_lists_as_json_has_them_become_tuples() -> None:
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in FULL.items()}
    assert timm_preprocessing(lists) == timm_preprocessing(FULL)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interpolation", "random"),
        ("interpolation", "lanczos"),
        ("interpolation", "nearest"),
        ("crop_mode", "corner"),
        ("crop_pct", 1.1),
        ("mean", (0.5,)),
        ("mean", (123.7, 116.3, 103.5)),
        ("std", (0.0, 1.0, 1.0)),
        ("input_size", (1, 28, 28)),
    ],
)
def test_what_our_transform_cannot_do_is_refused_by_name(key: str, value: object) -> None:
    ours = "crop_fraction" if key == "crop_pct" else key
    with pytest.raises(ConfigError, match=ours) as error:
        timm_preprocessing({**FULL, key: value})
    assert repr(value) in str(error.value)
