"""Text to ids and back: exactly where that is promised, the same on every machine, id for id as others do it."""

import csv
import gzip
import json
import multiprocessing
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from vit.data.tokenizer import KINDS, Tokenizer
from vit.errors import ConfigError, ModelFileError

TEXTS = [
    "A man's dog runs across the grass .",
    "Two dogs play (in a red-brown field), happily!",
    "A small girl doesn't look at the dog: it's 5:30.",
    "the the the cat",
] * 3

STRANGE = "naïve  e\u0301 👩‍👩‍👧\r\n\t\0 שלום قِطّة 漢字 <end> <|endoftext|> \ud7ff\u2028"

DATA = Path(os.environ.get("VIT_TEST_DATA", "nowhere"))


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> Tokenizer:
    return Tokenizer.train(TEXTS, request.param, 400)


def of(kind: str, texts: list[str] = TEXTS, vocabulary: int = 400) -> Tokenizer:
    return Tokenizer.train(texts, kind, vocabulary)


def test_special_tokens_come_first_and_none_is_written(tokenizer):
    assert (tokenizer.pad, tokenizer.start, tokenizer.end) == (0, 1, 2)
    assert [tokenizer.token(number) for number in range(3)] == ["<pad>", "<start>", "<end>"]
    if tokenizer.unknown is None:
        assert tokenizer.never == (0, 1)
    else:
        assert (tokenizer.unknown, tokenizer.token(3), tokenizer.never) == (3, "<unk>", (0, 1, 3))
    assert tokenizer.decode([1, *tokenizer.encode("dog"), 2, 0, 0]) == "dog"


def test_it_survives_json_and_a_file_and_other_processes(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        far = pool.apply(tokenizer.encode, (STRANGE,))
    for again in (
        Tokenizer.from_json(tokenizer.to_json()),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.load(str(tmp_path)),
    ):
        assert again.to_json() == tokenizer.to_json()
        assert again.encode(STRANGE) == tokenizer.encode(STRANGE) == far
        assert again.never == tokenizer.never
        assert len(again) == len(tokenizer)


def test_its_json_is_one_for_the_library_too(tokenizer):
    library = Library.from_str(tokenizer.to_json())
    for text in (*TEXTS[:4], STRANGE.replace("<end>", ""), ""):
        assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
        assert library.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_training_depends_on_the_texts_alone(tokenizer, request):
    kind = request.node.callspec.params["tokenizer"]
    for seed in range(3):
        texts = list(TEXTS)
        random.Random(seed).shuffle(texts)
        assert Tokenizer.train(iter(texts), kind, 400).to_json() == tokenizer.to_json()


def test_the_vocabulary_is_as_large_as_the_ids_and_never_larger_than_asked(tokenizer):
    ids = {number for text in TEXTS for number in tokenizer.encode(text)}
    assert max(ids) < len(tokenizer) <= 400
    assert len({tokenizer.token(number) for number in range(len(tokenizer))} - {""}) > len(ids) / 2
    for number in (-1, len(tokenizer)):
        with pytest.raises(ValueError, match=f"token {number}: the vocabulary has {len(tokenizer)}"):
            tokenizer.token(number)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=40, deadline=None)
def test_bytes_and_characters_come_back_exactly(kind, text):
    tokenizer = _bpe if kind == "bpe" else of("characters", [text, "x"], 100)
    assert tokenizer.decode(tokenizer.encode(text)) == text


_bpe = of("bpe")


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_strange_text_comes_back_exactly(kind):
    tokenizer = of(kind, [STRANGE])
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE
    assert not set(tokenizer.encode(STRANGE)) & {0, 1, 2, 3 if kind == "characters" else 0}


def test_text_is_never_read_as_a_special_token(tokenizer):
    for text in ("<end>", "<pad>", "a <start> b", "<unk>"):
        assert not set(tokenizer.encode(text)) & {0, 1, 2}


