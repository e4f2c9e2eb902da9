"""What the settings of data refuse."""

from collections.abc import Callable
from typing import Any

import pytest

from vit.data.config import DataConfig, Preprocessing
from vit.errors import ConfigError


@pytest.mark.parametrize(("make", "prefix"), [(DataConfig, "data."), (lambda **c: Preprocessing((8, 8), **c), "")])
@pytest.mark.parametrize(
    ("name", "colours", "rule"),
    [
        ("mean", (123.7, 116.3, 103.5), "must be in 0..1 (divide values on the scale 0..255 by 255)"),
        ("mean", (0.5, 0.5, -0.1), "must be in 0..1"),
        ("mean", (0.5, float("nan"), 0.5), "must be in 0..1"),
        ("std", (0.2, 57.4, 0.2), "must be above 0 and at most 1 (divide values on the scale 0..255 by 255)"),
        ("std", (0.2, 0.0, 0.2), "must be above 0 and at most 1"),
        ("std", (0.2, 0.2, float("nan")), "must be above 0 and at most 1"),
    ],
)
def test_colours_on_another_scale_are_refused_with_the_remedy(
    make: Callable[..., Any], prefix: str, name: str, colours: tuple[float, ...], rule: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**{name: colours})
    assert str(caught.value).startswith(f"{prefix}{name}: {rule}")
    assert str(caught.value).endswith(f", got {colours!r}")


@pytest.mark.parametrize("make", [DataConfig, lambda **colours: Preprocessing((8, 8), **colours)])
def test_colours_at_the_ends_of_the_scale_are_taken(make: Callable[..., Any]) -> None:
    assert make(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 1e-3)).std == (1.0, 0.5, 1e-3)
