"""The Python face of models of words: what `vit.load` returns for captioners, language models and fused classifiers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit.api import Classifier, Picture, PictureReader, Prediction, best_device
from vit.data.config import Preprocessing
from vit.data.tokenizer import Tokenizer
from vit.errors import ConfigError, ModelFileError, NonFiniteOutput, display_path
from vit.explain.words import WordMethod, word_maps
from vit.models.beam import Generated
from vit.models.build import build_model
from vit.models.encoder_decoder import EncoderDecoder
from vit.models.file import ModelFile, Weights
from vit.models.fusion import FusedClassifier
from vit.models.generation import generate, stream
from vit.models.generation_config import GenerationConfig
from vit.models.outputs import NON_FINITE, require_finite, top_classes
from vit.models.text import LanguageModel
from vit.models.text_architecture import EncoderDecoderArchitecture, TextArchitecture
from vit.nn import padding_mask

LONGEST = 64
"""new tokens of a caption, unless more are asked for: decoders that could read a page seldom need as many"""

FOLLOWING = 200
"""new tokens of what follows a prompt, unless others are asked for"""


@dataclass(frozen=True)
class Caption:
    """A text that was written: `score` as in `vit.models.beam.Generated`, `words` its tokens as they read, with the
    probability of each; `alternatives` the next best ones.
    """

    text: str
    score: float
    words: tuple[str, ...]
    probabilities: tuple[float, ...]
    tokens: tuple[int, ...]
    finished: bool
    prompt: tuple[int, ...] = ()
    """tokens it was begun with, before `tokens`"""
    alternatives: tuple["Caption", ...] = ()


class Captioner(PictureReader):
    """Describes pictures. Images may be all that `PictureReader` names."""

    def __init__(
        self, network: EncoderDecoder, tokenizer: Tokenizer, preprocessing: Preprocessing, device: str = "cpu"
    ) -> None:
        self.network = network.to(device).eval()
        super().__init__(preprocessing, device, next(self.network.parameters()).dtype)
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        return f"Captioner({len(self.tokenizer)} tokens, {height} x {width} pixels, {self.device})"

    def caption(
        self,
        images: Picture | Sequence[Picture],
        *,
        beams: int = 4,
        n_best: int = 1,
        prompt: str = "",
        config: GenerationConfig | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ) -> list[Caption]:
        """A caption of every image; with `n_best` above 1 the next best ones stand in its `alternatives`.

        `prompt` is how they begin. `config` sets all there is to set, instead of `beams` and `n_best`. Raises
        UnreadableImage for a file that cannot be decoded, ConfigError for a prompt longer than the model reads.
        """
        config = config or GenerationConfig(beams=beams, n_best=n_best, max_length=self.room(prompt))
        captions = []
        generator = torch.Generator(self.device).manual_seed(seed)
        for batch in self.batches(images, batch_size):
            with torch.inference_mode():
                context = self.network.encode(batch)
            captions += self.write(context, prompt, config, generator)
        return captions

    def write(
        self, context: Tensor, prompt: str, config: GenerationConfig, generator: torch.Generator | None = None
    ) -> list[Caption]:
        """Captions of pictures that were encoded, context [B, M, D]."""
        begun = _prompt(self.tokenizer, prompt, self.network.decoder, config)
        texts = generate(
            self.network.decoder,
            begun.to(context.device).expand(len(context), -1),
            config,
            end=self.tokenizer.ends,
            never=self.tokenizer.never,
            context=context,
            generator=generator,
        )
        return [_best(self.tokenizer, self.tokenizer.encode(prompt), answers) for answers in texts]

    def word_maps(
        self,
        image: Picture,
        caption: Caption,
        *,
        method: WordMethod = "cross",
        layer: int | None = None,
        head: int | None = None,
    ) -> Tensor:
        """For each of the caption's `words`, which patches it came from: float32 [N, rows, columns]."""
        (images,) = self.batches([image], 1)
        tokens = torch.tensor([[self.tokenizer.start, *caption.prompt, *caption.tokens]], device=self.device)
        maps = word_maps(
            self.network, images, tokens, prompt=len(caption.prompt), method=method, layer=layer, head=head
        )
        return maps.cpu()

    def room(self, prompt: str) -> int:
        """New tokens that a caption may have by itself."""
        room = self.network.decoder.architecture.length - 1 - len(self.tokenizer.encode(prompt))
        return max(1, min(room, LONGEST))


