"""The bridge from Hugging Face's transformers: its plain Vision Transformers as ours.

| `model_type` | module |
| --- | --- |
| `vit`, `deit`, `dinov2`, `dinov2_with_registers` | the model alone, or with a head for image classification |
| `clip_vision_model`, `siglip_vision_model` | the image side alone; of CLIP also with its projection |
| `blip_vision_model` | the image side alone |
| `clip`, `siglip` | pictures and words, of which the image side is read; or a classifier of pictures |

What reads or writes words is of `vit.models.huggingface_text`: GPT-2, BERT, CLIP's side of words, and captioners.

Two generations of names for the same tensors are read: those in files on the hub
(`encoder.layer.0.attention.attention.query`) and those of today's modules (`layers.0.attention.q_proj`). transformers
itself is not needed to read a folder.

Left out, because our model has no such part: the pooler behind the class token, the decoder of masked image modeling,
DINOv2's classifier of class token and mean together, and CLIP's of a mean that no norm came before.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.data.config import Preprocessing
from vit.files import read_json
from vit.models.architecture import Activation, Pool, VisionArchitecture
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile, State
from vit.models.huggingface_folder import fitting, image_processor, require, tensors_in
from vit.models.text import LanguageModel, TextEncoder
from vit.models.text_architecture import Side
from vit.models.vision import VisionTransformer, with_weights
from vit.names import numbered

_SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
DEFAULTS = {  # by `model_type`; the config of a CLIP or SigLIP says of its image side only what differs
    "vit": _SHAPE,
    "deit": _SHAPE,
    "dinov2": _SHAPE | {"patch_size": 14, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": _SHAPE | {"layer_norm_eps": 1e-6},
    "clip_vision_model": _SHAPE | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": _SHAPE | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "blip_vision_model": _SHAPE | {"image_size": 384, "layer_norm_eps": 1e-5},
}
_IMAGE_SIDES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
WORDS = ("gpt2", "bert", "clip_text_model", "vision-encoder-decoder", "blip")
"""what `vit.models.huggingface_text` reads, beside the side of words of `clip`"""
KINDS = (*DEFAULTS, *_IMAGE_SIDES, *WORDS)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_NAMES = [  # transformers' names, and ours, in this order
    (r"^(vit|deit|dinov2|dinov2_with_registers|vision_model)\.", ""),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.attn.qkv."),
    (r"^head\.attention\.out_proj\.", "attn_pool.attn.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^(classifier|cls_classifier|visual_projection)\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.(position_embeddings|position_embedding(\.weight)?)$", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^(encoder\.layer|encoder\.layers|layers)\.", "blocks."),
    (r"^(blocks\.\d+)\.(attention\.attention|attention|self_attn)\.([qkv])(uery|ey|alue|_proj)\.", r"\1.attn.\3."),
    (r"^(blocks\.\d+)\.self_attn\.(qkv|proj)(ection)?\.", r"\1.attn.\2."),
    (r"^(blocks\.\d+)\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.(intermediate\.dense|mlp\.weights_in)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.(layernorm_before|layer_norm1)\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.(layernorm_after|layer_norm2)\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
]
_UNUSED = re.compile(r"(pooler|decoder|text_model|text_projection)\.|embeddings\.(mask_token|position_ids)$|logit_")

_HALF = (0.5, 0.5, 0.5)
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP: dict[str, Any] = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_DINOV2 = Preprocessing((224, 224), "crop", 224 / 256, "bicubic", **_IMAGENET)
_USUAL = {  # how the published weights of each kind were fed
    "vit": Preprocessing((224, 224), "squash", 1.0, "bilinear", _HALF, _HALF),
    "deit": Preprocessing((224, 224), "squash", 224 / 256, "bicubic", **_IMAGENET),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "clip_vision_model": Preprocessing((224, 224), "crop", 1.0, "bicubic", **_CLIP),
    "siglip_vision_model": Preprocessing((224, 224), "squash", 1.0, "bicubic", _HALF, _HALF),
    "blip_vision_model": Preprocessing((384, 384), "squash", 1.0, "bicubic", **_CLIP),
}


def from_huggingface(
    module: nn.Module, *, side: Side = "image", image_size: int | tuple[int, int] | None = None
) -> VisionTransformer | LanguageModel | TextEncoder | EncoderDecoder:
    """A module of transformers as ours: a ViTForImageClassification, a GPT2LMHeadModel, a VisionEncoderDecoderModel.

    In evaluation mode `model.encode` gives its tokens after the last norm, `model(images)` its class scores, or of
    CLIP its projected vectors; `vit.models.huggingface_text` says it for models of words. `side` chooses of a
    CLIPModel. Rates of dropout come along. Where the patch does not divide the image (SigLIP: 384 / 14), the pixels at
    the bottom and right that do not fill a patch are ignored, as in transformers. Raises ConfigError naming what our
    block does not have, RuntimeError or ValueError where the module has parts beside those listed above.

    The outputs are equal at the module's own image size. For other sizes, `set_input_size` and the forward pass
    resample positions with antialiasing, as timm does; transformers' `interpolate_pos_encoding=True` does not (but for
    DINOv2 with registers). `image_size`, in pixels, returns a model of that size whose positions are resampled as
    transformers resamples them.
    """
    from vit.models.huggingface_text import words_model  # which builds on this file

    config: dict[str, Any] = module.config.to_dict()  # type: ignore[operator,union-attr]
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    if _is_of_words(config, side):
        require(image_size is None, "image_size of a model of words")
        return words_model(config, state).train(module.training)
    model = huggingface_model(config, state)
    if image_size is not None:
        model = _at_size(model, _sides(image_size), antialias=_antialiased(config))
    return model.train(module.training)


def _is_of_words(config: Mapping[str, Any], side: Side) -> bool:
    kind = str(config.get("model_type"))
    require(side == "image" or kind in (*WORDS, "clip"), f"the side of words of model_type {kind!r}")
    return kind in WORDS or side == "text"


def huggingface_model(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> VisionTransformer:
    """The model of a `config.json` and its tensors.

    Raises ConfigError naming what our block does not have, KeyError or RuntimeError where the tensors do not fit.
    """
    settled = _settled(config)
    ours = to_our_names(state, settled)
    return with_weights(_architecture(settled, ours), ours)


def read_huggingface_folder(folder: Path, *, side: Side = "image") -> ModelFile:
    """What transformers saved: `config.json`, weights, and preprocessing or a tokenizer where there is one.

    A model of pictures is for the size that its preprocessing gives: of DINOv2 224 pixels, while its positions are for
    518; they are resampled once as transformers resamples them at every call. CLIP's projection of pictures gives no
    classes and is left out; `side` chooses of a CLIP that has both. Raises ModelFileError or ConfigError in one line.
    """
    from vit.models.huggingface_text import read_words  # which builds on this file

    config = read_json(folder / "config.json")
    if _is_of_words(config, side):
        return read_words(folder, config)
    with fitting(folder):
        model = huggingface_model(config, tensors_in(folder)).float()
        if _settled(config)["model_type"] == "clip_vision_model":
            model.reset_head(0)
        classes = _class_names(config, model.architecture.classes)
        model, preprocessing = prepared(model, config, folder)
    return ModelFile(
        kind="classifier",
        architecture=asdict(model.architecture),
        classes=classes,
        preprocessing=asdict(preprocessing),
        raw=model.state_dict(),
        origin=f"hf:{config.get('_name_or_path') or folder.name}",
    )


def prepared(
    model: VisionTransformer, config: Mapping[str, Any], folder: Path
) -> tuple[VisionTransformer, Preprocessing]:
    """The model for pictures of the size that the folder prepares them to, and that preparation."""
    a, kind = model.architecture, _settled(config)["model_type"]
    require(a.channels == 3, f"pictures of {a.channels} channels (num_channels)")
    preprocessing = preprocessing_of(image_processor(folder), replace(_USUAL[kind], size=a.image_size))
    return _at_size(model, preprocessing.size, antialias=_antialiased(config)), preprocessing


def preprocessing_of(described: Mapping[str, Any], usual: Preprocessing) -> Preprocessing:
    """A `preprocessor_config.json` in our terms; `usual` is taken for what it leaves open.

    Raises ConfigError for what our transform would do otherwise.
    """
    if not described:
        return usual
    require(described.get("do_resize", True), "pictures of any size (do_resize)")
    resample, scale = described.get("resample"), described.get("rescale_factor", 1 / 255)
    require(resample in (None, 2, 3), f"interpolation {resample} (resample); 2 and 3 are")
    scaled = described.get("do_rescale", True) and abs(scale * 255 - 1) < 1e-6
    require(scaled, f"values other than 0 to 1 (do_rescale, rescale_factor {scale})")
    fitted, keeps_ratio = _fitted(described, usual)
    kept = _sides(described.get("crop_size") or fitted) if described.get("do_center_crop") else fitted
    one_fraction = kept[0] <= fitted[0] and kept[0] * fitted[1] == kept[1] * fitted[0]
    require(one_fraction, f"a picture of {fitted[0]} x {fitted[1]} (size) cut to {kept[0]} x {kept[1]} (crop_size)")
    normalised = described.get("do_normalize", True)
    return Preprocessing(
        size=kept,
        resize="crop" if keeps_ratio else "squash",
        crop_fraction=kept[0] / fitted[0],
        interpolation=usual.interpolation if resample is None else "bilinear" if resample == 2 else "bicubic",
        mean=_colour(described, "image_mean", usual.mean) if normalised else (0.0, 0.0, 0.0),
        std=_colour(described, "image_std", usual.std) if normalised else (1.0, 1.0, 1.0),
    )


def to_our_names(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """transformers' tensors by our names; `config` has its `model_type` and `hidden_size`."""
    kind, dim = config["model_type"], config["hidden_size"]
    ours: State = {}
    for name, tensor in state.items():
        if kind == "clip_vision_model" and name.startswith("classifier."):
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if not _UNUSED.match(name):
            ours[name] = tensor
    for part in ("weight", "bias"):
        _join(ours, f"attn.qkv.{part}", [f"attn.{letter}.{part}" for letter in "qkv"])
        _join(ours, f"mlp.fc1.{part}", [f"mlp.gate_proj.{part}", f"mlp.up_proj.{part}"])
    for name in {"cls_token", "pos_embed"} & ours.keys():  # CLIP's and SigLIP's are flat
        while ours[name].dim() < 3:
            ours[name] = ours[name][None]
    if kind == "dinov2_with_registers":  # its class token has a position, its registers have none
        ours["cls_token"] = ours["cls_token"] + ours["pos_embed"][:, :1]
        ours["pos_embed"] = ours["pos_embed"][:, 1:]
    if "dist_token" in ours and "head_dist.weight" not in ours:  # a token that no head reads is a register
        ours["reg_token"] = ours.pop("dist_token")
    return _with_fitting_head(ours, dim)


