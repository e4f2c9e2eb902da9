"""`vit attention MODEL [IMAGE...] --model-report`: what the model itself has learnt."""

import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.errors import DataError, UnreadableImage, display_path
from vit.files import dump_json, whole_file, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vit.api import Classifier
    from vit.explain.model_views import Components
    from vit.explain.pictures import Box
    from vit.models.vision import VisionTransformer

log = logging.getLogger("vit")

_FILTERS = 28  # components, and strongest filters: as many as in the figure of the ViT paper
_SHOWN = 24  # pictures drawn beside their features; all are measured
_THUMBNAIL = 400  # pixels of the longer side of a picture that is drawn
_TOKENS = 2048  # about so many in a batch, so that memory is bounded at any picture size


@dataclass
class Shown:
    """A picture that is drawn: thinned to a thumbnail, the part the model saw, and its features [R, S, D]."""

    path: str
    thumbnail: "np.ndarray"
    box: "Box"
    features: "Tensor"


@dataclass
class Passed:
    """What the passes over all pictures left.

    `numbers` are those of `vit.explain.model_views.Measures` but the features, a row a picture; of the features their
    `components` and the first pictures.
    """

    paths: list[str] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    numbers: dict[str, "np.ndarray"] = field(default_factory=dict)
    components: "Components | None" = None
    shown: list[Shown] = field(default_factory=list)


def report(classifier: "Classifier", images: list[str], folder: Path) -> int:
    """Draw what the weights show and, with pictures, what the layers do to them; write `model_report.json`.

    Returns the exit code: 1 where a picture could not be read. Raises DataError where none could.
    """
    from vit.data.folders import find_images

    network = classifier.network.float()  # weights of half the precision too: the report is computed in fp32
    a = network.architecture
    passed = _pass(classifier, list(find_images(images))) if images else None
    found: dict[str, Any] = {
        "model": {
            "image_size": a.image_size,
            "patch_size": a.patch_size,
            "grid": a.grid,
            "dim": a.dim,
            "depth": a.depth,
            "heads": a.heads,
            "prefix_tokens": _prefix_names(network),
        },
        "positions": _positions(network, folder),
        "rotary": _rotary(network, folder),
        "filters": _filters(network, folder),
    }
    if passed is None:
        reason = "needs pictures, and none were given"
        found |= {view: _left_out(view, reason) for view in ("attention", "norms", "features")}
    else:
        found["attention"] = _attention(network, passed, classifier.preprocessing.size, folder)
        found["norms"] = _norms(network, passed, folder)
        found["features"] = _features(passed, folder)
        found |= {"pictures": passed.paths, "unreadable": passed.unreadable}
    write_text(folder / "model_report.json", dump_json(_plain(found), indent=1) + "\n")
    _say("report", display_path(folder / "model_report.json"))
    return 1 if passed is not None and passed.unreadable else 0


