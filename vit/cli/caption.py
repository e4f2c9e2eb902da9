"""`vit caption MODEL IMAGE...`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vit.cli.arguments import (
    MODEL_HELP,
    Parser,
    add_generation,
    add_max_pixels,
    announce,
    check_out,
    generation_of,
    integer,
    make_folder,
    mention_unknown,
    model_files,
    output_format,
    override_max_pixels,
    result_stream,
)
from vit.errors import NonFiniteOutput, UnreadableImage, display_path
from vit.files import json_line, whole_file, write_text
from vit.models.generation_config import GenerationConfig

if TYPE_CHECKING:
    from torch import Tensor

    from vit.explain.explorer import View
    from vit.writers import Caption, Captioner

BEAMS = 4
PAGE = 8  # pictures in the page of --attention: each takes megabytes


def main(argv: list[str]) -> int:
    """Parse, then caption. Returns the exit code: 1 where an image has no caption."""
    parser = Parser(prog="vit caption", description="Describe pictures in words, as JSON lines.")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders, globs")
    parser.add_argument("--prompt", default="", help="how every caption begins")
    add_generation(parser, beams=BEAMS)
    parser.add_argument("--out", help=".jsonl file to write, or to replace, instead of standard output")
    parser.add_argument(
        "--attention", metavar="DIR", help=f"folder for maps of every word, and a page of the first {PAGE}"
    )
    parser.add_argument(
        "--method", choices=("cross", "generic"), default="cross", help="of --attention (default: cross)"
    )
    parser.add_argument("--batch-size", type=integer(1), default=8)
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (default: averaged if any)")
    add_max_pixels(parser)
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    options = parser.parse_args(argv)
    check_out(options.out)
    config = generation_of(options, beams=BEAMS)  # refused before anything is read
    if not config.draws:
        parser.refuse_idle(("seed",), "without sampling")
    if options.attention is None:
        parser.refuse_idle(("method",), "without --attention")
    output_format(options.out, ("jsonl",))

    from vit.data.folders import find_images
    from vit.models.build import require_kind
    from vit.models.sources import load_model
    from vit.writers import Captioner, words_of

    model = load_model(options.model)
    override_max_pixels(model, options.max_pixels)
    require_kind(model, ("captioner",), options.model)
    captioner = words_of(model, options.model, weights=options.weights, device=options.device)
    assert isinstance(captioner, Captioner)
    config = generation_of(options, beams=BEAMS, max_length=captioner.room(options.prompt))
    mention_unknown(captioner.tokenizer, options.prompt)
    images = list(find_images(options.images))
    folder = None if options.attention is None else Path(options.attention)
    check_out(options.out, inputs=[*model_files(options.model), *options.images, *images])
    if folder is not None:
        make_folder(folder, "--attention", options.images)
    announce(model)
    with result_stream(options.out) as stream:
        return _caption(captioner, images, config, options, stream, folder)


def _caption(
    captioner: "Captioner",
    images: list[str | UnreadableImage],
    config: GenerationConfig,
    options: Any,
    stream: IO[str],
    folder: Path | None,
) -> int:
    """Write a line a picture, and its words' maps. Returns the exit code."""
    from tqdm import tqdm

    from vit.explain.explorer import BUDGET, View

    failed, drawn, views = 0, 0, list[View]()
    shown = sys.stderr.isatty() and (bool(options.out) or not sys.stdout.isatty())
    bar = tqdm(total=len(images), unit=" pictures", delay=2, leave=False, disable=not shown)
    for path, picture, caption, reason in _captions(captioner, images, config, options):
        bar.update()
        if caption is None:
            failed += 1
            record: dict[str, Any] = {"path": path, "error": reason}
            bar.write(f"vit: {display_path(path)}: {reason}", file=sys.stderr)
        else:
            record = {"path": path, **_described(caption)}
            if caption.alternatives:
                record["alternatives"] = [_described(other) for other in caption.alternatives]
        print(json_line(record), file=stream, flush=True)
        if folder is not None and caption is not None and picture is not None and caption.words:
            name = f"{drawn:04d}-{display_path(Path(path).stem)}"
            _draw(captioner, picture, caption, options.method, folder / f"{name}.png")
            if drawn < PAGE:
                views.append(_view(captioner, path, picture, caption, budget=BUDGET // min(PAGE, len(images))))
            drawn += 1
    bar.close()
    if views and folder is not None:
        from vit.explain.explorer import page

        write_text(folder / "explorer.html", page(views, f"vit caption {options.model}"))
    if failed:
        print(f"vit: no caption for {failed} of the images", file=sys.stderr)
    return 1 if failed else 0


def _captions(
    captioner: "Captioner", images: list[str | UnreadableImage], config: GenerationConfig, options: Any
) -> Iterator[tuple[str, "Tensor | None", "Caption | None", str]]:
    """Path, picture as the model sees it, and caption of each, or path and the reason why not, in order."""
    from vit.data.folders import path_of, read_image
    from vit.models.outputs import NON_FINITE

    def write(prepared: dict[str, "Tensor"], seed: int) -> dict[str, "Caption"]:
        """Caption a batch, image by image if the output is NaN or inf for one of them."""
        try:
            captions = captioner.caption(
                list(prepared.values()), prompt=options.prompt, config=config, batch_size=len(prepared), seed=seed
            )
        except NonFiniteOutput:
            if len(prepared) < 2:
                return {}
            alone = [write({path: image}, seed + place) for place, (path, image) in enumerate(prepared.items())]
            return {path: caption for written in alone for path, caption in written.items()}
        return dict(zip(prepared, captions, strict=True))

    for start in range(0, len(images), options.batch_size):
        part = images[start : start + options.batch_size]
        prepared, reasons = {}, {}
        for image in part:
            try:
                prepared[path_of(image)] = read_image(captioner.prepare, image)
            except UnreadableImage as error:
                reasons[path_of(image)] = error.reason
        captions = write(prepared, options.seed + start) if prepared else {}
        for path in map(path_of, part):
            yield path, prepared.get(path), captions.get(path), reasons.get(path, NON_FINITE)


def _described(caption: "Caption") -> dict[str, Any]:
    tokens = [
        {"token": word, "probability": round(p, 6)}
        for word, p in zip(caption.words, caption.probabilities, strict=True)
    ]
    ended = {} if caption.finished else {"finished": False}
    return {"caption": caption.text, "score": round(caption.score, 6), **ended, "tokens": tokens}


def _draw(captioner: "Captioner", picture: "Tensor", caption: "Caption", method: Any, target: Path) -> None:
    """Write the picture beside its words' maps."""
    from vit.evaluate.plots import GALLERY, gallery
    from vit.explain.pictures import Box, color_scale, laid_over
    from vit.models.architecture import VisionArchitecture

    seen = picture.permute(1, 2, 0).numpy()
    maps = captioner.word_maps(picture, caption, method=method).numpy()
    times = max(1, 160 // min(seen.shape[:2]))
    large = seen.repeat(times, axis=0).repeat(times, axis=1)
    encoder = captioner.network.encoder.architecture
    assert isinstance(encoder, VisionArchitecture)
    box = Box(0, 0, *large.shape[:2]).of_patches(seen.shape[:2], encoder.patch_size)
    tiles = [(large, caption.text)]
    for word, values in zip(caption.words, maps, strict=True):
        scale = color_scale(values)
        tiles.append((laid_over(large, values, box, scale=scale), f"{word}\n{scale.low:.3g} to {scale.high:.3g}"))
    with whole_file(target) as temporary:
        gallery(tiles[:GALLERY], temporary)


def _view(captioner: "Captioner", path: str, picture: "Tensor", caption: "Caption", *, budget: int) -> "View":
    """The picture and its words for the page, those of the prompt among them."""
    import torch

    from vit.explain.explorer import caption_view, patches_of
    from vit.models.vision import VisionTransformer
    from vit.nn import Trace

    encoder = captioner.network.encoder
    assert isinstance(encoder, VisionTransformer)
    trace, own = Trace(keep_tokens=False), Trace(keep_tokens=False)
    (images,) = captioner.batches([picture], 1)
    tokens = torch.tensor([[captioner.tokenizer.start, *caption.prompt, *caption.tokens]], device=captioner.device)
    with torch.no_grad():
        context = captioner.network.encode(images, trace=own)
        captioner.network.decoder(tokens[:, :-1], context, trace=trace)
    words = (*map(captioner.tokenizer.token, caption.prompt), *caption.words)
    patches = patches_of(encoder, picture.permute(1, 2, 0).numpy())
    return caption_view(path, patches, words, trace, encoder=own.self_attention, budget=budget)
