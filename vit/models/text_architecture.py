"""The shapes that models of words can have, alone and beside pictures. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from vit.errors import ConfigError
from vit.models.architecture import Activation, MLPKind, Norm, Positions, VisionArchitecture

TextPool = Literal["first", "last", "mean"]
Side = Literal["image", "text"]


@dataclass(frozen=True)
class TextArchitecture:
    """Everything that decides the shape of a text model's tensors and what it computes from them."""

    vocabulary: int
    length: int
    """most tokens that the model reads at a time"""
    dim: int
    depth: int
    heads: int
    hidden: int
    """width inside the MLP"""
    context_dim: int | None = None
    """width of the tokens that blocks cross-attend to; None leaves cross-attention out"""
    positions: Positions = "learned"
    rope: bool = False
    """rotary positions"""
    rope_base: float = 10_000.0
    pool: TextPool = "mean"
    """what a text encoder's one vector is made of: the first token, the last, or the mean"""
    mlp: MLPKind = "mlp"
    activation: Activation = "gelu_tanh"
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    qkv_bias: bool = True
    key_bias: bool = True
    bias: bool = True
    """biases of attention's output and of the MLP"""
    qk_norm: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    layer_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    tied: bool = True
    """the embedding turns vectors back into logits too; False gives a head of its own"""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "length", "dim", "depth", "heads", "hidden"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        _require(self.dim % self.heads == 0, "heads", self.heads, f"must divide dim {self.dim}")
        for name in ("dropout", "attention_dropout", "drop_path"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        _require(self.norm_eps > 0, "norm_eps", self.norm_eps, "must be positive")
        if self.positions == "sincos":
            _require(self.dim % 2 == 0, "dim", self.dim, "must be even for sincos positions")
        if self.rope:
            rule = f"must leave each head an even width for rope, {self.dim} / {self.heads} does not"
            _require(self.dim // self.heads % 2 == 0, "heads", self.heads, rule)


@dataclass(frozen=True)
class EncoderDecoderArchitecture:
    """An encoder of pictures or of words, and a decoder of words that attends to its tokens."""

    encoder: VisionArchitecture | TextArchitecture
    decoder: TextArchitecture

    def __post_init__(self) -> None:
        if self.decoder.context_dim is None:
            raise ConfigError("decoder.context_dim: must be set, a decoder attends to its encoder")
        if self.decoder.context_dim != self.encoder.dim:
            rule = f"must be the encoder's dim {self.encoder.dim}"
            raise ConfigError(f"decoder.context_dim: {rule}, got {self.decoder.context_dim}")


@dataclass(frozen=True)
class FusionArchitecture:
    """Pictures and words that answer together: one side's tokens attend to the other's, then one class is chosen."""

    image: VisionArchitecture
    text: TextArchitecture
    classes: int
    depth: int = 2
    """blocks with cross-attention, of the attending side's shape"""
    attends: Side = "image"
    """whose tokens attend to the other's"""

    def __post_init__(self) -> None:
        _require(self.classes >= 1, "classes", self.classes, "must be at least 1")
        _require(self.depth >= 1, "depth", self.depth, "must be at least 1")


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"text.{key}: {rule}, got {value}")
