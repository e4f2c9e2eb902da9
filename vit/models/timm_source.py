"""Weights of timm as model files: from the hub, from a folder that timm saved, from a file of tensors.

| file | what is read |
| --- | --- |
| `.safetensors` | its tensors |
| `.pth.tar`, `.pth`, `.pt`, `.bin` | a training checkpoint of timm, DeiT or MAE, or tensors by name; nothing else |

A checkpoint's EMA weights are kept beside its raw ones. Its `args` say how the model was made and its images prepared.
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit.errors import ConfigError, ModelFileError, display_path
from vit.models.file import ModelFile, State, first_line, load_plain
from vit.models.hub import download
from vit.models.huggingface_folder import PICKLE
from vit.models.notes import note
from vit.models.preprocessing import timm_preprocessing
from vit.models.tensors import misfit, read_safetensors, require_blocks
from vit.models.timm import architecture_of, to_our_names
from vit.models.vision import with_weights
from vit.names import near, numbered

TIMM_MODULES = ("vision_transformer", "deit", "eva")
"""timm's modules whose models are plain Vision Transformers, most of them"""
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")
UNKNOWN_LICENCE = "unknown (local file)"
_IMAGENETS = {
    1000: "imagenet1k",
    11221: "imagenet21k-miil",
    11821: "imagenet12k",
    21841: "imagenet22k",
    21843: "imagenet21k-goog",
}
"""ImageNet's sets of classes by their number"""
_RAW, _EMA = ("state_dict", "model"), ("state_dict_ema", "model_ema")
_PREPARATION = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
"""options of timm's training script that say how images are prepared"""


@dataclass
class Checkpoint:
    """What a file of weights holds: tensors by name, and the options of the script that trained them."""

    raw: State
    ema: State | None
    args: dict[str, Any]


@dataclass
class Origin:
    """Where weights come from, as far as that says what their classes and their licence are."""

    source: str
    tag: str | None = None
    """timm's name of published weights, None for anybody's"""
    licence: str | None = None
    labels: Sequence[Any] | None = None
    descriptions: Mapping[str, str] | None = None


