"""From one sequence to another: a picture or a text is encoded, and a language model that attends to it writes.

With an encoder of pictures it is the captioner, with one of words the transformer of Vaswani et al. 2017.
Letters: B batch, M tokens of the encoder, N tokens of the decoder, D dim of the decoder, V vocabulary.
"""

from torch import Tensor, nn

from vit.models.architecture import VisionArchitecture
from vit.models.text import LanguageModel, TextEncoder
from vit.models.text_architecture import EncoderDecoderArchitecture
from vit.models.vision import VisionTransformer
from vit.nn import Trace


class EncoderDecoder(nn.Module):
    """`encoder` (its weights named as in a classifier of its own) and `decoder`."""

    def __init__(self, architecture: EncoderDecoderArchitecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        self.encoder: VisionTransformer | TextEncoder = (
            VisionTransformer(a.encoder) if isinstance(a.encoder, VisionArchitecture) else TextEncoder(a.encoder)
        )
        self.decoder = LanguageModel(a.decoder)

    def forward(
        self, source: Tensor, tokens: Tensor, *, source_mask: Tensor | None = None, trace: Trace | None = None
    ) -> Tensor:
        """source: images [B, C, H, W] or token ids [B, M], tokens [B, N] -> logits [B, N, V] of the words after them.

        `source_mask` [B, 1, 1, M] tells a text's words from its padding; `trace` is of the decoder.
        """
        context = self.encode(source, mask=source_mask)
        return self.decoder(tokens, context, context_mask=source_mask, trace=trace)

    def encode(self, source: Tensor, *, mask: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        """What the decoder attends to [B, M, D]: all of the encoder's tokens after its final norm."""
        if isinstance(self.encoder, VisionTransformer):
            return self.decoder.project(self.encoder.encode(source, trace=trace))
        return self.decoder.project(self.encoder.encode(source, mask=mask, trace=trace))
