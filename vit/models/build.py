"""From a model file to the network that it describes, and from its weights to a network of another run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from vit.errors import ConfigError, ModelFileError, display_path, shell_quote
from vit.models.architecture import VisionArchitecture
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile, State, Weights, first_line
from vit.models.fusion import FusedClassifier
from vit.models.header import architecture_of, read_fields
from vit.models.tensors import load_exactly, misfit
from vit.models.text import LanguageModel, TextEncoder
from vit.models.text_architecture import EncoderDecoderArchitecture, TextArchitecture
from vit.models.vision import VisionTransformer, resampled

Network: TypeAlias = VisionTransformer | LanguageModel | TextEncoder | EncoderDecoder | FusedClassifier

USES = {
    "classifier": "a classifier of pictures: `vit predict`, `vit evaluate`",
    "captioner": "a captioner: `vit caption` describes pictures with it",
    "translator": "a model from text to text: `vit generate` takes what it should read as --prompt",
    "language": "a language model: `vit generate` writes with it",
    "text-encoder": "an encoder of texts, for a decoder or a fused classifier to start from",
    "fused": "a classifier of pictures with texts: `vit predict --text`, `vit evaluate`",
}
"""what a model of each kind is, and what to do with it"""


def build_network(model: ModelFile, weights: Weights | None = None, *, source: object = "model") -> VisionTransformer:
    """The network of a classifier's file with its weights, in evaluation mode. Raises ModelFileError on a misfit."""
    require_kind(model, ("classifier",), source)
    network = build_model(model, weights, source=source)
    assert isinstance(network, VisionTransformer)
    if len(model.classes) != network.architecture.classes:
        names, outputs = len(model.classes), network.architecture.classes
        raise ModelFileError(f"{display_path(source)}: {names} class names for {outputs} outputs")
    return network


def require_kind(model: ModelFile, kinds: Sequence[str], source: object = "model") -> None:
    """Raise ModelFileError, saying what the model is for, where it is none of `kinds`."""
    if model.kind not in kinds:
        # where there are many, they are all that have to do with words
        wanted = " or ".join(USES[kind].partition(":")[0] for kind in kinds) if kinds[3:] == () else "a model of words"
        there = USES.get(model.kind, f"of kind {model.kind!r}, which this version does not know")
        if model.kind == "classifier" and "captioner" in kinds:
            start = f"vit train CAPTIONS --task caption --model.init {shell_quote(source)}"
            there += f"; `{start}` makes a captioner of it"
        raise ModelFileError(f"{display_path(source)}: not {wanted} but {there}")


def image_encoder(model: ModelFile, source: object = "model") -> ModelFile:
    """What reads the pictures of a captioner or a fused classifier, as a classifier without classes.

    A classifier comes back as it is. Raises ModelFileError for a model that reads no pictures.
    """
    part = {"captioner": "encoder", "fused": "image"}.get(model.kind)
    if part is None:
        require_kind(model, ("classifier", "captioner", "fused"), source)
        return model

    def own(state: State) -> State:
        return {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}

    return replace(
        model,
        kind="classifier",
        architecture=model.architecture[part],
        classes=[],
        raw=own(model.raw),
        ema=None if model.ema is None else own(model.ema),
        tokenizer=None,
    )


def build_model(model: ModelFile, weights: Weights | None = None, *, source: object = "model") -> Network:
    """The network of a file of any kind, with its weights, in evaluation mode. Raises ModelFileError on a misfit."""
    state = model.weights(weights)
    try:
        with torch.device("meta"):  # no time is spent on drawing weights to be replaced
            network = _network(model.kind, model.architecture)
        kinds = sorted({str(tensor.dtype) for tensor in state.values()})
        if len(kinds) > 1:
            raise ConfigError(f"weights must have one floating-point type, got {', '.join(kinds)}")
        load_exactly(network, state)
    except (ConfigError, RuntimeError, TypeError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise ModelFileError(f"{display_path(source)}: weights and architecture do not fit: {reason}") from error
    return network.eval()


def _network(kind: str, fields: Mapping[str, Any]) -> Network:
    architecture = architecture_of(kind, fields)
    if isinstance(architecture, VisionArchitecture):
        return VisionTransformer(architecture)
    if isinstance(architecture, TextArchitecture):
        return (LanguageModel if kind == "language" else TextEncoder)(architecture)
    if isinstance(architecture, EncoderDecoderArchitecture):
        return EncoderDecoder(architecture)
    return FusedClassifier(architecture)


def architecture_from(fields: Mapping[str, Any]) -> VisionArchitecture:
    """Return an image architecture from JSON. Raises ConfigError naming the first wrong field."""
    return read_fields(VisionArchitecture, fields, "architecture")


def text_architecture_from(fields: Mapping[str, Any]) -> TextArchitecture:
    """Return a text architecture from JSON. Raises ConfigError naming the first wrong field."""
    return read_fields(TextArchitecture, fields, "architecture")


def start_from(model: ModelFile, network: VisionTransformer, classes: Sequence[str]) -> None:
    """Put a file's weights into a network of the same shape but for picture size and `classes`.

    Takes the averaged weights where there are any. Learned positions are resampled to the network's grid; the head
    stays fresh where the class names differ. Raises ConfigError naming the first parameter that does not fit.
    """
    old, new = architecture_from(model.architecture), network.architecture
    state = dict(model.weights())
    if "patch_embed.proj.weight" in state:  # else told below, like everything that is absent
        state = resampled(state, old, new)
    own = network.state_dict()
    if model.classes != list(classes):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head")}
        state.update({name: tensor for name, tensor in own.items() if name.startswith("head")})
    if (reason := misfit(state, own)) is not None:
        raise ConfigError(f"model.init: {reason}")
    network.load_state_dict(state)
