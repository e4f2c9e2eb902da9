"""`vit attention MODEL DATA --score`: how faithful each map is, beside a random map and a blob on the centre."""

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli.arguments import split_told
from vit.errors import ConfigError, DataError, display_path
from vit.explain import FOR_A_CLASS, METHODS
from vit.files import dump_json, whole_file, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vit.api import Classifier
    from vit.data.dataset import Batch
    from vit.data.folders import Listing, Sample
    from vit.models.vision import VisionTransformer

log = logging.getLogger("vit")

_SEED = 0
_BATCH = 16  # pictures; the network sees up to 11 variants of each at once
_SHUFFLED = 48  # pictures whose maps are compared with those of shuffled weights
_MOSAICS = 32  # at four times the tokens they are the dearest part
_MARKS = {"better": " +", "worse": " -"}
_SURE = 0.5  # least probability of the answer for a place in a mosaic


@dataclass
class Found:
    """What is kept of the pictures: numbers. `rows` are by score and method, an array a batch."""

    rows: dict[tuple[str, str], list["np.ndarray"]] = field(default_factory=lambda: defaultdict(list))
    labels: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    blanked: list[float] = field(default_factory=list)
    among_four: list[bool] = field(default_factory=list)

    def add(self, what: str, name: str, rows: "Tensor") -> None:
        """rows [B, points] of one method."""
        self.rows[what, name].append(rows.cpu().double().numpy())

    def table(self, names: list[str]) -> dict[str, "np.ndarray"]:
        """By score, all methods' rows together [N, methods, points]."""
        import numpy as np

        scores = dict.fromkeys(what for what, _ in self.rows)
        return {what: np.stack([np.concatenate(self.rows[what, name]) for name in names], axis=1) for what in scores}


def score(
    classifier: "Classifier",
    subject: dict[str, Any],
    methods: list[str] | None,
    limit: int,
    place: Callable[[str], Path],
) -> int:
    """Score the maps of up to `limit` pictures of DATA, as many of each class; print a table, write the numbers.

    `subject` names the model and DATA, as `report_facts` does; `place` makes the folder for the report of a split.

    Maps are those of the answered class, as `vit attention` draws them; the right answers that perturbation counts are
    those of the labels, as in its paper. `scores.json` holds perturbation by maps of the true class besides, which
    differ where the answer is wrong. Returns the exit code: 1 where a picture could not be read. Raises ConfigError for
    a model without classes, DataError where there is no picture of one of its classes.
    """
    from tqdm import tqdm

    from vit.data.dataset import evaluation_loader
    from vit.data.folders import list_evaluation
    from vit.explain.faithfulness import BASELINES, summary

    if not classifier.classes:
        raise ConfigError(
            "--score: follows what becomes of an answer, and the model has no classes;\n"
            "the maps themselves, by raw, rollout and norm, need none: leave out --score"
        )
    data = subject["data"]
    listing = list_evaluation(data, classifier.classes)
    (split, samples), *_ = listing.splits.items()
    folder = place(split)
    samples = balanced(samples, limit)
    names = [*dict.fromkeys(methods or METHODS), *BASELINES]
    found = Found()
    loader = evaluation_loader(samples, classifier.preprocessing, batch_size=_BATCH, workers=0)
    with tqdm(total=len(samples), unit=" pictures", delay=2, leave=False, disable=not sys.stderr.isatty()) as bar:
        for batch in loader:
            for index, reason in batch.failures:
                found.failures.append((index, reason))
                bar.write(f"vit: {display_path(samples[index].path)}: {reason}", file=sys.stderr)
            if len(batch):
                _follow(classifier, batch, names, found)
            bar.update(len(batch) + len(batch.failures))
        if not found.labels:
            raise DataError(f"{display_path(data)}: none of the {len(samples)} pictures could be read")
        mosaics = mosaics_of(found)
        bar.total += len(mosaics)
        for number, places in enumerate(mosaics):
            tiles = [samples[found.indices[place]].path for place in places]
            _point(classifier, tiles, [found.labels[place] for place in places], number, names, found)
            bar.update()
    scores, curves = summary(found.table(names), names, seed=_SEED)
    facts = subject | _facts(split, found, listing, samples)
    write_text(folder / "scores.json", dump_json({**facts, "scores": scores, "curves": curves}, indent=1) + "\n")
    _draw(folder / "scores.png", scores, curves, facts["accuracy"])
    _print(folder, facts, scores)
    return 1 if found.failures else 0


def balanced(samples: "Sequence[Sample]", limit: int) -> "list[Sample]":
    """Up to `limit` samples, as many of each class as there are, in turn; which, the seed decides."""
    import numpy as np

    of_class: dict[int, list[Sample]] = defaultdict(list)
    for place in np.random.default_rng(_SEED).permutation(len(samples)):
        of_class[samples[place].label].append(samples[place])
    turns = [(turn, label, sample) for label, part in of_class.items() for turn, sample in enumerate(part)]
    return [sample for _, _, sample in sorted(turns, key=lambda entry: entry[:2])[:limit]]


