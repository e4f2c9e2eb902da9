"""Generated scenes with captions, questions and the truth about both, so that words about pictures can be measured.

One to three coloured shapes, large or small, on a grey ground. The captions come from a closed grammar that can be read
back: `describes` says whether a sentence is true of a scene, `named_objects` where the object lies that a word names.
Some combinations of size, colour and shape appear in the test split alone, though any two of the three are well known
together.
Everything is a function of (seed, split, index). In the manner of CLEVR and its held-out combinations (Johnson et al.,
2017, arXiv:1612.06890), but small enough to be learnt on a laptop.

n: objects of a scene; P: points of an outline; T: tries; S: side of the picture in pixels. Lengths are in sides of the
picture where no other unit is named.
"""

import csv
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vit.data.made import write_set
from vit.data.tables import text_lines
from vit.errors import ConfigError, DataError, display_path
from vit.files import dump_json

SIZES = {"small": 0.1, "large": 0.16}
"""the radius of a circle of that size; the other shapes cover about as much"""

# Apart also for eyes without red, green or blue cones, and from the grounds: at least 26 in CIELAB (57 for all cones).
COLOURS = {
    "red": (218, 45, 20),
    "yellow": (242, 215, 59),
    "green": (9, 200, 120),
    "blue": (47, 64, 203),
    "pink": (235, 139, 225),
    "white": (253, 253, 253),
}

SHAPES = ("circle", "square", "triangle", "star", "cross")

Name = tuple[str, str, str]
"""size, colour and shape, which together name one object of a scene"""

HELD_OUT: tuple[Name, ...] = tuple(
    (tuple(SIZES)[(place + step) % 2], colour, SHAPES[(place + 2 * step) % len(SHAPES)])
    for place, colour in enumerate(COLOURS)
    for step in (0, 1)
)
"""the combinations that only scenes of the test split show; each of these has at least one. Two for every colour, with
two shapes; the same pair in the other size is shown everywhere"""

RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
"""relation -> how it is said"""

SPLITS = ("train", "val", "test")
CAPTIONS = 5  # a scene
QUESTIONS = 3  # a scene, each of another kind; of a training scene up to two of every kind

_OPPOSITE = {"right of": "left of", "below": "above"}
_COUNTS = ("one", "two", "three")

# Sentences by the number of objects: {A} is a noun phrase, {AB} the relation of A to B.
_TEMPLATES = {
    1: ("{A}", "there is {A}", "one object: {A}", "the only object is {A}", "nothing but {A}"),
    2: (
        "{A} and {B}",
        "there is {A} and {B}",
        "two objects: {A} and {B}",
        "{A} {AB} {B}",
        "there is {A} {AB} {B}",
        "{AB} {B} is {A}",
        "{A} with {B} {BA} it",
    ),
    3: (
        "{A}, {B} and {C}",
        "there is {A}, {B} and {C}",
        "three objects: {A}, {B} and {C}",
        "{A} {AB} {B}, and {C}",
        "{A} {AB} {B} and {AC} {C}",
        "{A} with {B} {BA} it and {C} {CA} it",
    ),
}

# Centres lie on a grid of this many steps a side, which patches of that size share: each then sees few aspects of a
# shape, and a small transformer learns them from scratch in minutes. Anywhere, it takes several times as long.
_STEPS = 8

# Along each axis the centres of two objects lie at most this far apart, or at least that: no relation is a matter of
# opinion. One holds from half-way between the two.
_LEVEL, _APART = 0.09, 0.16
_HOLDS = (_LEVEL + _APART) / 2
_GAP = 0.03  # between boxes, and to the border: more than a pixel
_TRIES = 64  # places tried at a time; for three large stars about one in 2000 will do
_FINER = 4  # outlines are drawn this much larger, for smooth edges


