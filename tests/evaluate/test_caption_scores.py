"""Caption scores against coco-caption's own numbers, hand-counted cases, and what must hold for any captions."""

import csv
import gzip
import math
import os
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.errors import DataError
from vit.evaluate.captions import CaptionScores, bleu_from_counts, caption_scores, rouge_l


class Picture(NamedTuple):
    caption: str
    references: list[str]
    bleu4: float
    rouge_l: float
    cider_d: float


# Invented captions and what pycocoevalcap 1.2 says of them with Stanford's tokenizer under OpenJDK 17.
PICTURES = {
    "kite": Picture(
        "A boy flies a red kite on the beach .",
        [
            "A boy is flying a red kite at the beach.",
            "Child with a kite by the sea",
            "The kid runs along the sand, holding a kite!",
        ],
        5.51625153137941e-05,
        0.7299145299145299,
        1.4690245461210925,
    ),
    "bench": Picture(
        "two women sit on a bench and talk",
        [
            "Two women are talking on a park bench .",
            "A pair of ladies sit down together .",
            "Women on a bench (in winter) .",
        ],
        5.721248422925795e-05,
        0.625,
        1.4016841024618174,
    ),
    "same": Picture(
        "A green tractor pulls a wagon full of hay .",
        [
            "A green tractor pulls a wagon full of hay .",
            "a tractor",
        ],
        0.9999999997524806,
        1.0,
        5.255810697479246,
    ),
    "wrong": Picture(
        "cats everywhere",
        [
            "An aeroplane lands on runway no. 5 .",
            "A jet touches down .",
        ],
        9.782458604202842e-12,
        0.0,
        0.0,
    ),
    "repeat": Picture(
        "the the the the the the",
        [
            "The dog sleeps on the mat .",
            "the dog 's asleep",
        ],
        1.5352597832451351e-12,
        0.3333333333333333,
        0.24040809603860291,
    ),
    "short": Picture(
        "Skiing",
        [
            "A man is skiing",
            "Skiing !",
        ],
        3.162277656215536e-05,
        1.0,
        1.9754138225203333,
    ),
    "empty": Picture(
        "",
        [
            "A blurry picture of nothing .",
        ],
        0.0,
        0.0,
        0.0,
    ),
    "fraction": Picture(
        "A cake cut into 1 1/2 pieces, don't touch it",
        [
            "Someone cut 1 1/2 slices of cake and can't eat more",
            "Half a cake doesn't look good on a $5 plate",
        ],
        5.696822650199491e-09,
        0.28328173374613,
        1.0187595903567277,
    ),
    "quotes": Picture(
        'a "stop" sign at St. John\'s Street',
        [
            'A sign that says "Stop!!" on St. John\'s St .',
            "It's a stop sign, isn't it?",
        ],
        7.311104455016595e-05,
        0.511744966442953,
        2.100437152365947,
    ),
    "long": Picture(
        "A group of about twenty people in brightly coloured jackets walk slowly "
        "in a long line up a steep and snowy hill",
        [
            "People hike up a snowy hill .",
            "A group of hikers in coloured jackets walk up a steep hill in the snow .",
            "A line of people climb .",
        ],
        3.659917074622015e-05,
        0.6545064377682404,
        0.5125357654699185,
    ),
    "hyphen": Picture(
        "A black-and-white cat on a well-known brand's T-shirt",
        [
            "black and white cat printed on a t-shirt",
            "A T-shirt with a black-and-white cat - nice",
        ],
        4.939382736441597e-05,
        0.4756335282651072,
        1.7919144090841044,
    ),
    "clock": Picture(
        "A clock at 10:30 a.m. in the U.S.",
        [
            "The clock shows 10:30 a.m. , somewhere in the U.S.",
            "A big clock .",
        ],
        5.24735797611901e-05,
        0.6984732824427481,
        1.8276404407681024,
    ),
}
SET = {
    "bleu1": 0.6914496719902359,
    "bleu2": 0.532571477080616,
    "bleu3": 0.39654379008768104,
    "bleu4": 0.2768557717059921,
    "rouge_l": 0.5259906509927536,
    "cider_d": 1.466135718555491,
}
CANDIDATES = {name: picture.caption for name, picture in PICTURES.items()}
REFERENCES = {name: picture.references for name, picture in PICTURES.items()}

CAPTIONS = st.lists(st.sampled_from(["a", "dog", "runs", "on", "the", "cat", ",", "."]), max_size=7).map(" ".join)


def numbers(scores: CaptionScores[Any]) -> dict[str, float]:
    """Those of the set, by name."""
    return {name: value for name, value in scores.as_dict().items() if name not in ("intervals", "notes")}


