"""The bridge to timm: its plain Vision Transformers as ours, and ours as its.

`from_timm` reads the options off the module (`architecture_of`) and renames its tensors (`to_our_names`); `to_timm`
goes back. timm keeps several layouts; ours is one:

| timm | ours |
| --- | --- |
| `attn.q_proj`, `k_proj`, `v_proj` | rows of `attn.qkv`; biases `attn.q_bias`, `v_bias` |
| `mlp.fc1_g`, `fc1_x` | rows of `mlp.fc1` |
| `gamma_1`, `gamma_2` | `ls1.gamma`, `ls2.gamma` |
| `attn_pool.q`, `kv`, `proj` | rows of `attn_pool.attn.qkv`; `attn_pool.attn.proj` |
| RoPE that turns neighbouring channels | RoPE that turns the halves of a head: rows of q and k reordered |
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vit.errors import ConfigError
from vit.models.architecture import Activation, Norm, Pool, Rope, VisionArchitecture
from vit.models.vision import VisionTransformer, with_weights

State = dict[str, Tensor]

_POOLS: dict[Pool, str] = {"class": "token", "mean": "avg", "attention": "map"}
_RENAMED = {  # endings of timm's names and of ours
    ".gamma_1": ".ls1.gamma",
    ".gamma_2": ".ls2.gamma",
    ".attn.q_proj.bias": ".attn.q_bias",
    ".attn.v_proj.bias": ".attn.v_bias",
    "attn_pool.proj.weight": "attn_pool.attn.proj.weight",
    "attn_pool.proj.bias": "attn_pool.attn.proj.bias",
}
_JOINED = {  # endings of our names, and of timm's whose rows they hold
    ".attn.qkv.weight": (".attn.q_proj.weight", ".attn.k_proj.weight", ".attn.v_proj.weight"),
    ".mlp.fc1.weight": (".mlp.fc1_g.weight", ".mlp.fc1_x.weight"),
    ".mlp.fc1.bias": (".mlp.fc1_g.bias", ".mlp.fc1_x.bias"),
    "attn_pool.attn.qkv.weight": ("attn_pool.q.weight", "attn_pool.kv.weight"),
    "attn_pool.attn.qkv.bias": ("attn_pool.q.bias", "attn_pool.kv.bias"),
}


def from_timm(module: nn.Module) -> VisionTransformer:
    """A timm module of the classes VisionTransformer, VisionTransformerDistilled or Eva as our VisionTransformer.

    In evaluation mode, `model(images)` equals `module(images)` to rounding, and `model.encode` its `forward_features`.
    Rates of dropout and stochastic depth come along; patch dropout and jittered rotary positions do not. Raises
    ConfigError naming the first option that our block does not have.
    """
    architecture = architecture_of(module)
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    return with_weights(architecture, to_our_names(state, architecture)).train(module.training)


def to_timm(model: VisionTransformer) -> nn.Module:
    """Our VisionTransformer as a timm module; what came from timm goes back bit for bit, under the names it had.

    Others become a VisionTransformer of timm's, or an Eva where they have rotary positions. Fixed sine positions become
    learned ones of the same values. Raises ConfigError naming the first option that timm does not have.
    """
    a = model.architecture
    module = _module_like(a)
    state = dict(model.state_dict())
    if a.positions == "sincos":
        fixed = model.sincos
        state["pos_embed"] = torch.cat([fixed.new_zeros(1, a.positioned, a.dim), fixed], dim=1)
    module.load_state_dict(to_timm_names(state, module.state_dict(), a))
    like = model.patch_embed.proj.weight
    return module.to(like.device, like.dtype).train(model.training)


def architecture_of(module: nn.Module) -> VisionArchitecture:
    """The options of a timm module. Raises ConfigError naming the first that our block does not have."""
    m: Any = module
    _refuse_foreign_parts(m)
    block = m.blocks[0]
    norm, norm_eps = _norm(block.norm1)
    plain = type(block.mlp).__name__ == "Mlp"
    with_bias = any(name.endswith("bias") for name in block.attn.state_dict() if not name.startswith(("proj", "norm")))
    pool = m.attn_pool
    whole = m.global_pool == "avg" and getattr(m, "pool_include_prefix", False) and m.num_prefix_tokens > 0
    _require(not whole, "the mean of all tokens (pool_include_prefix)")
    return VisionArchitecture(
        image_size=tuple(m.patch_embed.img_size),
        patch_size=tuple(m.patch_embed.patch_size),
        dim=m.embed_dim,
        depth=len(m.blocks),
        heads=block.attn.num_heads,
        hidden=block.mlp.fc2.in_features,
        classes=m.num_classes,
        channels=m.patch_embed.proj.in_channels,
        class_token=m.cls_token is not None,
        registers=0 if m.reg_token is None else m.reg_token.shape[1],
        distilled=hasattr(m, "dist_token"),
        positions="none" if m.pos_embed is None else "learned",
        prefix_positions=not m.no_embed_class,
        rope=None if getattr(m, "rope", None) is None else _rope(m.rope, block.attn.rotate_half),
        pool=next(ours for ours, theirs in _POOLS.items() if theirs == m.global_pool),
        pool_prefix=getattr(m, "pool_include_prefix", True) if pool is not None else True,
        pool_heads=None if pool is None else pool.num_heads,
        pool_hidden=None if pool is None else pool.mlp.fc1.out_features,
        mlp="mlp" if plain else "swiglu",
        activation=_activation(block.mlp.act) if plain else _activation(pool.mlp.act) if pool is not None else "gelu",
        norm=norm,
        norm_eps=norm_eps,
        patch_norm=_there(m.patch_embed.norm),
        pre_norm=_there(m.norm_pre),
        final_norm="tokens" if _there(m.norm) else "pooled" if _there(m.fc_norm) else "none",
        qkv_bias=with_bias,
        key_bias=not with_bias or type(block.attn).__name__ != "EvaAttention",
        bias=block.attn.proj.bias is not None,
        qk_norm=_there(block.attn.q_norm),
        attention_norm=_there(block.attn.norm),
        mlp_norm=_there(block.mlp.norm),
        layer_scale=_layer_scale(block),
        dropout=m.pos_drop.p,
        attention_dropout=block.attn.attn_drop.p,
        drop_path=getattr(m.blocks[-1].drop_path1, "drop_prob", 0.0),
        timm=(getattr(m, "pretrained_cfg", None) or {}).get("architecture"),
    )


def to_our_names(state: Mapping[str, Tensor], a: VisionArchitecture) -> State:
    """timm's tensors by our names, as `a` wants them."""
    ours = {}
    for name, tensor in state.items():
        ending = next((ending for ending in _RENAMED if name.endswith(ending)), "")
        ours[name.removesuffix(ending) + _RENAMED.get(ending, "")] = tensor
    for whole, parts in _JOINED.items():
        for prefix in [name.removesuffix(parts[0]) for name in ours if name.endswith(parts[0])]:
            ours[prefix + whole] = torch.cat([ours.pop(prefix + part) for part in parts])
    return _reordered(ours, a, _neighbours_to_halves)