def test_unknown_characters_and_words_show_as_such():
    assert of("characters").decode(of("characters").encode("cat z?")) == "cat <unk><unk>"
    words = of("words")
    assert words.decode(words.encode("The ZEBRA runs")) == "the <unk> runs"
    assert words.encode("zebra") == [words.unknown]
    few = of("words", vocabulary=8)  # the most frequent stay, equally frequent ones by the alphabet
    assert [few.token(number) for number in range(4, 8)] == ["the", "a", "'s", "."]
    few = of("characters", ["aabbbc"], 6)
    assert [few.token(number) for number in range(4, 6)] == ["b", "a"]
    assert few.decode(few.encode("abc")) == "ab<unk>"


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_words_are_written_as_print_has_them(kind):
    tokenizer = of(kind)
    for text, back in (
        ("A man's dog runs across the grass .", "a man's dog runs across the grass."),
        ("Two dogs play (in a red-brown field), happily!", None),
        ("it's 5:30.", "it's 5: 30."),
        ("a small girl doesn't look", None),
        ("the cat's dog", None),
        ("  the\n\tcat ", "the cat"),
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == (back or text.lower())


def test_words_are_cut_at_punctuation_and_common_endings():
    words = of("words")
    pieces = [words.token(number) for number in words.encode("A Man's red-brown dog, it’s 5:30.")]
    assert pieces == ["a", "man", "'s", "red-brown", "dog", ",", "it", "<unk>", "5", ":", "30", "."]


def test_pieces_of_words_are_marked():
    pieces = of("wordpiece", ["play playing played grass"] * 3, 40)
    ids = pieces.encode("plays")
    assert [pieces.token(number) for number in ids] == ["play", "##s"]
    assert pieces.decode(ids) == "plays"


def test_a_byte_level_token_shows_as_text_or_as_bytes():
    tokenizer = of("bpe")
    assert [tokenizer.token(number) for number in tokenizer.encode("the dog €")][-4:] == [
        " ",
        "\\xe2",
        "\\x82",
        "\\xac",
    ]
    assert "".join(tokenizer.token(number) for number in tokenizer.encode("the dog\n")) == "the dog\n"


@pytest.mark.parametrize(
    ("kind", "vocabulary", "words"),
    [
        ("bpe", 258, "vocabulary: must be at least 259 for a tokenizer of bpe, got 258"),
        ("words", 4, "vocabulary: must be at least 5 for a tokenizer of words, got 4"),
        ("wordpiece", 20, "vocabulary: must be at least 5[0-9], for every character of the texts, got 20"),
        ("sentencepiece", 400, "tokenizer: must be one of bpe, wordpiece, characters, words, got 'sentencepiece'"),
    ],
)
def test_what_cannot_be_trained_is_refused(kind, vocabulary, words):
    with pytest.raises(ConfigError, match=words):
        of(kind, vocabulary=vocabulary)


def test_nothing_to_train_on_gives_a_tokenizer_that_knows_nothing():
    assert [len(of(kind, [])) for kind in KINDS] == [259, 4, 4, 4]
    assert of("words", []).encode("a b") == [3, 3]


def library(vocabulary: dict[str, int]) -> Library:
    made = Library(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def test_a_foreign_tokenizer_keeps_its_names_and_loses_its_frame(tmp_path):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "[DEC]"]
    made = library({name: number for number, name in enumerate(names)})
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(2)
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad, tokenizer.start, tokenizer.end, tokenizer.unknown) == (0, 7, 3, 1)
    assert tokenizer.encode("a DOG dogs [SEP]")[:4] == [4, 5, 5, 6]
    assert 3 not in tokenizer.encode("a DOG dogs [SEP]")
    assert tokenizer.decode([7, 4, 5, 6, 3]) == "a dogs"
    assert tokenizer.never == (0, 1, 7)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    for content, words in (
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "not a tokenizer, "),
        ('{"version": "1.0", "model": {"type": "Magic"}}', "not a tokenizer, "),
        (library({"[UNK]": 0}).to_str(), "no token for the start of a text; expected one of <start>, <s>, "),
        (library({"[UNK]": 0, "<s>": 1}).to_str(), "no token for the end of a text; expected one of <end>, </s>, "),
    ):
        file.write_text(content, encoding="utf-8")
        for call, source in ((Tokenizer.load, file), (Tokenizer.load, tmp_path)):
            with pytest.raises(ModelFileError) as caught:
                call(source)
            assert str(caught.value).startswith(f"{file}: {words}")
        with pytest.raises(ModelFileError, match=r"^tokenizer: "):
            Tokenizer.from_json(content)
    with pytest.raises(ModelFileError, match="no such file"):
        Tokenizer.load(tmp_path / "gone.json")
    file.unlink()
    with pytest.raises(ModelFileError, match=r"neither tokenizer.json nor vocab.json with merges.txt lies in it"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ModelFileError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_gpt2s_files_in_small(tmp_path):
    vocabulary = ["a", "b", "Ġ", "ab", "Ġab", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("ab ab ba") == [3, 4, 2, 1, 0]
    assert (tokenizer.pad, tokenizer.start, tokenizer.end, tokenizer.unknown, tokenizer.never) == (5, 5, 5, None, ())
    assert tokenizer.token(4) == " ab"
    assert tokenizer.token(5) == "<|endoftext|>"
    assert tokenizer.decode([5, 4, 3, 5]) == " abab"


@pytest.mark.skipif(not (DATA / "gpt2_bpe").is_dir(), reason="VIT_TEST_DATA names no folder with gpt2_bpe")
def test_gpt2_equals_transformers_id_for_id(tmp_path):
    from transformers import GPT2Tokenizer

    with gzip.open(DATA / "flickr8k_captions.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        texts = [row["caption"] for row in csv.DictReader(stream)][::20]
    texts += [text for text in STRANGE.split() if "endoftext" not in text]
    shutil.copytree(DATA / "gpt2_bpe", tmp_path / "gpt2")
    ours = Tokenizer.load(tmp_path / "gpt2")
    theirs = GPT2Tokenizer(vocab=str(DATA / "gpt2_bpe/vocab.json"), merges=str(DATA / "gpt2_bpe/merges.txt"))
    assert len(ours) == 50257
    assert len(texts) > 2000
    assert [ours.encode(text) for text in texts] == theirs(texts)["input_ids"]
    assert [ours.decode(ours.encode(text)) for text in texts] == texts


def test_words_keep_an_emoji_whole_and_say_what_they_lack() -> None:
    text = "a family 👩‍👩‍👧 waves 👋🏽 ❤️ قِطّة"
    tokenizer = Tokenizer.train([text], "words", 100)
    ids = tokenizer.encode(text)
    assert len(ids) == 7
    assert tokenizer.decode(ids) == text
    assert tokenizer.lacks("a cat 👋 waves, a cat") == ["cat", "👋", ","]
    assert Tokenizer.train(["abc"], "characters", 100).lacks("cadcd") == ["d"]
    assert Tokenizer.train(["abc"], "bpe", 300).lacks("日本") == []