def test_the_set_scores_as_coco_caption_says() -> None:
    scores = caption_scores(CANDIDATES, REFERENCES, resamples=0).as_dict()
    assert {name: scores[name] for name in SET} == pytest.approx(SET, abs=1e-9)


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_scores_as_coco_caption_says(name: str) -> None:
    scores = caption_scores(CANDIDATES, REFERENCES, resamples=0).pictures[name]
    expected = PICTURES[name]
    assert scores.rouge_l == pytest.approx(expected.rouge_l, abs=1e-9)
    assert scores.cider_d == pytest.approx(expected.cider_d, abs=1e-9)
    assert scores.bleu4 == pytest.approx(expected.bleu4, rel=1e-6, abs=1e-15)  # far below 1 where no 4-gram is right


def test_bleu_of_the_published_counts_of_coco_is_the_published_bleu() -> None:
    counts = np.array([9893, 9855, 9893, 8893, 7893, 6893, 5732, 2510, 1043, 423])
    np.testing.assert_allclose(bleu_from_counts(counts), [0.579, 0.404, 0.279, 0.191], atol=5e-4)
    assert bleu_from_counts(counts)[0] == pytest.approx(5732 / 9893, abs=1e-12)


def test_bleu_counted_by_hand() -> None:
    # "the" counts twice, as often as in one reference; 4 words against 5, the closest length
    scores = caption_scores({1: "the the the dog"}, {1: ["the dog bit the cat", "a dog"]}, resamples=0)
    cut = math.exp(1 - 5 / 4)
    assert scores.bleu[0] == pytest.approx(cut * 3 / 4, abs=1e-8)
    assert scores.bleu[1] == pytest.approx(cut * math.sqrt(3 / 4 * 1 / 3), abs=1e-8)
    assert scores.bleu[2] == pytest.approx(0, abs=1e-4)
    assert scores.length_ratio == 4 / 5


def test_of_two_equally_close_references_bleu_takes_the_shorter() -> None:
    scores = caption_scores({1: "a b c"}, {1: ["a b c d", "a b"]}, resamples=0)
    assert scores.length_ratio == 3 / 2


def test_rouge_takes_precision_and_recall_of_different_references() -> None:
    # "a b" of three words in "a b x y"; recall 1 in "c"
    precision, recall = 2 / 3, 1.0
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l(["a", "b", "c"], [["a", "b", "x", "y"], ["c"]]) == pytest.approx(expected)


def test_cider_counted_by_hand() -> None:
    # of three pictures only "dog" and "cat" tell one from another; "a" weighs log(3 / 3) = 0
    candidates = {1: "a dog", 2: "a dog", 3: "a fox"}
    references = {1: ["a dog"], 2: ["a cat"], 3: ["a fox runs"]}
    scores = caption_scores(candidates, references, resamples=0)
    assert scores.pictures[1].cider_d == pytest.approx(10 * (1 + 1) / 4)  # alike in words and pairs; no longer n-grams
    assert scores.pictures[2].cider_d == 0
    late = math.exp(-1 / (2 * 36))  # a pair less than the reference
    assert scores.pictures[3].cider_d == pytest.approx(10 * late * 2 / math.sqrt(2) / 4)


def test_cider_of_a_single_picture_is_0_and_said_to_be() -> None:
    scores = caption_scores({1: "a dog"}, {1: ["a dog"]}, resamples=0)
    assert scores.cider_d == 0
    assert scores.bleu[0] == pytest.approx(1)
    assert scores.notes[0].startswith("CIDEr-D of a single picture is always 0")
    assert caption_scores(CANDIDATES, REFERENCES, resamples=0).notes == ("1 of 12 captions have no words: 'empty'",)


def test_empty_captions_are_legal() -> None:
    nothing = caption_scores({1: "", 2: "."}, {1: [""], 2: ["", "a dog"]})
    assert nothing.bleu == (0, 0, 0, 0)
    assert nothing.cider_d == 0
    assert nothing.rouge_l == 1  # as coco-caption has it: nothing against nothing agrees
    assert nothing.mean_length == 0
    assert nothing.length_ratio == 0
    assert nothing.distinct_1 == 0
    assert nothing.notes == ("2 of 2 captions have no words: 1, 2",)
    assert caption_scores({1: "", 2: "a"}, {1: ["a dog"], 2: ["a"]}, resamples=0).pictures[1].rouge_l == 0


def test_diversity_and_length() -> None:
    scores = caption_scores(
        {1: "a dog runs", 2: "A dog runs.", 3: "a cat"}, {1: ["a dog"], 2: ["a"], 3: ["a cat sits"]}, resamples=0
    )
    assert scores.distinct_1 == 4 / 8
    assert scores.distinct_2 == 3 / 5
    assert scores.distinct_captions == 2 / 3  # full stop and capital make no difference
    assert scores.mean_length == pytest.approx(8 / 3)
    assert scores.length_ratio == 8 / 6


