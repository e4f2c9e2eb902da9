"""The bridge from Hugging Face's transformers: its plain Vision Transformers as ours.

ViT, DeiT, DINOv2 (also with registers), and the image side of CLIP and SigLIP. Two generations of names for the same
tensors are read: those in files on the hub (`encoder.layer.0.attention.attention.query`) and those of today's modules
(`layers.0.attention.q_proj`). transformers itself is not needed to read a folder.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vit.data.config import Preprocessing
from vit.errors import ConfigError, ModelFileError, display_path
from vit.files import read_json
from vit.models.architecture import Activation, Pool, VisionArchitecture
from vit.models.file import ModelFile
from vit.models.vision import VisionTransformer, with_weights

State = dict[str, Tensor]

KINDS = ("vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model", "clip", "siglip")
"""values of `model_type` that are read"""
_ACTIVATIONS: dict[str, Activation] = {
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
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^(encoder\.layer|encoder\.layers|layers)\.", "blocks."),
    (r"(^blocks\.\d+)\.(attention\.attention|attention|self_attn)\.([qkv])(uery|ey|alue|_proj)\.", r"\1.attn.\3."),
    (r"(^blocks\.\d+)\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", r"\1.attn.proj."),
    (r"(^blocks\.\d+)\.(intermediate\.dense|mlp\.weights_in)\.", r"\1.mlp.fc1."),
    (r"(^blocks\.\d+)\.(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1.mlp.fc2."),
    (r"(^blocks\.\d+)\.(layernorm_before|layer_norm1)\.", r"\1.norm1."),
    (r"(^blocks\.\d+)\.(layernorm_after|layer_norm2)\.", r"\1.norm2."),
    (r"(^blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
]
_UNUSED = re.compile(r"^(pooler\.|embeddings\.mask_token|embeddings\.position_ids|logit_)")


def from_huggingface(module: nn.Module) -> VisionTransformer:
    """A module of transformers, such as ViTForImageClassification or Dinov2Model, as our VisionTransformer.

    In evaluation mode `model.encode` gives its tokens after the last norm, and `model(images)` its class scores, of
    CLIP its projected vectors. Two heads have no counterpart and are left out: ViTModel's pooler, and DINOv2's
    classifier on class token and mean together. Raises ConfigError naming what our block does not have.
    """
    config: Any = module.config
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return huggingface_model(config.to_dict(), state).train(module.training)


def huggingface_model(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> VisionTransformer:
    """The model of a `config.json` and its tensors. Raises ConfigError naming what our block does not have."""
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ConfigError(f"not supported from transformers: model_type {kind!r}; supported are {', '.join(KINDS)}")
    if "vision_config" in config:  # the image side of a model of pictures and words
        config = {"model_type": kind, **config["vision_config"]}
        state = {name: t for name, t in state.items() if name.startswith(("vision_model.", "visual_projection."))}
    ours = to_our_names(state, config)
    return with_weights(_architecture(config, ours), ours)


def to_our_names(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """transformers' tensors by our names, in fp32."""
    ours: State = {}
    for name, tensor in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if not _UNUSED.search(name):
            ours[name] = tensor.float()
    for part in ("weight", "bias"):
        _join(ours, f"attn.qkv.{part}", [f"attn.{letter}.{part}" for letter in "qkv"])
        _join(ours, f"mlp.fc1.{part}", [f"mlp.gate_proj.{part}", f"mlp.up_proj.{part}"])
    for name, shape in (("cls_token", (1, 1, -1)), ("pos_embed", (1, -1, int(config["hidden_size"])))):
        if name in ours:
            ours[name] = ours[name].reshape(shape)
    if "dist_token" in ours and "head_dist.weight" not in ours:  # a token that no head reads is a register
        ours["reg_token"] = ours.pop("dist_token")
    if config["model_type"] == "dinov2_with_registers":  # the class token has a position, the registers have none
        ours["cls_token"] = ours["cls_token"] + ours["pos_embed"][:, :1]
        ours["pos_embed"] = ours["pos_embed"][:, 1:]
    head = ours.get("head.weight")
    if head is not None and head.shape[1] != config["hidden_size"]:  # DINOv2's, of class token and mean together
        del ours["head.weight"], ours["head.bias"]
    elif head is not None:
        ours.setdefault("head.bias", torch.zeros(head.shape[0]))  # CLIP's projection has none
    return ours


