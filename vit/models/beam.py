"""Beam search over the words of one text, in plain numbers: which texts run on, which have ended, and when to stop.

The rules are those of transformers' `generate`, so that published settings give the published texts.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from vit.models.generation_config import GenerationConfig

End: TypeAlias = int | Sequence[int] | None
"""the id, or the ids, that end a text"""


def end_ids(end: End) -> tuple[int, ...]:
    """Return the ids that end a text as a tuple."""
    return () if end is None else (end,) if isinstance(end, int) else tuple(end)


@dataclass
class Generated:
    """A text that a model wrote, without its prompt."""

    tokens: list[int]
    """new tokens, the end token not among them"""
    score: float
    """beams: sum of log-probabilities, as repetition penalties left them, / (new tokens ^ length_penalty); otherwise
    the mean of the model's own log-probabilities; the end token counts"""
    probabilities: list[float]
    """the model's own probability of each of `tokens` after those before it"""
    finished: bool
    """it came to its end; False where it was cut at the longest length"""
    end: int | None = None
    """the token that ended it"""


class Candidate(NamedTuple):
    """A running text and a word after it."""

    beam: int
    word: int
    total: float
    """sum of log-probabilities with this word"""
    chance: float
    """the model's own log-probability of the word"""


class Running(NamedTuple):
    """A text that goes on."""

    beam: int
    """which of the texts before it continues"""
    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    total: float


class BeamSearch:
    """The search for one text: hand `advance` the best candidates of each word until it is `done`."""

    def __init__(self, config: GenerationConfig, end: End) -> None:
        self.config, self.ends = config, end_ids(end)
        self.running = [Running(0, (), (), 0.0)]
        self.found: list[Generated] = []
        self.done = False

    def advance(self, candidates: Iterable[Candidate]) -> None:
        """Takes the best candidates, best first, `candidates` of them: enough run on if each text could end.

        Only a candidate among the first `beams` may end. Afterwards `running` holds as many texts as there are beams.
        """
        c, length = self.config, len(self.running[0].tokens) + 1
        running: list[Running] = []
        for rank, (beam, word, total, chance) in enumerate(candidates):
            if total == -math.inf:
                break
            before = self.running[beam]
            tokens, chances = (*before.tokens, word), (*before.chances, chance)
            if word in self.ends or length == c.max_length:
                if rank < c.beams:
                    self.found.append(as_generated(tokens, chances, total / length**c.length_penalty, self.ends))
            elif len(running) < c.beams:
                running.append(Running(beam, tokens, chances, total))
        self.found = sorted(self.found, key=lambda text: -text.score)[: c.beams]
        self.done = not running or self._cannot_improve(running[0].total, length)
        if running:
            impossible = running[0]._replace(total=-math.inf)  # where the vocabulary has fewer words than beams
            self.running = running + [impossible] * (c.beams - len(running))

    @property
    def candidates(self) -> int:
        """How many candidates `advance` needs: each running text may end by each of the end ids."""
        return max(2, 1 + len(self.ends)) * self.config.beams

    def _cannot_improve(self, total: float, length: int) -> bool:
        c = self.config
        if len(self.found) < c.beams:
            return False
        if c.early_stopping == "never" and c.length_penalty > 0:  # its score would be best at the longest length
            length = c.max_length
        return c.early_stopping is True or total / length**c.length_penalty <= self.found[-1].score


def as_generated(tokens: Sequence[int], chances: Sequence[float], score: float, ends: Sequence[int]) -> Generated:
    """New tokens, an end token perhaps the last of them, and the model's own log-probabilities -> the text."""
    finished = tokens[-1] in ends
    count, end = len(tokens) - finished, tokens[-1] if finished else None
    return Generated(list(tokens[:count]), score, [math.exp(chance) for chance in chances[:count]], finished, end)
