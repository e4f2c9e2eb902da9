"""How a language model picks its words: what can be set. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from vit.errors import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy decoding by default; `beams` above 1 is beam search, `sample` draws tokens.

    A temperature other than 0 and 1, `top_k`, `top_p` and `min_p` imply `sample`. Lengths count new tokens: those after
    the prompt, EOS included. Raises ConfigError for values out of range and for settings without effect.
    """

    max_length: int = 20
    """most new tokens"""
    min_length: int = 0
    """new tokens that come before the end token may"""
    beams: int = 1
    """texts that are kept at each word; the likeliest continuations of all of them go on"""
    length_penalty: float = 1.0
    """a text's score is its log-probability / (new tokens ^ length_penalty): above 0 favours long texts (beams)"""
    early_stopping: bool | Literal["never"] = False
    """true: stop as soon as `beams` texts have ended; false: when no running one is better than they are now; never:
    when none can become so (beams)"""
    sample: bool = False
    """draw each token from the distribution"""
    temperature: float = 1.0
    """divides the logits: below 1 sharpens the distribution; 0 is greedy decoding"""
    top_k: int = 0
    """sample from this many most likely tokens; 0 for all"""
    top_p: float = 1.0
    """sample from the smallest set of tokens whose probabilities sum to this (Holtzman et al. 2019)"""
    min_p: float = 0.0
    """sample from tokens with at least this fraction of the highest probability (Nguyen et al. 2024)"""
    repetition_penalty: float = 1.0
    """above 1: words of the text and its prompt become less likely (Keskar et al. 2019, CTRL)"""
    no_repeat_ngram: int = 0
    """no n words in a row occur twice; 0 lets them"""
    n_best: int = 1
    """texts to give back: at most `beams`; with `sample` as many are drawn"""
    window: bool = False
    """beyond the model's length, read the last tokens anew for each word; otherwise that is refused"""

    def __post_init__(self) -> None:
        for name in ("max_length", "beams", "n_best"):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("temperature", "top_k", "no_repeat_ngram"):
            self._require(getattr(self, name) >= 0, name, "must not be negative")
        self._require(0 <= self.min_length <= self.max_length, "min_length", f"must be in 0..{self.max_length}")
        self._require(0 < self.top_p <= 1, "top_p", "must be in (0, 1]")
        self._require(0 <= self.min_p <= 1, "min_p", "must be in [0, 1]")
        self._require(self.repetition_penalty > 0, "repetition_penalty", "must be positive")
        known = self.early_stopping in (True, False, "never")
        self._require(known, "early_stopping", "must be true, false or never")
        narrowed = self._narrowed
        if self.temperature == 0 and not self.sample:
            for name in narrowed:
                self._require(False, name, "has no effect at temperature 0, which is greedy decoding")
        elif self.temperature != 1:
            narrowed = ("temperature", *narrowed)
        if self.sample or narrowed:
            implied = f", which {narrowed[0]} {getattr(self, narrowed[0])} implies" if narrowed else ""
            self._require(self.beams == 1, "beams", f"must be 1 when sampling{implied}")
        if not self.draws:
            fewest = "must be 1 at temperature 0, which draws nothing" if self.sample else ""
            self._require(
                self.n_best <= self.beams, "n_best", fewest or f"must be at most beams, {self.beams}, without sampling"
            )
        if self.beams == 1:
            self._require(self.length_penalty == 1, "length_penalty", "only acts with beams above 1")
            self._require(self.early_stopping is False, "early_stopping", "only acts with beams above 1")

    @property
    def draws(self) -> bool:
        """Whether tokens are sampled rather than chosen by greedy decoding or beam search."""
        return self.temperature > 0 and (self.sample or self.temperature != 1 or bool(self._narrowed))

    @property
    def _narrowed(self) -> tuple[str, ...]:
        """The settings that restrict which tokens are sampled."""
        return tuple(name for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)) if getattr(self, name) != off)

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"generation.{key}: {rule}, got {getattr(self, key)}")