def read_huggingface_folder(folder: Path) -> ModelFile:
    """What transformers saved: `config.json`, safetensors, and `preprocessor_config.json` where there is one.

    Raises ModelFileError or ConfigError in one line.
    """
    config = read_json(folder / "config.json")
    try:
        model = huggingface_model(config, _tensors(folder))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelFileError(f"{display_path(folder)}: weights and config do not fit: {lines[-1][:160]}") from error
    labels = config.get("id2label") or {}
    classes = [str(labels[key]) for key in sorted(labels, key=int)]
    if len(classes) != model.architecture.classes or config["model_type"].startswith(("clip", "siglip")):
        classes = []
        model.reset_head(0)
    preprocessor = folder / "preprocessor_config.json"
    described = read_json(preprocessor) if preprocessor.is_file() else {}
    return ModelFile(
        kind="classifier",
        architecture=asdict(model.architecture),
        classes=classes,
        preprocessing=asdict(preprocessing_of(described, model.architecture.image_size)),
        raw=dict(model.state_dict()),
        licence=config.get("license"),
        origin=f"hf:{config.get('_name_or_path') or folder.name}",
    )


def preprocessing_of(described: Mapping[str, Any], image_size: tuple[int, int]) -> Preprocessing:
    """A `preprocessor_config.json` as our Preprocessing; what it leaves open is as in transformers' ViT.

    Raises ConfigError for an interpolation other than bilinear and bicubic.
    """
    size, crop = described.get("size"), described.get("crop_size")
    resample = described.get("resample", 2)
    if resample not in (2, 3):
        raise ConfigError(f"not supported from transformers: interpolation {resample} (resample); 2 and 3 are")
    fitted = _sides(size, image_size)
    kept = _sides(crop, fitted) if described.get("do_center_crop") else fitted
    keeps_ratio = isinstance(size, Mapping) and "shortest_edge" in size
    scale = described.get("do_normalize", True)
    return Preprocessing(
        size=kept,
        resize="crop" if keeps_ratio else "squash",
        crop_fraction=min(1.0, kept[0] / fitted[0]),
        interpolation="bilinear" if resample == 2 else "bicubic",
        mean=tuple(described.get("image_mean", (0.5,) * 3)) if scale else (0.0,) * 3,
        std=tuple(described.get("image_std", (0.5,) * 3)) if scale else (1.0,) * 3,
    )


def _architecture(config: Mapping[str, Any], state: State) -> VisionArchitecture:
    activation = str(config.get("hidden_act", "gelu"))
    gated = bool(config.get("use_swiglu_ffn"))
    if not gated and activation not in _ACTIVATIONS:
        raise ConfigError(f"not supported from transformers: activation {activation!r} (hidden_act)")
    dim, depth = int(config["hidden_size"]), int(config["num_hidden_layers"])
    head, registers = state.get("head.weight"), state.get("reg_token")
    pool: Pool = "class" if "cls_token" in state else "attention" if "attn_pool.latent" in state else "mean"
    return VisionArchitecture(
        image_size=_sides(config["image_size"]),
        patch_size=_sides(config["patch_size"]),
        dim=dim,
        depth=depth,
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
        activation="gelu" if gated else _ACTIVATIONS[activation],
        norm_eps=float(config.get("layer_norm_eps", 1e-6)),
        pre_norm="norm_pre.weight" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        layer_scale=float(config.get("layerscale_value", 1.0)) if "blocks.0.ls1.gamma" in state else None,
        dropout=float(config.get("hidden_dropout_prob", 0.0)),
        attention_dropout=float(config.get("attention_probs_dropout_prob", config.get("attention_dropout", 0.0))),
        drop_path=float(config.get("drop_path_rate", 0.0)),
    )


def _join(state: State, whole: str, parts: list[str]) -> None:
    """Rows that stand in several tensors, in one."""
    for prefix in [name.removesuffix(parts[0]) for name in state if name.endswith("." + parts[0])]:
        state[prefix + whole] = torch.cat([state.pop(prefix + part) for part in parts])


def _sides(size: Any, default: tuple[int, int] = (224, 224)) -> tuple[int, int]:
    """Height and width from the forms that transformers writes them in."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
        return int(size["height"]), int(size["width"])
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[1])
    return default if size is None else (int(size), int(size))


def _tensors(folder: Path) -> State:
    """All tensors of a folder, of one file or of several with an index."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    state: State = {}
    for name in names:
        if not (folder / name).is_file():
            pickled = any(folder.glob("*.bin"))
            remedy = "; its pickled weights are not read: save it anew by save_pretrained" if pickled else ""
            raise ModelFileError(f"{display_path(folder)}: no {name} in it{remedy}")
        try:
            state |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{display_path(folder / name)}: no whole safetensors file: {error}") from error
    return state
