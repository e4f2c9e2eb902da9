"""How a language model picks its words: what can be set. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from vit.errors import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy as it stands; `beams` above 1 searches for likely texts, `sample` draws them.

    Lengths count new tokens: those after the prompt, the end token among them. What would not act is refused.
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
    """draw each word by its probability"""
    temperature: float = 1.0
    """logits are divided by it: below 1 for likelier words; 0 takes the likeliest (sample)"""
    top_k: int = 0
    """draw among that many likeliest words; 0 for all (sample)"""
    top_p: float = 1.0
    """draw among the fewest words that have this probability together (sample; Holtzman et al. 2019)"""
    min_p: float = 0.0
    """draw among words at least this part as likely as the likeliest (sample; Nguyen et al. 2024)"""
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
        if self.sample:
            self._require(self.beams == 1, "beams", "must be 1 with sample")
            self._require(self.draws or self.n_best == 1, "n_best", "must be 1 at temperature 0, which draws nothing")
        else:
            self._require(self.n_best <= self.beams, "n_best", f"must be at most beams, {self.beams}, without sample")
            self._require(self.temperature in (0, 1), "temperature", "only acts with sample")
            for name, unused in (("top_k", 0), ("top_p", 1), ("min_p", 0)):
                self._require(getattr(self, name) == unused, name, "only acts with sample")
        if self.beams == 1:
            self._require(self.length_penalty == 1, "length_penalty", "only acts with beams above 1")
            self._require(self.early_stopping is False, "early_stopping", "only acts with beams above 1")

    @property
    def draws(self) -> bool:
        """Words are drawn, not the likeliest taken."""
        return self.sample and self.temperature > 0

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"generation.{key}: {rule}, got {getattr(self, key)}")