def mosaics_of(found: Found) -> list[list[int]]:
    """Fours of pictures of different classes, each answered rightly and surely, the surest first; none twice.

    The classes with most pictures left come first, so that few are left over.
    """
    import numpy as np

    random = np.random.default_rng(_SEED)
    left: dict[int, list[int]] = defaultdict(list)
    for place in np.argsort(found.probabilities, kind="stable"):
        if found.answers[place] == found.labels[place] and found.probabilities[place] >= _SURE:
            left[found.labels[place]].append(int(place))
    mosaics: list[list[int]] = []
    while len(left) >= 4 and len(mosaics) < _MOSAICS:
        classes = random.permutation(list(left)).tolist()
        four = sorted(classes, key=lambda label: -len(left[label]))[:4]
        mosaics.append([left[label].pop() for label in random.permutation(four).tolist()])
        left = {label: places for label, places in left.items() if places}
    return mosaics


def _follow(classifier: "Classifier", batch: "Batch", names: list[str], found: Found) -> None:
    """Add the curves of a batch: what becomes of the answers as pixels and patches go and come."""
    import torch

    from vit.explain import faithfulness
    from vit.models.outputs import require_finite, top_classes
    from vit.nn import whole_patches

    batch = batch.to(classifier.device)
    seen = whole_patches(batch.images, classifier.network.architecture.patch_size)  # no map says anything of the rest
    pictures, labels, numbers = seen.float(), batch.labels, batch.indices.tolist()
    images = classifier.normalise(seen)

    @torch.inference_mode()
    def logits(changed: "Tensor") -> "Tensor":
        return require_finite(classifier.network(classifier.normalise(changed))).float()

    def probabilities(changed: "Tensor") -> "Tensor":
        return logits(changed).softmax(dim=1)

    (answers,), (surest,) = (part.T.clone() for part in top_classes(logits(pictures), 1))
    wrong = (answers != labels).nonzero()[:, 0]
    maps = {name: _maps(classifier.network, images, name, answers, numbers) for name in names}
    sizes = (images.shape[-2:], maps["random"].shape[-2:])
    pixel_ties, patch_ties = (faithfulness.noise(numbers, size, _SEED + 1).to(images) for size in sizes)

    def kept(maps: "Tensor", chosen: "Tensor", *, lowest_first: bool) -> "Tensor":
        answered = faithfulness.perturbation(
            logits, pictures[chosen], maps, pixel_ties[chosen], lowest_first=lowest_first
        )
        return (answered == labels[chosen, None]).float()

    everyone = torch.arange(len(labels), device=images.device)
    for name in names:
        differ = wrong if name in FOR_A_CLASS else wrong[:0]
        other = _maps(classifier.network, images[differ], name, labels[differ], numbers) if len(differ) else None
        for what, lowest_first in (("positive", False), ("negative", True)):
            right = kept(maps[name], everyone, lowest_first=lowest_first)
            found.add(what, name, right)
            if other is not None:
                right = right.index_copy(0, differ, kept(other, differ, lowest_first=lowest_first))
            found.add(f"{what}_true_class", name, right)
        args = (probabilities, pictures, maps[name], patch_ties, answers)
        found.add("deletion", name, faithfulness.deletion(*args, _mean_colour(classifier)))
        found.add("insertion", name, faithfulness.insertion(*args))
    few = min(len(labels), _SHUFFLED - len(found.labels))
    if few > 0:
        alike: dict[str, list[Tensor]] = defaultdict(list)
        generator = torch.Generator().manual_seed(_SEED + len(found.labels))
        for shuffled in faithfulness.cascade(classifier.network, generator):
            for name in names:
                other = _maps(shuffled, images[:few], name, answers[:few], numbers)
                alike[name].append(faithfulness.rank_correlation(maps[name][:few], other))
        for name in names:
            found.add("weights", name, torch.stack(alike[name], dim=1))
    found.labels += labels.tolist()
    found.answers += answers.tolist()
    found.probabilities += surest.tolist()
    found.indices += numbers


