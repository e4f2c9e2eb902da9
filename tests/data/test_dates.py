"""Generated dates: each reads back to its answer through datetime, and to no other; no day is in two splits."""

import re
from collections import Counter
from datetime import date, datetime
from pathlib import Path

import pytest

from vit.cli.data import main
from vit.data.dates import FIRST, FORMS, LAST, MOST, WEEKDAYS, make_dates, written
from vit.errors import ConfigError, DataError

# of the words that are left without "the", "of", commas and the endings of ordinals
READINGS = [
    *("%d %B %Y", "%B %d %Y", "%d %b %Y", "%b %d %Y", "%Y %B %d", "%Y %b %d", "%Y %m %d"),
    *("%A %d %B %Y", "%a %b %d %Y", "%d %m %Y", "%m %d %Y", "%d %m %y", "%y %m %d"),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    out = tmp_path_factory.mktemp("data") / "dates"
    assert main(["make", "dates", str(out), "--count", "2000"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["test.tsv", "train.tsv", "val.tsv"]
    return {path.stem: [line.split("\t") for line in path.read_text().splitlines()] for path in out.iterdir()}


def readings(text: str) -> set[str]:
    plain = re.sub(r"(\d)(st|nd|rd|th)\b", r"\1", text.lower())
    plain = " ".join(word for word in re.split(r"[ ,/-]+", plain) if word not in ("the", "of"))
    found = set()
    for reading in READINGS:
        try:
            found.add(datetime.strptime(plain, reading).date().isoformat())
        except ValueError:
            continue
    return found


def test_every_date_has_one_reading_and_it_is_the_answer(pairs):
    assert {split: len(rows) for split, rows in pairs.items()} == {"train": 2000, "val": 200, "test": 200}
    for source, target in (row for rows in pairs.values() for row in rows):
        assert readings(source) == {target}, source
        for weekday in re.findall(r"(mon|tues|wednes|thurs|fri|satur|sun)day", source.lower()):
            assert WEEKDAYS[date.fromisoformat(target).weekday()].lower() == f"{weekday}day"


def test_no_day_is_in_two_splits_nor_twice_in_one(pairs):
    days = [target for rows in pairs.values() for _, target in rows]
    assert len(set(days)) == len(days)


def test_every_form_comes_about_as_often_in_every_split(pairs):
    def form(source: str, target: str) -> int:
        day = date.fromisoformat(target)
        return next(i for i, form in enumerate(FORMS) if written(day, form).lower() == source.lower())

    for rows in pairs.values():
        shares = Counter(form(*row) for row in rows)
        assert [*sorted(shares)] == [*range(len(FORMS))]
        assert min(shares.values()) > len(rows) / len(FORMS) / 4
    sources = [source for source, _ in pairs["train"]]
    mixed = sum(source not in (source.lower(), source.upper()) for source in sources) / len(sources)
    assert abs(mixed - 3 / 5 * 12 / 13) < 0.04  # three in five keep their case, and one form has no letters


@pytest.mark.parametrize(
    ("day", "said"),
    [
        (date(1999, 3, 3), "the 3rd of March, 1999"),
        (date(2012, 12, 11), "the 11th of December, 2012"),
        (date(2000, 2, 22), "the 22nd of February, 2000"),
        (date(1901, 5, 31), "the 31st of May, 1901"),
        (date(1950, 8, 13), "the 13th of August, 1950"),
    ],
)
def test_ordinals_end_as_they_should(day: date, said: str):
    assert written(day, "the {th} of {month}, {year}") == said


def test_the_same_seed_makes_the_same_bytes_and_nothing_is_written_over(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_dates(tmp_path / name, count=30, seed=seed)
    for split in ("train", "val", "test"):
        one, again, other = (Path(tmp_path / name / f"{split}.tsv").read_bytes() for name in "abc")
        assert one == again != other
    assert main(["make", "dates", str(tmp_path / "a"), "--count", "30", "--seed", "1"]) == 0
    assert "already" in capsys.readouterr().out
    with pytest.raises(DataError, match="already there and not this set"):
        make_dates(tmp_path / "a", count=31, seed=1)


def test_the_largest_set_has_days_enough():
    assert (LAST - FIRST).days + 1 >= MOST + 2 * (MOST // 10)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": MOST + 1}, {"seed": -1}])
def test_what_cannot_be_made_is_refused_by_name(wrong: dict[str, int], tmp_path):
    with pytest.raises(ConfigError, match=r"^(count|seed): -?\d+, but it must be from \d+ to \d+$"):
        make_dates(tmp_path / "out", **wrong)
    assert list(tmp_path.iterdir()) == []
