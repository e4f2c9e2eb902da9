"""`vit data`: look through a data set, or make a small one."""

import sys
from itertools import islice
from pathlib import Path

from vit.cli.arguments import Parser, add_max_pixels, check_out, integer, output_format
from vit.data.config import LARGEST_SEED, MAX_PIXELS
from vit.files import dump_json

_PROGRESS_EVERY = 100  # pictures


def main(argv: list[str]) -> int:
    """Run `vit data` with the words after it; returns the exit code. Exits with 2 on wrong use, raises `VitError`."""
    parser = _parser()
    words, settings = _split_settings(argv)
    arguments, unknown = parser.parse_known_args(words)
    settings += unknown
    if arguments.command in ("preview", "pack", "shard"):
        from vit.cli.config import compose
        from vit.cli.data_pictures import pack, preview, shard

        config = compose(arguments.config, settings)
        if arguments.command == "shard":
            return shard(arguments.data, config, arguments.out, arguments.format, arguments.megabytes)
        if arguments.command == "pack":
            return pack(arguments.data, config)
        check_out(arguments.out, inputs=[arguments.data])
        output_format(arguments.out, ("png",))
        return preview(arguments.data, config, Path(arguments.out), arguments.epoch)
    if settings:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    if arguments.command == "check":
        return _check(arguments.data, arguments.json, arguments.html, arguments.list, arguments.max_pixels)
    if arguments.set == "scenes":
        return _make_scenes(arguments.out, arguments.count, arguments.seed, arguments.size, arguments.simple)
    if arguments.set == "dates":
        return _make_dates(arguments.out, arguments.count, arguments.seed)
    return _make_digits(arguments.out)


