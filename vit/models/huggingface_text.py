"""The bridge from Hugging Face's transformers for words: what reads them, what writes them, and what captions.

| `model_type` | module | ours |
| --- | --- | --- |
| `gpt2` | the model alone, or with its head | LanguageModel |
| `bert` | the model alone, or with its head of masked words, which is left out | TextEncoder |
| `clip_text_model` | the side of words, alone or with its projection | TextEncoder |
| `clip` | pictures and words, of which the side of words is read | TextEncoder |
| `vision-encoder-decoder` | ViT or DeiT, and a GPT-2 or BERT that writes about it | EncoderDecoder |
| `blip` | BlipForConditionalGeneration | EncoderDecoder |

In evaluation mode a LanguageModel and an EncoderDecoder give its logits, a TextEncoder's `encode` its tokens after the
last norm; `model(tokens)` is CLIP's pooled vector, projected where there is a projection, and BERT's first token. Masks
are boolean here (`vit.nn.padding_mask`). GPT-2's matrices stand transposed in transformers.

Left out, because our models have no such part: poolers, and BERT's second segment: all words are of the first.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vit.errors import display_path
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile, State
from vit.models.huggingface import ACTIVATIONS, huggingface_model, prepared
from vit.models.huggingface_folder import fitting, require, tensors_in, tokenizer_in
from vit.models.tensors import load_exactly, require_blocks
from vit.models.text import LanguageModel, TextEncoder
from vit.models.text_architecture import EncoderDecoderArchitecture, TextArchitecture
from vit.models.vision import VisionTransformer
from vit.models.vocabulary import with_special_ids

Words: TypeAlias = LanguageModel | TextEncoder | EncoderDecoder

_SHAPE: dict[str, Any] = {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "gelu"}
_BERT = _SHAPE | {"layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
DEFAULTS: dict[str, dict[str, Any]] = {  # by `model_type`, of what the tensors do not say themselves
    "gpt2": {
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "bert": _BERT | {"is_decoder": False},
    "blip_text_model": _BERT
    | {"num_attention_heads": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    | {"hidden_size": 768, "bos_token_id": 30522, "sep_token_id": 102},
    "clip_text_model": _SHAPE
    | {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407},
}
_OF_GPT2 = {  # its names of what all others call the same
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
}
_ENCODERS = ("vit", "deit")
_DECODERS = ("gpt2", "bert")

_PREFIX = re.compile(r"^(transformer|bert|text_model)\.")
_NAMES = [  # transformers' names, and ours, in this order
    (r"\.gamma$", ".weight"),  # of norms, in old files
    (r"\.beta$", ".bias"),
    (r"^(wte|embeddings\.word_embeddings|embeddings\.token_embedding)\.", "token_embed."),
    (r"^(wpe|embeddings\.position_embeddings?)\.weight$", "pos_embed"),
    (r"^embeddings\.LayerNorm\.", "embed_norm."),
    (r"^(ln_f|final_layer_norm)\.", "norm."),
    (r"^text_projection\.", "projection."),
    (r"^(lm_head|cls\.predictions\.decoder)\.weight$", "head.weight"),
    (r"^cls\.predictions\.(decoder\.)?bias$", "head_bias"),
    (r"^cls\.predictions\.transform\.dense\.", "head_fc."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "head_norm."),
    (r"^(h|encoder\.layers?)\.", "blocks."),
    (r"^(blocks\.\d+)\.(ln_1|layer_norm1|attention\.output\.LayerNorm)\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.(ln_2|layer_norm2|output\.LayerNorm)\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.(ln_cross_attn|crossattention\.output\.LayerNorm)\.", r"\1.cross_norm."),
    (r"^(blocks\.\d+)\.(mlp\.c_fc|intermediate\.dense)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.(mlp\.c_proj|output\.dense)\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.(attn\.c_proj|attention\.output\.dense|self_attn\.out_proj)\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.crossattention\.(c_proj|output\.dense)\.", r"\1.cross_attn.proj."),
    (r"^(blocks\.\d+)\.attn\.c_attn\.", r"\1.attn.qkv."),
    (r"^(blocks\.\d+)\.crossattention\.c_attn\.", r"\1.cross_attn.kv."),
    (r"^(blocks\.\d+)\.crossattention\.q_attn\.", r"\1.cross_attn.q."),
    (r"^(blocks\.\d+)\.(attention\.self|self_attn)\.([qkv])(uery|ey|alue|_proj)\.", r"\1.attn.\3."),
    (r"^(blocks\.\d+)\.crossattention\.self\.([qkv])(uery|ey|alue)\.", r"\1.cross_attn.\2."),
]
_UNUSED = re.compile(r"h\.\d+\.(attn|crossattention)\.(bias|masked_bias)$|embeddings\.position_ids$|pooler\.")
_UNUSED_IN_ENCODERS = re.compile(r"cls\.|vision_model\.|visual_projection\.|logit_scale$")


def words_model(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Words:
    """The model of a `config.json` and its tensors; of a `clip` the side of words.

    Raises ConfigError naming what our block does not have, KeyError, RuntimeError or ValueError where the tensors do
    not fit.
    """
    kind = config["model_type"]
    if kind == "gpt2":
        return language_model(config, state)
    if kind == "vision-encoder-decoder":
        return _captioner(*_sides(state, "encoder.", "decoder."), config["encoder"], config["decoder"])
    if kind == "blip":
        image, words = ({"model_type": f"blip_{side}_model", **config[f"{side}_config"]} for side in ("vision", "text"))
        return _captioner(*_sides(state, "vision_model.", "text_decoder."), image, words)
    if kind == "clip":
        config = {**(config.get("text_config") or {}), "model_type": "clip_text_model"}
    return text_encoder(config, state)


def read_words(folder: Path, config: Mapping[str, Any]) -> ModelFile:
    """What transformers saved of a model of words. Raises ModelFileError or ConfigError in one line."""
    with fitting(folder):
        network = words_model(config, tensors_in(folder)).float()
        preprocessing: dict[str, Any] = {}
        if isinstance(network, EncoderDecoder):
            network, preprocessing = _prepared(network, config, folder)
        tokenizer = _tokenizer(folder, config, network)
    kinds = {LanguageModel: "language", TextEncoder: "text-encoder", EncoderDecoder: "captioner"}
    return ModelFile(
        kind=kinds[type(network)],
        architecture=asdict(network.architecture),
        classes=[],
        preprocessing=preprocessing,
        raw=network.state_dict(),
        origin=f"hf:{config.get('_name_or_path') or folder.name}",
        tokenizer=tokenizer,
    )


def _tokenizer(folder: Path, config: Mapping[str, Any], network: Words) -> str | None:
    """The folder's tokenizer with the ids by which what writes starts and ends a text, if it has one."""
    if config["model_type"] == "blip":
        config = {**config, "text_config": {**DEFAULTS["blip_text_model"], **config["text_config"]}}
        tokenizer = tokenizer_in(folder, start=config["text_config"]["bos_token_id"])
    else:
        tokenizer = tokenizer_in(folder, gpt2=config.get("decoder", config)["model_type"] == "gpt2")
    if tokenizer is None or isinstance(network, TextEncoder):
        return tokenizer
    writer = network.decoder if isinstance(network, EncoderDecoder) else network
    return with_special_ids(tokenizer, folder, config, writer.architecture.vocabulary)


