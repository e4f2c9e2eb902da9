"""A stack of blocks and a final norm: every model of the project is one of these with something before and after."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit.nn.block import Block
from vit.nn.state import LayerCache, Trace


class Transformer(nn.Module):
    """Tokens [B, N, D] through all blocks and the final norm.

    Models derive from it, so that their parameters keep the names everyone's checkpoints have (`blocks.0.norm1`,
    `norm`), and call `transform` on tokens of their own making. With `checkpointing`, training recomputes each
    block's activations in the backward pass instead of keeping them.
    """

    def __init__(self, blocks: Sequence[Block], norm: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.checkpointing = False

    def transform(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        causal: bool = False,
        rotations: Sequence[Tensor] | None = None,
        cache: Sequence[LayerCache] | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """x [B, N, D], context [B, M, D] -> [B, N, D]; the others as in `Block`, `rotations`, `cache` one a block."""
        if trace is not None and trace.keep_tokens:
            trace.embedded = x
        recompute = self.checkpointing and self.training and cache is None and trace is None
        for i, block in enumerate(self.blocks):
            rotation = None if rotations is None else rotations[i]
            if recompute:
                x = checkpoint(
                    block,
                    x,
                    context,
                    mask=mask,
                    context_mask=context_mask,
                    causal=causal,
                    rotation=rotation,
                    use_reentrant=False,
                )
                continue
            x = block(
                x,
                context,
                mask=mask,
                context_mask=context_mask,
                causal=causal,
                rotation=rotation,
                cache=None if cache is None else cache[i],
                trace=trace,
            )
            if trace is not None and trace.keep_tokens:
                trace.tokens.append(x)
        return self.norm(x)

    forward = transform
