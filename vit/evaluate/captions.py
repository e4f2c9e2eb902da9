"""Caption metrics without Java, equal to coco-caption's: BLEU, ROUGE-L, CIDEr-D; and what they cannot tell.

Letters: N pictures, R resamples, n 1..4, the words of an n-gram.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit.errors import DataError
from vit.evaluate.bootstrap import bootstrap_interval, mean_intervals
from vit.evaluate.ptb import ptb_tokens
from vit.scripts import MOSTLY, unspaced_fraction

Id = TypeVar("Id", bound=Hashable)
Ngram = tuple[str, ...]

_ORDERS = (1, 2, 3, 4)
_SEED = 0  # of the intervals: the same captions give the same report
_BETA = 1.2  # of ROUGE-L: how much more recall counts than precision
_SIGMA = 6.0  # of CIDEr-D: the difference in words that costs a share of 1 - exp(-1/2)


@dataclass(frozen=True)
class PictureScores:
    """One picture's caption against its references; BLEU-4 of a single caption is coarse, often next to 0."""

    bleu4: float
    rouge_l: float
    cider_d: float


@dataclass(frozen=True, eq=False)
class CaptionScores(Generic[Id]):
    """Scores of a set of captions. CIDEr-D is not bounded by 1: ten times a mean of cosines, around 1 for good ones."""

    count: int
    """N"""
    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4 of the whole set, no mean of pictures"""
    rouge_l: float
    cider_d: float
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap intervals over pictures of `bleu1` to `bleu4`, `rouge_l`, `cider_d`; empty where not asked for"""
    distinct_1: float
    """different words as a share of all words of the candidates (Li et al. 2016)"""
    distinct_2: float
    """the same of pairs of words"""
    distinct_captions: float
    """different captions as a share of all: 1 / N where a model says the same of every picture"""
    mean_length: float
    """words of a candidate"""
    length_ratio: float
    """words of all candidates by those of the references closest in length; below 1 BLEU is cut. 0 without any"""
    pictures: dict[Id, PictureScores] = field(repr=False)
    notes: tuple[str, ...]
    """what a reader of these numbers must know, in words"""

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, without the single pictures, as they go into JSON."""
        return {
            "count": self.count,
            **{f"bleu{n}": self.bleu[n - 1] for n in _ORDERS},
            "rouge_l": self.rouge_l,
            "cider_d": self.cider_d,
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
            "distinct_captions": self.distinct_captions,
            "mean_length": self.mean_length,
            "length_ratio": self.length_ratio,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "notes": list(self.notes),
        }


def caption_scores(
    candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]], *, resamples: int = 1000
) -> CaptionScores[Id]:
    """Compare a caption a picture with the picture's references, any number of them.

    The numbers are those of coco-caption (Chen et al. 2015), whose tokenizer and formulas are followed to the detail:
    - BLEU (Papineni et al. 2002) of the set, against the reference closest in length.
    - ROUGE-L (Lin 2004): the best precision and the best recall of all references, maybe not of the same one.
    - CIDEr-D (Vedantam et al. 2015), which coco-caption calls CIDEr. How rare an n-gram is comes from the references
      given, so values compare over the same pictures only, and a single picture always has 0.

    Intervals come from `resamples` resamples of the pictures, 0 for none; for CIDEr-D how rare n-grams are stays as it
    is in the full set. An empty caption is a caption, one without any right word.

    Raises DataError without captions, where the ids of the two differ, and for a picture without references.
    """
    check_captions(candidates, references)
    ids = list(candidates)
    answers = [ptb_tokens(candidates[i]) for i in ids]
    truths = [[ptb_tokens(reference) for reference in references[i]] for i in ids]
    answer_counts = [_ngrams(words) for words in answers]
    truth_counts = [[_ngrams(words) for words in picture] for picture in truths]

    counts = np.array([_bleu_counts(*picture) for picture in zip(answer_counts, truth_counts, strict=True)])
    rouge = np.array([rouge_l(a, t) for a, t in zip(answers, truths, strict=True)])
    cider = _scored(CiderD.of_ngrams(truth_counts), answer_counts)
    totals = counts.sum(axis=0)
    bleu = bleu_from_counts(totals)
    bleu4 = bleu_from_counts(counts)[:, 3]
    return CaptionScores(
        count=len(ids),
        bleu=(float(bleu[0]), float(bleu[1]), float(bleu[2]), float(bleu[3])),
        rouge_l=float(rouge.mean()),
        cider_d=float(cider.mean()),
        intervals=_intervals(counts, rouge, cider, resamples) if resamples else {},
        distinct_1=_distinct(answer_counts, 1),
        distinct_2=_distinct(answer_counts, 2),
        distinct_captions=len(set(map(tuple, answers))) / len(ids),
        mean_length=float(totals[0]) / len(ids),
        length_ratio=float(totals[0] / totals[1]) if totals[1] else 0.0,
        pictures={
            i: PictureScores(float(b), float(r), float(c)) for i, b, r, c in zip(ids, bleu4, rouge, cider, strict=True)
        },
        notes=_notes(ids, answers, chain.from_iterable(references[i] for i in ids)),
    )


def bleu_from_counts(counts: NDArray[Any]) -> NDArray[np.float64]:
    """counts [..., 10] -> BLEU-1 to BLEU-4 [..., 4].

    The ten are: words of the candidates; words of the references closest in length; n-grams of the candidates, n from
    1 to 4; how many of those n-grams the references have too, each at most as often as in one reference.
    """
    tiny, small = 1e-15, 1e-9  # coco-caption's, which keep ratios over nothing defined
    counts = np.asarray(counts, np.float64)
    length, closest, guessed, right = counts[..., 0], counts[..., 1], counts[..., 2:6], counts[..., 6:]
    precisions = np.cumprod((right + tiny) / (guessed + small), axis=-1) ** (1 / np.array(_ORDERS))
    ratio = (length + tiny) / (closest + small)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    scores: NDArray[np.float64] = precisions * brevity[..., None]
    return scores


def rouge_l(candidate: Sequence[str], references: Iterable[Sequence[str]]) -> float:
    """ROUGE-L of one caption's tokens, as coco-caption takes it: two empty captions agree."""
    tokens = candidate or [""]
    lengths = [(_common(tokens, reference or [""]), len(reference) or 1) for reference in references]
    precision = max(common for common, _ in lengths) / len(tokens)
    recall = max(common / length for common, length in lengths)
    if precision == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def check_captions(candidates: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> None:
    """Raise DataError unless every candidate has references and every picture a candidate; empty strings are fine."""
    single = [i for i, captions in references.items() if isinstance(captions, str)]
    if single:
        raise ValueError(f"references must be lists of captions, not one string: {_some(single)}")
    if not candidates:
        raise DataError("no captions to score")
    unanswered = [i for i in references if i not in candidates]
    unknown = [i for i in candidates if i not in references]
    parts = [
        f"{len(ids)} without {what}: {_some(ids)}"
        for ids, what in ((unknown, "references"), (unanswered, "a caption"))
        if ids
    ]
    if parts:
        raise DataError("captions and references name different pictures\n" + "\n".join(parts))
    bare = [i for i, captions in references.items() if len(captions) == 0]
    if bare:
        raise DataError(f"a score needs at least one reference a picture, {len(bare)} have none: {_some(bare)}")


def _some(ids: Sequence[Hashable]) -> str:
    """Up to three of the ids."""
    return ", ".join(repr(i) for i in ids[:3]) + (", ..." if len(ids) > 3 else "")


def _notes(ids: Sequence[Hashable], answers: Sequence[Sequence[str]], references: Iterable[str]) -> tuple[str, ...]:
    notes = []
    if unspaced_fraction(references) > MOSTLY:
        notes.append("the references have no spaces between words: each run of letters counts as one word")
    if len(ids) == 1:
        notes.append("CIDEr-D of a single picture is always 0: it weighs words by how few other pictures have them")
    empty = [i for i, words in zip(ids, answers, strict=True) if not words]
    if empty:
        notes.append(f"{len(empty)} of {len(ids)} captions have no words: {_some(empty)}")
    return tuple(notes)


def _ngrams(tokens: Sequence[str]) -> list[Counter[Ngram]]:
    """How often each n-gram stands in a caption, for every n."""
    words = " ".join(tokens).split()  # a token that holds a space, "1 1/2", is two words in all scores but ROUGE-L
    return [Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in _ORDERS]


def _distinct(captions: Iterable[list[Counter[Ngram]]], n: int) -> float:
    """Different n-grams as a share of all; 0 where there is none."""
    together: Counter[Ngram] = Counter()
    for counts in captions:
        together.update(counts[n - 1])
    return len(together) / max(1, together.total())


def _bleu_counts(answer: list[Counter[Ngram]], truths: list[list[Counter[Ngram]]]) -> list[int]:
    """The ten counts of `bleu_from_counts` for one picture."""
    length = answer[0].total()
    closest = min((abs(truth[0].total() - length), truth[0].total()) for truth in truths)[1]
    guessed = [counts.total() for counts in answer]
    right = [
        sum(min(count, max(truth[k][ngram] for truth in truths)) for ngram, count in counts.items())
        for k, counts in enumerate(answer)
    ]
    return [length, closest, *guessed, *right]


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of its table in the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(b)) - 1
    for word in a:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return len(b) - row.bit_count()


