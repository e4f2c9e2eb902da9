"""Beam search over the words of one text, in plain numbers: which texts run on, which have ended, and when to stop.

The rules are those of transformers' `generate`, so that published settings give the published texts.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vit.models.generation_config import GenerationConfig


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

    def __init__(self, config: GenerationConfig, end: int | None) -> None:
        self.config, self.end = config, end
        self.running = [Running(0, (), (), 0.0)]
        self.found: list[Generated] = []
        self.done = False

    def advance(self, candidates: Iterable[Candidate]) -> None:
        """Takes the 2 x beams best candidates, best first: so many that enough run on if each text could end.

        Only a candidate among the first `beams` may end. Afterwards `running` holds as many texts as there are beams.
        """
        c, length = self.config, len(self.running[0].tokens) + 1
        running: list[Running] = []
        for rank, (beam, word, total, chance) in enumerate(candidates):
            if total == -math.inf:
                break
            before = self.running[beam]
            tokens, chances = (*before.tokens, word), (*before.chances, chance)
            if word == self.end or length == c.max_length:
                if rank < c.beams:
                    self.found.append(as_generated(tokens, chances, total / length**c.length_penalty, self.end))
            elif len(running) < c.beams:
                running.append(Running(beam, tokens, chances, total))
        self.found = sorted(self.found, key=lambda text: -text.score)[: c.beams]
        self.done = not running or self._cannot_improve(running[0].total, length)
        if running:
            impossible = running[0]._replace(total=-math.inf)  # where the vocabulary has fewer words than beams
            self.running = running + [impossible] * (c.beams - len(running))

    def _cannot_improve(self, total: float, length: int) -> bool:
        c = self.config
        if len(self.found) < c.beams:
            return False
        if c.early_stopping == "never" and c.length_penalty > 0:  # its score would be best at the longest length
            length = c.max_length
        return c.early_stopping is True or total / length**c.length_penalty <= self.found[-1].score


def as_generated(tokens: Sequence[int], chances: Sequence[float], score: float, end: int | None) -> Generated:
    """New tokens, the end token perhaps the last of them, and the model's own log-probabilities -> the text."""
    finished = tokens[-1] == end
    count = len(tokens) - finished
    return Generated(list(tokens[:count]), score, [math.exp(chance) for chance in chances[:count]], finished)
