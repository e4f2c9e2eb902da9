"""The explorer: one HTML file in which a person asks any patch or word of any head what it attends to.

The page holds the queries and keys of each layer, rounded as far as no probability moves by more than `TOLERANCE`, and
computes rows and columns of softmax(q k^T / sqrt(K)) from them when they are asked for: fewer bytes than the matrices
themselves. It works from the file alone; its policy forbids it any connection.
Letters: H heads, N queries, M keys, K dim of one head, L layers.
"""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit.errors import display_path
from vit.explain import methods
from vit.explain.maps import attention_maps, pool_weights
from vit.explain.methods import distances, entropies, rollout
from vit.explain.pictures import coloured
from vit.files import dump_json
from vit.models.outputs import top_classes
from vit.models.vision import VisionTransformer
from vit.nn.state import Record, Trace

TOLERANCE = 0.5 / 255
"""how much a probability may differ from the exact one: half a step of a colour"""

BUDGET = 48 * 2**20
"""bytes of queries and keys of a whole page, before base64 adds a third"""

_FEWEST, _MOST, _FLOAT = 8, 16, 32  # bits of a number: codes of 8 to 16, or the float itself
_PARTS = Path(__file__).with_suffix("")  # page.html and what belongs into it


@dataclass(frozen=True)
class Patches:
    """A picture as tokens: `prefix` names those that stand for no patch, then the patches row by row.

    `pixels` uint8 [height, width, 3] are what the model saw, `grid` the rows and columns of patches. A class token asks
    at first where the model pools by it (`pools`).
    """

    pixels: np.ndarray
    grid: tuple[int, int]
    prefix: tuple[str, ...] = ()
    pools: bool = True


@dataclass(frozen=True)
class Words:
    """Text as tokens, each as it shall be read."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One layer's attention as the page holds it: numbers of `bits` [H] each, and their scales per token and head.

    q and k hold the bytes of [N, K] and [M, K] of each head; the scales are [H, N] and [H, M], that of q times
    1 / sqrt(K); `sums` [H, N] is the logarithm of each row's sum, by which a column is as cheap as a row. `mask` is
    boolean [1 or H, 1 or N, M] or None. `error` is the largest difference of any probability from the exact one.
    """

    number: int
    bits: tuple[int, ...]
    q: tuple[bytes, ...]
    k: tuple[bytes, ...]
    q_scale: np.ndarray
    k_scale: np.ndarray
    sums: np.ndarray
    mask: np.ndarray | None
    error: float


@dataclass(frozen=True)
class Attention:
    """The attention of one kind, such as self-attention, layer by layer.

    `queries` and `keys` name sets of tokens of the view; where there are fewer than the set has, they are its last.
    `sizes` are H, N, M, K; `distances` and `entropies` [L][H] of the layers kept, `depth` counts all layers.
    """

    name: str
    queries: str
    keys: str
    sizes: tuple[int, int, int, int]
    causal: bool
    depth: int
    layers: tuple[Layer, ...]
    entropies: list[list[float | None]]
    distances: list[list[float | None]] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Map:
    """Numbers that Python computed: `values` [N] or [L, N] of the last tokens of a set, and what they are in words."""

    name: str
    tokens: str
    values: np.ndarray
    about: str


@dataclass(frozen=True)
class Answer:
    """A class with its probability and, where there is one, the map [patches] of what spoke for it."""

    name: str
    probability: float
    values: np.ndarray | None = None


@dataclass(frozen=True)
class View:
    """What one entry of the page shows: a picture, a text, or a picture with its caption."""

    name: str
    tokens: dict[str, Patches | Words]
    attentions: tuple[Attention, ...]
    maps: tuple[Map, ...] = ()
    answers: tuple[Answer, ...] = field(default=())


