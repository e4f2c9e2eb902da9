"""The shapes a vision transformer can have, and the one table of named sizes. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vit.errors import ConfigError

Pool = Literal["class", "mean", "attention"]
Positions = Literal["learned", "sincos", "none"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
MLPKind = Literal["mlp", "swiglu"]
Norm = Literal["layer", "rms"]
FinalNorm = Literal["tokens", "pooled", "none"]
RopeKind = Literal["grid", "centred", "mixed"]


class Size(NamedTuple):
    """Width, number of blocks, heads, and width inside the MLP."""

    dim: int
    depth: int
    heads: int
    hidden: int


SIZES: dict[str, Size] = {
    # for pictures of 28 to 96 pixels
    "micro": Size(96, 4, 3, 192),
    "mini": Size(192, 6, 3, 384),
    "lite": Size(256, 7, 4, 512),  # ViT-Lite-7 of Hassani et al. 2021, "Escaping the big data paradigm"
    # Ti, S: Touvron et al. 2020 (DeiT); B, L, H: Dosovitskiy et al. 2020 (ViT); So400m: Alabdulmohsin et al. 2023
    "Ti": Size(192, 12, 3, 768),
    "S": Size(384, 12, 6, 1536),
    "B": Size(768, 12, 12, 3072),
    "L": Size(1024, 24, 16, 4096),
    "H": Size(1280, 32, 16, 5120),
    "So400m": Size(1152, 27, 16, 4304),
}


LIMITS = {
    "image_size": 16_384,
    "patch_size": 4_096,
    "channels": 1_024,
    "registers": 65_536,
    "classes": 10_000_000,
    "vocabulary": 10_000_000,
    "length": 10_000_000,
    "depth": 1_000,
    "heads": 4_096,
    "pool_heads": 4_096,
    "hidden": 1_000_000,
    "pool_hidden": 1_000_000,
    "dim": 65_536,
    "context_dim": 65_536,
    "projection": 65_536,
}
"""largest plausible value of each size: far above any published model, and refused before memory is allocated"""

MOST_POSITIONS = 2**27
"""largest number of values in a table of positions: tokens x dim"""


def require_within(part: str, name: str, value: int, low: int) -> None:
    """Raise ConfigError for a size that is below `low` or above its entry in `LIMITS`."""
    if not low <= value <= LIMITS[name]:
        rule = f"at least {low}" if value < low else f"at most {LIMITS[name]:,}"
        raise ConfigError(f"{part}.{name}: must be {rule}, got {value}")


@dataclass(frozen=True)
class Rope:
    """Rotary positions: where a patch stands, and how its angles follow from it (`vit.nn.rotary`)."""

    kind: RopeKind
    """grid: row and column; centred: from the middle of the picture; mixed: row and column, frequencies learned"""
    base: float = 100.0
    """how far apart the lowest and the highest frequency lie"""
    order: Literal["yx", "xy"] = "yx"
    """which coordinate comes first"""
    offset: float = 0.0
    """row and column of the first patch (grid)"""
    reference: tuple[int, int] | None = None
    """rows and columns of the pretraining grid that coordinates are scaled to (grid)"""


@dataclass(frozen=True)
class VisionArchitecture:
    """Everything that decides the shape of a VisionTransformer's tensors and what it computes from them."""

    image_size: tuple[int, int]
    """height, width in pixels; the patch embedding ignores what is left at the bottom and right of whole patches"""
    patch_size: tuple[int, int]
    dim: int
    depth: int
    heads: int
    hidden: int
    """width inside the MLP"""
    classes: int
    """outputs of the head; 0 leaves the head out"""
    channels: int = 3
    class_token: bool = True
    registers: int = 0
    """extra tokens that belong to no patch (Darcet et al. 2023)"""
    distilled: bool = False
    """a second class token with a head of its own, whose scores are averaged with the first's (Touvron et al. 2020)"""
    positions: Positions = "learned"
    prefix_positions: bool = True
    """learned positions also for the tokens before the patches"""
    rope: Rope | None = None
    pool: Pool = "class"
    pool_prefix: bool = True
    """attention pooling attends to the tokens before the patches too"""
    pool_heads: int | None = None
    """heads of attention pooling, None for as many as the blocks have"""
    pool_hidden: int | None = None
    """width inside attention pooling's MLP, None for that of the blocks"""
    mlp: MLPKind = "mlp"
    activation: Activation = "gelu"
    norm: Norm = "layer"
    norm_eps: float = 1e-6
    patch_norm: bool = False
    """a norm of every embedded patch"""
    pre_norm: bool = False
    """a norm of all tokens before the first block; the patch embedding then has no bias"""
    final_norm: FinalNorm = "tokens"
    """the last norm: of every token, or of the pooled vector"""
    qkv_bias: bool = True
    key_bias: bool = True
    """False: only queries and values have a bias"""
    bias: bool = True
    """biases of attention's output and of the MLP"""
    qk_norm: bool = False
    attention_norm: bool = False
    """a norm of attention's joined heads"""
    mlp_norm: bool = False
    """a norm inside the MLP"""
    layer_scale: float | None = None
    """initial value of LayerScale"""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    """stochastic depth: rate of the last block, rising linearly from 0"""
    patch_dropout: float = 0.0
    """share of the patches that training leaves out, other ones of each picture"""
    timm: str | None = None
    """timm's name of the architecture that the weights came from, whose layout they go back to"""

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "hidden", "channels"):
            require_within("model", name, getattr(self, name), 1)
        for name in ("classes", "registers"):
            require_within("model", name, getattr(self, name), 0)
        for name in ("pool_heads", "pool_hidden"):
            require_within("model", name, getattr(self, name) or 1, 1)
        for name in ("image_size", "patch_size"):
            for side in getattr(self, name):
                require_within("model", name, side, 1)
        rule = f"must be at least one patch, {self.patch_size[0]} x {self.patch_size[1]}"
        _require(min(self.grid) >= 1, "image_size", self.image_size, rule)
        table = (self.grid[0] * self.grid[1] + self.prefix) * self.dim
        rule = f"must make at most {MOST_POSITIONS:,} values of positions with dim {self.dim}; enlarge patch_size"
        _require(table <= MOST_POSITIONS, "image_size", self.image_size, rule)
        _require(self.dim % self.heads == 0, "heads", self.heads, f"must divide dim {self.dim}")
        for name in ("dropout", "attention_dropout", "drop_path", "patch_dropout"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        if self.layer_scale is not None:
            _require(self.layer_scale > 0, "layer_scale", self.layer_scale, "must be positive")
        _require(self.norm_eps > 0, "norm_eps", self.norm_eps, "must be positive")
        _require(self.class_token or self.pool != "class", "pool", self.pool, "needs model.class_token")
        _require(not self.distilled or self.pool == "class", "pool", self.pool, "must be class with distilled")
        _require(self.dim % (self.pool_heads or 1) == 0, "pool_heads", self.pool_heads, f"must divide dim {self.dim}")
        if self.positions == "sincos":
            _require(
                self.dim % 4 == 0 and self.dim >= 8, "dim", self.dim, "must be a multiple of 4 for sincos positions"
            )
        if self.rope is not None:
            rule = f"must leave each head a multiple of 4 for rope, {self.dim} / {self.heads} does not"
            _require(self.dim // self.heads % 4 == 0, "heads", self.heads, rule)
            _require(self.rope.base > 1, "rope.base", self.rope.base, "must be above 1")
            rule = "must be 0 with rope, whose angles are one table for all pictures"
            _require(self.patch_dropout == 0, "patch_dropout", self.patch_dropout, rule)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches. Pixels at the bottom and right that do not fill a patch belong to none."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def has_whole_patches(self) -> bool:
        """Whether the patches cover the whole image; those of some published models (SigLIP, 384 / 14) do not."""
        return all(side % patch == 0 for side, patch in zip(self.image_size, self.patch_size, strict=True))

    def require_whole_patches(self) -> None:
        """Raise ConfigError for an image size that is not a multiple of the patch size, for sizes a user chooses."""
        rule = f"must be a multiple of the patch size {self.patch_size[0]} x {self.patch_size[1]}"
        _require(self.has_whole_patches, "image_size", self.image_size, rule)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.class_token) + int(self.distilled) + self.registers

    @property
    def positioned(self) -> int:
        """Tokens before the patches that have learned positions."""
        return self.prefix if self.prefix_positions else 0


@dataclass
class ModelConfig:
    """Which model. Keys left at null follow from the named size."""

    name: str = "auto"
    """SIZE/PATCH: micro, mini, lite (small pictures), Ti, S, B, L, H, So400m; auto picks by image_size or pictures"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one number or [height, width]; null picks by the name and the pictures"""
    patch_size: int | None = None
    """pixels; with model.init, the patch embedding is resampled to it (FlexiViT)"""
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    hidden: int | None = None
    """width inside the MLP"""
    class_token: bool = True
    registers: int = 0
    """extra tokens that belong to no patch"""
    positions: Positions = "learned"
    rope: Literal["none", "grid", "centred", "mixed"] = "none"
    """rotary positions, beside the others or alone: by row and column, from the middle (DINOv3), or learned"""
    pool: Pool = "class"
    mlp: MLPKind = "mlp"
    activation: Activation = "gelu"
    norm: Norm = "layer"
    patch_norm: bool = False
    """a norm of every embedded patch"""
    qk_norm: bool = False
    layer_scale: float | None = None
    """initial value of LayerScale; null leaves it out"""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    """stochastic depth: rate of the last block"""
    patch_dropout: float = 0.0
    """share of the patches that training leaves out: less work a step (Liu et al. 2023)"""
    head_bias: float = 0.0
    """what a new head's bias starts from; for bce -log(classes): at first no class is likely"""
    init: str | None = None
    """start from these weights, which settle shape and preprocessing: a run folder or model file, timm:NAME, hf:NAME;
    other class names get a new head, of a captioner or a fused classifier what reads its pictures is taken"""

    def __post_init__(self) -> None:
        if self.name != "auto":
            parse_name(self.name)
        # Shapes are settled when the pictures are known; what can be refused before any file is read, is.
        self.resolve(classes=2, picture_size=224)

    def resolve(self, *, classes: int, picture_size: int) -> VisionArchitecture:
        """The architecture for `classes` classes and pictures whose typical short side is `picture_size` pixels.

        Raises ConfigError naming the key, the value and the rule it breaks.
        """
        image_size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        name, side = self.name, None
        if name == "auto":
            name, side = pick(picture_size if image_size is None else min(image_size))
        size, patch = parse_name(name)
        patch = self.patch_size or patch
        if image_size is None:
            image_size = (side or _default_side(patch, picture_size),) * 2
        given = {key: getattr(self, key) for key in Size._fields}
        shape = size._replace(**{key: value for key, value in given.items() if value is not None})
        architecture = VisionArchitecture(
            image_size=(image_size[0], image_size[1]),
            patch_size=(patch, patch),
            classes=classes,
            class_token=self.class_token,
            registers=self.registers,
            positions=self.positions,
            rope=None if self.rope == "none" else Rope(self.rope),
            pool=self.pool,
            norm=self.norm,
            mlp=self.mlp,
            activation=self.activation,
            patch_norm=self.patch_norm,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            drop_path=self.drop_path,
            patch_dropout=self.patch_dropout,
            **shape._asdict(),
        )
        if self.init is None:  # else the patches are those of the first weights, not of the name
            architecture.require_whole_patches()
        return architecture


def pick(picture_size: int) -> tuple[str, int]:
    """Name and image size in pixels for pictures whose typical short side is `picture_size` pixels."""
    if picture_size <= 40:
        return "mini/4", 32
    if picture_size <= 96:
        return "mini/8", 64
    return "Ti/16", 224


def parse_name(name: str) -> tuple[Size, int]:
    """`S/16` -> the size S and the patch of 16 pixels. Raises ConfigError with the names there are."""
    size, _, patch = name.partition("/")
    if size not in SIZES or not patch.isdecimal() or int(patch) < 1:
        known = ", ".join(SIZES)
        raise ConfigError(f"model.name: must be SIZE/PATCH, like S/16, with a size of {known}; got {name!r}")
    return SIZES[size], int(patch)


def _default_side(patch: int, picture_size: int) -> int:
    """The pictures' own size where they are small, else 224 pixels; made a multiple of the patch."""
    if picture_size <= 96:
        return max(1, round(picture_size / patch)) * patch
    return 8 * patch if patch < 8 else -(-224 // patch) * patch  # small patches belong to small pictures


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        shown = " x ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
        raise ConfigError(f"model.{key}: {rule}, got {shown}")
