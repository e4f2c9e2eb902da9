"""What can be set about a training run, one dataclass a part. Imports no torch, so `vit --help` answers at once."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from vit.data.config import AugmentConfig, DataConfig, require
from vit.models.architecture import ModelConfig, Positions

MOST_NODES = 10_000
"""largest number of machines; a larger one is a typing error that every process would wait for"""


@dataclass
class OptimConfig:
    """How weights are changed."""

    name: str = "adamw"
    """adamw (torch's, fused), muon (Jordan 2024; AdamW for all that is no hidden matrix), or any optimizer that timm
    has, such as lamb, lion, sgd"""
    lr: float | None = None
    """highest learning rate; null takes 0.001 from scratch and for LoRA, 0.0003 for fine-tuning"""
    lr_base_batch: int = 0
    """samples a step that lr is meant for: it is multiplied by those of all devices, nodes and accumulated steps
    together, over this number (Goyal et al. 2017); 0 takes lr as it is"""
    weight_decay: float = 0.05
    """decoupled decay; never on biases, norms, positions and tokens"""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float | None = None
    """factor on the learning rate from each block to the one before it, and from the head to the last block with the
    final norm; null takes 1 (the same everywhere) from scratch and for LoRA, 0.75 for fine-tuning"""
    clip: float = 1.0
    """largest norm of the gradient; 0 does not clip"""

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, "optim.lr", self.lr, "must be positive")
        base = self.lr_base_batch
        require(base >= 0, "optim.lr_base_batch", base, "must be 0 (off) or a number of samples")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative")
        require(all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "must be in [0, 1)")
        require(self.eps > 0, "optim.eps", self.eps, "must be positive")
        decay = self.layer_decay
        require(decay is None or 0 < decay <= 1, "optim.layer_decay", decay, "must be in (0, 1]")
        require(self.clip >= 0, "optim.clip", self.clip, "must not be negative")

    def rates(self, *, tuning: bool = False) -> tuple[float, float]:
        """Learning rate and layer decay; where they were left open, those for training from scratch or fine-tuning."""
        lr, layer_decay = (3e-4, 0.75) if tuning else (1e-3, 1.0)
        return lr if self.lr is None else self.lr, layer_decay if self.layer_decay is None else self.layer_decay

    def scaled(self, samples: int) -> "OptimConfig":
        """With the rate for steps of `samples`, as `lr_base_batch` wants it; what is kept of a run is never this."""
        if not self.lr_base_batch:
            return self
        return replace(self, lr=self.rates()[0] * samples / self.lr_base_batch, lr_base_batch=0)


@dataclass
class ScheduleConfig:
    """How the learning rate moves through training."""

    name: Literal["cosine", "constant", "wsd"] = "cosine"
    """after the warm-up: half a cosine down; constant; or stable, then a linear decay (wsd)"""
    unit: Literal["epochs", "steps"] = "epochs"
    """what warmup counts in, and how often the rate changes"""
    warmup: float | None = None
    """epochs (or steps) of linear rise from nearly zero; null takes 3 epochs, but no more than a tenth of training"""
    final: float = 0.01
    """last learning rate, as a share of the highest"""
    decay_fraction: float = 0.2
    """share of training that decays (wsd)"""

    def __post_init__(self) -> None:
        require(self.warmup is None or self.warmup >= 0, "schedule.warmup", self.warmup, "must not be negative")
        require(0 <= self.final <= 1, "schedule.final", self.final, "must be in [0, 1]")
        require(0 < self.decay_fraction <= 1, "schedule.decay_fraction", self.decay_fraction, "must be in (0, 1]")


@dataclass
class LossConfig:
    """What is minimised."""

    name: Literal["cross-entropy", "bce"] = "cross-entropy"
    """bce trains every class as a yes or no of its own (Wightman et al. 2021, Touvron et al. 2022); what is validated
    and predicted is a softmax over the classes all the same"""
    smoothing: float = 0.1
    """label smoothing (Szegedy et al. 2016)"""
    whole: bool = False
    """bce: every class in a mixed picture is a whole yes, whatever its share (Touvron et al. 2022)"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class by the inverse of its fraction of the training images: 1 on average over these, so the
    loss stays a mean over samples"""

    def __post_init__(self) -> None:
        require(0 <= self.smoothing < 1, "loss.smoothing", self.smoothing, "must be in [0, 1)")
        require(not self.whole or self.name == "bce", "loss.whole", self.whole, "needs loss.name bce")


@dataclass
class TrainConfig:
    """The run itself: length, devices, precision, what is kept."""

    epochs: int = 50
    seed: int = 0
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | str = "auto"
    """how many devices, auto or -1 for all, or which ones: 0,2"""
    nodes: int = 1
    strategy: str = "auto"
    """one of Lightning's strategies that keep the whole model on every device, such as ddp; or fsdp: weights, gradients
    and moments are shared out among the devices of a machine (to classify, with adamw)"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto is bf16 on GPUs that have it, else fp32"""
    compile: bool = False
    """compile the model with torch.compile: slow to start, faster after"""
    accumulate: int = 1
    """micro-batches per optimizer step: its gradient is that of all their samples, or tokens, at once"""
    checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    ema: float = 0.0
    """decay of the averaged weights, such as 0.999; 0 keeps none. When kept, they are what is validated and used"""
    monitor: Literal["accuracy", "loss", "balanced_accuracy", "macro_f1"] = "accuracy"
    """validation metric that chooses the best checkpoint"""
    patience: int = 0
    """stop after this many epochs without a better validation; 0 never stops early"""
    validate_every: int = 1
    """epochs between validations; the last epoch is always validated"""
    save_minutes: float = 10.0
    """minutes between checkpoints within an epoch; 0 writes one at the end of every epoch alone"""
    save_steps: int = 0
    """steps between checkpoints within an epoch; 0 goes by the minutes alone"""
    keep: int = 2
    """last checkpoints that are kept: last.ckpt, last-1.ckpt, ...; a damaged one gives way to the one before"""
    on_nan: Literal["stop", "skip"] = "stop"
    """what becomes of a step whose loss or gradient is no number, and which never changes the weights: the end of the
    run, or nothing"""
    nan_limit: int = 10
    """so many such steps in a row end the run all the same; with fp16 they are usual, and end it only so"""
    on_memory: Literal["stop", "halve"] = "stop"
    """what becomes of a run whose batches do not fit into the memory of its one device: its end, or half of
    data.batch_size with twice train.accumulate, from the beginning of the epoch on"""

    def __post_init__(self) -> None:
        for name in ("epochs", "nodes", "accumulate", "validate_every", "keep", "nan_limit"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be at least 1")
        for name in ("seed", "patience", "save_minutes", "save_steps"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must not be negative")
        require(0 <= self.ema < 1, "train.ema", self.ema, "must be in [0, 1)")
        require(self.nodes <= MOST_NODES, "train.nodes", self.nodes, f"must be at most {MOST_NODES}")
        known = re.fullmatch(r"auto|-1|[1-9]\d{0,3}|\d{1,4}(,\d{1,4})+", str(self.devices)) is not None
        require(known, "train.devices", self.devices, "must be auto, a number below 10,000, or numbers such as 0,2")
        split = self.strategy.startswith(("fsdp_", "deepspeed", "model_parallel"))
        require(not split, "train.strategy", self.strategy, "of those that split the model, only fsdp is supported")
        require(self.strategy != "fsdp" or not self.compile, "train.compile", self.compile, "is not for fsdp")


@dataclass
class TuneConfig:
    """How the weights of model.init are made to fit new pictures."""

    method: Literal["full", "lora", "probe", "knn"] = "full"
    """full: train the weights; lora: train low-rank matrices beside them (Hu 2021); probe: fit a linear head on
    features that are computed once; knn: vote by the nearest training pictures' features"""
    probe_first: bool = True
    """start training from a head that was fitted on the features, where the head is new (Kumar 2022)"""
    freeze: int = 0
    """first blocks that stand still, with the embeddings before them; -1 for all of them"""
    unfreeze_after: int = 0
    """epochs after which everything is trained; 0: what stands still does so to the end"""
    lora_rank: int = 8
    lora_alpha: float = 16.0
    """what LoRA adds is scaled by alpha / rank"""
    probe_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """learning rates of heads that are fitted side by side; the best one in validation is kept"""
    probe_epochs: int = 100
    neighbours: tuple[int, ...] = (1, 5, 10, 20, 50)
    """numbers of neighbours that knn tries"""

    def __post_init__(self) -> None:
        require(self.freeze >= -1, "tune.freeze", self.freeze, "must be -1 (all), 0 or more")
        after = self.unfreeze_after
        require(after >= 0, "tune.unfreeze_after", after, "must not be negative")
        require(
            not after or self.freeze != 0, "tune.unfreeze_after", after, "needs tune.freeze, what stands still first"
        )
        alone = self.method == "full" or not self.freeze
        require(
            alone, "tune.freeze", self.freeze, "is for tune.method full; the other ways let all weights stand still"
        )
        require(self.lora_rank >= 1, "tune.lora_rank", self.lora_rank, "must be at least 1")
        require(self.lora_alpha > 0, "tune.lora_alpha", self.lora_alpha, "must be positive")
        rates, neighbours = self.probe_rates, self.neighbours
        require(len(rates) > 0 and min(rates) > 0, "tune.probe_rates", rates, "must be positive numbers")
        require(self.probe_epochs >= 1, "tune.probe_epochs", self.probe_epochs, "must be at least 1")
        require(len(neighbours) > 0 and min(neighbours) > 0, "tune.neighbours", neighbours, "must be positive")


@dataclass
class TextConfig:
    """How words are read and written, in every task but classify. What is left at null suits the task."""

    tokenizer: str = "auto"
    """characters, words, wordpiece or bpe, made from the training texts; or a tokenizer.json, or a folder with GPT-2's
    files; auto: bpe for language, characters for translate, words for caption and fuse (characters where words do not
    suit: scripts without spaces, mostly unknown words in validation); with text.init, that of it"""
    vocabulary: int = 8000
    """most tokens that a tokenizer is made with"""
    length: int | None = None
    """most tokens of a text; null takes 256 for language, else the longest of the training texts and some room"""
    dim: int | None = None
    """width; null takes that of the encoder, without one 384"""
    depth: int | None = None
    """null takes 4 blocks, for language 6"""
    heads: int | None = None
    """null takes one for every 64 of dim"""
    hidden: int | None = None
    """null takes 4 x dim"""
    positions: Positions = "learned"
    rope: bool = False
    """rotary positions"""
    dropout: float = 0.1
    word_dropout: float = 0.0
    """share of the words before the next one that are hidden while learning to write, so that it is told from the
    picture or source rather than guessed from the words (Bowman 2016)"""
    init: str | None = None
    """start the decoder, the language model or the text encoder from these weights: a run, or hf:NAME of a GPT-2"""
    per_picture: int = 1
    """caption, fuse: how many captions or questions of a picture each of its steps learns from, drawn anew; the picture
    is read once for all of them"""
    freeze_encoder: int = 0
    """caption: epochs in which the picture encoder stands still, its first weights being model.init's; -1: all"""
    epoch_steps: int = 0
    """language: batches in an epoch, of all devices together, each of windows that begin anywhere; 0 takes as many as
    read the text once"""
    reward_epochs: int = 0
    """caption: last epochs that are trained by self-critical sequences, the reward being CIDEr-D (Rennie 2017)"""
    fusion_depth: int = 2
    """fuse: blocks in which one side attends to the other"""
    attends: Literal["image", "text"] = "image"
    """fuse: which side's tokens attend to the other's"""
    drop_side: float = 0.1
    """fuse: probability that a training step lacks its images, and that it lacks its texts, so that either may be
    missing later"""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "per_picture"):
            require(getattr(self, name) >= 1, f"text.{name}", getattr(self, name), "must be at least 1")
        for name in ("length", "dim", "depth", "heads", "hidden"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"text.{name}", value, "must be at least 1")
        for name in ("dropout", "word_dropout"):
            require(0 <= getattr(self, name) < 1, f"text.{name}", getattr(self, name), "must be in [0, 1)")
        require(self.freeze_encoder >= -1, "text.freeze_encoder", self.freeze_encoder, "must be -1 (all), 0 or more")
        for name in ("epoch_steps", "reward_epochs"):
            require(getattr(self, name) >= 0, f"text.{name}", getattr(self, name), "must not be negative")
        require(self.fusion_depth >= 1, "text.fusion_depth", self.fusion_depth, "must be at least 1")
        require(0 <= self.drop_side <= 0.5, "text.drop_side", self.drop_side, "must be from 0 to 0.5")


_OF_CLASSES = (
    ("data", "balanced"),
    ("data", "repeats"),
    ("loss", "name"),
    ("loss", "whole"),
    ("loss", "class_weights"),
    ("train", "compile"),
)
"""settings that no task of words heeds"""
_CHECKED = ("freeze_encoder", "reward_epochs")  # have rules of their own

_ACTS_WITH: tuple[tuple[str, str, Callable[["Config"], bool]], ...] = (
    ("tune.lora_rank tune.lora_alpha", "without tune.method lora", lambda c: c.tune.method == "lora"),
    ("tune.neighbours", "without tune.method knn", lambda c: c.tune.method == "knn"),
    (
        "tune.probe_rates tune.probe_epochs",
        "where no head is fitted: that takes tune.method probe, or model.init with tune.probe_first",
        lambda c: c.tune.method == "probe" or (c.tune.method != "knn" and c.tune.probe_first and bool(c.model.init)),
    ),
    ("schedule.decay_fraction", "without schedule.name wsd", lambda c: c.schedule.name == "wsd"),
    (
        "augment.policy_ops augment.policy_magnitude",
        "without augment.policy randaugment",
        lambda c: c.augment.policy == "randaugment",
    ),
    (
        "augment.mix_probability augment.mix_off_epochs",
        "without augment.mixup or augment.cutmix",
        lambda c: max(c.augment.mixup, c.augment.cutmix) > 0,
    ),
    (
        "augment.mix_switch",
        "without both augment.mixup and augment.cutmix",
        lambda c: min(c.augment.mixup, c.augment.cutmix) > 0,
    ),
    ("text.epoch_steps", "except on task language", lambda c: c.task == "language"),
    ("text.per_picture", "except on tasks caption and fuse", lambda c: c.task in ("caption", "fuse")),
    ("text.fusion_depth text.attends text.drop_side", "except on task fuse", lambda c: c.task == "fuse"),
    (
        "text.word_dropout",
        "except on tasks caption, language and translate",
        lambda c: c.task in ("caption", "language", "translate"),
    ),
    (
        " ".join(f"text.{field.name}" for field in fields(TextConfig) if field.name not in _CHECKED),
        "on task classify",
        lambda c: c.task != "classify",
    ),
)
"""settings, what they have no effect without, and whether that is given"""

Task = Literal["classify", "caption", "fuse", "language", "translate"]


@dataclass
class Config:
    """Everything that a training run is made of."""

    task: Task = "classify"
    """classify pictures; caption them; fuse: answer texts about them; language: go on with a text; translate: from
    text to text"""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        # the weights' mean of 1 holds for the data as it is, not as it is drawn then
        twice = self.loss.class_weights == "balanced" and self.data.balanced
        require(not twice, "loss.class_weights", "balanced", "must be none with data.balanced, which balances too")
        if self.train.strategy == "fsdp":
            require(self.task == "classify", "train.strategy", "fsdp", f"is not for task {self.task}")
            require(self.optim.name == "adamw", "optim.name", self.optim.name, "must be adamw with fsdp")
            whole = self.tune.method == "full" and not self.tune.freeze
            require(whole, "train.strategy", "fsdp", "is not for tune.method lora, probe and knn, nor tune.freeze")
        if self.task != "classify":
            require(self.tune.method == "full", "tune.method", self.tune.method, f"must be full for task {self.task}")
            require(not self.tune.freeze, "tune.freeze", self.tune.freeze, "is for classify")
            require(not self.model.head_bias, "model.head_bias", self.model.head_bias, "is for classify")
            mixed = max(self.augment.mixup, self.augment.cutmix)
            require(not mixed, "augment.mixup and cutmix", mixed, f"must be 0 for task {self.task}")
            half = self.augment.half_size
            require(not half, "augment.half_size", half, f"must be 0 for task {self.task}")
            for part, name in _OF_CLASSES:
                value, usual = getattr(getattr(self, part), name), getattr(type(getattr(self, part))(), name)
                require(value == usual, f"{part}.{name}", value, f"has no effect on task {self.task}")
            require(self.data.cache != "device", "data.cache", "device", f"is not for task {self.task}")
        still = self.text.freeze_encoder
        require(not still or self.task == "caption", "text.freeze_encoder", still, "is for task caption")
        if self.task in ("caption", "language", "translate"):
            balanced, monitor = self.train.monitor == "accuracy", self.train.monitor
            require(balanced or monitor == "loss", "train.monitor", monitor, f"must be loss for task {self.task}")
            self.train = replace(self.train, monitor="loss")
        rewarded = self.text.reward_epochs
        require(not rewarded or self.task == "caption", "text.reward_epochs", rewarded, "is for task caption")
        asked = self.tune.method
        require(
            self.model.init is not None or asked == "full", "tune.method", asked, "needs model.init, what it adapts"
        )
        require(
            self.model.init is not None or not self.tune.freeze, "tune.freeze", self.tune.freeze, "needs model.init"
        )
        for keys, reason, acts in _ACTS_WITH:
            for part, name in (key.split(".") for key in keys.split()):
                value, usual = getattr(getattr(self, part), name), getattr(type(getattr(self, part))(), name)
                require(value == usual or acts(self), f"{part}.{name}", value, f"has no effect {reason}")
