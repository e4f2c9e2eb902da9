"""`vit attention MODEL IMAGE...`."""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.cli.arguments import (
    MODEL_HELP,
    Parser,
    add_max_pixels,
    announce,
    finite,
    integer,
    make_folder,
    override_max_pixels,
)
from vit.errors import ConfigError, DataError, NonFiniteOutput, UnreadableImage, display_path
from vit.explain import FOR_A_CLASS, FUSIONS, METHODS
from vit.files import dump_json, whole_file, write_text

if TYPE_CHECKING:
    import numpy as np

    from vit.api import Classifier
    from vit.explain.explorer import View
    from vit.explain.maps import Query
    from vit.explain.methods import Fusion

log = logging.getLogger("vit")

_LARGE_ENOUGH = 160
"""pixels of the short side; smaller pictures are shown several times as large, by whole numbers"""

_ACTS_ON = {
    "layer": ("raw", "norm"),
    "head": ("raw",),
    "target": FOR_A_CLASS,
    "fusion": ("rollout",),
    "discard": ("rollout",),
}
"""the methods that each setting is for"""
_OF_MAPS = ("query", "compare", *_ACTS_ON, "explorer")
"""options that act on maps that are drawn"""


@dataclass
class Request:
    """What was asked for, checked against the model."""

    methods: list[str]
    layer: int | None
    head: int | None
    query: "Query"
    target: int | None
    compare: tuple[int, int] | None
    fusion: "Fusion"
    discard: float


