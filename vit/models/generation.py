"""Writing: a language model's words one after the other, alone or about a context.

Greedy, beam search and sampling, token for token as transformers' `generate` has them; a context's keys and values
are made once and serve all texts about it. Letters: B contexts (pictures), R texts (B x the texts of each), N tokens,
M tokens of the context, D dim, V vocabulary.
"""

import math
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from vit.errors import ConfigError
from vit.models.beam import BeamSearch, Candidate, End, Generated, as_generated, end_ids
from vit.models.generation_config import GenerationConfig
from vit.models.outputs import require_finite
from vit.models.text import LanguageModel
from vit.nn import LayerCache


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    config: GenerationConfig,
    *,
    end: End = None,
    never: Sequence[int] = (),
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[list[Generated]]:
    """prompt [B, N], context [B, M, D] (as `EncoderDecoder.encode` gives it) -> for each, `n_best` texts, best first.

    The prompt holds whatever stands before the first new word: a start token, or some words. A text ends with `end`, or
    with any of several; words of `never` are not written. Each text is what it would be alone in the batch, but for
    sampling: the draws of a batch come from one `generator`. Raises ConfigError where the model cannot read so many
    tokens, NonFiniteOutput where its logits are NaN or inf.
    """
    reader = _Reader(model, prompt, config, end, never, context, context_mask)
    return _search(reader) if config.beams > 1 else _write(reader, generator)


