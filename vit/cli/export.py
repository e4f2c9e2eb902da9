"""`vit export MODEL --format timm --out FOLDER`."""

import logging
from pathlib import Path
from typing import Any

from vit.cli.arguments import MODEL_HELP, Parser, make_folder
from vit.data.config import Preprocessing
from vit.errors import ConfigError, display_path
from vit.files import dump_json, whole_file, write_text

log = logging.getLogger("vit")

_CROP_MODES = {"crop": "center", "squash": "squash", "letterbox": "border"}


def main(argv: list[str]) -> int:
    """Parse, then export. Returns the exit code."""
    parser = Parser(prog="vit export", description="Give a model back to timm.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--format", choices=("timm",), default="timm", help="whose layout (default: timm)")
    parser.add_argument("--out", required=True, help="folder to write config.json and model.safetensors to")
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (default: averaged if any)")
    options = parser.parse_args(argv)
    return export(options.model, Path(options.out), weights=options.weights)


def export(model: str, folder: Path, *, weights: Any = None) -> int:
    """Write the folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` reads. Returns the exit code."""
    from safetensors.torch import save_file

    from vit.models.build import build_network
    from vit.models.sources import load_model
    from vit.models.timm import recipe, to_timm

    file = load_model(model)
    network = build_network(file, weights, source=model)
    name, arguments = recipe(network.architecture)
    module = to_timm(network)
    make_folder(folder, "--out")
    if any(folder.iterdir()):
        raise ConfigError(f"--out {display_path(folder)}: not empty; choose another folder")
    config = {
        "architecture": name,
        "num_classes": len(file.classes),
        "num_features": network.architecture.dim,
        "label_names": file.classes,
        "model_args": arguments,
        "pretrained_cfg": _described(Preprocessing.from_json(file.preprocessing), file.licence),
    }
    if file.descriptions is not None:
        config["label_descriptions"] = dict(zip(file.classes, file.descriptions, strict=True))
    tensors = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
    with whole_file(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(folder / "config.json", dump_json(config, indent=1) + "\n")
    log.info("wrote      %s", display_path(folder))
    log.info("load by    timm.create_model(%r, pretrained=True)", f"local-dir:{folder}")
    return 0


def _described(preprocessing: Preprocessing, licence: str | None) -> dict[str, Any]:
    """Preprocessing in timm's words."""
    described = {
        "input_size": [3, *preprocessing.size],
        "fixed_input_size": True,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_fraction,
        "crop_mode": _CROP_MODES[preprocessing.resize],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return described if licence is None else {**described, "license": licence}
