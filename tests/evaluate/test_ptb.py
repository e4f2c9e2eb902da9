"""The tokenizer against what Stanford's PTBTokenizer 3.4.1 says under coco-caption: its quirks, one a line."""

import csv
import gzip
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.evaluate.ptb import ptb_tokens

QUIRKS = {
    # every right side was written by the Java program, without the tokens that coco-caption removes
    "A dog , a cat ; and : a bird - or two -- sit ... there .": "a dog a cat and a bird or two sit there",
    "a man (left) [right] {curly} waits": "a man -lrb- left -rrb- -lsb- right -rsb- -lcb- curly -rcb- waits",
    "really?! no!! ok!!! what?? hm?": "really ?! no !! ok !!! what ?? hm",
    "cannot gonna gotta lemme gimme wanna 'tis 'twas": "can not gon na got ta lem me gim me wan na 't is 't was",
    "y'all can't won't don't ain't": "y' all ca n't wo n't do n't ai n't",
    "it's he'd she'll they've we're I'M IT'S": "it 's he 'd she 'll they 've we 're i 'm it 's",
    "shouldn't've who'd've": "should n't 've who 'd 've",
    "dogs' tails, the dog's bone, 'quoted', \"double\", ``both''": "dogs tails the dog 's bone quoted double both",
    "the dog 's ball , the boys ' room": "the dog 's ball the boys room",
    "rock 'n' roll ol' 'em 'cause O'Brien d'art ma'am": "rock 'n' roll ol' 'em 'cause o'brien d'art ma'am",
    "\u201ccurly\u201d \u2018single\u2019 don\u2019t it\u2019s": "curly single do n't it 's",
    "x \u2026 y \u2013 z \u2014 a": "x y z a",
    "3/4 10:30 1,000 u.s. mr. a.m. St. dept.": "3/4 10:30 1,000 u.s. mr. a.m. st. dept.",
    "on 3rd St . in the end .": "on 3rd st in the end",
    "they wash. He is in Wash. now": "they wash he is in wash. now",
    "no. 5 is no. Fig. 2 is a fig.": "no. 5 is no fig. 2 is a fig",
    "a shirt., a hat.; a dog.)": "a shirt. a hat. a dog -rrb-",
    "a b.c d.Begin wow!ok": "a b.c d.begin wow!ok",
    "well-known black-and-white t-shirt two-year-old 2.5-inch x- -y": (
        "well-known black-and-white t-shirt two-year-old 2.5-inch x y"
    ),
    "he/she and/or w/o w/ 24/7 a/b/c/d": "he/she and/or w/o w / 24/7 a/b/c / d",
    "+5 -5 1-2 1+2 ...50 5'6\"": "+5 -5 1-2 1 +2 50 5 6",
    "1 1/2 cups": "1\u00a01/2 cups",
    "10:30am 5pm 1990s '90s 1990's 3D 2x4 #23": "10:30 am 5pm 1990s '90s 1990 's 3d 2x4 # 23",
    "$20 US$5 50% \u00a35 \u20ac6 \u00a57 20\u00a2": "$ 20 us$ 5 50 % # 5 $ 6 \u00a5 7 20 cents",
    "AT&T R&B b&w a & b": "at&t r&b b & w a & b",
    "&amp; &lt; &gt; AT&amp;T": "& < > at&t",
    "a * b ** a_b _ a~b a|b a=b a<b": "a * b ** a_b _ a ~ b a | b a = b a < b",
    "see <b> and <br/> at http://www.x.com/a?x=1, foo@bar.com or foo.com": (
        "see <b> and <br/> at http://www.x.com/a?x=1 foo@bar.com or foo.com"
    ),
    "nice :) sad :( so ;-) :D": "nice :-rrb- sad :-lrb- so ;--rrb- :d",
    "#hashtag #1 @user": "#hashtag # 1 @user",
    "caf\u00e9 na\u00efve \u00dcn\u00ef \u00bd \u00bc 20\u00b0": "caf\u00e9 na\u00efve \u00fcn\u00ef 1/2 1/4 20 \u00b0",
    "soft\u00adhyphen no\u00a0break zero\u200bwidth": "softhyphen no break zero width",
    "a \U0001f600 face and \u4e2d\u6587 \u2605": "a face and \u4e2d\u6587 \u2605",
    "grey colour centre": "grey colour centre",
    "a shirt with C# and C++ on it": "a shirt with c# and c++ on it",
    "F# J# c++11 A++ g++ Google+": "f# j # c++ 11 a + + g + + google +",
    'C## (C++), "c#" C#.NET': "c# # -lrb- c++ -rrb- c# c# net",
    "www.x.org/y www.x.org/yz x.com/y x.com/yz": "www.x.org / y www.x.org/yz x.com / y x.com/yz",
    "x-y.com/ab 9gag.com/ab WWW.x.info/ab": "x-y com/ab 9gag com/ab www.x.info/ab",
    "http://x http://xy. https://x.org/a-b_c/": "http / / x http://xy https://x.org/a-b_c/",
    "(http://a.b/c) http://a'b http://a\"b": "-lrb- http://a.b/c -rrb- http://a'b http / / a b",
    "foo@bar.com, mailto:a@b.c; <foo@bar.com>": "foo@bar.com, mailto:a@b.c; <foo@bar.com>",
    "a_b@c.d. @user a@ b": "a_b@c.d @user a @ b",
    "image.jpg 1.jpg, 001.png a-b.jpg 1.jpgs": "image.jpg 1.jpg 001.png a-b jpg 1 jpgs",
    "12.zip 2.doc's v1.2.3 192.168.0.1": "12.zip 2 doc 's v1 .2.3 192.168.0.1",
    "call 555-123-4567 or (555) 123-4567": "call 555-123-4567 or -lrb-555-rrb-\xa0123-4567",
    "+44 20 7946 0958 or 800.555.1234": "+44\xa020\xa07946\xa00958 or 800.555.1234",
    "on 12/25/2020 or 12-25-2020 or 9/19-871": "on 12/25/2020 or 12-25-2020 or 9/19-871",
    "in 1990 1991 and 10 20 30 but 100 200 300": "in 1990 1991 and 10 20 30 but 100\xa0200\xa0300",
    "(^_^) (-_-) (x_x) (o_o)": "-lrb-^_^-rrb- -lrb--_--rrb- -lrb-x_x-rrb- -lrb- o_o -rrb-",
    ":-) ;(1 <:( :) :| xD": ":--rrb- -lrb- 1 <:-lrb- :-rrb- :| xd",
    "...50 ....50 ..50 --5 -+5 -5 .483-8": "50 50 .50 5 +5 -5 .483 -8",
    "4.-14 12.t-shirt a.10 10-1/2 5 1/2-inch": "4.-14 12.t-shirt a. 10 10-1/2 5\xa01/2 inch",
    "a.m.-p.m. U.S.-led pre-U.S. x-a.m.": "a.m.-p.m. u.s.-led pre-u.s. x-a.m.",
    "a_b_c a_b-1 cat,dog-park": "a_b_c a_b-1 cat,dog-park",
    "cannot's cannot! gonna. wanna? can not": "cannot 's can not gon na wan na can not",
    "&nbsp; caf&eacute; &#39; &mdash; x&copy;": "caf&eacute; &#39; x & copy",
    "café/bar 3D/é he/she café-bar": "café / bar 3d / é he/she café-bar",
}