@dataclass(frozen=True)
class Thing:
    """An object. `box` is [top, left, bottom, right] in pixels, around all that it touches; no two boxes overlap."""

    size: str
    colour: str
    shape: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> Name:
        return self.size, self.colour, self.shape

    @property
    def centre(self) -> tuple[float, float]:
        """x and y of the middle of the box, in pixels."""
        top, left, bottom, right = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """Objects of which no two have both colour and shape in common, in a picture of `side` x `side` pixels."""

    side: int
    objects: tuple[Thing, ...]

    def holds(self, one: Thing, relation: str, other: Thing) -> bool:
        """Whether "one RELATION other" is true: its centre lies that way by an eighth of the picture or more."""
        return _distance(one, relation, other) >= _HOLDS * self.side


@dataclass(frozen=True)
class Description:
    """What a caption claims. Equal for captions that claim the same, whatever the order in which they do.

    `objects` is sorted; `relations` holds (one, "left of" or "above", other), right and below being turned round.
    """

    objects: tuple[Name, ...]
    relations: frozenset[tuple[Name, str, Name]]


@dataclass(frozen=True, eq=False)  # arrays have no single equality
class Example:
    """A scene as it is written: pixels uint8 [S, S, 3], captions, and questions with their answers."""

    file_name: str
    split: str
    scene: Scene
    pixels: np.ndarray
    captions: list[str]
    questions: list[tuple[str, str]]