def _with_fitting_head(ours: State, dim: int) -> State:
    head = ours.get("head.weight")
    if head is None:
        return ours
    if head.shape[1] != dim:  # DINOv2's, of class token and mean together
        return {name: tensor for name, tensor in ours.items() if not name.startswith("head.")}
    if "attn_pool.latent" in ours:  # SigLIP's classifier sees the mean of the patches instead
        ours = {name: tensor for name, tensor in ours.items() if not name.startswith("attn_pool.")}
    return {"head.bias": head.new_zeros(head.shape[0]), **ours}  # CLIP's projection has none


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the image side, with all that decides shapes. Raises ConfigError for another kind of model."""
    kind = str(config.get("model_type"))
    if kind in _IMAGE_SIDES:
        kind, config = _IMAGE_SIDES[kind], config.get("vision_config") or {}
    require(kind in DEFAULTS, f"model_type {kind!r}; supported are {', '.join(KINDS)}")
    return {**DEFAULTS[kind], **config, "model_type": kind}


def _architecture(config: Mapping[str, Any], state: State) -> VisionArchitecture:
    gated, activation = bool(config.get("use_swiglu_ffn")), str(config["hidden_act"])
    require(gated or activation in ACTIVATIONS, f"activation {activation!r} (hidden_act)")
    head, registers = state.get("head.weight"), state.get("reg_token")
    pool: Pool = "class" if "cls_token" in state else "attention" if "attn_pool.latent" in state else "mean"
    return VisionArchitecture(
        image_size=_sides(config["image_size"]),
        patch_size=_sides(config["patch_size"]),
        dim=int(config["hidden_size"]),
        depth=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        hidden=state["blocks.0.mlp.fc2.weight"].shape[1],
        classes=0 if head is None else head.shape[0],
        channels=int(config.get("num_channels", 3)),
        class_token="cls_token" in state,
        registers=0 if registers is None else registers.shape[1],
        distilled="dist_token" in state,
        prefix_positions=config["model_type"] != "dinov2_with_registers",
        pool=pool,
        mlp="swiglu" if gated else "mlp",
        activation="gelu" if gated else ACTIVATIONS[activation],
        norm_eps=float(config["layer_norm_eps"]),
        pre_norm="norm_pre.weight" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        layer_scale=float(config.get("layerscale_value", 1.0)) if "blocks.0.ls1.gamma" in state else None,
        dropout=float(config.get("hidden_dropout_prob") or 0),
        attention_dropout=float(config.get("attention_probs_dropout_prob") or config.get("attention_dropout") or 0),
        drop_path=float(config.get("drop_path_rate") or 0),
    )


def _join(state: State, whole: str, parts: list[str]) -> None:
    """Rows that stand in several tensors, in one."""
    for prefix in [name.removesuffix(parts[0]) for name in state if name.endswith("." + parts[0])]:
        state[prefix + whole] = torch.cat([state.pop(prefix + part) for part in parts])


def _antialiased(config: Mapping[str, Any]) -> bool:
    """Whether transformers resamples the positions of this kind of model with antialiasing."""
    return _settled(config)["model_type"] == "dinov2_with_registers"


def _at_size(model: VisionTransformer, size: tuple[int, int], *, antialias: bool) -> VisionTransformer:
    """The model for pictures of another size, its positions resampled as transformers does it."""
    old, new = model.architecture, replace(model.architecture, image_size=size)
    if size == old.image_size:
        return model
    state = model.state_dict()
    head, grid = state["pos_embed"][:, : old.positioned], state["pos_embed"][:, old.positioned :]
    grid = F.interpolate(
        grid.unflatten(1, old.grid).permute(0, 3, 1, 2), size=new.grid, mode="bicubic", antialias=antialias
    )
    state["pos_embed"] = torch.cat([head, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    return with_weights(new, state)


def _class_names(config: Mapping[str, Any], count: int) -> list[str]:
    """The names of `count` classes; transformers leaves out names like LABEL_0. Raises ValueError for other numbers."""
    labels = config.get("id2label") or {number: f"LABEL_{number}" for number in range(count)}
    if not count:
        return []
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    if len(names) != count:
        raise ValueError(f"{len(names)} names in id2label for {count} classes")
    return numbered(names)


def _fitted(described: Mapping[str, Any], usual: Preprocessing) -> tuple[tuple[int, int], bool]:
    """Height and width that a picture is resized to, and whether it keeps its aspect ratio."""
    size = described.get("size")
    if isinstance(size, Mapping):
        by = {name for name, value in size.items() if value is not None}
        require(by in ({"shortest_edge"}, {"height", "width"}), f"size by {', '.join(sorted(by))}")
        return _sides(size["shortest_edge"] if len(by) == 1 else size), len(by) == 1
    if size is None:
        return usual.size, usual.resize == "crop"
    # one number, in older files: the short side to some, both sides to others
    name = described.get("image_processor_type") or described.get("feature_extractor_type")
    keeps_ratio = usual.resize == "crop" if name is None else str(name).startswith(("CLIP", "Bit", "Siglip"))
    return _sides(size), keeps_ratio


def _sides(size: Any) -> tuple[int, int]:
    """Height and width from the forms that transformers writes them in."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) else (int(size), int(size))


def _colour(described: Mapping[str, Any], key: str, usual: tuple[float, float, float]) -> tuple[float, float, float]:
    values = described.get(key) or usual
    require(len(values) == 3, f"{key} of {len(values)} channels")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