def named_model(text: str) -> ModelFile:
    """Read `NAME[.TAG]` or `NAME[.TAG]@FILE`. Raises ConfigError for an unknown name, else ModelFileError."""
    name, _, file = text.partition("@")
    if not name:
        raise ConfigError("timm: a name is missing, such as timm:vit_small_patch16_224; `vit models '*'` lists them")
    cfg = _timm_cfg(name, with_weights=not file)
    architecture, tag = cfg["architecture"], cfg["tag"]
    if file:
        if not Path(file).is_file():
            raise ModelFileError(f"{display_path(file)}: no such file")
        tag = tag if "." in name else None
        licence = cfg.get("license") if tag else UNKNOWN_LICENCE
        return _model_file(architecture, cfg, Path(file), Origin(f"timm:{text}", tag, licence))
    if not cfg.get("hf_hub_id"):
        raise ModelFileError(f"timm:{name}: its weights are published as a pickle alone, which is not read")
    names = [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else WEIGHTS
    origin = Origin(f"timm:{name}" if "." in name else f"timm:{name}.{tag}", tag, cfg.get("license"))
    return _model_file(architecture, cfg, download(cfg["hf_hub_id"], names), origin)


def folder_model(folder: Path, config: Mapping[str, Any], source: str) -> ModelFile:
    """Read a folder that timm saved, of which `config` is the `config.json`. Raises ModelFileError or ConfigError."""
    import timm

    described = config.get("pretrained_cfg", config)
    name, options = config["architecture"], config.get("model_args", {})
    for value, kind, key in (
        (name, str, "architecture"),
        (described, dict, "pretrained_cfg"),
        (options, dict, "model_args"),
    ):
        if not isinstance(value, kind):
            raise ModelFileError(f"{display_path(folder / 'config.json')}: {key}: not a {kind.__name__}")
    if not timm.is_model(name):
        raise ConfigError(f"{display_path(folder)}: timm has no model {display_path(name)}{near(name, vit_names())}")
    cfg = {**described, "num_classes": config.get("num_classes", described.get("num_classes"))}
    weights = next((folder / name for name in (*WEIGHTS, PICKLE) if (folder / name).is_file()), None)
    if weights is None:
        raise ModelFileError(f"{display_path(folder)}: no {WEIGHTS[0]} in it")
    labels, descriptions = (config.get(key, described.get(key)) for key in ("label_names", "label_descriptions"))
    origin = Origin(source, described.get("tag"), cfg.get("license"), labels, descriptions)
    return _model_file(name, cfg, weights, origin, options)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read tensors by name from a file, without running code. Raises ModelFileError naming the reason."""
    saved = _saved(path)
    ema = next((saved[key] for key in _EMA if isinstance(saved.get(key), Mapping)), None)
    raw = next((saved[key] for key in _RAW if isinstance(saved.get(key), Mapping)), saved if ema is None else ema)
    args = saved.get("args") if raw is not saved else None
    options = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    if ema is not None:
        note(f"{display_path(path)}: its EMA weights are used; --weights raw, where a command has it, takes the others")
    return Checkpoint(_tensors(raw, path), None if ema is None else _tensors(ema, path), options)


def _saved(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # a length of 8 bytes, then JSON
        return read_safetensors(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # a record of plain values, in timm's checkpoints
        saved = load_plain(path)
    if not isinstance(saved, Mapping):
        raise ModelFileError(f"{display_path(path)}: no tensors by name")
    return saved


def _tensors(state: Mapping[str, Any], path: Path) -> State:
    """The tensors under the names that the model itself has, without those of DDP and torch.compile."""
    import timm

    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ModelFileError(f"{display_path(path)}: no tensors by name")
    return dict(timm.models.clean_state_dict(dict(state)))


def _timm_cfg(name: str, *, with_weights: bool) -> dict[str, Any]:
    """timm's description of the weights `NAME[.TAG]`. Raises ConfigError naming the nearest where there are none."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        similar = near(architecture, vit_names())
        raise ConfigError(f"timm:{display_path(name)}: timm has no model {display_path(architecture)}{similar}")
    if not tag and not with_weights:
        return {**_plain(timm.models.get_pretrained_cfg(architecture, True)), "architecture": architecture, "tag": ""}
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if not tags and with_weights:
        architecture_of(_timm_module(architecture, {"num_classes": 0}, {}))  # what cannot be loaded, says so first
        raise ConfigError(f"timm:{name}: timm has no pretrained weights of this model; give a file: timm:{name}@FILE")
    if tag and tag not in tags:
        raise ConfigError(f"timm:{display_path(name)}: no weights {display_path(tag)}; there are {', '.join(tags)}")
    cfg = timm.models.get_pretrained_cfg(name)
    return {**_plain(cfg), "architecture": architecture, "tag": tag or cfg.tag}


def vit_names() -> list[str]:
    """timm's names of Vision Transformers."""
    import timm

    return [model for module in TIMM_MODULES for model in timm.list_models(module=module)]


def _plain(cfg: Any) -> dict[str, Any]:
    return {} if cfg is None else dict(cfg.to_dict())


def _model_file(
    name: str, cfg: Mapping[str, Any], path: Path, origin: Origin, options: Mapping[str, Any] | None = None
) -> ModelFile:
    """The model file of timm's architecture `name`, described by `cfg`, with the tensors of a file."""
    checkpoint = read_checkpoint(path)
    cfg, options = _as_trained(name, cfg, options or {}, checkpoint.args, path)
    state = checkpoint.raw
    head = next((state[key] for key in ("head.weight", "visual.head.weight") if key in state), None)
    classes = cfg.get("num_classes") if head is None or not head.dim() else head.shape[0]
    module = _timm_module(name, {"num_classes": classes, **options}, state)
    architecture = architecture_of(module)
    raw, architecture = _converted(state, module, architecture, name, path)
    ema = None if checkpoint.ema is None else _converted(checkpoint.ema, module, architecture, name, path)[0]
    try:
        preprocessing = timm_preprocessing(cfg, architecture.image_size)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ModelFileError(f"{display_path(path)}: how images are prepared: {first_line(error)}") from error
    labels, descriptions = _class_names(name, architecture.classes, origin, raw)
    if not labels:  # a projection
        architecture = replace(architecture, classes=0)
        raw, ema = _headless(raw), None if ema is None else _headless(ema)
    return ModelFile(
        kind="classifier",
        architecture=asdict(architecture),
        classes=labels,
        preprocessing=asdict(preprocessing),
        raw=raw,
        ema=ema,
        descriptions=descriptions,
        licence=origin.licence,
        origin=origin.source,
    )


def _as_trained(
    name: str, cfg: Mapping[str, Any], options: Mapping[str, Any], args: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`cfg` and the options of the model with what timm's training script was given instead of its defaults.

    Raises ModelFileError where it trained another model than `name`.
    """
    model = args.get("model")
    if isinstance(model, str) and model.partition(".")[0] != name and model.partition(".")[0] in vit_names():
        raise ModelFileError(
            f"{display_path(path)}: weights of {display_path(model)}, not of {name}; give "
            f"timm:{display_path(model.partition('.')[0])}@{display_path(path)}"
        )
    others = args.get("model_kwargs")
    made = {"img_size": args.get("img_size"), "global_pool": args.get("gp")}
    made |= others if isinstance(others, dict) else {}
    trained = {key: args[key] for key in _PREPARATION if args.get(key)}
    given = {key: value for key, value in made.items() if value is not None}
    return {**cfg, **trained}, {**given, **options}


def _converted(
    state: Mapping[str, Tensor], module: nn.Module, architecture: Any, name: str, path: Path
) -> tuple[State, Any]:
    """The tensors by our names in fp32, and the architecture, without classes where there is no head."""
    expected = module.state_dict()
    try:
        filtered = _filter_of(module)(dict(state), module)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        common = expected.keys() & state.keys()
        reason = misfit(*({key: of[key] for key in expected if key in common} for of in (state, expected)))
        raise _no_weights_of(name, path, reason or first_line(error)) from error
    if "head.weight" not in filtered:
        architecture = replace(architecture, classes=0)
        expected = {key: tensor for key, tensor in expected.items() if not key.startswith("head")}
    if (reason := misfit(filtered, expected)) is not None:
        raise _no_weights_of(name, path, reason)
    for key in ("pos_embed", "patch_embed.proj.weight"):
        if key in state and key in expected and state[key].shape != expected[key].shape:
            found, wanted = (" x ".join(map(str, tensor.shape[1:])) for tensor in (state[key], expected[key]))
            note(f"{display_path(path)}: {key} of {found} is resampled to {wanted}, as {name} has it")
    ours = to_our_names(filtered, architecture)
    with_weights(architecture, ours)
    return {key: tensor.float() for key, tensor in ours.items()}, architecture


def _no_weights_of(name: str, path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{display_path(path)}: no weights of {name}: {display_path(reason)}")


def _headless(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith("head")}


def _timm_module(name: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """timm's module for the tensors of `state`, without them: shapes and options alone, made in no time."""
    import timm

    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        if isinstance(depth := options.get("depth"), int) and state:
            require_blocks(state, depth)
        with torch.device("meta"):
            return timm.create_model(name, **options)
    except (AssertionError, AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"timm:{display_path(name)}: timm cannot make this model: {first_line(error)}") from error


def _filter_of(module: nn.Module) -> Callable[[Mapping[str, Tensor], nn.Module], dict[str, Tensor]]:
    """timm's own reading of the layouts in which the authors of its models published them."""
    from timm.models import eva, vision_transformer

    if isinstance(module, eva.Eva):
        return eva.checkpoint_filter_fn
    of_deit = str(getattr(module, "pretrained_cfg", {}).get("architecture", "")).startswith("deit")
    return partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=of_deit)


def _class_names(
    name: str, count: int, origin: Origin, state: Mapping[str, Tensor]
) -> tuple[list[str], list[str] | None]:
    """Names of the classes, and what they are in words where the names are codes; none of a projection.

    Names that nobody gave are numbers, which is said: ImageNet's are those of published weights alone.
    """
    from timm.data import ImageNetInfo

    if isinstance(origin.labels, list | tuple) and len(origin.labels) == count and count:
        labels = numbered([str(label) for label in origin.labels])
        words = origin.descriptions if isinstance(origin.descriptions, Mapping) else None
        return labels, None if words is None else [str(words.get(label, label)) for label in labels]
    if not count or _is_projection(name, count, state):
        return [], None
    if origin.tag and count in _IMAGENETS and _published_classes(f"{name}.{origin.tag}") == count:
        info = ImageNetInfo(_IMAGENETS[count])
        return list(info.label_names()), [info.index_to_description(i) for i in range(count)]
    note(f"{display_path(origin.source)}: its {count} classes have no names; they are called 0 to {count - 1}")
    return [str(number) for number in range(count)], None


def _is_projection(name: str, count: int, state: Mapping[str, Tensor]) -> bool:
    """Whether a head is CLIP's projection: as wide as that of published weights, and without a bias of its own."""
    import timm

    bias = state.get("head.bias")
    published = {_published_classes(full) for full in timm.list_pretrained(f"{name}.*")}
    return count not in _IMAGENETS and count in published and (bias is None or not bias.any())


def _published_classes(full: str) -> int | None:
    """The outputs of published weights, None where timm has none of this name."""
    import timm

    try:
        cfg = timm.models.get_pretrained_cfg(full)
    except (RuntimeError, ValueError):
        return None
    return None if cfg is None else cfg.num_classes