def _pass(classifier: "Classifier", images: "list[str | UnreadableImage]") -> Passed:
    """Show the network every picture that can be read, a batch at a time."""
    import torch

    from vit.data.folders import path_of
    from vit.explain.model_views import Scatter, measured
    from vit.models.outputs import require_finite

    network = classifier.network
    size, patch = classifier.preprocessing.size, network.architecture.patch_size
    grid = (size[0] // patch[0], size[1] // patch[1])
    passed, scatter = Passed(), Scatter(network.architecture.dim)
    numbers: dict[str, list[Tensor]] = {}
    paths = [path_of(image) for image in images]
    count = min(_SHOWN, len(paths))  # from all over: the pictures of a class stand side by side
    drawn = {paths[number * len(paths) // count] for number in range(count)}
    at_once, limit = max(1, _TOKENS // (grid[0] * grid[1])), classifier.preprocessing.max_pixels
    for batch in _batches(images, at_once, limit, passed):
        prepared = torch.stack([classifier.prepare(path) for path, _ in batch])
        measures = measured(network, classifier.normalise(prepared.to(classifier.device)))
        require_finite(measures.features)
        for name, values in vars(measures).items():
            if name != "features":
                numbers.setdefault(name, []).append(values)
        scatter.add(measures.features.flatten(0, 1))
        for (path, picture), features in zip(batch, measures.features, strict=True):
            passed.paths.append(path)
            if path in drawn:
                box = _box(classifier, picture)
                passed.shown.append(Shown(path, _thumbnail(picture), box, features.unflatten(0, grid).clone()))
    if not passed.paths:
        raise DataError(f"none of the {len(paths)} pictures could be read")
    passed.numbers = {name: torch.cat(parts).numpy() for name, parts in numbers.items()}
    passed.components = scatter.components(3)
    return passed


def _batches(
    images: "list[str | UnreadableImage]", size: int, max_pixels: int, passed: Passed
) -> "Iterator[list[tuple[str, np.ndarray]]]":
    """Decoded pictures with their paths, `size` at a time; those that cannot be read are named and kept apart."""
    from tqdm import tqdm

    from vit.data.decode import decode
    from vit.data.folders import path_of, read_image

    batch = []
    bar = tqdm(images, unit=" pictures", delay=2, leave=False, disable=not sys.stderr.isatty())
    for image in bar:
        path = path_of(image)
        try:
            batch.append((path, read_image(lambda file: decode(file, max_pixels), image)))
        except UnreadableImage as error:
            passed.unreadable.append({"path": path, "error": error.reason})
            bar.write(f"vit: {display_path(path)}: {error.reason}", file=sys.stderr)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _positions(network: "VisionTransformer", folder: Path) -> dict[str, Any]:
    from vit.explain.model_plots import positions_plot, shown
    from vit.explain.model_views import (
        nearest_are_neighbours,
        position_grid,
        position_similarity,
        similarity_by_distance,
    )

    grid, a = position_grid(network), network.architecture
    if grid is None:
        return _left_out("positions", "the model adds no positions to its patches")
    rows, columns = shown(a.grid[0]), shown(a.grid[1])
    similarity = position_similarity(grid, rows, columns)
    kind = {"learned": "learned", "sincos": "sines and cosines"}[a.positions]
    with whole_file(folder / "positions.png") as temporary:
        positions_plot(similarity.numpy(), rows, columns, kind, temporary)
    nearest = nearest_are_neighbours(similarity, rows, columns)
    by_rows, by_columns = similarity_by_distance(similarity, rows, columns)
    _say("positions", f"positions.png, {kind}: {_percent(nearest)} are most similar to one beside them")
    return {
        "file": "positions.png",
        "kind": a.positions,
        "rows_shown": rows,
        "columns_shown": columns,
        "most_similar_is_adjacent": nearest,
        "similarity_by_rows_apart": by_rows,
        "similarity_by_columns_apart": by_columns,
    }


def _rotary(network: "VisionTransformer", folder: Path) -> dict[str, Any]:
    from vit.explain.model_plots import rotary_plot
    from vit.explain.model_views import rotary_similarity

    maps = rotary_similarity(network)
    if maps is None:
        return {"left_out": "the model has no rotary positions"}  # few have: no line is spent on it
    rope = network.architecture.rope
    assert rope is not None
    with whole_file(folder / "rotary.png") as temporary:
        rotary_plot(maps.numpy(), temporary)
    middle_row, middle_column = maps.shape[1] // 2, maps.shape[2] // 2
    by_rows, by_columns = maps[:, middle_row:, middle_column], maps[:, middle_row, middle_column:]
    farthest = float(maps.mean(dim=0).min())
    _say("rotary", f"rotary.png, {rope.kind}: the mean cosine falls from 1 to {farthest:.2f}")
    return {"file": "rotary.png", "kind": rope.kind, "by_rows_apart": by_rows, "by_columns_apart": by_columns}


def _filters(network: "VisionTransformer", folder: Path) -> dict[str, Any]:
    from vit.explain.model_plots import filters_plot
    from vit.explain.model_views import as_colours, channel_colours, filter_components, patch_filters, strongest

    filters = patch_filters(network)
    components, shares = filter_components(filters, _FILTERS)
    order, norms = strongest(filters, _FILTERS)
    mixtures = channel_colours(filters)
    channels = filters.shape[1]
    colours = {1: "in grey", 3: "in their colours"}.get(
        channels, f"the strongest mixtures of {channels} channels as colours"
    )
    with whole_file(folder / "filters.png") as temporary:
        filters_plot(
            as_colours(components, mixtures).numpy(),
            float(shares.sum()),
            as_colours(filters[order], mixtures).numpy(),
            norms.numpy(),
            colours,
            temporary,
        )
    _say(
        "filters",
        f"filters.png: {len(shares)} components hold {_percent(shares.sum())} of {len(filters)} filters' variance",
    )
    return {
        "file": "filters.png",
        "component_shares": shares,
        "strongest": order,
        "norms": norms,
        "colours": colours,
        "channels_to_colours": mixtures,
    }


def _attention(network: "VisionTransformer", passed: Passed, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    import math

    from vit.explain.model_plots import attention_plot
    from vit.explain.model_views import distance_of_uniform, patch_places

    a = network.architecture
    distances, entropies = (passed.numbers[name].mean(axis=0) for name in ("distances", "entropies"))
    places = patch_places(size, a.patch_size)
    uniform = (distance_of_uniform(places), math.log(a.prefix + len(places)))
    with whole_file(folder / "attention.png") as temporary:
        attention_plot(distances, entropies, uniform, len(passed.paths), temporary)
    first, last = distances[0].mean(), distances[-1].mean()
    _say("attention", f"attention.png: patches look {first:.1f} pixels far in the first layer, {last:.1f} in the last")
    return {
        "file": "attention.png",
        "distance_in_pixels": distances,
        "distance_of_attention_to_all_alike": uniform[0],
        "entropy_in_nats": entropies,
        "entropy_of_attention_to_all_alike": uniform[1],
    }


def _norms(network: "VisionTransformer", passed: Passed, folder: Path) -> dict[str, Any]:
    import numpy as np

    from vit.explain.model_plots import norms_plot
    from vit.explain.model_views import HIGH_NORM

    by_picture = passed.numbers["patch_norms"]
    patches = np.concatenate([by_picture[..., :-1].mean(axis=0), by_picture[..., -1:].max(axis=0)], axis=1)
    prefix, high = (passed.numbers[name].mean(axis=0) for name in ("prefix_norms", "high"))
    names = _prefix_names(network)
    with whole_file(folder / "norms.png") as temporary:
        norms_plot(patches, prefix, names, len(passed.paths), temporary)
    worst = int(high.argmax())
    share = f"{_percent(high[worst], 2)} of the patches after layer {worst} are" if high[worst] > 0 else "no patch is"
    _say("norms", f"norms.png: {share} over {HIGH_NORM:g} times as long as the median one")
    return {
        "file": "norms.png",
        "patches": dict(zip(("5 %", "median", "95 %", "largest"), patches.T, strict=True)),
        "prefix_tokens": prefix,
        "share_of_patches_over_three_medians": high,
    }


def _features(passed: Passed, folder: Path) -> dict[str, Any]:
    from vit.explain.model_plots import FeaturePicture, counted, features_plot
    from vit.explain.model_views import feature_colours

    assert passed.components is not None
    colours = feature_colours([one.features for one in passed.shown], passed.components)
    captions = _captions([Path(one.path) for one in passed.shown])
    pictures = [
        FeaturePicture(one.thumbnail, one.box, caption, patches.numpy())
        for one, caption, patches in zip(passed.shown, captions, colours, strict=True)
    ]
    shares = passed.components.shares
    with whole_file(folder / "features.png") as temporary:
        features_plot(pictures, shares.tolist(), temporary)
    held, of = _percent(shares.sum()), counted(len(passed.paths))
    drawn = "" if len(pictures) == len(passed.paths) else f", {len(pictures)} of them drawn"
    _say("features", f"features.png: 3 components hold {held} of the variance of {of}{drawn}")
    return {"file": "features.png", "component_shares": shares, "drawn": len(pictures)}


def _left_out(view: str, reason: str) -> dict[str, str]:
    _say(view, f"left out: {reason}")
    return {"left_out": reason}


def _say(view: str, text: str) -> None:
    log.info("%-10s %s", view, text)


def _percent(share: Any, digits: int = 0) -> str:
    return f"{100 * float(share):.{digits}f} %"


def _prefix_names(network: "VisionTransformer") -> list[str]:
    a = network.architecture
    return ["class token"] * a.class_token + ["distillation token"] * a.distilled + ["register"] * a.registers


def _captions(paths: list[Path]) -> list[str]:
    """Names of pictures, with their folder where some are called alike."""
    names = [path.stem for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.stem}" for path in paths]


def _box(classifier: "Classifier", picture: "np.ndarray") -> "Box":
    """The part of a picture that the model sees, in shares of its sides."""
    from vit.explain.pictures import Box

    height, width = picture.shape[:2]
    top, left, bottom, right = classifier.transform.seen(height, width)
    box = Box(top / height, left / width, bottom / height, right / width)
    return box.of_patches(classifier.preprocessing.size, classifier.network.architecture.patch_size)


def _thumbnail(picture: "np.ndarray") -> "np.ndarray":
    import numpy as np
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(image)


def _plain(value: Any) -> Any:
    """What JSON can hold, numbers to six digits, None for NaN and inf."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):  # arrays and tensors
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