class CiderD:
    """CIDEr-D of single captions by the references of a set of pictures (Vedantam et al. 2015): a metric, and a reward.

    How rare an n-gram is goes by the references of all pictures.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self._set([[_ngrams(ptb_tokens(text)) for text in picture] for picture in references])

    @classmethod
    def of_ngrams(cls, truths: list[list[list[Counter[Ngram]]]]) -> "CiderD":
        """Of references that were counted already."""
        made = cls.__new__(cls)
        made._set(truths)
        return made

    def _set(self, truths: list[list[list[Counter[Ngram]]]]) -> None:
        documents: Counter[Ngram] = Counter()
        for picture in truths:
            documents.update(set(chain.from_iterable(chain.from_iterable(picture))))
        self._rarest = math.log(len(truths))
        self._rarity = {ngram: self._rarest - math.log(count) for ngram, count in documents.items()}
        self._truths = truths

    def score(self, caption: str, picture: int) -> float:
        """A caption's score by the references of one of the pictures, by its place in the set."""
        return self.of_counts(_ngrams(ptb_tokens(caption)), picture)

    def of_counts(self, answer: list[Counter[Ngram]], picture: int) -> float:
        """The same of a caption whose n-grams were counted."""
        mine = self._weighed(answer)
        norms = [_norm(part) for part in mine]
        total = 0.0
        for truth in self._truths[picture]:
            # lengths in pairs of words, so that captions of one word and of none are equally long
            difference = answer[1].total() - truth[1].total()
            cosines = sum(map(_cosine, mine, norms, self._weighed(truth)))
            total += cosines * math.exp(-(difference**2) / (2 * _SIGMA**2))
        return 10 * total / (len(_ORDERS) * len(self._truths[picture]))

    def _weighed(self, caption: list[Counter[Ngram]]) -> list[dict[Ngram, float]]:
        # an n-gram that no reference has counts as one that a single picture has
        rarity, rarest = self._rarity, self._rarest
        return [{ngram: count * rarity.get(ngram, rarest) for ngram, count in part.items()} for part in caption]