class Writer:
    """Goes on with a text (a language model), or answers one with another (a model from text to text)."""

    def __init__(self, network: LanguageModel | EncoderDecoder, tokenizer: Tokenizer, device: str = "cpu") -> None:
        self.network = network.to(device).eval()
        self.tokenizer, self.device = tokenizer, torch.device(device)

    def __repr__(self) -> str:
        kind = "text to text" if isinstance(self.network, EncoderDecoder) else "language model"
        return f"Writer({kind}, {len(self.tokenizer)} tokens, {self.device})"

    def generate(
        self, prompt: str | Sequence[str], *, config: GenerationConfig | None = None, seed: int = 0
    ) -> list[Caption]:
        """What follows each prompt, or answers it. Raises ConfigError for a prompt longer than the model reads."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        generator = torch.Generator(self.device).manual_seed(seed)
        return [self._one(text, config, generator) for text in prompts]

    def answer(self, texts: Sequence[str], *, beams: int = 1) -> list[Caption]:
        """What a model from text to text makes of each, all in one batch."""
        network = self.network
        if not isinstance(network, EncoderDecoder):
            raise ConfigError("answer: is for models from text to text; a language model goes on by `generate`")
        encoded = [self._source(text) for text in texts]
        longest = max(len(ids) for ids in encoded)
        lengths = torch.tensor([len(ids) for ids in encoded], device=self.device)
        source = torch.tensor([ids + [0] * (longest - len(ids)) for ids in encoded], device=self.device)
        mask = padding_mask(lengths, longest)
        with torch.inference_mode():
            context = network.encode(source, mask=mask)
        begun = torch.full((len(texts), 1), self.tokenizer.start, device=self.device)
        config = GenerationConfig(beams=beams, max_length=self.room(""))
        answers = generate(
            network.decoder, begun, config, end=self._end, never=self._never, context=context, context_mask=mask
        )
        return [_best(self.tokenizer, [], answer) for answer in answers]

    @torch.inference_mode()
    def loss(self, text: str, *, batch_size: int = 32) -> tuple[float, int]:
        """Mean loss in nats a token of a long text, and the number of tokens, read in windows of the model's length."""
        network = self.network
        if not isinstance(network, LanguageModel):
            raise ConfigError("loss: is for language models")
        ids, length = torch.tensor(self.tokenizer.encode(text)), network.architecture.length
        if len(ids) < 2:
            raise ConfigError(f"a text of {len(ids)} tokens has nothing to predict")
        starts = range(0, len(ids) - 1, length)
        windows = [ids[start : start + length + 1] for start in starts]
        whole = [window for window in windows if len(window) == length + 1]
        batches = [torch.stack(whole[i : i + batch_size]) for i in range(0, len(whole), batch_size)]
        batches += [window[None] for window in windows if len(window) < length + 1]
        total = 0.0
        for batch in batches:
            batch = batch.to(self.device)
            logits = network(batch[:, :-1]).float().flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"))
        if not math.isfinite(total):
            raise NonFiniteOutput(f"the loss is {total}: {NON_FINITE}; check its weights")
        return total / (len(ids) - 1), len(ids) - 1

    def stream(self, prompt: str, *, config: GenerationConfig | None = None, seed: int = 0) -> Iterator[str]:
        """What `generate` gives, piece by piece as it is written."""
        decoder, begun, context = self._begin(prompt, config)
        generator, written = torch.Generator(self.device).manual_seed(seed), begun[0].tolist()
        told = self.tokenizer.decode(written)
        config = config or self._ordinary(prompt)
        tokens = stream(decoder, begun, config, end=self._end, never=self._never, context=context, generator=generator)

        def with_end() -> Iterator[int]:
            end = yield from tokens
            yield from self.tokenizer.closing(end)

        for token in with_end():
            written.append(token)
            text = self.tokenizer.decode(written)
            if not text.endswith("\ufffd"):  # a letter of several bytes is not whole yet
                yield text[len(told) :]
                told = text

    def _one(self, prompt: str, config: GenerationConfig | None, generator: torch.Generator) -> Caption:
        decoder, begun, context = self._begin(prompt, config)
        config = config or self._ordinary(prompt)
        (answers,) = generate(
            decoder, begun, config, end=self._end, never=self._never, context=context, generator=generator
        )
        written = begun[0].tolist()
        return _best(self.tokenizer, written, answers, told=self.tokenizer.decode(written))

    def room(self, prompt: str) -> int:
        """New tokens that a text may have, all of which the model still reads."""
        if isinstance(self.network, EncoderDecoder):
            return self.network.decoder.architecture.length - 1
        return max(1, self.network.architecture.length + 1 - max(1, len(self.tokenizer.encode(prompt))))

    def _begin(self, prompt: str, config: GenerationConfig | None) -> tuple[LanguageModel, Tensor, Tensor | None]:
        """What writes, what it begins with [1, N], and what it attends to [1, M, D]."""
        config = config or self._ordinary(prompt)
        if isinstance(self.network, LanguageModel):
            begun = _prompt(self.tokenizer, prompt, self.network, config, started=False)
            return self.network, begun.to(self.device), None
        source = torch.tensor([self._source(prompt)], device=self.device)
        with torch.inference_mode():
            context = self.network.encode(source)
        begun = torch.tensor([[self.tokenizer.start]], device=self.device)
        return self.network.decoder, begun, context

    def _source(self, text: str) -> list[int]:
        ids, most = self.tokenizer.encode(text) or [self.tokenizer.end], self.network.architecture
        assert isinstance(most, EncoderDecoderArchitecture)
        assert isinstance(most.encoder, TextArchitecture)
        if len(ids) > most.encoder.length:
            raise ConfigError(f"a text of {len(ids)} tokens is too long: the model reads at most {most.encoder.length}")
        return ids

    def _ordinary(self, prompt: str) -> GenerationConfig:
        if isinstance(self.network, EncoderDecoder):
            return GenerationConfig(max_length=self.room(prompt))
        return GenerationConfig(max_length=FOLLOWING, sample=True, window=True)

    @property
    def _end(self) -> tuple[int, ...]:
        return self.tokenizer.ends

    @property
    def _never(self) -> tuple[int, ...]:
        return self.tokenizer.never


