"""Maps of words: which patches a captioner looked at for each word that it wrote.

Letters: N words, G given before them, M tokens of the picture, P of those before the patches, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor

from vit.errors import ConfigError
from vit.explain.methods import attention_row, generic_attention, generic_attention_to_context
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.vision import VisionTransformer
from vit.nn import Trace

WordMethod = Literal["cross", "generic"]
WORD_METHODS: tuple[WordMethod, ...] = ("cross", "generic")


def word_maps(
    model: EncoderDecoder,
    images: Tensor,
    tokens: Tensor,
    *,
    prompt: int = 0,
    method: WordMethod = "cross",
    layer: int | None = None,
    head: int | None = None,
) -> Tensor:
    """A map for each word: images [1, C, H, W], tokens [1, 1 + G + N] from the start token on -> [N, rows, columns].
    `prompt` is G: so many words were given, not written, and have no maps.

    `cross` is the attention to the picture at the place that wrote the word, the mean of all layers and heads or those
    asked for; it is of the encoder's tokens, each of which has seen all of the picture. `generic` weighs attention by
    the gradient of the word's score, through the decoder and on through the encoder (Chefer et al. 2021), so that it
    is of the picture's own patches. Raises ConfigError for a layer or head that does not exist.
    """
    a = model.architecture.decoder
    if method not in WORD_METHODS:
        raise ConfigError(f"method: must be one of {', '.join(WORD_METHODS)} for words, got {method!r}")
    if layer is not None and not 0 <= layer < a.depth:
        raise ConfigError(f"layer: must be 0 to {a.depth - 1}, got {layer}")
    if head is not None and not 0 <= head < a.heads:
        raise ConfigError(f"head: must be 0 to {a.heads - 1}, got {head}")
    assert isinstance(model.encoder, VisionTransformer)
    rows, columns = model.encoder.architecture.patch_size
    grid, prefix = (images.shape[-2] // rows, images.shape[-1] // columns), model.encoder.architecture.prefix
    places = range(prompt, tokens.shape[1] - 1)
    if not places:
        return images.new_zeros((0, *grid), dtype=torch.float32)
    training = model.training
    try:
        model.eval()
        if method == "generic":
            maps = _generic(model, images, tokens, places)
        else:
            maps = _cross(model, images, tokens, places, layer, head)
    finally:
        model.train(training)
    return maps[:, prefix:].unflatten(1, grid).float()


@torch.no_grad()
def _cross(
    model: EncoderDecoder, images: Tensor, tokens: Tensor, places: range, layer: int | None, head: int | None
) -> Tensor:
    trace = Trace(keep_tokens=False)
    model(images, tokens[:, :-1], trace=trace)
    records = trace.cross_attention if layer is None else [trace.cross_attention[layer]]
    return torch.stack([torch.cat([attention_row(r, place, head) for r in records]).mean(dim=0) for place in places])


@torch.enable_grad()
def _generic(model: EncoderDecoder, images: Tensor, tokens: Tensor, places: range) -> Tensor:
    """One backward pass a word."""
    images = images.detach().requires_grad_()  # there is a graph even where all weights are frozen
    seen, read = Trace(keep_tokens=False), Trace(keep_tokens=False)
    context = model.encode(images, trace=seen)
    logits = model.decoder.forward(tokens[:, :-1], context, trace=read)
    scores = logits[0].gather(1, tokens[0, 1:, None])[:, 0]
    records = (read.self_attention, read.cross_attention, seen.self_attention)
    outputs = [record.output for part in records for record in part]
    depth, maps = len(read.self_attention), []
    for place in places:
        gradients = torch.autograd.grad(scores[place], outputs, retain_graph=True)
        own, cross, encoder = gradients[:depth], gradients[depth : 2 * depth], gradients[2 * depth :]
        start = torch.zeros(1, len(scores), device=images.device)
        start[0, place] = 1.0
        _, relevance = generic_attention_to_context(records[0], own, records[1], cross, start)
        maps.append(generic_attention(records[2], encoder, relevance)[0])
    return torch.stack(maps)
