"""Generated text pairs for the sequence-to-sequence transformer: a date as people write it, and as ISO 8601 has it.

No form can be read in two ways: where the month is a number, the year comes first. A day of the calendar is in one
split only, so that a model that has learnt pairs by heart knows none of val and test.
"""

import os
from collections.abc import Iterator
from datetime import date

import numpy as np

from vit.data.made import write_set
from vit.errors import ConfigError

FIRST, LAST = date(1900, 1, 1), date(2099, 12, 31)

MOST = 50_000
"""pairs for training that leave enough days for val and test"""

# Not from `calendar` or strftime, whose names follow the machine's language.
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# d: 3, dd: 03, th: 3rd; mon and wd: the first three letters
FORMS = (
    "{d} {month} {year}",
    "{th} of {month} {year}",
    "the {th} of {month}, {year}",
    "{month} {d}, {year}",
    "{month} {th}, {year}",
    "{mon} {d}, {year}",
    "{d} {mon} {year}",
    "{dd}-{mon}-{year}",
    "{weekday}, {d} {month} {year}",
    "{wd} {mon} {d} {year}",
    "{year}, {month} {d}",
    "{year}/{mm}/{dd}",
    "{year} {mon} {dd}",
)

_CASES = (str, str, str, str.lower, str.upper)  # three in five stay as they are


def make_dates(out: str | os.PathLike[str], *, count: int = 10_000, seed: int = 0) -> bool:
    """Write OUT/train.tsv with `count` lines, val.tsv and test.tsv with a tenth as many: DATE, a tab, YYYY-MM-DD.

    Returns False, and touches nothing, where the set is already there. The files appear all at once or not at all.
    Raises `ConfigError` for a count that cannot be, `DataError` when `out` holds anything else.
    """
    for key, value, low, high in (("count", count, 1, MOST), ("seed", seed, 0, 2**63)):
        if not low <= value <= high:
            raise ConfigError(f"{key}: {value}, but it must be from {low} to {high}")
    return write_set(out, _files(count, seed))


def written(day: date, form: str) -> str:
    """A date in one of `FORMS`."""
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    return form.format(
        d=day.day,
        dd=f"{day.day:02}",
        th=_ordinal(day.day),
        mm=f"{day.month:02}",
        mon=month[:3],
        month=month,
        wd=weekday[:3],
        weekday=weekday,
        year=day.year,
    )


def _files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    held_out = max(1, round(count / 10))
    days = iter(rng.permutation(np.arange(FIRST.toordinal(), LAST.toordinal() + 1)))
    for split, many in (("train", count), ("val", held_out), ("test", held_out)):
        pairs = [_pair(rng, date.fromordinal(int(next(days)))) for _ in range(many)]
        yield f"{split}.tsv", "".join(f"{source}\t{target}\n" for source, target in pairs).encode()


def _pair(rng: np.random.Generator, day: date) -> tuple[str, str]:
    form, case = FORMS[rng.integers(len(FORMS))], _CASES[rng.integers(len(_CASES))]
    return case(written(day, form)), day.isoformat()


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number not in (11, 12, 13) else "th"
    return f"{number}{ending}"