class FusedModel(PictureReader):
    """Answers texts about pictures, by one of its classes."""

    def __init__(
        self,
        network: FusedClassifier,
        classes: Sequence[str],
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device).eval()
        super().__init__(preprocessing, device, next(self.network.parameters()).dtype)
        self.classes, self.tokenizer = tuple(classes), tokenizer

    def predict(
        self,
        images: Picture | Sequence[Picture] | None,
        texts: str | Sequence[str] | None,
        *,
        top: int = 5,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """The likeliest classes of every picture with its text; one text is for all pictures, either may be None.

        Raises ConfigError where there are neither, or texts and pictures of different number, and NonFiniteOutput
        where the model gives NaN or inf.
        """
        if images is None and texts is None:
            raise ConfigError("a picture or a text must be given")
        pictures = [None] if images is None else list(self.batches(images, batch_size))
        count = len(texts) if images is None and texts is not None and not isinstance(texts, str) else 1
        count = count if images is None else sum(len(part) for part in pictures if part is not None)
        asked = None if texts is None else [texts] * count if isinstance(texts, str) else list(texts)
        if asked is not None and len(asked) != count:
            raise ConfigError(f"{count} pictures and {len(asked)} texts: there must be one text, or one for each")
        predictions, done = list[Prediction](), 0
        with torch.inference_mode():
            for part in pictures:
                size = count if part is None else len(part)
                tokens, mask = (None, None) if asked is None else self._tokens(asked[done : done + size])
                logits = require_finite(self.network(part, tokens, text_mask=mask))
                indices, values = top_classes(logits, top)
                for row, likely in zip(indices.tolist(), values.tolist(), strict=True):
                    predictions.append(Prediction(tuple(self.classes[i] for i in row), tuple(likely)))
                done += size
        return predictions

    def asking(self, text: str | None) -> Classifier:
        """The model with one text for all pictures, or none, as a classifier of pictures."""
        tokens = None if text is None else self._tokens([text])[0]
        network: Any = _Asking(self.network, tokens)
        return Classifier(network, self.classes, self.preprocessing, str(self.device))

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = [self.tokenizer.encode(text) or [self.tokenizer.end] for text in texts]
        most = self.network.architecture.text.length
        longest = max(len(ids) for ids in encoded)
        if longest > most:
            raise ConfigError(f"a text of {longest} tokens is too long: the model reads at most {most}")
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in encoded], device=self.device)
        lengths = torch.tensor([len(ids) for ids in encoded], device=self.device)
        return tokens, padding_mask(lengths, longest)


