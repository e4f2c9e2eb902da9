"""The shapes that models of words can have, alone and beside pictures. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from vit.errors import ConfigError
from vit.models.architecture import (
    MOST_POSITIONS,
    Activation,
    MLPKind,
    Norm,
    Positions,
    VisionArchitecture,
    require_within,
)

TextPool = Literal["first", "last", "mean", "end"]
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
    causal: bool = False
    """a text encoder's tokens attend to those before them alone (CLIP); a language model's always do"""
    pool: TextPool = "mean"
    """what a text encoder's one vector is made of: the first token, the last, the mean, or the first `end_token`"""
    end_token: int | None = None
    """id of the token that ends a text; None for the highest id of each text, as in the first CLIP"""
    projection: int | None = None
    """width that a text encoder's one vector is projected to, None leaves it as it is"""
    mlp: MLPKind = "mlp"
    activation: Activation = "gelu_tanh"
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    post_norm: bool = False
    """norms after the sums instead of before the branches, and none at the end (Vaswani et al. 2017)"""
    embed_norm: bool = False
    """a norm of the embedded words (Devlin et al. 2018, BERT)"""
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
    head_transform: bool = False
    """a layer, its activation and a norm before the logits, and a bias on them (BERT)"""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "length", "dim", "depth", "heads", "hidden"):
            require_within("text", name, getattr(self, name), 1)
        for name in ("projection", "context_dim"):
            require_within("text", name, 1 if (value := getattr(self, name)) is None else value, 1)
        rule = f"must make at most {MOST_POSITIONS:,} values of positions with dim {self.dim}"
        _require(self.length * self.dim <= MOST_POSITIONS, "length", self.length, rule)
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
        for name in ("classes", "depth"):
            require_within("text", name, getattr(self, name), 1)


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"text.{key}: {rule}, got {value}")