def _maps(network: "VisionTransformer", images: "Tensor", name: str, targets: "Tensor", numbers: list[int]) -> "Tensor":
    """The maps [B, R, C] of a method or a baseline; `numbers` tell the pictures' noise apart."""
    from vit.explain import faithfulness
    from vit.explain.maps import attention_maps

    rows, columns = network.architecture.patch_size
    grid = (images.shape[-2] // rows, images.shape[-1] // columns)
    if name == "random":
        return faithfulness.noise(numbers[: len(images)], grid, _SEED).to(images)
    if name == "centre":
        return faithfulness.centre_blob(grid).to(images).expand(len(images), -1, -1)
    return attention_maps(network, images, method=name, targets=targets).values


def _point(
    classifier: "Classifier", tiles: list[str], targets: list[int], number: int, names: list[str], found: Found
) -> None:
    """Add one mosaic: the share of each class's map on its own picture, and what the model itself makes of it."""
    import torch

    from vit.explain.faithfulness import blanked_quarters, mosaic, pointing
    from vit.nn import whole_patches

    seen = whole_patches(
        torch.stack([classifier.prepare(path) for path in tiles]), classifier.network.architecture.patch_size
    )
    pictures = mosaic(seen[None]).to(classifier.device)
    images = classifier.normalise(pictures).expand(4, -1, -1, -1)
    classes, cells = torch.tensor(targets, device=images.device), torch.arange(4, device=images.device)
    for name in names:
        maps = _maps(classifier.network, images, name, classes, [4 * number + cell for cell in range(4)])
        found.add("pointing", name, pointing(maps, cells)[None])

    @torch.inference_mode()
    def class_scores(changed: "Tensor") -> "Tensor":
        return classifier.network(classifier.normalise(changed)).float()

    found.blanked.append(
        blanked_quarters(class_scores, pictures.float(), classes[None], _mean_colour(classifier)).mean().item()
    )
    found.among_four.append(class_scores(pictures).argmax().item() in targets)


def _mean_colour(classifier: "Classifier") -> "Tensor":
    import torch

    return 255 * torch.tensor(classifier.preprocessing.mean, device=classifier.device)


def _facts(split: str, found: Found, listing: "Listing", samples: "list[Sample]") -> dict[str, Any]:
    """What was measured on what."""
    right = sum(answer == label for answer, label in zip(found.answers, found.labels, strict=True))
    mosaics: dict[str, Any] = {"count": len(found.blanked), "of_answers_of_at_least": _SURE}
    if found.blanked:
        mosaics["answered_with_one_of_the_four"] = sum(found.among_four) / len(found.among_four)
        mosaics["pointing_by_blanking_quarters"] = sum(found.blanked) / len(found.blanked)
    return {
        "split": split,
        "pictures": len(found.labels),
        "accuracy": right / len(found.labels),
        "mosaics": mosaics,
        "compared_with_shuffled_weights": min(len(found.labels), _SHUFFLED),
        "seed": _SEED,
        "unreadable": [{"path": samples[index].path, "reason": reason} for index, reason in found.failures],
        "left_out": [{"path": left.path, "reason": left.reason} for left in listing.left_out],
        "unknown_classes": listing.unknown,
    }


def _draw(path: Path, scores: dict[str, Any], curves: dict[str, Any], accuracy: float) -> None:
    from vit.explain.scores_plot import scores_plot

    with whole_file(path) as temporary:
        scores_plot(scores, curves, accuracy, temporary)


def _print(folder: Path, facts: dict[str, Any], scores: dict[str, Any]) -> None:
    from vit.explain.faithfulness import BETTER

    shown = [what for what in BETTER if what in scores["random"]]
    right = f"{100 * facts['accuracy']:.2f} % answered rightly"
    data, split = display_path(facts["data"]), split_told(facts["split"])
    log.info("pictures   %d of %s, %s, %s", facts["pictures"], data, split, right)
    log.info("maps       of the answered class")
    if (mosaics := facts["mosaics"])["count"]:
        log.info("mosaics    %d, of four pictures answered rightly and surely", mosaics["count"])
        share, itself = (mosaics[key] for key in ("answered_with_one_of_the_four", "pointing_by_blanking_quarters"))
        log.info(
            "           answered with one of the four: %.0f %%; blanking quarters points: %.3f", 100 * share, itself
        )
    else:
        log.info("mosaics    none: they take pictures of four classes, answered rightly and surely; so no pointing")
    width = max(map(len, scores)) + 2
    log.info("")
    log.info("%*s%s", width, "", "".join(f"{what:<16}" for what in shown).rstrip())
    log.info("%-*s%s", width, "better:", "".join(f"{BETTER[what]:<16}" for what in shown).rstrip())
    for name, of_method in scores.items():
        log.info("%-*s%s", width, name, "".join(f"{_cell(of_method[what]):<16}" for what in shown).rstrip())
    log.info("")
    log.info("± half of the 95 % interval; + better, - worse than random by the interval of the paired difference")
    log.info("report     %s", display_path(folder / "scores.json"))


def _cell(number: dict[str, Any]) -> str:
    """A score, half its interval, and whether it lies apart from the random map's."""
    low, high = number["interval"]
    mark = _MARKS.get(number.get("than_random", ""), "")
    return f"{number['mean']:.3f} ±{(high - low) / 2:.3f}{mark}"