PIECES = [
    *["A", "dog's", "red,ball", "(runs)", "don't", "mr.", "x.y,", "'n'", "U.S.", "end."],
    *["\u201cwell-known\u201d", "he/she", "cannot", "?!", "AT&T", "a_b", ":)", "caf\u00e9", "..."],
]


@pytest.mark.parametrize("caption", QUIRKS)
def test_tokens_are_those_of_the_java_program(caption: str) -> None:
    assert ptb_tokens(caption) == QUIRKS[caption].split(" ")


@pytest.mark.parametrize("caption", ["", " ", ".", "...", " - , ; ' \" ` ", "\U0001f600"])
def test_a_caption_may_have_no_tokens(caption: str) -> None:
    assert ptb_tokens(caption) == []


def test_a_line_break_is_a_space() -> None:
    assert ptb_tokens("a dog\nruns\r\nfar") == ["a", "dog", "runs", "far"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_tokens_are_lower_case_and_hold_no_space_or_bare_punctuation(caption: str) -> None:
    for token in ptb_tokens(caption):
        assert token
        assert token == token.lower()
        assert not any(sign in token for sign in " \t\r\n")
        assert token not in {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES)))
def test_pieces_without_numbers_are_read_alike_alone_and_together(pieces: list[str]) -> None:
    alone = [token for piece in pieces for token in ptb_tokens(piece)]
    assert ptb_tokens(" ".join(pieces)) == alone
    assert ptb_tokens(" ".join([*pieces, "9"])) == [*alone, "9"]  # a number has the caption read as a whole


@pytest.mark.slow
def test_captions_of_flickr8k_are_read_as_by_the_java_program(tmp_path: Path) -> None:
    """All 40 455; at least 99.95 % must agree, 100 % did."""
    file = Path(os.environ.get("VIT_TEST_DATA", ""), "flickr8k_captions.csv.gz")
    if not file.is_file():
        pytest.skip("VIT_TEST_DATA names no folder with flickr8k_captions.csv.gz")
    package = importlib.util.find_spec("pycocoevalcap")
    if shutil.which("java") is None or package is None or not package.submodule_search_locations:
        pytest.skip("Java or the package pycocoevalcap is not installed")
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        captions = [row["caption"] for row in csv.DictReader(lines)]
    (tmp_path / "captions").write_text("\n".join(captions) + "\n", encoding="utf-8")
    jar = Path(package.submodule_search_locations[0], "tokenizer", "stanford-corenlp-3.4.1.jar")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", str(tmp_path / "captions")]
    theirs = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout.split("\n")[:-1]
    removed = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
    agree = [
        ptb_tokens(caption) == [token for token in line.split(" ") if token and token not in removed]
        for caption, line in zip(captions, theirs, strict=True)
    ]
    assert sum(agree) >= 0.9995 * len(agree)