def picture_view(
    name: str,
    pixels: np.ndarray,
    network: VisionTransformer,
    images: Tensor,
    classes: Sequence[str] = (),
    *,
    top: int = 5,
    budget: int = BUDGET,
) -> View:
    """A picture in a vision transformer: attention of all layers, rollout, norms, and maps of the likeliest classes.

    `pixels` uint8 [height, width, 3] are shown, `images` [1, C, height, width] are the same normalised. Where queries
    and keys would take more than `budget` bytes, layers are left out evenly.
    """
    a = network.architecture
    grid = images.shape[-2] // a.patch_size[0], images.shape[-1] // a.patch_size[1]
    trace = Trace()
    with torch.no_grad():
        scores = network(images, trace=trace)
        start = pool_weights(network, trace)
        spread = rollout(trace.self_attention, start)[0, a.prefix :]
        norms = torch.stack([tokens[0].norm(dim=-1) for tokens in trace.tokens])
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten() * a.patch_size[0], columns.flatten() * a.patch_size[1]], dim=1)
    attentions = [attention("self-attention", trace.self_attention, "picture", places=places, unit="px", budget=budget)]
    tokens: dict[str, Patches | Words] = {"picture": patches_of(network, pixels)}
    if trace.pool:
        tokens["pool"] = Words(("pooling query",))
        attentions.append(attention("attention pooling", trace.pool, "pool", "picture"))
    maps = (
        Map("rollout", "picture", _array(spread), "attention rollout from what the model pools by"),
        Map("norm", "picture", _array(norms), "length of each token after a layer: high where there are artefacts"),
    )
    answers = _answers(network, images, scores, classes, top) if classes and scores.isfinite().all() else ()
    return View(name, tokens, tuple(attentions), maps, answers)


def text_view(name: str, words: Sequence[str], records: Sequence[Record], *, budget: int = BUDGET) -> View:
    """A text that attends to itself, causally or not."""
    places = torch.arange(len(words))[:, None]
    own = attention("self-attention", records, "text", places=places, unit="words", budget=budget)
    return View(name, {"text": Words(tuple(words))}, (own,))