def _scored(cider: CiderD, answers: list[list[Counter[Ngram]]]) -> NDArray[np.float64]:
    """The score of every picture's caption [N]."""
    return np.array([cider.of_counts(answer, place) for place, answer in enumerate(answers)])


def _norm(weights: dict[Ngram, float]) -> float:
    return math.sqrt(sum(weight * weight for weight in weights.values()))


def _cosine(mine: dict[Ngram, float], norm: float, truth: dict[Ngram, float]) -> float:
    """Cosine where repeating a word gains nothing: a weight counts up to that of the reference."""
    product = sum(min(weight, truth[ngram]) * truth[ngram] for ngram, weight in mine.items() if ngram in truth)
    return product / (norm * _norm(truth)) if product else 0.0


def _intervals(
    counts: NDArray[Any], rouge: NDArray[np.float64], cider: NDArray[np.float64], resamples: int
) -> dict[str, tuple[float, float]]:
    ones = np.ones(len(counts), np.int64)

    def bleu(n: int) -> tuple[float, float]:
        return bootstrap_interval(
            ones, lambda drawn: bleu_from_counts(drawn @ counts)[:, n - 1], seed=_SEED, resamples=resamples
        )

    low, high = mean_intervals(np.stack([rouge, cider], axis=1), seed=_SEED, resamples=resamples)
    means = {name: (float(low[k]), float(high[k])) for k, name in enumerate(("rouge_l", "cider_d"))}
    return {**{f"bleu{n}": bleu(n) for n in _ORDERS}, **means}