def test_intervals_hold_the_scores_and_shrink_with_more_pictures() -> None:
    scores = caption_scores(CANDIDATES, REFERENCES)
    points = scores.as_dict()
    assert set(scores.intervals) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"}
    for name, (low, high) in scores.intervals.items():
        assert low < points[name] < high, name
    many = [(f"{name} {copy}", name) for name in PICTURES for copy in range(9)]
    nine = caption_scores({i: CANDIDATES[name] for i, name in many}, {i: REFERENCES[name] for i, name in many})
    for name in ("bleu1", "rouge_l"):  # a third as wide; the ends of 1000 resamples vary by some 5 %
        widths = [high - low for low, high in (nine.intervals[name], scores.intervals[name])]
        assert 0.25 < widths[0] / widths[1] < 0.45, name


def test_the_same_captions_have_the_same_intervals() -> None:
    assert caption_scores(CANDIDATES, REFERENCES).intervals == caption_scores(CANDIDATES, REFERENCES).intervals
    assert caption_scores(CANDIDATES, REFERENCES, resamples=0).intervals == {}


def test_pictures_that_differ_are_named_up_to_three() -> None:
    with pytest.raises(DataError) as raised:
        caption_scores({"a": "x", "b": "x"}, {name: ["x"] for name in "acdef"})
    assert str(raised.value) == (
        "captions and references name different pictures\n"
        "1 without references: 'b'\n"
        "4 without a caption: 'c', 'd', 'e', ..."
    )


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="no captions to score"):
        caption_scores({}, {})
    with pytest.raises(DataError, match=re.escape("at least one reference a picture, 1 have none: 7")):
        caption_scores({7: "a", 8: "a"}, {7: [], 8: ["a"]})
    with pytest.raises(ValueError, match="lists of captions, not one string: 7"):
        caption_scores({7: "a"}, {7: "a dog"})


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=4)), min_size=1, max_size=5), st.integers())
def test_no_order_matters(pictures: list[tuple[str, list[str]]], seed: int) -> None:
    chance = random.Random(seed)
    order = list(range(len(pictures)))
    chance.shuffle(order)
    shuffled = {i: chance.sample(pictures[i][1], len(pictures[i][1])) for i in order}
    one = caption_scores(
        {i: p[0] for i, p in enumerate(pictures)}, dict(enumerate(p[1] for p in pictures)), resamples=0
    )
    other = caption_scores({i: pictures[i][0] for i in order}, shuffled, resamples=0)
    assert numbers(other) == pytest.approx(numbers(one), abs=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=4)), min_size=1, max_size=5))
def test_scores_are_within_their_bounds(pictures: list[tuple[str, list[str]]]) -> None:
    scores = caption_scores(
        {i: p[0] for i, p in enumerate(pictures)}, dict(enumerate(p[1] for p in pictures)), resamples=0
    )
    assert all(0 <= bleu <= 1 for bleu in scores.bleu)
    assert 0 <= scores.rouge_l <= 1 + 1e-12
    assert 0 <= scores.cider_d <= 10 + 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=4, max_size=9).map(" ".join), min_size=1, max_size=5))
def test_a_caption_that_is_its_reference_has_bleu_and_rouge_1(captions: list[str]) -> None:
    scores = caption_scores(
        dict(enumerate(captions)), {i: ["e d c b a", caption] for i, caption in enumerate(captions)}, resamples=0
    )
    assert scores.bleu == pytest.approx((1, 1, 1, 1), abs=1e-8)
    assert scores.rouge_l == pytest.approx(1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.lists(st.sampled_from("abcd"), min_size=1, max_size=9)
)
def test_rouge_equals_the_table_of_the_textbook(a: list[str], b: list[str]) -> None:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, j in np.ndindex(len(a), len(b)):
        table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else max(table[i, j + 1], table[i + 1, j])
    common = table[-1, -1]
    precision, recall = common / len(a), common / len(b)
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if common else 0
    assert rouge_l(a, [b]) == pytest.approx(expected)


def test_flickr8k_scores_as_the_java_pipeline_says() -> None:
    """The first 1 000 pictures, caption 1 against captions 2 to 5; pycocoevalcap's numbers to six decimals."""
    file = Path(os.environ.get("VIT_TEST_DATA", ""), "flickr8k_captions.csv.gz")
    if not file.is_file():
        pytest.skip("VIT_TEST_DATA names no folder with flickr8k_captions.csv.gz")
    captions: dict[str, list[str]] = {}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            captions.setdefault(row["image"], []).append(row["caption"])
    first = list(captions)[:1000]
    scores = caption_scores({i: captions[i][0] for i in first}, {i: captions[i][1:] for i in first}, resamples=0)
    assert scores.bleu == pytest.approx((0.638771, 0.447391, 0.307970, 0.208937), abs=1e-6)
    assert scores.rouge_l == pytest.approx(0.493592, abs=1e-6)
    assert scores.cider_d == pytest.approx(0.765876, abs=1e-6)
