"""Writing: the next word at every position at once, about a picture, after a text, or from another text.

Letters: B pictures or sources, R texts, N tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.data.config import Preprocessing
from vit.data.normalise import Normalise
from vit.data.tokenizer import Tokenizer
from vit.data.words import WordBatch
from vit.errors import DataError
from vit.evaluate.captions import CiderD
from vit.models.beam import Generated
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile
from vit.models.generation import generate
from vit.models.generation_config import GenerationConfig
from vit.models.text import LanguageModel
from vit.nn import padding_mask
from vit.tasks.base import Loss, Losses, Task, diverged
from vit.tasks.config import Config
from vit.tasks.rows import from_all_processes

Context: TypeAlias = tuple[Tensor | None, Tensor | None]
"""what an encoder gives [B, M, D], and its mask [B, 1, 1, M]"""
_PASSED_OVER = -100
"""no token: cross_entropy's own number for what does not count"""


def word_loss(logits: Tensor, tokens: Tensor, lengths: Tensor, *, smoothing: float = 0.0) -> Loss:
    """Cross-entropy of the tokens after the first: logits [R, N - 1, V], tokens [R, N], lengths [R] -> sum and count.

    What is padding goes by the lengths alone: where padding and end are one token, as in GPT-2, the first end is still
    to be learned.
    """
    there = torch.arange(1, tokens.shape[1], device=tokens.device) < lengths[:, None]
    # padding is passed over rather than cut out: how much of it there is a GPU would have to be waited for
    words = tokens[:, 1:].masked_fill(~there, _PASSED_OVER)
    total = F.cross_entropy(
        logits.flatten(0, 1).float(),
        words.flatten(),
        label_smoothing=smoothing,
        ignore_index=_PASSED_OVER,
        reduction="sum",
    )
    return Loss.over(total, there.sum())


def write_about(
    network: EncoderDecoder,
    tokenizer: Tokenizer,
    context: Tensor | None,
    mask: Tensor | None = None,
    config: GenerationConfig | None = None,
) -> list[list[Generated]]:
    """What the decoder writes about each context [B, M, D]; without a config greedily, as long as it can."""
    assert context is not None
    start = torch.full((len(context), 1), tokenizer.start, device=context.device)
    config = config or GenerationConfig(max_length=network.decoder.architecture.length - 1)
    return generate(
        network.decoder,
        start,
        config,
        end=tokenizer.ends,
        never=tokenizer.never,
        context=context,
        context_mask=mask,
    )


@dataclass
class Written:
    """What validation counts, over all processes: sums over words, and texts that were written freely."""

    loss: float = 0.0
    words: int = 0
    gain: float = 0.0
    """loss added by showing the next picture of the batch instead of its own"""
    gain_words: int = 0
    texts: list[tuple[int, str, bool]] = field(default_factory=list)
    """index of the sample, what was written about it, whether it ended properly"""