class _Asking(nn.Module):
    """A fused classifier with its text tokens [1, N] given: images [B, C, H, W] -> class scores [B, classes]."""

    def __init__(self, network: FusedClassifier, tokens: Tensor | None) -> None:
        super().__init__()
        self.network, self.tokens = network, tokens

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images, None if self.tokens is None else self.tokens.expand(len(images), -1))
        return scores


def words_of(
    model: ModelFile, source: object, *, weights: Weights | None = None, device: str | None = None
) -> Captioner | Writer | FusedModel:
    """What a file of a model of words holds; `source` is what messages call it."""
    network = build_model(model, weights, source=source)
    if model.tokenizer is None:
        raise ModelFileError(f"{display_path(source)}: holds no tokenizer, so its words cannot be read")
    tokenizer = Tokenizer.from_json(model.tokenizer)
    device = device or best_device()
    if isinstance(network, FusedClassifier):
        return FusedModel(network, model.classes, tokenizer, Preprocessing.from_json(model.preprocessing), device)
    if model.kind == "captioner" and isinstance(network, EncoderDecoder):
        return Captioner(network, tokenizer, Preprocessing.from_json(model.preprocessing), device)
    if isinstance(network, LanguageModel | EncoderDecoder):
        return Writer(network, tokenizer, device)
    raise ModelFileError(f"{display_path(source)}: an encoder of texts alone has nothing to say")


def _prompt(
    tokenizer: Tokenizer, prompt: str, decoder: LanguageModel, config: GenerationConfig, *, started: bool = True
) -> Tensor:
    """What a text begins with [1, N]: the start token and the prompt's. Raises ConfigError where they leave no room."""
    ids = tokenizer.encode(prompt)
    if started or not ids:
        ids = [tokenizer.start, *ids]
    room = decoder.architecture.length
    if len(ids) >= room + int(config.window):
        raise ConfigError(f"the prompt has {len(ids)} tokens, the model reads at most {room}; shorten it")
    return torch.tensor([ids])


def _best(tokenizer: Tokenizer, begun: Sequence[int], answers: Sequence[Generated], *, told: str = "") -> Caption:
    """The best answer, and the others: their texts from what they were begun with on, but for what was `told` of it."""
    captions = [
        Caption(
            text=tokenizer.decode([*begun, *answer.tokens, *tokenizer.closing(answer.end)])[len(told) :],
            score=answer.score,
            words=tuple(tokenizer.token(token) for token in answer.tokens),
            probabilities=tuple(answer.probabilities),
            tokens=tuple(answer.tokens),
            finished=answer.finished,
            prompt=tuple(begun),
        )
        for answer in answers
    ]
    return replace(captions[0], alternatives=tuple(captions[1:]))
