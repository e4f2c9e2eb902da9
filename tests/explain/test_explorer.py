"""The explorer: what the page holds, and what a browser reads out of it, against the exact rows of the records."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vit.explain import methods
from vit.explain.explorer import (
    TOLERANCE,
    Layer,
    Patches,
    View,
    Words,
    among_read,
    attention,
    caption_view,
    encoded,
    in_script,
    packed,
    page,
    picture_view,
    text_view,
)
from vit.explain.maps import attention_maps
from vit.explain.pictures import color_scale, coloured
from vit.models.architecture import VisionArchitecture
from vit.models.vision import VisionTransformer
from vit.nn import MLP, Attention, Block, Record, Trace, Transformer

TINY = VisionArchitecture((32, 48), (8, 8), dim=32, depth=3, heads=4, hidden=48, classes=3)
HOSTILE = "<img src=x onerror=alert(1)>\n.png"
CLASSES = ("</script><b>bold</b>", "cat \u2028 dog", "c")
LONG = "a-long-folder-name/and/a_long_file_name_as_cameras_and_people_make_them_" + 9 * "0" + ".jpg"
LONG_CLASSES = ("Blenheim spaniel, a small toy spaniel with a description that goes on and on", "W" * 90, "猫 кошка")
SENTENCE = ("a", "<i>", "cat", "\n", "on", " the", "mat")


def vision(gain: float = 1.0, **changes: Any) -> VisionTransformer:
    """A network whose attention is the more peaked the larger `gain`."""
    torch.manual_seed(0)
    network = VisionTransformer(replace(TINY, **changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for block in network.blocks:
            block.attn.qkv.weight[: TINY.dim] *= gain  # type: ignore[union-attr,index,operator]
    return network


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def normalised(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1


def traced(network: VisionTransformer, picture: np.ndarray) -> Trace:
    trace = Trace()
    with torch.no_grad():
        network(normalised(picture), trace=trace)
    return trace


def decoder(words: int, context: Tensor | None = None, mask: Tensor | None = None) -> Trace:
    """The trace of two causal blocks, with cross-attention where there is a context."""
    torch.manual_seed(1)
    cross = context is not None
    blocks = [Block(Attention(32, 2), MLP(32, 48), cross_attn=Attention(32, 2) if cross else None) for _ in range(2)]
    trace = Trace()
    with torch.no_grad():
        Transformer(blocks, nn.LayerNorm(32))(
            3 * torch.randn(1, words, 32), context, mask=mask, causal=True, trace=trace
        )
    return trace


def record(gain: float, *, n: int = 9, m: int = 11, mask: Tensor | None = None, causal: bool = False) -> Record:
    q, k = gain * torch.randn(1, 2, n, 8), torch.randn(1, 2, m, 8) + 3  # keys have a mean that says nothing
    return Record(q, k, k, q, mask, causal)


def decoded(layer: Layer, heads: int, n: int, m: int, dim: int) -> tuple[Tensor, Tensor]:
    """q, times 1 / sqrt(K), and k [H, N, K] from the bytes of a layer, by another way than the page's."""

    def numbers(part: bytes, bits: int, count: int) -> np.ndarray:
        if bits == 32:
            return np.frombuffer(part, "<f4")
        each = np.unpackbits(np.frombuffer(part, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
        return each.astype(np.int64) @ (1 << np.arange(bits)) - (1 << (bits - 1))

    q = np.stack([numbers(layer.q[h], layer.bits[h], n * dim).reshape(n, dim) for h in range(heads)])
    k = np.stack([numbers(layer.k[h], layer.bits[h], m * dim).reshape(m, dim) for h in range(heads)])
    return torch.from_numpy(q * layer.q_scale[..., None]), torch.from_numpy(k * layer.k_scale[..., None])


@pytest.mark.parametrize("bits", [8, 9, 12, 13, 16])
def test_packed_numbers_take_no_more_than_their_bits_and_come_back(bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    numbers = np.array([-top, top, 0, -1, 1, 5, -7], np.float32)
    part = packed(numbers, bits)
    assert len(part) == math.ceil(len(numbers) * bits / 8)
    as_int = int.from_bytes(part, "little")
    back = [(as_int >> (bits * i)) % 2**bits - 2 ** (bits - 1) for i in range(len(numbers))]
    assert back == numbers.astype(int).tolist()


@pytest.mark.parametrize(("gain", "bits"), [(0.3, {8}), (30.0, set(range(9, 17))), (500.0, {32})])
@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_keeps_every_probability_in_as_few_bits_as_that_takes(
    gain: float, bits: set[int], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(methods, "CHUNK", 4)
    original = record(gain, causal=causal)
    if bits == {32}:  # two keys that only the last bits tell apart, before all others
        original.k[:, :, 0] = 5 * original.q[0, :, -1] / gain
        original.k[:, :, 1] = original.k[:, :, 0] + 1 / gain * torch.randn(1, 2, 8)
    layer = encoded(original)
    assert max(layer.bits) in bits
    assert layer.error <= TOLERANCE
    q, k = decoded(layer, 2, 9, 11, 8)
    allowed = torch.ones(9, 11, dtype=torch.bool).tril(2) if causal else torch.ones(9, 11, dtype=torch.bool)
    rows = (q @ k.transpose(1, 2) - torch.from_numpy(layer.sums)[..., None].double()).exp() * allowed
    difference = (rows - original.rows()[0]).abs().max().item()
    assert difference <= TOLERANCE
    assert difference == pytest.approx(layer.error, abs=5e-4)  # fp32 knows scores in the thousands no better


def test_a_hot_head_takes_more_bits_than_a_calm_one() -> None:
    torch.manual_seed(0)
    one = record(0.3)
    one.q[:, 1] *= 40
    calm, hot = encoded(one).bits
    assert calm == 8 < hot


def test_layers_that_would_take_too_much_are_left_out_evenly_and_the_last_is_kept() -> None:
    records = [record(1.0) for _ in range(12)]
    size = 2 * (9 * 16 + 11 * 12)
    for layers, expected in [(0, [11]), (3, [3, 7, 11]), (4, [2, 5, 8, 11]), (20, list(range(12)))]:
        kept = attention("self-attention", records, "text", budget=layers * size)
        assert [layer.number for layer in kept.layers] == expected
        assert kept.depth == 12
        assert len(kept.entropies) == len(expected)


def test_names_cannot_end_the_script_and_the_page_asks_for_nothing() -> None:
    view = View(HOSTILE, {"text": Words(SENTENCE)}, (text_view("t", SENTENCE, [record(1.0, n=7, m=7)]).attentions[0],))
    whole = page([view], f"title {HOSTILE}")
    assert "<img src" not in whole
    assert "<i>" not in whole
    content = re.search(r'<script type="application/json" id="content">(.*?)</script>', whole, re.DOTALL)
    assert content is not None
    assert "\n" not in content[1]
    assert json.loads(content[1])["views"][0]["name"] == "<img src=x onerror=alert(1)>\\n.png"
    assert json.loads(in_script({"a": "</script>\u2028&\ud800"})) == {"a": "</script>\u2028&\ud800"}
    assert not {"<", ">", "&", "\u2028"} & set(in_script("</script>\u2028&"))
    assert "default-src 'none'" in whole
    assert not re.search(r"https?://", whole)


def test_a_picture_view_holds_what_the_methods_say() -> None:
    network, picture = vision(registers=1), pixels()
    view = picture_view("p", picture, network, normalised(picture), CLASSES, top=2)
    trace = traced(network, picture)
    own = view.attentions[0]
    assert own.sizes == (4, 26, 26, 8)
    np.testing.assert_allclose(own.entropies[1], methods.entropies(trace.self_attention[1])[0], atol=1e-4)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(6)) * 8
    np.testing.assert_allclose(own.distances[2], methods.distances(trace.self_attention[2], places, 2)[0], atol=1e-4)
    maps = {one.name: one.values for one in view.maps}
    np.testing.assert_allclose(
        maps["rollout"], attention_maps(network, normalised(picture), method="rollout").values.flatten(), atol=1e-6
    )
    np.testing.assert_allclose(maps["norm"][1], trace.tokens[1][0].norm(dim=-1), rtol=1e-5)
    scores = network(normalised(picture)).softmax(dim=1)[0]
    assert [answer.name for answer in view.answers] == [CLASSES[i] for i in scores.topk(2).indices]
    target = scores.argmax()[None]
    of_class = attention_maps(network, normalised(picture), method="generic", targets=target).values.flatten()
    np.testing.assert_allclose(view.answers[0].values, of_class, atol=1e-6)


def test_a_picture_view_shows_the_pixels_that_patches_cover() -> None:
    network, picture = vision(image_size=(37, 54)), pixels()
    larger = np.pad(picture, ((0, 5), (0, 6), (0, 0)), constant_values=7)
    view = picture_view("photo.png", larger, network, normalised(larger), CLASSES)
    patches = view.tokens["picture"]
    assert isinstance(patches, Patches)
    assert patches.grid == (4, 6)
    assert np.array_equal(patches.pixels, picture)
    plain = picture_view("photo.png", picture, network, normalised(picture), CLASSES)
    assert all(np.array_equal(one.values, other.values) for one, other in zip(view.maps, plain.maps, strict=True))


def test_words_of_a_caption_attend_to_what_had_been_read_when_they_were_written() -> None:
    caption = decoder(5, torch.randn(1, 26, 32))
    view = caption_view("caption", Patches(pixels(), (4, 6), ("class", "extra")), SENTENCE[:5], caption)
    words = view.tokens["text"]
    assert isinstance(words, Words)
    assert words.words == ("start", *SENTENCE[:5])  # the first word has read the start token alone
    _, own = view.attentions
    assert own.sizes[1:3] == (5, 6)
    for record in caption.self_attention:
        rows = among_read(record).rows()
        torch.testing.assert_close(rows[..., :-1], record.rows())
        assert not rows[..., -1].any()


def narrow_view() -> View:
    """A narrow image with long names in a network that attends to all tokens alike."""
    network = vision(0.0, image_size=(96, 24), depth=1)
    with torch.no_grad():
        network.blocks[0].attn.qkv.bias.zero_()  # type: ignore[union-attr,operator]
    narrow = np.random.default_rng(2).integers(0, 256, (96, 24, 3), dtype=np.uint8)
    return picture_view(LONG, narrow, network, normalised(narrow), LONG_CLASSES)


# ---- in a browser --------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Pages:
    """A page of every kind of view, open in a browser; and the records that its views were made of."""

    def __init__(self, folder: Path) -> None:
        with_registers, pooled = vision(30.0, registers=2), vision(pool="attention", registers=2, pool_prefix=False)
        own, pool = traced(with_registers, pixels()), traced(pooled, pixels(1))
        mask = torch.ones(1, 1, 1, 7, dtype=torch.bool)
        mask[..., 0] = False  # the first word sees nothing at all
        text, caption = decoder(7, mask=mask), decoder(5, torch.randn(1, 26, 32))
        encoder = own.self_attention
        views = [
            picture_view(HOSTILE, pixels(), with_registers, normalised(pixels()), CLASSES),
            picture_view("pool.png", pixels(1), pooled, normalised(pixels(1)), CLASSES),
            text_view("text", SENTENCE, text.self_attention),
            caption_view("caption", Patches(pixels(), (4, 6), ("class", "extra")), SENTENCE[:5], caption, encoder[:1]),
            narrow_view(),
        ]
        assert max(views[0].attentions[0].layers[0].bits) > 8
        self.views = views
        caption_records = [caption.cross_attention, [among_read(record) for record in caption.self_attention]]
        self.records = [[own.self_attention], [pool.self_attention, pool.pool], [text.self_attention], caption_records]
        self.file = folder / "explorer.html"
        self.file.write_text(page(views, "explorer"), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def tab(browser: Any, made: Pages) -> Iterator[Any]:
    """The page, freshly opened; afterwards it must have asked for nothing and complained of nothing."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    opened, requests, complaints = context.new_page(), [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(dialog.message))
    opened.goto(made.file.as_uri())
    opened.wait_for_selector("body[data-ready='0']")
    yield opened
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def until(tab: Any, condition: str) -> None:
    """Wait for it; Playwright's own waiting would need the page to allow eval."""
    for _ in range(200):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(25)
    raise AssertionError(f"never came true: {condition}")


def state(tab: Any) -> dict[str, Any]:
    return dict(tab.evaluate("({...explorer.state})"))


@pytest.mark.parametrize("number", range(4), ids=["registers and rectangle", "attention pooling", "causal", "cross"])
def test_rows_and_columns_in_the_page_are_the_records_own(tab: Any, made: Pages, number: int) -> None:
    tab.evaluate(f"show({number})")
    tab.wait_for_selector(f"body[data-ready='{number}']")
    for kind, records in enumerate(made.records[number]):
        for layer, one in enumerate(records):
            exact, (heads, n, m) = one.rows()[0].numpy(), (*one.q.shape[1:3], one.k.shape[2])
            ask = f"(h, i) => explorer.WHAT({kind}, {layer}, h, i)"
            every = "([heads, count]) => Array.from({length: heads}, (_, h) => Array.from({length: count}, (_, i) => "
            rows = np.array(tab.evaluate(f"{every}({ask.replace('WHAT', 'row')})(h, i)))", [heads, n]))
            columns = np.array(tab.evaluate(f"{every}({ask.replace('WHAT', 'column')})(h, i)))", [heads, m]))
            np.testing.assert_allclose(rows, exact, atol=1 / 255)
            np.testing.assert_allclose(columns, exact.transpose(0, 2, 1), atol=1 / 255)
            mean = np.array(tab.evaluate(f"explorer.row({kind}, {layer}, -1, {n - 1})"))
            np.testing.assert_allclose(mean, exact.mean(axis=0)[n - 1], atol=1 / 255)


def test_the_large_map_has_the_colours_of_its_values(tab: Any, made: Pages) -> None:
    tab.evaluate("change({layer: 1, head: 2, token: 1})")
    tab.locator("#strength").fill("100")
    until(tab, "strength === 1 && !waiting")
    drawn = tab.evaluate(
        """() => { const { width, height } = $("map");
        const all = $("map").getContext("2d").getImageData(0, 0, width, height);
        return Array.from({length: 24}, (_, i) => {
            const x = Math.floor((i % 6 + 0.5) * width / 6), y = Math.floor((Math.floor(i / 6) + 0.5) * height / 4);
            return Array.from(all.data.slice(4 * (y * width + x), 4 * (y * width + x) + 3)); }); }"""
    )
    exact = made.records[0][0][1].rows(heads=[2], queries=[1])[0, 0, 0, 3:].numpy()
    expected = coloured((exact - exact.min()) / (exact.max() - exact.min()))
    near = coloured(np.clip((exact + TOLERANCE - exact.min()) / (exact.max() - exact.min()), 0, 1))
    allowed = 3 + np.abs(near.astype(int) - expected).max()
    assert np.abs(np.array(drawn) - expected.astype(int)).max() <= allowed
    low, high = tab.locator("#low").inner_text(), tab.locator("#high").inner_text()
    assert float(low) == pytest.approx(exact.min(), abs=TOLERANCE)
    assert float(high) == pytest.approx(exact.max(), abs=2 * TOLERANCE)


def test_hostile_names_are_text(tab: Any) -> None:
    assert tab.locator("#name").inner_text() == "<img src=x onerror=alert(1)>\\n.png"
    names = tab.locator("#answers .answer span:first-child").all_inner_texts()
    assert sorted(names) == sorted(["</script><b>bold</b>", "cat \\u2028 dog", "c"])
    assert tab.locator("img[src=x], main b, #words i").count() == 0
    tab.evaluate("show(2)")
    tab.wait_for_selector("body[data-ready='2']")
    assert tab.locator("#words button").all_text_contents() == ["a", "<i>", "cat", "\\n", "on", " the", "mat"]


def test_keys_move_patch_layer_head_direction_and_view(tab: Any) -> None:
    steps: list[tuple[str, dict[str, Any]]] = [
        ("[", {"layer": 1, "token": 0, "head": -1}),
        (".", {"head": 0}),
        (".", {"head": 1}),
        (",", {"head": 0}),
        ("ArrowRight", {"token": 3}),  # from the class token to the first patch
        ("ArrowDown", {"token": 9}),
        ("ArrowRight", {"token": 10}),
        ("ArrowUp", {"token": 4}),
        ("ArrowLeft", {"token": 3}),
        ("ArrowLeft", {"token": 3}),  # the border
        ("t", {"direction": "by", "token": 3}),
        ("c", {"token": 0, "direction": "by"}),
        ("]", {"layer": 2}),
        ("]", {"layer": 2}),
    ]
    for key, expected in steps:
        tab.keyboard.press(key)
        assert expected.items() <= state(tab).items(), key
    assert tab.locator("#heading").inner_text() == "Class token is attended by …"
    tab.keyboard.press("?")
    assert tab.locator("#help").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator("#help").is_visible()
    tab.keyboard.press("n")
    tab.wait_for_selector("body[data-ready='1']")
    tab.keyboard.press("p")
    tab.wait_for_selector("body[data-ready='0']")


def test_clicks_choose_patches_chips_heads_answers_and_the_view_survives_in_its_link(tab: Any, made: Pages) -> None:
    picker = tab.locator("#picker")
    box = picker.bounding_box()
    picker.click(position={"x": box["width"] * 3.5 / 6, "y": box["height"] * 2.5 / 4})
    assert state(tab)["token"] == 3 + 2 * 6 + 3
    assert tab.locator("#heading").inner_text() == "Patch 2, 3 attends to …"
    tab.get_by_role("button", name="register 2").click()
    assert state(tab)["token"] == 2
    shares = tab.locator("#chips .share").all_inner_texts()
    exact = made.records[0][0][2].rows(queries=[2])[0, :, 0, :3].mean(dim=0)
    assert [float(share.split()[0]) / 100 for share in shares] == pytest.approx(exact.tolist(), abs=1 / 255 + 0.0005)
    tab.get_by_role("button", name="layer 0, head 3").click()
    assert (state(tab)["layer"], state(tab)["head"]) == (0, 3)
    tab.get_by_role("button", name="attended by").click()
    tab.locator("#answers .answer").nth(1).click()
    tab.locator("#answers .minus").nth(0).click()
    assert state(tab)["map"] == "answer:1-0"
    values = [answer.values for answer in made.views[0].answers]
    assert values[0] is not None
    assert values[1] is not None
    reach = np.abs(values[1] - values[0]).max()
    assert float(tab.locator("#high").inner_text()) == pytest.approx(reach, rel=0.01)
    before = state(tab)
    until(tab, "location.hash.includes('answer')")
    tab.reload()
    tab.wait_for_selector("body[data-ready='0']")
    assert state(tab) == before
    tab.evaluate("location.hash = '#picture=2&attention=nope&layer=99&head=77&direction=x&token=-4&map=<b>'")
    tab.wait_for_selector("body[data-ready='2']")
    assert state(tab) == {
        "picture": 2, "attention": 0, "layer": 1, "head": -1, "direction": "to", "token": 6, "map": ""
    }  # fmt: skip


def test_the_pools_query_and_sorting(tab: Any, made: Pages) -> None:
    tab.evaluate("show(1)")
    tab.wait_for_selector("body[data-ready='1']")
    tab.locator("#chips button", has_text="pooling query").click()
    assert state(tab)["attention"] == 1
    assert tab.locator("#heading").inner_text() == "Pooling query attends to …"
    tab.locator("#picker").click(position={"x": 5, "y": 5})  # a patch asks in self-attention
    assert (state(tab)["attention"], state(tab)["token"]) == (0, 3)
    own = made.views[1].attentions[0]
    assert own.distances is not None
    for by, figures in [("distance", own.distances), ("entropy", own.entropies)]:
        tab.locator("#sort").select_option(by)
        shown = tab.evaluate("cells.map((cell) => [cell.layer, cell.head])")
        every = [(layer, head) for layer in range(3) for head in range(4)]
        assert [tuple(cell) for cell in shown] == sorted(every, key=lambda at: figures[at[0]][at[1]] or 0.0)


def test_words_ask_words_and_pictures_and_patches_ask_words(tab: Any) -> None:
    tab.evaluate("show(2)")
    tab.wait_for_selector("body[data-ready='2']")
    tab.locator("#words button").nth(3).click()
    assert state(tab)["token"] == 3
    hidden = tab.locator("#words button.unseen").all_text_contents()
    assert hidden == ["a", "on", " the", "mat"]  # one by its mask, the others because they come later
    tab.locator("#map").click(position={"x": 400, "y": 400})
    assert state(tab)["token"] != 3
    tab.evaluate("show(3)")
    tab.wait_for_selector("body[data-ready='3']")
    tab.locator("#words button").nth(3).click()  # before the words stands what was read first
    assert tab.locator("#heading").inner_text() == "“cat” attends to …"
    tab.locator("#scrubber").fill("1")
    assert state(tab)["token"] == 1
    tab.keyboard.press("ArrowRight")  # moves the scrubber, which has the focus
    assert state(tab)["token"] == 2
    tab.locator("#picker").click(position={"x": 5, "y": 5})
    assert (state(tab)["attention"], state(tab)["direction"], state(tab)["token"]) == (0, "by", 2)
    tab.locator("#play").click()
    until(tab, "explorer.state.token === 2 && explorer.state.direction === 'to'")
    tab.locator("#picker").click(position={"x": 5, "y": 5})  # what is asked by hand ends the play
    until(tab, "document.getElementById('play').textContent === 'Play'")
    assert state(tab)["direction"] == "by"
    tab.locator("#play").click()
    tab.locator("#play").click()


def test_an_exported_map_is_a_picture_of_its_size(tab: Any, tmp_path: Path) -> None:
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save PNG").click()
    assert download.value.suggested_filename.endswith(".attention.png")
    download.value.save_as(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (48 * 22, 32 * 22 + 24 + 4 * 22)
        assert len(set(picture.convert("RGB").resize((48, 36)).get_flattened_data())) > 20


def shown_view(tab: Any, number: int) -> None:
    tab.evaluate(f"show({number})")
    tab.wait_for_selector(f"body[data-ready='{number}']")


ABOUT_ANSWER = "generic attention explainability: attention weighed by its positive gradient"


@pytest.mark.parametrize(
    ("number", "change", "lines"),
    [
        (0, {"token": 0}, ["Attention from class token", "self-attention, layer 2, mean of heads"]),
        (
            0,
            {"token": 9, "layer": 1, "head": 2, "direction": "by"},
            ["Attention to patch 1, 0", "self-attention, layer 1, head 2"],
        ),
        (0, {"map": "rollout"}, ["Rollout", "attention rollout from what the model pools by"]),
        (0, {"map": "norm"}, ["Norm, layer 2", "length of each token after a layer: high where there are artefacts"]),
        (0, {"map": "answer:1"}, ["What speaks for {1}", ABOUT_ANSWER]),
        (0, {"map": "answer:1-0"}, ["{1} minus {0}", "purple speaks for the second, orange for the first"]),
        (
            1,
            {"attention": 1, "token": 0, "layer": 0},
            ["Attention from pooling query", "attention pooling, layer 0, mean of heads"],
        ),
        (
            2,
            {"token": 4, "head": 1},
            ["Attention among words; framed: from “on”", "self-attention, layer 1, head 1"],
        ),
        (3, {"token": 3}, ["Attention from “cat”", "cross-attention, layer 1, mean of heads"]),
        (
            3,
            {"token": 2, "direction": "by"},
            ["Attention to patch 0, 0", "cross-attention, layer 1, mean of heads", "a VALUE; <i> VALUE; cat VALUE; "],
        ),
        (
            4,
            {},
            ["Attention from class token", "self-attention, layer 0, mean of heads; nearly uniform: values differ by"],
        ),
        (4, {"map": "answer:0-1"}, ["{0} minus {1}", "purple speaks for the second, orange for the first"]),
    ],
)
def test_the_caption_of_an_exported_map_says_what_it_is_and_fits(
    tab: Any, made: Pages, number: int, change: dict[str, Any], lines: list[str]
) -> None:
    shown_view(tab, number)
    tab.evaluate(f"change({json.dumps(change)})")
    written = tab.evaluate(
        """() => { const written = [], own = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y, most) {
          written.push({ text, x, y, most, width: this.measureText(text).width, canvas: this.canvas });
          own.call(this, text, x, y, most);
        };
        const whole = exported();
        CanvasRenderingContext2D.prototype.fillText = own;
        return written.filter((one) => one.canvas === whole).map(({ text, x, y, most, width }) => ({
          text, squeezed: most !== undefined, left: x, right: whole.width - x - width, below: whole.height - y })); }"""
    )
    *caption, low, high = [one["text"] for one in written]
    names = tab.evaluate("view.answers.map((answer) => answer.name)")
    expected = " ".join([tab.evaluate("view.name"), *lines]).format(*names)
    told = (
        re.sub(r"(?<=[a-z>] )\d[\d.e-]*(?=;|$)", "VALUE", " ".join(caption))
        if "VALUE" in expected
        else " ".join(caption)
    )
    assert re.sub(r"\s", "", told).startswith(re.sub(r"\s", "", expected))
    assert float(low) < float(high)
    for one in written:
        assert not one["squeezed"]
        assert min(one["left"], one["right"], one["below"]) >= 10, one


@pytest.mark.parametrize("width", [1400, 900, 720, 420, 375, 320])
def test_on_a_phone_nothing_covers_anything_or_leaves_the_page(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 700})
    for number in range(5):
        shown_view(tab, number)
        until(tab, "!waiting && !drawing")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        boxes = {
            name: tab.locator(f"#{name}").bounding_box() for name in ("title", "name", "copy", "export", "ask-help")
        }
        for name, box in boxes.items():
            assert box["width"] > 20, name
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= width, name
            for other, its in boxes.items():
                if other != name:
                    apart = max(
                        box["x"] - its["x"] - its["width"], its["x"] - box["x"] - box["width"],
                        box["y"] - its["y"] - its["height"], its["y"] - box["y"] - box["height"],
                    )  # fmt: skip
                    assert apart > -1, (name, other)


def test_the_page_scales_colors_as_python_does(tab: Any) -> None:
    cases = [[0.0, 0.0], [0.1, 0.9], [-0.2, 0.1], [1.0, 1.05], [-3.0, -2.99], [5.0, 5.0], [1e-9, 1.02e-9]]
    for values in cases:
        for difference in (False, True):
            for largest in (0.0, 41 * max(values)) if difference else (0.0,):
                ours = color_scale(np.array(values), difference=difference, largest=largest)
                found = tab.evaluate(f"range({values}, {json.dumps(difference)}, {largest!r})")
                assert found[:2] == pytest.approx(ours[:2], rel=1e-6)
                assert found[2] == ours.note


def test_uniform_attention_looks_uniform(tab: Any) -> None:
    shown_view(tab, 4)
    assert "nearly uniform: values differ by" in tab.locator("#about").inner_text()
    tab.locator("#strength").fill("100")
    until(tab, "strength === 1 && !waiting && !drawing")
    for canvas in ("map", "thumbnails"):
        colors = tab.evaluate(
            """(id) => { const { width, height } = $(id), seen = new Set();
            const all = new Uint32Array($(id).getContext("2d").getImageData(0, 0, width, height).data.buffer);
            all.forEach((color) => seen.add(color));
            const at = (color) => cividis.steps.indexOf(color);
            return [...seen].map(at).filter((place) => place >= 0); }""",
            canvas,
        )
        assert colors
        assert max(colors) - min(colors) < 20, canvas
