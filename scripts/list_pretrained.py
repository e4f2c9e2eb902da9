"""Write vit/models/pretrained.csv: the pretrained weights of timm that load into our block, for `vit models`.

    python scripts/list_pretrained.py

Importing timm and counting takes minutes; the list changes with timm's version alone.
"""

import csv
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import timm
import torch

from vit.errors import ConfigError
from vit.models.timm import architecture_of
from vit.models.timm_source import TIMM_MODULES
from vit.models.vision import VisionTransformer
from vit.tasks.run import flops_per_image

TARGET = Path(__file__).parent.parent / "vit" / "models" / "pretrained.csv"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    measured: dict[object, tuple[float, float]] = {}
    rows = []
    for module in TIMM_MODULES:
        for name in timm.list_models(module=module, pretrained=True):
            cfg = timm.get_pretrained_cfg(name)
            if not cfg.hf_hub_id:  # published as a pickle alone
                continue
            with torch.device("meta"):
                try:
                    a = architecture_of(timm.create_model(name.partition(".")[0], num_classes=cfg.num_classes))
                except ConfigError:
                    continue
            key = replace(a, timm=None)
            if key not in measured:
                with torch.device("meta"):
                    count = sum(p.numel() for p in VisionTransformer(a).parameters())
                measured[key] = count / 1e6, flops_per_image(a) / 1e9
            millions, gflops = measured[key]
            size = f"{a.image_size[0]} x {a.image_size[1]}"
            rows.append([name, f"{millions:.1f}", f"{gflops:.1f}", size, cfg.license or "unknown", cfg.hf_hub_id])
    with TARGET.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["name", "parameters_millions", "gflops", "pixels", "licence", "repository"])
        table.writerows(rows)
    print(f"{len(rows)} names in {TARGET.name}")


if __name__ == "__main__":
    main()