def to_timm_names(state: Mapping[str, Tensor], like: Mapping[str, Tensor], a: VisionArchitecture) -> State:
    """Our tensors by timm's names, in the layout of `like`, the state of the timm module."""
    theirs = {}
    for name, tensor in _reordered(state, a, _halves_to_neighbours).items():
        if name in like:
            theirs[name] = tensor
            continue
        for timm_ending, ending in _RENAMED.items():
            if name.endswith(ending) and (renamed := name.removesuffix(ending) + timm_ending) in like:
                theirs[renamed] = tensor
        for whole, parts in _JOINED.items():
            names = [name.removesuffix(whole) + part for part in parts]
            if name.endswith(whole) and all(part in like for part in names):
                rows = [like[part].shape[0] for part in names]
                theirs |= dict(zip(names, tensor.split(rows), strict=True))
    return theirs


def _refuse_foreign_parts(m: Any) -> None:
    """Raise ConfigError for what would change the outputs and has no counterpart in our block."""
    _require_class(m, "model", "VisionTransformer", "VisionTransformerDistilled", "Eva")
    _require_class(m.patch_embed, "patch embedding", "PatchEmbed")
    for block in m.blocks:
        _require_class(block, "block", "Block", "EvaBlock")
        _require_class(block.attn, "attention", "Attention", "AttentionRope", "EvaAttention")
        _require_class(block.mlp, "mlp", "Mlp", "GluMlp", "SwiGLU")
        _require(getattr(block.attn, "gate", None) is None, "gated attention")
        kv_heads = getattr(block.attn, "num_kv_heads", block.attn.num_heads)
        _require(kv_heads == block.attn.num_heads, "fewer heads for keys than for queries (num_kv_heads)")
        _require(block.attn.num_heads * block.attn.head_dim == m.embed_dim, "another width of attention")
        half_scaled = getattr(block, "gamma_1", None) is not None and block.gamma_2 is None
        _require(not half_scaled, "LayerScale on attention alone (attn_only_layer_scale)")
        if type(block.mlp).__name__ != "Mlp":
            _require_class(block.mlp.act, "activation of a gated MLP", "SiLU")
            _require(not getattr(block.mlp, "gate_last", False), "a gated MLP whose gate comes last")
    _require(m.global_pool in _POOLS.values(), f"pooling by {m.global_pool or 'nothing'!r} (global_pool)")
    _require(not (_there(m.norm) and _there(m.fc_norm)), "a final norm both before and after pooling")
    if m.attn_pool is not None:
        plain = m.attn_pool.latent_len == 1 and m.attn_pool.pos_embed is None and not _there(m.attn_pool.q_norm)
        _require(plain and m.attn_pool.pool == "token" and _there(m.attn_pool.q), "this attention pooling")