class Write(Task):
    """Next-word prediction with a language model, alone or behind an encoder, by cross-entropy.

    `expected` holds what the validation samples should be written as, by index, `references` what the training samples
    were captioned with. Each validation writes about some samples freely, greedily, and counts how many texts are
    distinct, end properly, and are exactly right; of a captioner it also measures how much higher the loss is with
    another picture: a captioner that says the same of every picture gains nothing by its own.
    """

    DRAWN = 4
    """captions that are drawn of each picture in training by reward"""
    FREE = 128
    """validation samples that are written about freely"""
    SHOWN = 4

    def __init__(
        self,
        network: LanguageModel | EncoderDecoder,
        tokenizer: Tokenizer,
        config: Config,
        *,
        kind: str,
        preprocessing: Preprocessing | None = None,
        expected: Sequence[Sequence[str]] = (),
        references: Sequence[Sequence[str]] = (),
    ) -> None:
        decoder = network.decoder if isinstance(network, EncoderDecoder) else network
        super().__init__(network, decoder.architecture.depth, config)
        self.kind, self.tokenizer, self.preprocessing = kind, tokenizer, preprocessing
        self.normalise = None if preprocessing is None else Normalise(preprocessing)
        self.expected, self.references = expected, references
        self.cider: CiderD | None = None
        self.licence: str | None = None
        self.origin = "trained by vit"
        self.samples: list[tuple[int, str, bool]] = []
        self.unreadable: dict[tuple[str, int], str] = {}
        """reason by split and place in its list"""

    def context(self, network: torch.nn.Module, batch: WordBatch) -> Context:
        """What the encoder gives of the batch [B, M, D], and its mask [B, 1, 1, M]; None without an encoder."""
        if not isinstance(network, EncoderDecoder):
            return None, None
        if batch.images is not None:
            assert self.normalise is not None
            return network.encode(self.normalise(batch.images)), None
        assert batch.source is not None
        assert batch.source_lengths is not None
        mask = padding_mask(batch.source_lengths, batch.source.shape[1])
        return network.encode(batch.source, mask=mask), mask

    def losses(self, batch: WordBatch) -> Losses:
        """Compute the loss of the batch's tokens, or of captions that are drawn of it; zero of an empty batch."""
        self.unreadable.update({("train", index): reason for index, reason in batch.failures})
        rewarded = self.current_epoch >= self.config.train.epochs - self.config.text.reward_epochs
        if not len(batch):
            return dict.fromkeys(["loss", "reward"] if rewarded else ["loss"], Loss.over(self.zero_loss(), 0))
        if rewarded:
            return self._rewarded(batch)
        logits = self._logits(self.network, self._hidden(batch), self.context(self.network, batch))
        return {"loss": word_loss(logits, batch.tokens, batch.lengths, smoothing=self.config.loss.smoothing)}

    def _hidden(self, batch: WordBatch) -> WordBatch:
        """The batch with some words replaced by the end token; the first, which starts a text, stays."""
        share = self.config.text.word_dropout
        if share == 0:
            return batch
        hidden = torch.rand(batch.tokens.shape, device=batch.tokens.device) < share
        hidden[:, 0] = False
        return replace(batch, tokens=batch.tokens.masked_fill(hidden, self.tokenizer.end))

    def _rewarded(self, batch: WordBatch) -> Losses:
        """Self-critical sequence training (Rennie et al. 2017), the reward being CIDEr-D by all captions of a picture.

        Of each picture `DRAWN` captions are drawn, and each compared with the mean of the others (Luo 2020, "A better
        variant of self-critical sequence training").
        """
        network = self.network
        assert isinstance(network, EncoderDecoder)
        context, _ = self.context(network, batch)
        assert context is not None
        length = network.decoder.architecture.length
        config = GenerationConfig(max_length=length - 1, sample=True, n_best=self.DRAWN)
        network.eval()
        drawn = write_about(network, self.tokenizer, context.detach(), config=config)
        network.train()
        self.cider = self.cider or CiderD(self.references)
        texts, rewards = [], []
        for index, answers in zip(batch.indices.tolist(), drawn, strict=True):
            for answer in answers:
                ended = [] if answer.end is None else [answer.end]
                texts.append([self.tokenizer.start, *answer.tokens, *ended])
                rewards.append(self.cider.score(self.tokenizer.decode(answer.tokens), index))
        reward = torch.tensor(rewards, device=self.device).view(-1, self.DRAWN)
        others = (reward.sum(dim=1, keepdim=True) - reward) / (self.DRAWN - 1)
        tokens = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
        tokens = tokens.to(self.device)
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        logits = network.decoder(tokens[:, :-1], context)  # the captions of a picture share its context
        there = torch.arange(1, tokens.shape[1], device=self.device) < lengths[:, None]
        chosen = logits.float().log_softmax(dim=-1).gather(2, tokens[:, 1:, None])[..., 0]
        gained = ((reward - others).view(-1, 1) * chosen * there).sum()
        return {"loss": Loss.over(-gained, there.sum()), "reward": Loss.over(reward.sum(), reward.numel())}

    def _logits(self, network: torch.nn.Module, batch: WordBatch, seen: Context, *, shift: int = 0) -> Tensor:
        """Logits [R, N - 1, V] of the batch's texts, each about its own picture, or the one `shift` places on."""
        context, mask = seen
        decoder = network.decoder if isinstance(network, EncoderDecoder) else network
        if context is not None:
            # where all pictures have as many texts, these share the keys and values of theirs; else each gets a copy
            owners = torch.arange(len(context), device=self.device) if batch.even else batch.owners
            owners = (owners + shift) % len(context)
            context, mask = context[owners], None if mask is None else mask[owners]
        logits: Tensor = decoder(batch.tokens[:, :-1], context, context_mask=mask)
        return logits

    def on_train_start(self) -> None:
        super().on_train_start()
        self.on_train_epoch_start()  # which is not called for an epoch that goes on

    def on_train_epoch_start(self) -> None:
        """The encoder stands still in the first epochs, where that is asked for."""
        if isinstance(self.network, EncoderDecoder) and (still := self.config.text.freeze_encoder):
            self.network.encoder.requires_grad_(still >= 0 and self.current_epoch >= still)

    def on_validation_epoch_start(self) -> None:
        self.written = Written()

    def validation_step(self, batch: WordBatch, batch_index: int) -> None:
        self.unreadable.update({("val", index): reason for index, reason in batch.failures})
        if not len(batch):
            return
        network, sums, seen = self.evaluated, self.written, self.context(self.evaluated, batch)
        count = int((batch.lengths - 1).sum())
        loss = float(word_loss(self._logits(network, batch, seen), batch.tokens, batch.lengths).total)
        sums.loss, sums.words = sums.loss + loss, sums.words + count
        if len(sums.texts) >= self.FREE or not isinstance(network, EncoderDecoder):
            return
        if self.kind == "captioner" and len(batch) > 1:
            other = float(word_loss(self._logits(network, batch, seen, shift=1), batch.tokens, batch.lengths).total)
            sums.gain, sums.gain_words = sums.gain + other - loss, sums.gain_words + count
        answers = write_about(network, self.tokenizer, *seen)
        for index, (answer, *_) in zip(batch.indices.tolist(), answers, strict=True):
            sums.texts.append((index, self.tokenizer.decode(answer.tokens), answer.finished))

    def on_validation_epoch_end(self) -> None:
        parts = from_all_processes(self.written)
        words = sum(part.words for part in parts)
        if not words:
            raise DataError("no sample for validation could be read")
        loss = sum(part.loss for part in parts) / words
        if not math.isfinite(loss):
            raise diverged(loss, self.current_epoch, self.config)
        self.validated = self.current_epoch
        self.log("val/loss", loss, sync_dist=True)
        gain_words = sum(part.gain_words for part in parts)
        if gain_words:
            self.log("val/picture_gain", sum(part.gain for part in parts) / gain_words, sync_dist=True)
        texts = sorted(text for part in parts for text in part.texts)
        self.samples = texts[: self.SHOWN]
        if texts:
            said = [text for _, text, _ in texts]
            self.log("val/distinct", len(set(said)) / len(said), sync_dist=True)
            self.log("val/ended", sum(ended for *_, ended in texts) / len(texts), sync_dist=True)
        if texts and self.expected:
            right = sum(text in self.expected[index] for index, text, _ in texts)
            self.log("val/exact", right / len(texts), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Beside the state, what `vit.load` needs: a checkpoint is a model too."""
        checkpoint["vit"] = self.file().header()

    def file(self) -> ModelFile:
        """The model as it would lie in a file."""
        preprocessing = {} if self.preprocessing is None else asdict(self.preprocessing)
        network = self.network
        assert isinstance(network, LanguageModel | EncoderDecoder)
        return ModelFile(
            kind=self.kind,
            architecture=asdict(network.architecture),
            classes=[],
            preprocessing=preprocessing,
            raw=self.network.state_dict(),
            licence=self.licence,
            origin=self.origin,
            tokenizer=self.tokenizer.to_json(),
        )