def caption_view(
    name: str,
    picture: Patches,
    words: Sequence[str],
    trace: Trace,
    encoder: Sequence[Record] = (),
    *,
    budget: int = BUDGET,
) -> View:
    """A caption: what each word took from the picture and from the words before it, by the decoder's trace.

    The decoder has read a start token and all words but the last, at whose places the words were written. `encoder` are
    the self-attention records of the picture's encoder, for a look at them too.
    """
    before = attention("words", [among_read(record) for record in trace.self_attention], "text", budget=budget // 4)
    places = torch.arange(len(words), device=trace.self_attention[0].q.device)[:, None]
    chosen = [_first(trace.self_attention[layer.number]) for layer in before.layers]
    far = [_list(distances(record, places, prefix=0)) for record in chosen]
    attentions = [
        attention("cross-attention", trace.cross_attention, "text", "picture", budget=budget // 2),
        replace(before, distances=far, unit="words"),
    ]
    if encoder:
        attentions.append(attention("picture", encoder, "picture", budget=budget // 4))
    return View(name, {"picture": picture, "text": Words(("start", *words))}, tuple(attentions))


def among_read(record: Record) -> Record:
    """Causal self-attention of N places, which each wrote a word, as those words' attention to what had been read.

    The keys become 1 + N, the start token and all words; the last, which nothing has read, is seen by none.
    """
    n = record.k.shape[2]
    seen = torch.arange(n + 1, device=record.k.device) <= torch.arange(n, device=record.k.device)[:, None]
    if record.mask is not None:
        seen = seen & torch.nn.functional.pad(record.mask, (0, 1))
    k, v = (torch.cat([part, part[:, :, -1:]], dim=2) for part in (record.k, record.v))
    return Record(record.q, k, v, record.output, seen.expand(1, 1, *seen.shape[-2:]), False)


def attention(
    name: str,
    records: Sequence[Record],
    queries: str,
    keys: str | None = None,
    *,
    places: Tensor | None = None,
    unit: str = "",
    budget: int = BUDGET,
) -> Attention:
    """The first of the batch of each layer's record, coded for the page, of the tokens of two sets, or of one.

    `places` [patches or words, 2 or 1], in `unit`, are for the mean attention distance. Layers that would take more
    than `budget` bytes are left out evenly; the last is kept.
    """
    firsts = [_first(record) for record in records]
    (heads, n, dim), m = firsts[0].q.shape[1:], firsts[0].k.shape[2]
    kept = _kept(len(firsts), budget // (heads * (n * (dim + 8) + m * (dim + 4))))
    chosen = [firsts[number] for number in kept]
    far = None
    if places is not None:
        where = places.to(firsts[0].q.device)
        far = [_list(distances(record, where, prefix=n - len(places))) for record in chosen]
    return Attention(
        name,
        queries,
        keys or queries,
        (heads, n, m, dim),
        firsts[0].causal,
        len(firsts),
        tuple(encoded(record, number) for record, number in zip(chosen, kept, strict=True)),
        [_list(entropies(record)) for record in chosen],
        far,
        unit,
    )


def encoded(record: Record, number: int = 0) -> Layer:
    """One layer in as few bits a head as keep every probability within `TOLERANCE`, of a record of one sample.

    The mean key is taken off each head's keys first: it adds the same to all scores of a row, which softmax does not
    see, and what is left needs fewer bits.
    """
    q, k = record.q.detach().float(), record.k.detach().float()
    k = k - k.mean(dim=2, keepdim=True)
    bits = torch.full((q.shape[1],), _FEWEST, device=q.device)
    while True:
        (q_codes, q_scale), (k_codes, k_scale) = _codes(q, bits), _codes(k, bits)
        near = Record(q_codes * q_scale, k_codes * k_scale, record.v, record.output, record.mask, record.causal)
        errors, sums = _compared(record, near)
        lacking = (errors > TOLERANCE) & (bits < _FLOAT)
        if not lacking.any():
            break
        more = (errors / TOLERANCE).log2().ceil().clamp(min=1).long()  # a bit more halves the error
        bits = torch.where(lacking, bits + more, bits)
        bits = torch.where(bits > _MOST, _FLOAT, bits)
    widths = tuple(bits.tolist())
    mask = None if record.mask is None else record.mask.expand(1, *_axes(record.mask, k.shape[2]))[0].cpu().numpy()
    return Layer(
        number,
        widths,
        tuple(packed(_array(codes), width) for codes, width in zip(q_codes[0], widths, strict=True)),
        tuple(packed(_array(codes), width) for codes, width in zip(k_codes[0], widths, strict=True)),
        _array(q_scale[0, :, :, 0] / math.sqrt(q.shape[-1])),
        _array(k_scale[0, :, :, 0]),
        _array(sums[0]),
        mask,
        errors.max().item(),
    )


def packed(codes: np.ndarray, bits: int) -> bytes:
    """Whole numbers of `bits` as bytes, lowest bit first and half the range added; 32 bits are floats as they are."""
    if bits == _FLOAT:
        return codes.astype("<f4").tobytes()
    numbers = codes.astype(np.int32).ravel() + (1 << (bits - 1))
    if bits == 8:
        return numbers.astype(np.uint8).tobytes()
    each_bit = (numbers[:, None] >> np.arange(bits)) & 1
    return np.packbits(each_bit.astype(np.uint8), bitorder="little").tobytes()


def page(views: Sequence[View], title: str) -> str:
    """The whole page. The first view's data stand before the rest, so that it is seen while the others are read."""
    stores = [_Store() for _ in views]
    described = [_described(view, store) for view, store in zip(views, stores, strict=True)]
    ramp = np.linspace(0, 1, 256)
    content = {
        "title": display_path(title),
        "colours": {"one": _base64(coloured(ramp)), "difference": _base64(coloured(ramp, difference=True))},
        "views": described,
    }
    data = [
        f'<script type="application/octet-stream;base64" id="data-{number}">{_base64(store.content)}</script>'
        for number, store in enumerate(stores)
    ]
    style = (_PARTS / "page.css").read_text(encoding="utf-8")
    script = "".join((_PARTS / name).read_text(encoding="utf-8") for name in ("numbers.js", "draw.js", "page.js"))
    parts = {
        "POLICY": f"default-src 'none'; img-src data: blob:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'",
        "TITLE": escape(display_path(title)),
        "STYLE": style,
        "CONTENT": in_script(content),
        "FIRST": data[0],
        "SCRIPT": script,
        "REST": "\n".join(data[1:]),
    }
    pieces = (_PARTS / "page.html").read_text(encoding="utf-8").split("%%")  # text, name, text, name, ..., text
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def in_script(content: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element or a line."""
    text = dump_json(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Store:
    """Bytes one after the other, each part at a multiple of four; equal parts are kept once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[bytes, int] = {}

    def put(self, part: bytes) -> int:
        """Where it stands."""
        key = hashlib.sha256(part).digest()
        if key not in self._places:
            self._places[key] = len(self.content)
            self.content += part + bytes(-len(part) % 4)
        return self._places[key]

    def floats(self, values: np.ndarray) -> int:
        return self.put(values.astype("<f4").tobytes())


def _described(view: View, store: _Store) -> dict[str, Any]:
    maps = [
        {
            "name": m.name,
            "tokens": m.tokens,
            "about": m.about,
            "count": m.values.shape[-1],
            "layers": m.values.shape[0] if m.values.ndim == 2 else 0,
            "values": store.floats(m.values),
        }
        for m in view.maps
    ]
    answers = [
        {
            "name": display_path(answer.name),
            "probability": answer.probability,
            "values": None if answer.values is None else store.floats(answer.values),
        }
        for answer in view.answers
    ]
    return {
        "name": display_path(view.name),
        "tokens": {name: _described_tokens(tokens) for name, tokens in view.tokens.items()},
        "attentions": [_described_attention(a, store) for a in view.attentions],
        "maps": maps,
        "answers": answers,
    }


def _described_tokens(tokens: Patches | Words) -> dict[str, Any]:
    if isinstance(tokens, Words):
        return {"kind": "words", "words": [display_path(word) for word in tokens.words]}
    picture = Image.fromarray(tokens.pixels)
    small = picture.copy()
    small.thumbnail((96, 96))
    return {
        "kind": "patches",
        "grid": tokens.grid,
        "size": tokens.pixels.shape[:2],
        "prefix": [display_path(name) for name in tokens.prefix],
        "pools": tokens.pools,
        "picture": _data_url(picture, "PNG" if picture.width * picture.height <= 2**16 else "JPEG"),
        "thumbnail": _data_url(small, "JPEG"),
    }


def _described_attention(a: Attention, store: _Store) -> dict[str, Any]:
    layers = [
        {
            "number": layer.number,
            "bits": layer.bits,
            "q": [store.put(head) for head in layer.q],
            "k": [store.put(head) for head in layer.k],
            "qScale": store.floats(layer.q_scale),
            "kScale": store.floats(layer.k_scale),
            "sums": store.floats(layer.sums),
            "mask": None
            if layer.mask is None
            else {"shape": layer.mask.shape, "bits": store.put(np.packbits(layer.mask).tobytes())},
        }
        for layer in a.layers
    ]
    (heads, n, m, dim), depth = a.sizes, a.depth
    described = {"name": a.name, "queries": a.queries, "keys": a.keys, "causal": a.causal, "depth": depth}
    described |= {"heads": heads, "n": n, "m": m, "dim": dim, "layers": layers, "unit": a.unit}
    return described | {"distances": a.distances, "entropies": a.entropies}


def _answers(
    network: VisionTransformer, images: Tensor, scores: Tensor, classes: Sequence[str], top: int
) -> tuple[Answer, ...]:
    (numbers,), (chances,) = top_classes(scores, top)
    answers = []
    for chance, number in zip(chances.tolist(), numbers, strict=True):
        spoke_for = attention_maps(network, images, method="generic", targets=number[None].cpu())
        answers.append(Answer(classes[int(number)], chance, _array(spoke_for.values[0].flatten())))
    return tuple(answers)


def patches_of(network: VisionTransformer, pixels: np.ndarray) -> Patches:
    """The tokens of a picture uint8 [H, W, 3] as the network saw it, cropped to whole patches."""
    a = network.architecture
    grid = (pixels.shape[0] // a.patch_size[0], pixels.shape[1] // a.patch_size[1])
    pixels = pixels[: grid[0] * a.patch_size[0], : grid[1] * a.patch_size[1]]
    registers = [f"register {number + 1}" for number in range(a.registers)]
    prefix = (*["class"] * a.class_token, *["distillation"] * a.distilled, *registers)
    return Patches(pixels, grid, prefix, pools=a.pool == "class")


def _first(record: Record) -> Record:
    """The first sample of a batch."""
    mask = record.mask
    if mask is not None and mask.dim() == 4:
        mask = mask[:1]
    return Record(record.q[:1], record.k[:1], record.v[:1], record.output[:1], mask, record.causal)


def _kept(count: int, most: int) -> list[int]:
    """At most `most` of `count` layers and at least one: the last, and others at even steps before it."""
    number = min(count, max(1, most))
    return [count - 1 - step * count // number for step in reversed(range(number))]


def _axes(mask: Tensor, m: int) -> tuple[int, int, int]:
    """[heads or 1, queries or 1, keys] of a broadcastable mask."""
    shape = (1, 1, *mask.shape)[-3:]
    return shape[0], shape[1], m


def _codes(x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, H, N, K] -> whole numbers of `bits` [H] and their scale [1, H, N, 1]; 32 bits are x itself."""
    width = bits[None, :, None, None]
    scale = x.abs().amax(dim=-1, keepdim=True) / (2.0 ** (width - 1) - 1)
    codes = (x / scale.clamp(min=1e-30)).round()
    return torch.where(width == _FLOAT, x, codes), torch.where(width == _FLOAT, 1.0, scale)


def _compared(exact: Record, near: Record) -> tuple[Tensor, Tensor]:
    """The largest difference of any probability [H], and the logarithms of near's sums [1, H, N]."""
    errors, sums = near.q.new_zeros(near.q.shape[1]), []
    for part in methods.in_chunks(near):
        rows = near.rows(queries=part.tolist())
        largest, at = rows.max(dim=-1)
        keys = near.k.gather(2, at[..., None].expand(-1, -1, -1, near.k.shape[-1]))
        # in fp64, which not every GPU has
        products = near.q[:, :, part].cpu().double() * keys.cpu().double()
        score = products.sum(dim=-1) / math.sqrt(near.q.shape[-1])
        sums.append(score - largest.cpu().double().log())  # infinite for a query that attends to nothing: all zeros
        rounding = (sums[-1] - sums[-1].float()).nan_to_num().exp().to(rows.dtype)  # the page has the sums in fp32
        rounding = rounding.to(rows.device)
        difference = rows * rounding[..., None] - exact.rows(queries=part.tolist())
        errors = errors.maximum(difference.abs().amax(dim=(0, 2, 3)))
    return errors, torch.cat(sums, dim=2)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _list(x: Tensor) -> list[float | None]:
    return [round(value, 4) if math.isfinite(value) else None for value in x[0].tolist()]


def _base64(content: Any) -> str:
    return base64.b64encode(bytes(content)).decode("ascii")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _data_url(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, format=kind, **({"quality": 92, "subsampling": 0} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{_base64(file.getvalue())}"