def _rope(rope: Any, halves: bool) -> Rope:
    _require_class(rope, "rotary position", "RotaryEmbeddingCat", "RotaryEmbeddingMixed", "RotaryEmbeddingDinoV3")
    kind = type(rope).__name__
    order: Literal["yx", "xy"] = "yx" if rope.grid_indexing == "ij" else "xy"
    if kind == "RotaryEmbeddingMixed":
        return Rope("mixed", float(rope.temperature), order)
    if kind == "RotaryEmbeddingDinoV3":
        plain = rope.temperature is not None and rope.normalize_coords == "separate" and not rope.grid_offset
        _require(plain and halves, "this form of DINOv3's rotary positions")
        return Rope("centred", float(rope.temperature), order)
    _require(not rope.in_pixels and not halves, "this form of rotary positions")
    reference = None if rope.ref_feat_shape is None else (rope.ref_feat_shape[0], rope.ref_feat_shape[1])
    return Rope("grid", float(rope.temperature), order, float(rope.grid_offset), reference)


def _norm(norm: nn.Module) -> tuple[Norm, float]:
    _require_class(norm, "norm", "LayerNorm", "LayerNormFp32", "RmsNorm", "RmsNormFp32")
    return ("rms" if type(norm).__name__.startswith("Rms") else "layer"), float(norm.eps)  # type: ignore[arg-type]


def _activation(act: Any) -> Activation:
    _require_class(act, "activation", "GELU", "GELUTanh", "QuickGELU")
    if type(act).__name__ == "QuickGELU":
        return "quick_gelu"
    return "gelu_tanh" if type(act).__name__ == "GELUTanh" or getattr(act, "approximate", "") == "tanh" else "gelu"


