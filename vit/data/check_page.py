"""The report of `vit data check` as one HTML page that shows the pictures in question."""

import base64
import html
import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vit.data.check import Report
from vit.data.config import MAX_PIXELS
from vit.data.decode import decode_copy
from vit.errors import UnreadableImage, display_path

_SIDE = 128  # pixels of a thumbnail
_GROUPS = 60  # of a kind; JSON has all
_MEMBERS = 8  # of a group

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.3rem; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse } td { padding: .15rem .8rem .15rem 0 } td.n { text-align: right }
.group { display: flex; flex-wrap: wrap; gap: .8rem; padding: .6rem 0; border-top: 1px solid #ddd }
figure { margin: 0; width: 9rem } figcaption { font-size: .75rem; overflow-wrap: anywhere; color: #555 }
img { max-width: 128px; max-height: 128px; image-rendering: auto; background: #eee }
.bad { color: #a11 } .good { color: #161 } li { overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #e6e6e6 } .bad { color: #f88 }
.good { color: #8d8 } .group { border-color: #444 } figcaption { color: #aaa } }
"""


def check_page(report: Report, max_pixels: int = MAX_PIXELS) -> str:
    """One page with the counts, what must be mended, and thumbnails of the pictures in question. Needs no network."""
    return "\n".join(_page(report, max_pixels))


def _page(report: Report, max_pixels: int) -> Iterator[str]:
    title = _shown(report.root)
    yield "<!doctype html><html lang='en'><meta charset='utf-8'>"
    yield "<meta name='viewport' content='width=device-width'>"
    yield f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
    if report.must_mend:
        yield "<h2 class='bad'>Must be mended</h2>" + _list(report.must_mend)
    else:
        yield "<p class='good'>Nothing must be mended.</p>"
    if report.worth_a_look:
        yield "<h2>Worth a look</h2>" + _list(report.worth_a_look)
    yield from _counts(report)
    unreadable = [f"{item.path}: {item.reason}" for item in report.unreadable]
    if unreadable:
        yield "<h2>Files that cannot be used</h2>" + _list(unreadable)
    for heading, groups in (
        ("The same picture in several splits", report.leaks),
        ("The same picture in several classes", report.conflicts),
        ("Pictures that look alike in different splits", report.near_leaks),
        ("Pictures that look alike in different classes", report.near_conflicts),
        ("The same picture several times in a class", report.copies),
        ("Near-duplicates within a class", report.near_copies),
        ("Near-duplicates that vit train would put into different splits", report.split_leaks),
    ):
        if groups:
            yield f"<h2>{heading}: {len(groups)}</h2>"
            yield from (_group(report, group, max_pixels) for group in groups[:_GROUPS])
            if len(groups) > _GROUPS:
                yield f"<p>and {len(groups) - _GROUPS} more (--json lists all)</p>"
    yield "</html>"


def _counts(report: Report) -> Iterator[str]:
    for split, classes in report.counts.items():
        yield f"<h2>{_shown(split)}: {sum(classes.values())} pictures of {len(classes)} classes</h2><table>"
        rows = sorted(classes.items(), key=lambda item: -item[1])
        yield from (f"<tr><td class='n'>{count}</td><td>{_shown(label)}</td></tr>" for label, count in rows)
        yield "</table>"
    for side, (least, median, largest) in report.sizes.items():
        yield f"<p>{side}: {least} to {largest} pixels, median {median}</p>"


def _group(report: Report, paths: list[str], max_pixels: int) -> str:
    beneath = os.path.join(report.root, "")
    figures = [
        f"<figure>{_thumbnail(path, max_pixels)}<figcaption>{_shown(path.removeprefix(beneath))}</figcaption></figure>"
        for path in paths[:_MEMBERS]
    ]
    more = f"<p>and {len(paths) - _MEMBERS} more</p>" if len(paths) > _MEMBERS else ""
    return f"<div class='group'>{''.join(figures)}{more}</div>"


def _thumbnail(path: str, max_pixels: int) -> str:
    """An image of at most 128 pixels a side, inside the page."""

    def least(height: int, width: int) -> tuple[int, int]:
        shrink = max(1.0, max(height, width) / (2 * _SIDE))
        return round(height / shrink), round(width / shrink)

    try:
        image = Image.fromarray(np.ascontiguousarray(decode_copy(path, least, max_pixels).pixels))
    except UnreadableImage as error:
        return f"<p>{_shown(error.reason)}</p>"
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}'>"


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{_shown(line)}</li>" for line in lines) + "</ul>"


def _shown(text: str) -> str:
    return html.escape(display_path(text))