def _split_settings(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separate the settings of `vit train`, `--task VALUE` and `--part.key VALUE`, from the other words."""
    words, settings = [], []
    rest = iter(argv)
    for word in rest:
        key, equals, _ = word.partition("=")
        if word == "--":
            words += [word, *rest]
        elif key == "--task" or (key.startswith("--") and "." in key):
            settings += [word] if equals else [word, *islice(rest, 1)]  # `compose` reports a missing value
        else:
            words.append(word)
    return words, settings


def _parser() -> Parser:
    parser = Parser("vit data", description="Look through a data set, keep it decoded, or make a small one.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="check|preview|pack|shard|make")
    check = commands.add_parser(
        "check",
        help="decode every picture, find copies, gaps and leaks between splits",
        description="Decode every picture; find unreadable files, copies, leaks between splits and lopsided classes. "
        "Changes nothing. The exit code is 1 when something must be mended.",
    )
    check.add_argument("data", metavar="DATA", help="a folder of class folders, or a .csv or .jsonl list")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument("--html", metavar="FILE", help="write the report as one page with the pictures in question")
    check.add_argument(
        "--list",
        metavar="FILE",
        help="write the pictures that can be used as a .csv that vit train takes: readable, of one class, and of equal "
        "ones one, in val or test rather than in train",
    )
    add_max_pixels(check, default=f"{MAX_PIXELS}")
    preview = commands.add_parser(
        "preview",
        help="draw a training batch as the network will see it",
        description="Draw the first training batch of an epoch as the network will see it, cropped, varied and mixed, "
        "with its labels. Takes the settings of vit train: --config FILE, --part.key VALUE.",
    )
    pack = commands.add_parser(
        "pack",
        help="decode all pictures beforehand, into the user's cache folder",
        description="Decode all pictures, shrunk to data.cache_side, into the files that vit train --data.cache disk "
        "reads, in $VIT_CACHE or the user's cache folder. Takes the settings of vit train: --config FILE, "
        "--part.key VALUE. What is there already is kept; pictures that changed are decoded again.",
    )
    shard = commands.add_parser(
        "shard",
        help="write the pictures as a few large files, to stream from",
        description="Write the pictures of all splits, with their classes or captions, as a few large files which vit "
        "train and vit evaluate take as DATA. Takes the settings of vit train that choose pictures: --task, "
        "--data.val_fraction and the like.",
    )
    for command in (preview, pack, shard):
        command.add_argument("data", metavar="DATA", help="a folder of class folders, or a .csv or .jsonl list")
        command.add_argument("--config", metavar="FILE", action="append", default=[], help="YAML with settings")
    preview.add_argument("--out", metavar="FILE", default="preview.png", help="PNG to write (default: %(default)s)")
    preview.add_argument("--epoch", metavar="N", type=integer(0), default=0, help="counted from 0 (default: 0)")
    shard.add_argument(
        "--out", metavar="URL", required=True, help="a new folder, or an address: s3://, gs:// or r2://BUCKET/NAME"
    )
    shard.add_argument(
        "--format",
        choices=("litdata", "webdataset"),
        default="litdata",
        help="litdata: chunks to stream; webdataset: tars, read in place (default: %(default)s)",
    )
    shard.add_argument(
        "--megabytes",
        metavar="N",
        type=integer(1, 1 << 20),
        default=64,
        help="about the size of a file (default: %(default)s)",
    )
    make = commands.add_parser("make", help="make a data set", description="Make a data set.")
    sets = make.add_subparsers(dest="set", required=True, metavar="digits|scenes|dates")
    digits = sets.add_parser(
        "digits",
        help="1 797 handwritten digits, 32 x 32 pixels",
        description="Write 1 797 handwritten digits of 32 x 32 pixels to OUT/train and OUT/val. Needs scikit-learn.",
    )
    scenes = sets.add_parser(
        "scenes",
        help="coloured shapes with captions, questions and the truth about both",
        description="Write generated scenes of one to three coloured shapes, with captions (metadata.jsonl), questions "
        "(questions.csv) and the truth (scenes.jsonl). Every test scene shows a combination of size, colour and "
        "shape that the training pictures never show.",
    )
    dates = sets.add_parser(
        "dates",
        help="dates as people write them, and as YYYY-MM-DD",
        description="Write pairs of a date as people write it and as YYYY-MM-DD: train.tsv, val.tsv and test.tsv.",
    )
    for made in (digits, scenes, dates):
        made.add_argument("out", metavar="OUT", help="a new or empty folder")
    for made, what, count in ((scenes, "scenes", 3000), (dates, "pairs", 10_000)):
        made.add_argument(
            "--count",
            metavar="N",
            type=integer(1),
            default=count,
            help=f"{what} for training; val and test get a tenth as many each (default: %(default)s)",
        )
        made.add_argument(
            "--seed",
            metavar="S",
            type=integer(0, LARGEST_SEED),
            default=0,
            help="another seed makes another set (default: 0)",
        )
    scenes.add_argument(
        "--size",
        metavar="PIXELS",
        type=integer(1),
        default=64,
        help="height and width of the pictures (default: %(default)s)",
    )
    scenes.add_argument(
        "--simple",
        action="store_true",
        help="one or two objects and one canonical caption per scene: learned in minutes",
    )
    return parser


def _check(data: str, as_json: bool, page: str | None, good: str | None, max_pixels: int | None) -> int:
    from vit.data.check import check, report_lines, write_good

    check_out(page, "--html", [data])
    check_out(good, "--list", [data])
    output_format(page, ("html",), flag="--html")
    output_format(good, ("csv",), flag="--list")
    limit = max_pixels or MAX_PIXELS
    report = check(data, max_pixels=limit, progress=_show_progress if sys.stderr.isatty() else None)
    if page is not None:
        from vit.data.check_page import check_page
        from vit.files import write_text

        write_text(Path(page), check_page(report, limit))
    if good is not None:
        write_good(report, Path(good))
    if as_json:
        print(dump_json(report.as_json(), indent=2))
    else:
        print("\n".join(report_lines(report)))
    return 1 if report.must_mend else 0


def _show_progress(done: int, count: int) -> None:
    if done % _PROGRESS_EVERY == 0 or done == count:
        end = "\r\033[K" if done == count else ""  # the line goes when the work is done
        print(f"\r{done} of {count} pictures{end}", end="", file=sys.stderr, flush=True)


def _make_digits(out: str) -> int:
    from vit.data.digits import make_digits
    from vit.errors import display_path

    if make_digits(out):
        print(f"wrote 1797 pictures of 10 classes to {display_path(out)}")
    else:
        print(f"{display_path(out)} has all 1797 pictures already; nothing was changed")
    return 0


def _make_scenes(out: str, count: int, seed: int, size: int, simple: bool) -> int:
    from vit.data.scenes import make_scenes
    from vit.errors import display_path

    progress = _show_progress if sys.stderr.isatty() else None
    if make_scenes(out, count=count, seed=seed, side=size, simple=simple, progress=progress):
        print(f"wrote {count} scenes for training, and a tenth as many for val and for test, to {display_path(out)}")
    else:
        print(f"{display_path(out)} has all these scenes already; nothing was changed")
    return 0


def _make_dates(out: str, count: int, seed: int) -> int:
    from vit.data.dates import make_dates
    from vit.errors import display_path

    if make_dates(out, count=count, seed=seed):
        print(f"wrote {count} dates for training, and a tenth as many for val and for test, to {display_path(out)}")
    else:
        print(f"{display_path(out)} has all these dates already; nothing was changed")
    return 0
