"""The gradient of a step is that of its global batch, however micro-batches and devices share its samples."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from one_step import CASES, LAYOUTS, step
from test_two_processes import run_twice

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`:UserWarning")

PROGRAM = Path(__file__).with_name("one_step.py")
whole = cache(lambda case: step(case, "whole"))


def same_step(found: dict[str, Any], case: str) -> None:
    for clip, expected in whole(case).items():
        assert found[clip]["logged"] == pytest.approx(expected["logged"], rel=1e-5), clip
        moved = torch.cat([change.flatten() for change in expected["moved"].values()])
        assert moved.norm() > 1e-4
        for name, weights in expected["after"].items():
            error = (found[clip]["after"][name] - weights).norm()
            assert error <= 1e-6 * weights.norm() + 1e-8, (clip, name)
            assert error <= 1e-4 * moved.norm(), (clip, name)  # the step itself is the same, not only small


@pytest.fixture(autouse=True)
def _keep_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    import vit.tasks.write

    monkeypatch.setattr(vit.tasks.write, "write_about", vit.tasks.write.write_about)  # `one_step` replaces it


@pytest.mark.parametrize("layout", [name for name, devices in LAYOUTS.items() if len(devices) == 1][1:])
@pytest.mark.parametrize("case", CASES)
def test_accumulated_micro_batches_take_the_step_of_the_global_batch(case: str, layout: str) -> None:
    same_step(step(case, layout), case)


def test_two_devices_take_the_step_of_the_global_batch(tmp_path: Path) -> None:
    run_twice(PROGRAM, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (layout, case), found in ranks[0].items():
        same_step(found, case)
        assert found["clip 0.0"]["logged"] == ranks[1][layout, case]["clip 0.0"]["logged"]