def main(argv: list[str]) -> int:
    """Parse, then draw. Returns the exit code: 1 where a picture could not be read."""
    parser = Parser(prog="vit attention", description="What a model looks at: maps of patches over pictures.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="files, folders, globs; with --score a folder")
    parser.add_argument("--method", action="append", choices=METHODS, help="can stand several times (default: generic)")
    parser.add_argument("--layer", type=integer(0), help="of raw and norm, from 0 (default: the last)")
    parser.add_argument("--head", type=integer(0), help="of raw, from 0 (default: the mean of all)")
    parser.add_argument(
        "--query", default="cls", help="what asks: ROW,COL of a patch (default: what the model pools by)"
    )
    parser.add_argument("--fusion", choices=FUSIONS, default="mean", help="of all heads, for rollout (default: mean)")
    parser.add_argument(
        "--discard", type=finite, default=0.0, help="fraction of each row's weights that rollout drops, the lowest"
    )
    parser.add_argument("--class", dest="target", metavar="NAME", help="whose map (default: the predicted class)")
    parser.add_argument("--compare", metavar="NAME,NAME", help="the difference of two classes' maps")
    parser.add_argument("--explorer", type=integer(0), default=8, metavar="N", help="pictures in the page (default: 8)")
    parser.add_argument("--score", action="store_true", help="how faithful the maps are, on pictures with classes")
    parser.add_argument(
        "--limit", type=integer(1), default=200, help="pictures that --score takes at most (default: 200)"
    )
    parser.add_argument("--model-report", action="store_true", help="what the model itself has learnt: no --method")
    parser.add_argument("--out", help="folder to write to (default: attention; of --score attention/DATA/SPLIT)")
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (default: averaged if any)")
    add_max_pixels(parser)
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    options = parser.parse_args(argv)

    from vit.api import classifier_of
    from vit.data.folders import find_images
    from vit.models.sources import load_model

    _check_use(options, parser)
    model = load_model(options.model)
    override_max_pixels(model, options.max_pixels)
    classifier = classifier_of(model, options.model, weights=options.weights, device=options.device)
    request = None if options.score or options.model_report else _request(options, parser, classifier)
    announce(model)
    if options.score:
        from vit.cli.attention_score import score
        from vit.cli.reports import report_facts, report_folder

        weights = options.weights or ("raw" if model.ema is None else "ema")
        facts = report_facts(options.model, options.images[0], weights)
        place = partial(report_folder, options.out, Path("attention"), facts, file="scores.json")
        return score(classifier, facts, options.method, options.limit, place)
    folder = Path(options.out or "attention")
    make_folder(folder, "--out", options.images)
    if request is None:
        from vit.cli.attention_report import report

        return report(classifier, options.images, folder)
    return draw(classifier, list(find_images(options.images)), request, folder, options.explorer, options.model)


def _check_use(options: Any, parser: Parser) -> None:
    if options.score and options.model_report:
        raise ConfigError("--score and --model-report: one at a time")
    if options.score and len(options.images) != 1:
        raise ConfigError("--score: takes one folder of pictures with classes, as `vit evaluate` does")
    if options.score:
        parser.refuse_idle(_OF_MAPS, "with --score, which measures every method at its defaults")
    elif options.model_report:
        parser.refuse_idle(("method", *_OF_MAPS, "limit"), "with --model-report")
        parser.refuse_idle(() if options.images else ("max_pixels",), "on a report without images")
    else:
        parser.refuse_idle(("limit",), "without --score")
    if not options.images and not options.model_report:
        raise ConfigError("IMAGE: name at least one picture or folder")


def draw(
    classifier: "Classifier",
    images: "list[str | UnreadableImage]",
    request: Request,
    folder: Path,
    explorer: int = 0,
    title: str = "",
) -> int:
    """Write the maps of every picture, `maps.json` of what was computed, and a page of the first `explorer` pictures.

    Returns the exit code.
    """
    from tqdm import tqdm

    from vit.data.decode import decode
    from vit.data.folders import path_of, read_image
    from vit.models.outputs import NON_FINITE

    entries, failed = [], 0
    views: list[View] = []
    paths = [path_of(image) for image in images]
    bar = tqdm(images, unit=" pictures", delay=2, leave=False, disable=not sys.stderr.isatty())
    for number, image in enumerate(bar):
        path = paths[number]
        try:
            picture = read_image(lambda file: decode(file, classifier.preprocessing.max_pixels), image)
            drawn = _draw_one(classifier, path, picture, request, folder / _stem(path, number, paths))
        except (UnreadableImage, NonFiniteOutput) as error:
            failed += 1
            reason = error.reason if isinstance(error, UnreadableImage) else NON_FINITE
            entries.append({"path": path, "error": reason})
            bar.write(f"vit: {display_path(path)}: {reason}", file=sys.stderr)
            continue
        entries.append({"path": path, **drawn})
        if len(views) < explorer:
            views.append(_view(classifier, path, pictures=min(explorer, len(paths))))
    if failed == len(paths):
        raise DataError(f"no maps: none of the {failed} images could be used")
    write_text(folder / "maps.json", dump_json(entries, indent=1) + "\n")
    log.info("maps       %s", display_path(folder))
    if views:
        from vit.explain.explorer import page

        write_text(folder / "explorer.html", page(views, f"vit attention {title}"))
        log.info("explorer   %s", display_path(folder / "explorer.html"))
    return 1 if failed else 0


def _draw_one(
    classifier: "Classifier", path: str, picture: "np.ndarray", request: Request, stem: Path
) -> dict[str, Any]:
    """The maps of one picture: an overlay and the numbers a method, and raw attention of all heads of all layers."""
    import numpy as np
    import torch

    from vit.explain.maps import attention_maps, head_maps
    from vit.explain.pictures import Box, color_scale, contact_sheet, overlay

    network = classifier.network
    images = classifier.normalise(classifier.prepare(path)[None].to(classifier.device))
    times = max(1, _LARGE_ENOUGH // min(picture.shape[:2]))
    box = Box(*(times * side for side in classifier.transform.seen(*picture.shape[:2])))
    box = box.of_patches(images.shape[-2:], network.architecture.patch_size)
    shown_picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    answer = "" if not classifier.classes else _answer(classifier, images)
    written: dict[str, Any] = {"answer": answer, "maps": {}}

    def computed(method: str, target: int | None) -> Any:
        targets = None if target is None or method not in FOR_A_CLASS else torch.tensor([target])
        return attention_maps(
            network,
            images,
            method=method,
            layer=request.layer,
            head=request.head,
            query=request.query,
            targets=targets,
            fusion=request.fusion,
            discard=request.discard,
        )

    patch = None if request.query == "cls" else request.query
    for method in request.methods:
        difference, largest = request.compare is not None and method in FOR_A_CLASS, 0.0
        if request.compare is not None and difference:
            one, other = (computed(method, target) for target in request.compare)
            values, shown = one.values[0] - other.values[0], " minus ".join(_names(classifier, request.compare))
            settings, largest = one.settings, max(maps.values.abs().max().item() for maps in (one, other))
        else:
            maps = computed(method, request.target)
            values, settings = maps.values[0], maps.settings
            shown = "" if maps.targets is None else _names(classifier, maps.targets)[0]
        array = values.cpu().numpy()
        asked = "" if patch is None else f", query patch {patch[0]},{patch[1]} (its own value: {array[patch]:.3g})"
        caption = f"{method}{f' of {shown}' if shown else ''}{asked}; {answer}".rstrip("; ")
        scale = color_scale(array, difference=difference, largest=largest, query=patch)
        drawn = overlay(shown_picture, array, box, caption, difference=difference, scale=scale, query=patch)
        _save(Path(f"{stem}.{method}.png"), drawn)
        with whole_file(Path(f"{stem}.{method}.npy")) as temporary, temporary.open("wb") as file:
            np.save(file, array)
        found = {"of": shown, "settings": settings, "file": f"{stem.name}.{method}.npy"}
        found |= {"lowest": array.min().item(), "highest": array.max().item()}
        written["maps"][method] = found | ({"note": scale.note} if scale.note else {})
    heads = head_maps(network, images, query=request.query)[0].cpu().numpy()
    _save(Path(f"{stem}.heads.png"), contact_sheet(heads, query=patch))
    return written


def _view(classifier: "Classifier", path: str, pictures: int) -> "View":
    """One picture of the explorer's page, which holds so many `pictures`."""
    from vit.explain.explorer import BUDGET, picture_view

    pixels = classifier.prepare(path)
    return picture_view(
        path,
        pixels.permute(1, 2, 0).numpy(),
        classifier.network,
        classifier.normalise(pixels[None].to(classifier.device)),
        classifier.descriptions or classifier.classes,
        budget=BUDGET // pictures,
    )


def _answer(classifier: "Classifier", images: Any) -> str:
    import torch

    from vit.models.outputs import require_finite

    with torch.inference_mode():
        (prediction,) = classifier.named(require_finite(classifier.network(images)), 1)
    name = prediction.classes[0] if prediction.descriptions is None else prediction.descriptions[0]
    return f"answer {name} ({prediction.probabilities[0]:.0%})"


def _names(classifier: "Classifier", targets: "list[int] | tuple[int, ...]") -> list[str]:
    return [(classifier.descriptions or classifier.classes)[target] for target in targets]


def _request(options: Any, parser: Parser, classifier: "Classifier") -> Request:
    compare = None
    if options.compare is not None:
        if options.target is not None or not set(options.method or ["generic"]) & set(FOR_A_CLASS):
            raise ConfigError(f"--compare: is for {', '.join(FOR_A_CLASS)}, and without --class")
        names = _two_classes(options.compare, {*classifier.classes, *(classifier.descriptions or ())})
        compare = (classifier.class_number(names[0]), classifier.class_number(names[1]))
    query: Query = "cls"
    if options.query != "cls":
        numbers = options.query.split(",")
        if len(numbers) != 2 or not all(number.strip().isdecimal() for number in numbers):
            raise ConfigError(f"--query: must be ROW,COL, such as 3,5, got {options.query}")
        query = (int(numbers[0]), int(numbers[1]))
    target = None if options.target is None else classifier.class_number(options.target)
    methods = list(dict.fromkeys(options.method or ["generic" if classifier.classes else "rollout"]))
    for name, acting in _ACTS_ON.items():
        if not set(methods) & set(acting):
            parser.refuse_idle((name,), f"on {', '.join(methods)}; it is for {', '.join(acting)}")
    return Request(
        methods,
        options.layer,
        options.head,
        query,
        target,
        compare,
        options.fusion,
        options.discard,
    )


def _two_classes(text: str, known: set[str]) -> tuple[str, str]:
    """Split NAME,NAME, where names may hold commas themselves. Raises ConfigError unless there is one way to do so."""
    words = text.split(",")
    splits = [(",".join(words[:i]), ",".join(words[i:])) for i in range(1, len(words))]
    fitting = [pair for pair in splits if known.issuperset(pair)]
    if len(fitting) != 1 and len(splits) != 1:
        raise ConfigError(f"--compare: must be two classes, NAME,NAME, got {display_path(text)}")
    return (fitting or splits)[0]


def _stem(path: str, number: int, paths: list[str]) -> str:
    """The name of a picture's files: its own without the ending, with a number where several have the same."""
    stem = display_path(Path(path).stem)
    alike = sum(Path(other).stem == Path(path).stem for other in paths)
    return stem if alike == 1 else f"{stem}-{number:0{len(str(len(paths)))}}"


def _save(path: Path, pixels: "np.ndarray") -> None:
    from PIL import Image

    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