def make_scenes(
    out: str | os.PathLike[str],
    *,
    count: int = 3000,
    seed: int = 0,
    side: int = 64,
    simple: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write `count` training scenes to OUT, and a tenth as many each for val and test.

    `simple` scenes hold one or two objects, side by side, and have a single caption in canonical form: "A", or "A left
    of B".

    OUT/images/SPLIT-NNNNNN.png, metadata.jsonl (captions), questions.csv, scenes.jsonl (the truth) and README.txt.
    Returns False, and touches nothing, where the set is already there. The files appear all at once or not at all.
    `progress` is called with the pictures done and their number. Raises `ConfigError` for a count or a side that cannot
    be, `DataError` when `out` holds anything else.
    """
    for key, value, low, high in (("count", count, 1, 1_000_000), ("seed", seed, 0, 2**63), ("size", side, 48, 1024)):
        if not low <= value <= high:
            raise ConfigError(f"{key}: {value}, but it must be from {low} to {high}")
    return write_set(out, _files(count, seed, side, simple, progress))


def make_example(seed: int, split: str, index: int, side: int = 64, *, simple: bool = False) -> Example:
    """The scene with that number. Its objects and questions are the same at any `side`."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    names = _names(rng, split, most=2 if simple else len(_COUNTS))
    outlines = _outlines(rng, names, side_by_side=simple)
    # A dark ground: on a grey one a shape is brighter in some channels and darker in others, by its colour, and is
    # learnt colour by colour.
    shade, noise = rng.integers(5, 31), rng.choice([0, rng.uniform(2, 5)])
    words, puzzles = rng.spawn(2)
    pixels, boxes = _draw(shade + rng.normal(0, noise, (side, side)), names, outlines)
    scene = Scene(side, tuple(Thing(*name, box) for name, box in zip(names, boxes, strict=True)))
    file_name = f"images/{split}-{index:06}.png"
    captions = [_canonical_caption(scene)] if simple else _captions(words, scene)
    return Example(file_name, split, scene, pixels, captions, _questions(puzzles, scene, split))


def read_scenes(folder: str | os.PathLike[str]) -> dict[str, Scene]:
    """The truth about a set that `make_scenes` wrote: file name, as in metadata.jsonl, -> scene."""
    path = Path(folder) / "scenes.jsonl"
    try:
        rows = [json.loads(line) for line in text_lines(path.read_text(encoding="utf-8")) if line]
        return {
            row["file_name"]: Scene(
                row["side"], tuple(Thing(**{**thing, "box": tuple(thing["box"])}) for thing in row["objects"])
            )
            for row in rows
        }
    except OSError as error:
        raise DataError(f"{display_path(path)}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{display_path(path)}: not the truth about a set of scenes") from error


def parse_caption(text: str) -> Description | None:
    """What a sentence of the grammar claims; None for any other. Case, spacing and a full stop do not matter."""
    plain = re.sub(r" (?=[:,])", "", " ".join(re.findall(r"[a-z]+|[^a-z\s]", text.lower()))).removesuffix(" .")
    for pattern in _PATTERNS:
        if (match := pattern.fullmatch(plain)) is not None:
            found = match.groupdict()
            names = {key: _name(phrase) for key, phrase in found.items() if len(key) == 1}
            relations = (
                _turned(names[key[0]], _SAID[said], names[key[1]]) for key, said in found.items() if len(key) == 2
            )
            return Description(tuple(sorted(names.values())), frozenset(relations))
    return None


def describes(text: str, scene: Scene) -> bool:
    """Whether a caption is right: it names every object once and nothing else, and every relation in it is true."""
    claim = parse_caption(text)
    things = {thing.name: thing for thing in scene.objects}
    return (
        claim is not None
        and claim.objects == tuple(sorted(things))
        and all(scene.holds(things[one], relation, things[other]) for one, relation, other in claim.relations)
    )


def named_objects(caption: str, scene: Scene) -> dict[int, Thing]:
    """Position in `caption.split()` of each word for a colour or a shape -> the object that it names.

    Empty for a caption that does not describe the scene: what a wrong word names is nobody's to say.
    """
    if not describes(caption, scene):
        return {}
    words = [word.strip(".,:").lower() for word in caption.split()]
    things = {thing.name: thing for thing in scene.objects}
    starts = [position for position, word in enumerate(words) if word in SIZES]
    return {
        start + step: things[words[start], words[start + 1], words[start + 2]] for start in starts for step in (1, 2)
    }


def ceilings(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """The highest accuracy that any answer could reach on rows of questions.csv without the picture, or the question.

    "text" answers every question text, "picture" every picture, with the most frequent label that it has in `rows`.
    """

    def share(column: str) -> float:
        labels: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            labels[row[column]][row["label"]] += 1
        return sum(max(counted.values()) for counted in labels.values()) / len(rows)

    return {"text": share("text"), "picture": share("file_name")}


def _files(
    count: int, seed: int, side: int, simple: bool, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, np.ndarray | bytes]]:
    held_out = max(1, round(count / 10))
    numbers = [
        (split, index) for split, many in zip(SPLITS, (count, held_out, held_out), strict=True) for index in range(many)
    ]
    captions, truth, questions = io.StringIO(), io.StringIO(), io.StringIO()
    table = csv.writer(questions, lineterminator="\n")
    table.writerow(["file_name", "text", "label", "split"])
    for done, (split, index) in enumerate(numbers, start=1):
        made = make_example(seed, split, index, side, simple=simple)
        row = {"file_name": made.file_name, "split": split}
        captions.write(dump_json({**row, "captions": made.captions}) + "\n")
        truth.write(dump_json({**row, **asdict(made.scene)}) + "\n")
        table.writerows((made.file_name, text, label, split) for text, label in made.questions)
        yield made.file_name, made.pixels
        if progress is not None:
            progress(done, len(numbers))
    yield "metadata.jsonl", captions.getvalue().encode()
    yield "questions.csv", questions.getvalue().encode()
    yield "scenes.jsonl", truth.getvalue().encode()
    yield "README.txt", _readme(count, held_out, seed, side, simple).encode()


def _readme(count: int, held_out: int, seed: int, side: int, simple: bool) -> str:
    names = ", ".join(" ".join(name) for name in HELD_OUT)
    option = " --simple" if simple else ""
    return (
        f"Generated scenes of coloured shapes, {count} train, {held_out} val and {held_out} test pictures of {side} x "
        f"{side} pixels, made by `vit data make scenes{option}` with seed {seed}.\n"
        "metadata.jsonl holds the captions, questions.csv questions with answers, scenes.jsonl the truth: size, "
        "colour, shape and box [top, left, bottom, right] in pixels of every object.\n"
        f"Every test scene shows a combination that train and val never show: {names}.\n"
    )


def _names(rng: np.random.Generator, split: str, most: int) -> list[Name]:
    """Size, colour and shape of one to `most` objects, no colour with the same shape twice."""
    count = int(rng.integers(1, most + 1))
    first = [HELD_OUT[rng.integers(len(HELD_OUT))]] if split == "test" else []
    pairs = [pair for pair in product(COLOURS, SHAPES) if pair not in {name[1:] for name in first}]
    names = list(first)
    for place in rng.choice(len(pairs), count - len(first), replace=False):
        sizes = [size for size in SIZES if split == "test" or (size, *pairs[place]) not in HELD_OUT]
        names.append((str(rng.choice(sizes)), *pairs[place]))
    rng.shuffle(names)
    return names


def _outlines(rng: np.random.Generator, names: list[Name], *, side_by_side: bool) -> list[np.ndarray]:
    """The outline of each object where it lies, [P, 2] as x and y: apart, inside, and with clear relations.

    `side_by_side` puts each into a column of its own.
    """
    outlines = []
    for size, _, shape in names:
        turn = rng.uniform(-0.15, 0.15)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        outline = _SHAPES[shape] @ rotation.T * SIZES[size] * rng.uniform(0.95, 1.05)
        outlines.append(outline - (outline.min(0) + outline.max(0)) / 2)
    half = np.array([outline.max(0) for outline in outlines])
    while True:
        centres = rng.integers(1, _STEPS, size=(_TRIES, len(names), 2)) / _STEPS
        clear = _clear(centres, half)
        if side_by_side:
            clear &= (np.diff(np.sort(centres[..., 0], axis=1), axis=1) > 0).all(1)
        if clear.any():
            return [outline + centre for outline, centre in zip(outlines, centres[clear.argmax()], strict=True)]


def _clear(centres: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Tries in which boxes of these centres [T, n, 2] and half sides [n, 2] lie inside and apart, relations clear: bool
    [T].
    """
    clear = (np.abs(centres - 0.5) + half <= 0.5 - _GAP).all((1, 2))
    for one, other in combinations(range(len(half)), 2):
        away = np.abs(centres[:, one] - centres[:, other])
        clear &= (away >= half[one] + half[other] + _GAP).any(1)
        clear &= ((away <= _LEVEL) | (away >= _APART)).all(1)
    return clear


def _draw(
    ground: np.ndarray, names: list[Name], outlines: list[np.ndarray]
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Pixels uint8 [S, S, 3] of the objects on a grey ground [S, S], and their boxes."""
    side = len(ground)
    pixels = np.repeat(ground[..., None], 3, axis=2)
    boxes = []
    for (_, colour, _), outline in zip(names, outlines, strict=True):
        mask = Image.new("L", (side * _FINER, side * _FINER))
        ImageDraw.Draw(mask).polygon([tuple(point) for point in outline * (side * _FINER)], fill=255)
        cover = mask.reduce(_FINER)
        left, top, right, bottom = cover.getbbox()
        boxes.append((top, left, bottom, right))
        share = np.asarray(cover)[..., None] / 255
        pixels += share * (np.array(COLOURS[colour]) - pixels)
    return np.rint(pixels).clip(0, 255).astype(np.uint8), boxes


def _captions(rng: np.random.Generator, scene: Scene) -> list[str]:
    """Sentences after different templates, each with the objects in an order of its own."""
    templates = _TEMPLATES[len(scene.objects)]
    return [_caption(rng, templates[i], scene) for i in rng.choice(len(templates), CAPTIONS, replace=False)]


def _canonical_caption(scene: Scene) -> str:
    """The caption "A" or "A left of B"."""
    if len(scene.objects) == 1:
        return _phrase(scene.objects[0])
    left, right = sorted(scene.objects, key=lambda thing: thing.centre[0])
    return f"{_phrase(left)} left of {_phrase(right)}"


def _phrase(thing: Thing) -> str:
    return f"a {' '.join(thing.name)}"


def _caption(rng: np.random.Generator, template: str, scene: Scene) -> str:
    things = dict(zip("ABC", (scene.objects[i] for i in rng.permutation(len(scene.objects))), strict=False))

    def said(key: str) -> str:
        if len(key) == 1:
            return _phrase(things[key])
        one, other = things[key[0]], things[key[1]]
        relation = max(
            RELATIONS, key=lambda relation: _distance(one, relation, other)
        )  # the plainest of those that hold
        return str(rng.choice(RELATIONS[relation]))

    return re.sub(r"\{(\w+)\}", lambda match: said(match[1]), template)


def _questions(rng: np.random.Generator, scene: Scene, split: str) -> list[tuple[str, str]]:
    """Questions of different kinds, of each kind one of those with a single answer; two to learn from."""
    kinds = [kind for kind in _puzzles(scene) if kind]
    if split == "train":
        return [kind[i] for kind in kinds for i in rng.choice(len(kind), min(len(kind), 2), replace=False)]
    return [kinds[i][rng.integers(len(kinds[i]))] for i in rng.choice(len(kinds), QUESTIONS, replace=False)]


def _puzzles(scene: Scene) -> list[list[tuple[str, str]]]:
    """Every question that has one answer, with it, by kind."""
    things = scene.objects
    shapes = Counter(thing.shape for thing in things)
    colours = Counter(thing.colour for thing in things)
    by_shape = [thing for thing in things if shapes[thing.shape] == 1]
    by_colour = [thing for thing in things if colours[thing.colour] == 1]
    beside = [
        (relation, thing.shape, those[0])
        for relation in RELATIONS
        for thing in by_shape
        if len(those := [other for other in things if other is not thing and scene.holds(other, relation, thing)]) == 1
    ]
    return [
        [("how many objects are there?", _COUNTS[len(things) - 1])],
        [(f"what colour is the {thing.shape}?", thing.colour) for thing in by_shape],
        [(f"what shape is the {thing.colour} object?", thing.shape) for thing in by_colour],
        [(f"what size is the {thing.shape}?", thing.size) for thing in by_shape]
        + [(f"what size is the {thing.colour} object?", thing.size) for thing in by_colour],
        [(f"what is {relation} the {shape}?", other.shape) for relation, shape, other in beside],
        [(f"what colour is the object {relation} the {shape}?", other.colour) for relation, shape, other in beside],
    ]


def _distance(one: Thing, relation: str, other: Thing) -> float:
    """How far `one` lies from `other` in the direction of the relation, in pixels."""
    axis = relation in ("above", "below")
    away = other.centre[axis] - one.centre[axis]
    return -away if relation in _OPPOSITE else away


def _turned(one: Name, relation: str, other: Name) -> tuple[Name, str, Name]:
    """The same claim in the words "left of" or "above"."""
    return (other, _OPPOSITE[relation], one) if relation in _OPPOSITE else (one, relation, other)


def _name(phrase: str) -> Name:
    _, size, colour, shape = phrase.split()
    return size, colour, shape


def _pattern(template: str) -> re.Pattern[str]:
    """What reads the sentences of a template back."""
    phrase = f"a (?:{'|'.join(SIZES)}) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
    parts = {1: phrase, 2: "|".join(_SAID)}
    return re.compile(re.sub(r"\{(\w+)\}", lambda match: f"(?P<{match[1]}>{parts[len(match[1])]})", template))


def _star(points: int, inner: float) -> np.ndarray:
    """Corners of a star of outer radius 1 with one point upward, [2 points, 2]; y goes down."""
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([np.sin(angle) * radius, -np.cos(angle) * radius], axis=1)


_CORNERS = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
_NOTCH = np.array([[1, 0.25], [0.25, 0.25], [0.25, 1]])  # what a cross has at each corner of its square
_CROSS = np.concatenate([corner * _NOTCH[::way] for corner, way in zip(_CORNERS, (1, -1, 1, -1), strict=True)])

_SHAPES = {
    "circle": _star(40, 1.0),
    "square": 0.886 * _CORNERS,
    "triangle": 1.3 * _star(3, 0.5),  # at 0.5 the inner corners lie on the sides
    "star": 1.25 * _star(5, 0.4),
    "cross": 1.1 * _CROSS,
}

_SAID = {said: relation for relation, ways in RELATIONS.items() for said in ways}
_PATTERNS = [_pattern(template) for templates in _TEMPLATES.values() for template in templates]