@torch.inference_mode()
def stream(
    model: LanguageModel,
    prompt: Tensor,
    config: GenerationConfig,
    *,
    end: End = None,
    never: Sequence[int] = (),
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Generator[int, None, int | None]:
    """Yield the tokens of one text, prompt [1, N], as they come; return its end token, None where it was cut.

    Greedily or drawn, otherwise as `generate`.
    """
    if prompt.shape[0] != 1 or config.beams > 1 or config.n_best > 1:
        raise ValueError("a stream is of one text: it takes one prompt, beams 1 and n_best 1")
    for [word], _ in _words(_Reader(model, prompt, config, end, never, context, context_mask), generator):
        if word in end_ids(end):
            return word
        yield word
    return None


def process_logits(
    logits: Tensor,
    tokens: Tensor,
    config: GenerationConfig,
    *,
    end: End = None,
    written: int = 0,
    never: Sequence[int] = (),
) -> Tensor:
    """logits [R, V] of the words after tokens [R, N], the last `written` of them new -> logits as the settings want.

    Without sampling log-probabilities may stand for logits, as they do in beam search. What is ruled out is -inf.
    """
    c = config
    if c.repetition_penalty != 1:
        seen = logits.gather(1, tokens)
        seen = torch.where(seen < 0, seen * c.repetition_penalty, seen / c.repetition_penalty)
        logits = logits.scatter(1, tokens, seen)
    closed = [*never, *(end_ids(end) if written < c.min_length else ())]
    if closed:
        logits = logits.index_fill(1, torch.tensor(closed, device=logits.device), -math.inf)
    if 0 < c.no_repeat_ngram <= tokens.shape[1]:
        repeated = _repeated(tokens, c.no_repeat_ngram, logits.shape[1])
        none_left = (repeated | logits.isneginf()).all(dim=1, keepdim=True)
        logits = logits.masked_fill(repeated & ~none_left, -math.inf)
    return _narrowed(logits, c) if c.draws else logits


def _repeated(tokens: Tensor, n: int, vocabulary: int) -> Tensor:
    """Boolean [R, V]: words that would make the last n - 1 of tokens [R, N] and themselves n words that occurred."""
    grams = tokens.unfold(1, n, 1)  # [R, N - n + 1, n]
    last = tokens[:, tokens.shape[1] - n + 1 :]
    again = (grams[..., :-1] == last[:, None]).all(dim=-1)
    words = grams[..., -1].masked_fill(~again, vocabulary)  # to one column too many, which is cut off
    repeated = torch.zeros(tokens.shape[0], vocabulary + 1, dtype=torch.bool, device=tokens.device)
    return repeated.scatter_(1, words, True)[:, :vocabulary]


def _narrowed(logits: Tensor, c: GenerationConfig) -> Tensor:
    """Temperature, then the words that may be drawn."""
    if c.temperature != 1:
        logits = logits / c.temperature
    if c.top_k > 0:
        lowest = logits.topk(min(c.top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -math.inf)
    if c.top_p < 1:
        ascending, order = logits.sort(dim=1)
        dropped = ascending.softmax(dim=1).cumsum(dim=1) <= 1 - c.top_p
        dropped[:, -1] = False
        logits = logits.masked_fill(dropped.scatter(1, order, dropped), -math.inf)
    if c.min_p > 0:
        probabilities = logits.softmax(dim=1)
        logits = logits.masked_fill(probabilities < c.min_p * probabilities.amax(dim=1, keepdim=True), -math.inf)
    return logits


class _Reader:
    """What has been written of R texts about B contexts, and what the model keeps of them."""

    def __init__(
        self,
        model: LanguageModel,
        prompt: Tensor,
        config: GenerationConfig,
        end: End,
        never: Sequence[int],
        context: Tensor | None,
        context_mask: Tensor | None,
    ) -> None:
        self.model, self.config, self.ends, self.never = model, config, end_ids(end), never
        self.context, self.context_mask = context, context_mask
        self.contexts, self.prompt_length = prompt.shape
        self.tokens = prompt
        self.cache = model.new_cache()
        length = model.architecture.length
        if self.prompt_length == 0:
            raise ValueError("a prompt must have at least one token")
        if context is not None and len(context) != self.contexts:
            raise ValueError(f"each prompt needs a context, got {self.contexts} prompts and {len(context)} contexts")
        if self.prompt_length + config.max_length - 1 > length and not config.window:  # the last one is not read
            raise ConfigError(
                f"{self.prompt_length} tokens and {config.max_length} new ones are too long: this model reads at most "
                f"{length} (generation.max_length; or generation.window, to read only the last ones)"
            )

    def logits(self) -> Tensor:
        """fp32 logits [R, V] of the next words."""
        length = self.model.architecture.length
        if self.tokens.shape[1] > length:  # every token has another position than it had
            self.cache = [LayerCache(cross_attention=layer.cross_attention) for layer in self.cache]
        seen = self.cache[0].self_attention.length
        unread = self.tokens[:, seen:][:, -length:]
        x = self.model.read(unread, self.context, context_mask=self.context_mask, causal=True, cache=self.cache)
        return require_finite(self.model.unembed(x[:, -1:])[:, 0].float())

    def process(self, logits: Tensor) -> Tensor:
        written = self.tokens.shape[1] - self.prompt_length
        return process_logits(logits, self.tokens, self.config, written=written, end=self.ends, never=self.never)

    def append(self, words: Tensor) -> None:
        """Put words [R] behind the texts."""
        self.tokens = torch.cat([self.tokens, words[:, None]], dim=1)

    def select(self, rows: Tensor) -> None:
        """Go on with these of the texts, some of them perhaps several times; as many for each context."""
        self.tokens = self.tokens[rows]
        for layer in self.cache:
            layer.self_attention.select(rows)

    def keep(self, contexts: Tensor) -> None:
        """Go on with the texts of these contexts alone."""
        of_each = torch.arange(len(self.tokens), device=contexts.device).view(self.contexts, -1)
        self.select(of_each[contexts].flatten())
        self.contexts = len(contexts)
        if self.context is not None:
            self.context = self.context[contexts]
            for layer in self.cache:
                layer.cross_attention.select(contexts)
        if self.context_mask is not None:
            self.context_mask = self.context_mask[contexts]


def _words(reader: _Reader, generator: torch.Generator | None) -> Iterator[tuple[list[int], list[float]]]:
    """For every text a word, and the model's own log-probability of it; until they are as long as they may become."""
    config = reader.config
    for step in range(config.max_length):
        logits = reader.logits()
        if step == 0 and config.n_best > 1:  # one reading of the prompt serves all texts
            rows = torch.arange(len(logits), device=logits.device).repeat_interleave(config.n_best)
            reader.select(rows)
            logits = logits[rows]
        wanted = reader.process(logits)
        if config.draws:
            words = torch.multinomial(wanted.softmax(dim=1), 1, generator=generator)[:, 0]
        else:
            words = wanted.argmax(dim=1)
        reader.append(words)
        chances = logits.gather(1, words[:, None])[:, 0] - logits.logsumexp(dim=1)
        yield words.tolist(), chances.tolist()


def _write(reader: _Reader, generator: torch.Generator | None) -> list[list[Generated]]:
    """Greedy or drawn texts."""
    config, ends = reader.config, reader.ends
    count = reader.contexts * config.n_best
    tokens: list[list[int]] = [[] for _ in range(count)]
    chances: list[list[float]] = [[] for _ in range(count)]
    rows = list(range(count))  # the text of each row
    for new, new_chances in _words(reader, generator):
        for text, word, chance in zip(rows, new, new_chances, strict=True):
            if not tokens[text] or tokens[text][-1] not in ends:
                tokens[text].append(word)
                chances[text].append(chance)
        running = [row for row, text in enumerate(rows) if tokens[text][-1] not in ends]
        if not running:
            break
        if not config.draws and _worth_leaving(len(running), len(rows)):
            reader.keep(torch.tensor(running, device=reader.tokens.device))
            rows = [rows[row] for row in running]
    texts = [as_generated(*each, sum(each[1]) / len(each[1]), ends) for each in zip(tokens, chances, strict=True)]
    groups = (texts[i : i + config.n_best] for i in range(0, count, config.n_best))
    return [sorted(group, key=lambda text: -text.score) for group in groups]


def _search(reader: _Reader) -> list[list[Generated]]:
    """The likeliest texts that beam search finds."""
    config, device = reader.config, reader.tokens.device
    searches = [BeamSearch(config, reader.ends) for _ in range(reader.contexts)]
    rows = searches  # those whose texts the reader holds
    while True:
        for search, candidates in zip(rows, _candidates(reader, rows), strict=True):
            if not search.done:
                search.advance(candidates)
        running = [i for i, search in enumerate(rows) if not search.done]
        if not running:
            return [search.found[: config.n_best] for search in searches]
        texts = len(reader.tokens) // len(rows)
        if _worth_leaving(len(running), len(rows)):
            reader.keep(torch.tensor(running, device=device))
            rows = [rows[i] for i in running]
        beams = [i * texts + text.beam for i, search in enumerate(rows) for text in search.running]
        reader.select(torch.tensor(beams, device=device))
        reader.append(torch.tensor([text.tokens[-1] for search in rows for text in search.running], device=device))


def _candidates(reader: _Reader, searches: Sequence[BeamSearch]) -> Iterator[Iterator[Candidate]]:
    """For each search the best words after its running texts, best first."""
    chances = reader.logits().log_softmax(dim=1)
    vocabulary = chances.shape[1]
    totals = torch.tensor([[text.total for text in search.running] for search in searches], device=chances.device)
    sums = reader.process(chances).view(*totals.shape, vocabulary) + totals[..., None]
    sums = sums.flatten(1)  # [B, texts x V]
    best, places = sums.topk(min(searches[0].candidates, sums.shape[1]), dim=1)
    own = chances.view(len(searches), -1).gather(1, places)
    for row in zip(places.tolist(), best.tolist(), own.tolist(), strict=True):
        yield (
            Candidate(place // vocabulary, place % vocabulary, total, chance)
            for place, total, chance in zip(*row, strict=True)
        )


def _worth_leaving(running: int, rows: int) -> bool:
    """Finished texts are left out when they are half of all: the others' keys and values are copied then."""
    return 2 * running <= rows