def _layer_scale(block: Any) -> float | None:
    gamma = getattr(block, "gamma_1", None)
    if gamma is None:
        gamma = getattr(getattr(block, "ls1", None), "gamma", None)
    if gamma is None:
        return None
    return float(getattr(block, "init_values", None) or getattr(block.ls1, "init_values", None) or 1e-5)


def _there(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


def _require_class(module: Any, what: str, *known: str) -> None:
    _require(type(module).__name__ in known, f"{what} of the class {type(module).__name__}")


def _require(holds: bool, option: str) -> None:
    if not holds:
        raise ConfigError(f"not supported from timm: {option}")


def _reordered(state: Mapping[str, Tensor], a: VisionArchitecture, order: Callable[[Tensor], Tensor]) -> State:
    """Rows of queries and keys reordered where timm turns neighbouring channels; all else as it is."""
    state = dict(state)
    if a.rope is None or a.rope.kind == "centred":
        return state
    rows = {".attn.qkv.weight": 2 * a.dim, ".attn.qkv.bias": 2 * a.dim, ".attn.q_bias": a.dim}
    for name, tensor in state.items():
        for ending, turned in rows.items():
            if name.startswith("blocks.") and name.endswith(ending):
                heads = tensor[:turned].unflatten(0, (-1, a.dim // a.heads))
                state[name] = torch.cat([order(heads).flatten(0, 1), tensor[turned:]])
    return state


def _neighbours_to_halves(heads: Tensor) -> Tensor:
    """Rows [H, K, ...]: channels 2 i and 2 i + 1 go to places i and i + K / 2."""
    return heads.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _halves_to_neighbours(heads: Tensor) -> Tensor:
    return heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def recipe(a: VisionArchitecture) -> tuple[str, dict[str, Any]]:
    """A name and options in plain types from which `timm.create_model` makes this architecture.

    The name that it had in timm where there is one. Raises ConfigError where timm has no such name.
    """
    import timm

    sizes = {"img_size": a.image_size, "patch_size": a.patch_size, "in_chans": a.channels, "num_classes": a.classes}
    widths = {"embed_dim": a.dim, "depth": a.depth, "num_heads": a.heads}
    named = [(a.timm, {**sizes, **widths})] if a.timm is not None and timm.is_model(a.timm) else []
    plain = {"norm_layer": None, "embed_norm_layer": None, "act_layer": a.activation, "mlp_layer": None}
    options = {name: value for name, value in {**_options(a), **plain}.items() if value is not None}
    for name, arguments in (*named, ("vit_base_patch16_224", options)):
        try:
            with torch.device("meta"):
                module = timm.create_model(name, **arguments)
        except TypeError:  # an Eva does not take every option
            continue
        if _shape(architecture_of(module)) == _shape(a):
            return name, arguments
    raise ConfigError("timm has no name from which it could make this model")


def _module_like(a: VisionArchitecture) -> nn.Module:
    """A timm module of this architecture. Raises ConfigError naming the first option that timm does not have."""
    import timm

    try:
        name, options = recipe(a)
        module: nn.Module = timm.create_model(name, **options, drop_path_rate=a.drop_path)
        return module
    except ConfigError:
        module = _built(a)
    wanted, found = _shape(a), _shape(architecture_of(module))
    for name, value in wanted.items():
        if found[name] != value:
            raise ConfigError(f"timm has no model like this: {name} {value}")
    return module


def _shape(a: VisionArchitecture) -> dict[str, Any]:
    """What decides tensors and outputs, to compare: sine positions are learned ones in timm."""
    scale = None if a.layer_scale is None else 1.0
    positions = "none" if a.positions == "none" else "learned"
    ignored = {"dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0, "patch_dropout": 0.0, "timm": None}
    pool = (
        {}
        if a.pool != "attention"
        else {"pool_heads": a.pool_heads or a.heads, "pool_hidden": a.pool_hidden or a.hidden}
    )
    return asdict(replace(a, layer_scale=scale, positions=positions, **ignored, **pool))  # type: ignore[arg-type]


def _built(a: VisionArchitecture) -> nn.Module:
    """timm's class with the options that are nearest to `a`."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    rates = {
        "pos_drop_rate": a.dropout,
        "proj_drop_rate": a.dropout,
        "attn_drop_rate": a.attention_dropout,
        "drop_path_rate": a.drop_path,
    }
    if a.rope is not None or not a.key_bias:
        return Eva(**_shared_options(a), **_eva_options(a), **rates)
    return (VisionTransformerDistilled if a.distilled else TimmVisionTransformer)(**_options(a), **rates)


def _shared_options(a: VisionArchitecture) -> dict[str, Any]:
    """Options of VisionTransformer and of Eva."""
    from timm.layers import LayerNorm, RmsNorm

    return {
        "img_size": a.image_size,
        "patch_size": a.patch_size,
        "in_chans": a.channels,
        "num_classes": a.classes,
        "global_pool": _POOLS[a.pool],
        "embed_dim": a.dim,
        "depth": a.depth,
        "num_heads": a.heads,
        "mlp_ratio": (a.hidden + 0.5) / a.dim,  # timm cuts the product down to a whole number
        "qkv_bias": a.qkv_bias,
        "qk_norm": a.qk_norm,
        "init_values": a.layer_scale,
        "class_token": a.class_token,
        "no_embed_class": not a.prefix_positions,
        "norm_layer": partial(LayerNorm if a.norm == "layer" else RmsNorm, eps=a.norm_eps),
    }


def _options(a: VisionArchitecture) -> dict[str, Any]:
    """Options of timm's VisionTransformer."""
    from timm.layers import GELUTanh, Mlp, QuickGELU, SwiGLUPacked

    shared = _shared_options(a)
    options: dict[str, Any] = {
        "pos_embed": "none" if a.positions == "none" else "learn",
        "reg_tokens": a.registers,
        "pre_norm": a.pre_norm,
        "final_norm": a.final_norm != "none",
        "fc_norm": a.final_norm == "pooled",
        "pool_include_prefix": a.pool == "attention" and a.pool_prefix,
        "proj_bias": a.bias,
        "scale_attn_norm": a.attention_norm,
        "scale_mlp_norm": a.mlp_norm,
        "embed_norm_layer": shared["norm_layer"] if a.patch_norm else None,
        "act_layer": {"gelu": nn.GELU, "gelu_tanh": GELUTanh, "quick_gelu": QuickGELU}[a.activation],
        "mlp_layer": Mlp,
    }
    if a.mlp == "swiglu":
        options |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": (2 * a.hidden + 0.5) / a.dim}
    return {**shared, **options}


def _eva_options(a: VisionArchitecture) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_reg_tokens": a.registers,
        "use_abs_pos_emb": a.positions != "none",
        "use_rot_pos_emb": a.rope is not None,
        "attn_type": "rope" if a.qkv_bias and a.key_bias else "eva",
        "scale_attn_inner": a.attention_norm,
        "scale_mlp": a.mlp_norm,
        "swiglu_mlp": a.mlp == "swiglu",
        "use_pre_transformer_norm": a.pre_norm,
        "use_post_transformer_norm": a.final_norm == "tokens",
        "use_fc_norm": a.final_norm == "pooled",
        "attn_pool_num_heads": a.pool_heads,
        "attn_pool_mlp_ratio": ((a.pool_hidden or a.hidden) + 0.5) / a.dim,
    }
    if a.rope is not None:
        options |= {
            "rope_type": {"grid": "cat", "centred": "dinov3", "mixed": "mixed"}[a.rope.kind],
            "rope_temperature": a.rope.base,
            "rope_grid_indexing": "ij" if a.rope.order == "yx" else "xy",
            "rope_grid_offset": a.rope.offset,
            "rope_rotate_half": a.rope.kind == "centred",
            "ref_feat_shape": a.rope.reference,
        }
    return options
