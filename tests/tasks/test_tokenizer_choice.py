"""The default tokenizer suits the script of the texts."""

import logging

import pytest

from vit.evaluate.captions import caption_scores
from vit.scripts import MOSTLY, unspaced_fraction
from vit.tasks.config import Config, TextConfig
from vit.tasks.text_tokenizer import choose_tokenizer
from vit.tasks.words import Words

CHINESE = ["一只狗在草地上跑", "两个孩子在海边玩球", "一个女人骑着自行车", "一只猫睡在沙发上", "一个男人在山上看风景"]
JAPANESE = ["犬が草の上を走っている", "子供たちが海で遊んでいる", "ネコがソファで眠っている"]
THAI = ["สุนัขวิ่งบนหญ้า", "เด็กเล่นที่ชายหาด", "แมวนอนบนโซฟา"]
ENGLISH = ["a dog runs on the grass", "two children play on the beach", "a cat sleeps on the grass", "a dog plays"]
KOREAN = ["개가 잔디 위를 달린다", "아이들이 해변에서 논다"]


def words(train: list[str], val: list[str]) -> Words:
    return Words({"train": [(text,) for text in train], "val": [(text,) for text in val]})


def kind_of(made: Words, tokenizer: str, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "vit"):
        chosen = choose_tokenizer(made, Config(task="caption", text=TextConfig(tokenizer=tokenizer)), None)
    text = made.texts["train"][0][0]
    return "characters" if len(chosen.encode(text)) == len(text) else "words", caplog.text


@pytest.mark.parametrize("texts", [CHINESE, JAPANESE, THAI])
def test_scripts_without_spaces_are_read_by_characters(texts: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert unspaced_fraction(texts) == 1
    kind, told = kind_of(words(texts[:-1], texts[-1:]), "auto", caplog)
    assert kind == "characters"
    assert "tokenizer  characters instead of words: 100% of the letters belong to scripts without spaces" in told
    kind, told = kind_of(words(texts[:-1], texts[-1:]), "words", caplog)
    assert kind == "words"
    assert "characters or bpe suit the texts better" in told


def test_texts_with_spaces_are_read_by_words(caplog: pytest.LogCaptureFixture) -> None:
    named = [*ENGLISH * 5, "a man named 李明 runs on the grass"]
    for train, val in ((ENGLISH, ENGLISH[:2]), (named, ENGLISH), (KOREAN, KOREAN[:1])):
        assert unspaced_fraction(train) < MOSTLY
        assert kind_of(words(train, val), "auto", caplog) == ("words", "")


def test_words_that_validation_does_not_share_give_way_to_characters(caplog: pytest.LogCaptureFixture) -> None:
    made = words(["ab_cd_ef", "gh_ij_kl"], ["ab_cd_kl", "gh_ij_ef"])
    kind, told = kind_of(made, "auto", caplog)
    assert kind == "characters"
    assert "100% of the words for validation are unknown in training" in told
    assert kind_of(words(ENGLISH, ["a dog sings"]), "auto", caplog) == ("words", "")


def test_scores_of_captions_without_spaces_come_with_a_note() -> None:
    for texts, noted in ((CHINESE, True), (ENGLISH, False)):
        scores = caption_scores(
            dict(enumerate(texts)), {number: [text] for number, text in enumerate(texts)}, resamples=0
        )
        assert any("no spaces between words" in note for note in scores.notes) == noted