def language_model(
    config: Mapping[str, Any], state: Mapping[str, Tensor], *, context_dim: int | None = None
) -> LanguageModel:
    """What writes; `context_dim` is the width of what it writes about, None for its own width.

    Its embedding turns vectors into logits too where there is no other matrix, or the same.
    """
    config = _settled(config)
    ours = to_our_names(state, config)
    if "head.weight" not in ours or torch.equal(ours["head.weight"], ours["token_embed.weight"]):
        ours.pop("head.weight", None)
    dim = ours["token_embed.weight"].shape[1]
    architecture = replace(
        _architecture(config, ours),
        context_dim=(context_dim or dim) if "blocks.0.cross_norm.weight" in ours else None,
        tied="head.weight" not in ours,
        head_transform="head_fc.weight" in ours,
    )
    return _filled(LanguageModel, architecture, ours)


def text_encoder(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> TextEncoder:
    """What reads. A CLIP whose config has the old, wrong end of a text looks for the highest id, as in transformers."""
    config = _settled(config)
    require(not config.get("is_decoder"), f"{config['model_type']} as a decoder of its own (is_decoder)")
    ours = to_our_names({name: t for name, t in state.items() if not _UNUSED_IN_ENCODERS.match(name)}, config)
    architecture = _architecture(config, ours)
    if config["model_type"] == "clip_text_model":
        projection, end = ours.get("projection.weight"), config["eos_token_id"]
        architecture = replace(
            architecture,
            causal=True,
            pool="end",
            end_token=None if end == 2 else end,
            projection=None if projection is None else projection.shape[0],
        )
    return _filled(TextEncoder, architecture, ours)


def to_our_names(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> State:
    """transformers' tensors by our names; `config` has its `model_type`. Raises ValueError for two of one name."""
    ours: State = {}
    for name, tensor in state.items():
        name = _PREFIX.sub("", name)
        if _UNUSED.match(name):
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if config["model_type"] == "gpt2" and name.startswith("blocks.") and tensor.dim() == 2:
            tensor = tensor.t().contiguous()
        if name in ours and not torch.equal(ours[name], tensor):
            raise ValueError(f"two tensors for {name} that differ")
        ours[name] = tensor
    for part in ("weight", "bias"):
        for attention in ("attn", "cross_attn"):
            _join(ours, attention, part)
    ours["pos_embed"] = ours["pos_embed"][None]
    types = ours.pop("embeddings.token_type_embeddings.weight", None)
    if types is not None:  # of the first segment, which has all words
        ours["pos_embed"] = ours["pos_embed"] + types[0]
    return ours


def _join(state: State, attention: str, part: str) -> None:
    """Rows of q, k and v that stand in several tensors, in one."""
    for name in [name for name in state if name.endswith(f".{attention}.q.{part}")]:
        prefix = name.removesuffix(f"q.{part}")
        rows = ["q", "kv"] if f"{prefix}kv.{part}" in state else ["q", "k", "v"]
        state[f"{prefix}qkv.{part}"] = torch.cat([state.pop(f"{prefix}{row}.{part}") for row in rows])


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with all that its tensors do not say, by the names of most models. Raises ConfigError for options."""
    kind = config["model_type"]
    settled = {**DEFAULTS[kind], **config}
    if kind == "gpt2":
        settled |= {usual: settled[name] for name, usual in _OF_GPT2.items()}
        require(settled["scale_attn_weights"], "attention that is not scaled (scale_attn_weights)")
        by_layer = settled["scale_attn_by_inverse_layer_idx"]
        require(not by_layer, "attention scaled by the layer (scale_attn_by_inverse_layer_idx)")
    positions = settled.get("position_embedding_type", "absolute")  # of old versions
    require(positions == "absolute", f"positions {positions!r} (position_embedding_type)")
    activation = settled["hidden_act"]
    require(
        activation in ACTIVATIONS,
        f"activation {activation!r} ({'activation_function' if kind == 'gpt2' else 'hidden_act'})",
    )
    return settled


def _architecture(config: Mapping[str, Any], state: State) -> TextArchitecture:
    vocabulary, dim = state["token_embed.weight"].shape
    of_bert = config["model_type"] in ("bert", "blip_text_model")
    return TextArchitecture(
        vocabulary=vocabulary,
        length=state["pos_embed"].shape[1],
        dim=dim,
        depth=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        pool="first" if of_bert else "mean",
        activation=ACTIVATIONS[config["hidden_act"]],
        norm_eps=float(config["layer_norm_eps"]),
        post_norm=of_bert,
        embed_norm=of_bert,
        dropout=float(config.get("hidden_dropout_prob") or 0),
        attention_dropout=float(config.get("attention_probs_dropout_prob") or config.get("attention_dropout") or 0),
    )


def _captioner(
    image: State, words: State, image_config: Mapping[str, Any], words_config: Mapping[str, Any]
) -> EncoderDecoder:
    """An encoder of pictures, and what writes about all of its tokens."""
    seen, written = image_config["model_type"], words_config["model_type"]
    if written != "blip_text_model":
        require(seen in _ENCODERS, f"an encoder of model_type {seen!r}; supported are {', '.join(_ENCODERS)}")
        require(written in _DECODERS, f"a decoder of model_type {written!r}; supported are {', '.join(_DECODERS)}")
    encoder = huggingface_model(image_config, image)
    dim = encoder.architecture.dim
    if written == "blip_text_model":  # which has no projection between them
        own = {**DEFAULTS[written], **words_config}["hidden_size"]
        require(dim == own, f"cross-attention from width {own} to tokens of width {dim} (encoder_hidden_size)")
    return _joined(encoder, language_model(words_config, words, context_dim=dim))


def _joined(encoder: VisionTransformer, decoder: LanguageModel) -> EncoderDecoder:
    """Both in one, holding their tensors."""
    architecture = EncoderDecoderArchitecture(encoder.architecture, decoder.architecture)
    sides = {"encoder": encoder, "decoder": decoder}
    state = {f"{side}.{name}": tensor for side, model in sides.items() for name, tensor in model.state_dict().items()}
    return _filled(EncoderDecoder, architecture, state)


def _prepared(
    network: EncoderDecoder, config: Mapping[str, Any], folder: Path
) -> tuple[EncoderDecoder, dict[str, Any]]:
    """The captioner for pictures of the size that its folder prepares them to, and that preparation."""
    assert isinstance(network.encoder, VisionTransformer)
    image = config.get("encoder") or {**config["vision_config"], "model_type": "blip_vision_model"}
    encoder, preprocessing = prepared(network.encoder, image, folder)
    return _joined(encoder, network.decoder), asdict(preprocessing)


def _sides(state: Mapping[str, Tensor], image: str, words: str) -> tuple[State, State]:
    """The tensors of pictures and of words, without these prefixes. Raises ValueError for those of neither."""
    sides: dict[str, State] = {image: {}, words: {}}
    for name, tensor in state.items():
        name = re.sub(r"^enc_to_dec_proj\.", f"{words}context_proj.", name)
        side = next((prefix for prefix in sides if name.startswith(prefix)), None)
        if side is None:
            raise ValueError(f"{display_path(name)} is of neither {image}* nor {words}*")
        sides[side][name.removeprefix(side)] = tensor
    return sides[image], sides[words]


def _filled(network: type[Any], architecture: Any, state: Mapping[str, Tensor]) -> Any:
    """A network of this shape that holds the tensors of `state` themselves; ValueError where they do not fit."""
    if isinstance(architecture, TextArchitecture):
        require_blocks(state, architecture.depth)
    with torch.device("meta"):
        model: nn.Module = network(architecture)
    load_exactly(model, state)
    return model
