"""`vit attention`: what it writes, what it says, what it refuses."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vit.api import attention_maps, load
from vit.cli.attention import _two_classes
from vit.data.config import Preprocessing
from vit.errors import ConfigError
from vit.explain import METHODS
from vit.models.architecture import VisionArchitecture
from vit.models.file import classifier_file, save_model
from vit.models.vision import VisionTransformer


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_every_method_writes_a_picture_and_its_numbers(
    vit: Any, trained_run: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "maps"
    words = [word for method in METHODS for word in ("--method", method)]
    outcome = vit("attention", trained_run, picture, *words, "--out", out, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"maps       {out}\nexplorer   {out / 'explorer.html'}\n"
    names = {f"photo.{method}.{ending}" for method in METHODS for ending in ("png", "npy")}
    assert {path.name for path in out.iterdir()} == names | {"photo.heads.png", "maps.json", "explorer.html"}
    (entry,) = json.loads((out / "maps.json").read_text())
    assert entry["path"] == str(picture)
    assert entry["answer"].startswith("answer ")
    assert list(entry["maps"]) == list(METHODS)
    model = load(trained_run, device="cpu")
    for method in METHODS:
        values = np.load(out / f"photo.{method}.npy")
        expected = attention_maps(model, picture, method=method)
        np.testing.assert_allclose(values, expected.values[0], rtol=1e-5, atol=1e-6)
        assert (entry["maps"][method]["lowest"], entry["maps"][method]["highest"]) == (values.min(), values.max())
        with Image.open(out / f"photo.{method}.png") as drawn:
            assert drawn.width == 5 * 50  # small pictures are shown larger
            assert drawn.height > 5 * 30
    assert entry["maps"]["generic"]["of"] in ("blue", "green", "red")


def test_a_model_whose_patches_do_not_fill_the_image_has_maps_of_what_they_cover(
    vit: Any, colour_folder: Path, tmp_path: Path
) -> None:
    """As SigLIP's 27 patches of 14 pixels in 384; here 2 of 8 in 20, so that the last fifth of each side is unseen."""
    torch.manual_seed(0)
    architecture = VisionArchitecture((20, 20), (8, 8), dim=8, depth=1, heads=2, hidden=8, classes=3)
    network = VisionTransformer(architecture)
    torch.nn.init.normal_(network.head.weight)  # type: ignore[arg-type]
    file = classifier_file(network, ["blue", "green", "red"], asdict(Preprocessing((20, 20), crop_fraction=1.0)))
    save_model(file, tmp_path / "model.safetensors")
    grey, out = tmp_path / "grey.png", tmp_path / "maps"
    Image.fromarray(np.full((200, 200, 3), 200, np.uint8)).save(grey)
    outcome = vit("attention", tmp_path / "model.safetensors", grey, "--method=generic", "--out", out, "--device=cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert np.load(out / "grey.generic.npy").shape == (2, 2)
    with Image.open(out / "grey.generic.png") as drawn:
        times = drawn.width // 200
        pixels = np.asarray(drawn)[: 200 * times : times, ::times]
    assert (pixels[160:] == 60).all()
    assert (pixels[:, 160:] == 60).all()
    assert (pixels[:160, :160] != 60).any(axis=2).all()
    scored = ("attention", tmp_path / "model.safetensors", colour_folder, "--score", "--limit=4", "--device=cpu")
    assert vit(*scored, "--out", tmp_path / "scores").code == 0


def test_layer_head_query_and_class_are_those_of_the_python_function(
    vit: Any, trained_run: Path, picture: Path, tmp_path: Path
) -> None:
    model, out = load(trained_run, device="cpu"), tmp_path / "maps"
    words = ["--method=raw", "--method=generic", "--layer=0", "--head=1", "--query=1,0", "--class=red", "--device=cpu"]
    assert vit("attention", trained_run, picture, *words, "--out", out).code == 0
    raw = attention_maps(model, picture, method="raw", layer=0, head=1, query=(1, 0))
    np.testing.assert_allclose(np.load(out / "photo.raw.npy"), raw.values[0], rtol=1e-5, atol=1e-6)
    generic = attention_maps(model, picture, query=(1, 0), target="red")
    np.testing.assert_allclose(np.load(out / "photo.generic.npy"), generic.values[0], rtol=1e-5, atol=1e-6)
    assert generic.targets == [2]


def test_the_query_patch_is_marked_in_every_image(vit: Any, trained_run: Path, picture: Path, tmp_path: Path) -> None:
    drawn = {}
    for query in ("0,0", "1,1"):
        out = tmp_path / query
        assert vit("attention", trained_run, picture, f"--query={query}", "--out", out, "--device=cpu").code == 0
        drawn[query] = [np.asarray(Image.open(out / f"photo.{name}.png")).astype(int) for name in ("generic", "heads")]
    for image in drawn["0,0"]:
        assert (image == 0).all(axis=2).any()
    first, last = (np.argwhere((maps[0][:150] == 255).all(axis=2)) for maps in (drawn["0,0"], drawn["1,1"]))
    assert first[:, 0].max() < 76  # white of the frame, in the upper left and the lower right quarter of 150 x 250
    assert last[:, 0].min() > 74
    assert first[:, 1].max() < 126
    assert last[:, 1].min() > 124


def test_a_map_that_is_the_same_everywhere_says_so(vit: Any, tmp_path: Path, picture: Path) -> None:
    """A head of zeros has no gradient: every map of a class is 0."""
    network = VisionTransformer(VisionArchitecture((16, 16), (8, 8), 8, 1, 1, 8, classes=2))
    save_model(classifier_file(network, ["a", "b"], asdict(Preprocessing((16, 16)))), tmp_path / "model.safetensors")
    words = ["--out", tmp_path / "maps", "--device=cpu"]
    assert vit("attention", tmp_path / "model.safetensors", picture, *words).code == 0
    (entry,) = json.loads((tmp_path / "maps" / "maps.json").read_text())
    assert entry["maps"]["generic"]["note"] == "zero everywhere"


def test_two_classes_are_compared_by_the_difference_of_their_maps(
    vit: Any, trained_run: Path, picture: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "maps", load(trained_run, device="cpu")
    assert vit("attention", trained_run, picture, "--compare=red,blue", "--out", out, "--device=cpu").code == 0
    red, blue = (attention_maps(model, picture, target=name).values[0] for name in ("red", "blue"))
    np.testing.assert_allclose(np.load(out / "photo.generic.npy"), red - blue, rtol=1e-4, atol=1e-6)
    (entry,) = json.loads((out / "maps.json").read_text())
    assert entry["maps"]["generic"]["of"] == "red minus blue"


def test_pictures_of_the_same_name_keep_files_of_their_own_and_broken_ones_are_named(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        (data / name / "same.jpg").write_bytes((colour_folder / "red" / "00.jpg").read_bytes())
    (data / "<b>&.jpg").write_bytes((colour_folder / "red" / "00.jpg").read_bytes())
    (data / "cut.jpg").write_bytes((colour_folder / "red" / "00.jpg").read_bytes()[:-200])
    out = tmp_path / "maps"
    outcome = vit("attention", trained_run, data, "--method=rollout", "--out", out, "--device=cpu")
    assert outcome.code == 1
    assert "cut.jpg: truncated" in outcome.err
    assert len(list(out.glob("same-*.rollout.png"))) == 2
    assert (out / "<b>&.rollout.png").exists()
    assert sum("error" in entry for entry in json.loads((out / "maps.json").read_text())) == 1


def test_the_explorer_holds_as_many_pictures_as_are_wanted_and_can_be_read(
    vit: Any, trained_run: Path, colour_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        (data / f"{number}.jpg").write_bytes(
            (colour_folder / "red" / "00.jpg").read_bytes()[: -200 if number == 0 else None]
        )
    for wanted, held in [(2, ["1.jpg", "2.jpg"]), (9, ["1.jpg", "2.jpg", "3.jpg"])]:
        out = tmp_path / f"maps{wanted}"
        words = ["--method=rollout", f"--explorer={wanted}", "--out", out, "--device=cpu"]
        assert vit("attention", trained_run, data, *words).code == 1
        page = (out / "explorer.html").read_text()
        content = re.search(r'<script type="application/json" id="content">(.*?)</script>', page)
        assert content is not None
        views = json.loads(content[1])["views"]
        assert [Path(view["name"]).name for view in views] == held
        assert {answer["name"] for answer in views[0]["answers"]} == {"blue", "green", "red"}
    out = tmp_path / "none"
    outcome = vit("attention", trained_run, data, "--method=rollout", "--explorer=0", "--out", out, "--device=cpu")
    assert outcome.out == f"maps       {out}\n"
    assert not (out / "explorer.html").exists()


def test_several_pictures_at_once_are_what_each_is_alone(trained_run: Path, picture: Path, colour_folder: Path) -> None:
    model = load(trained_run, device="cpu")
    pictures = [picture, *sorted((colour_folder / "red").iterdir())]
    together = attention_maps(model, pictures, method="generic", target="green").values
    alone = torch.cat([attention_maps(model, one, method="generic", target="green").values for one in pictures])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["--query=9,9"], 2, "query: the patches are 0,0 to 1,1, got 9,9"),
        (["--query=x"], 2, "--query: must be ROW,COL"),
        (["--method=raw", "--layer=7"], 2, "layer: must be 0 to 1, got 7"),
        (["--method=raw", "--head=7"], 2, "head: must be 0 to 1, got 7"),
        (["--class=rad"], 2, "no class rad; near it: red"),
        (["--compare=red"], 2, "--compare: must be two classes"),
        (["--compare=red,blue", "--method=raw"], 2, "--compare: is for gradient-rollout, generic"),
        (["--compare=red,blue", "--class=red"], 2, "without --class"),
        (["--method=norm", "--query=0,0"], 2, "query: is for raw, rollout, generic"),
        (["--compare=red,pink"], 2, "no class pink"),
        (["--layer=0"], 2, "--layer: has no effect on generic; it is for raw, norm"),
        (["--method=rollout", "--class=red"], 2, "--class: has no effect on rollout; it is for gradient-rollout"),
        (["--method=raw", "--discard=0.5"], 2, "--discard: has no effect on raw; it is for rollout"),
        (["--score", "--head=1"], 2, "--head: has no effect with --score"),
        (["--score", "--explorer=8"], 2, "--explorer: has no effect with --score"),
        (["--model-report", "--method=rollout", "--limit=8"], 2, "--method: has no effect with --model-report"),
        (["--model-report", "--limit=200"], 2, "--limit: has no effect with --model-report"),
        (["--model-report", "--class=red"], 2, "--class: has no effect with --model-report"),
        (["--model-report", "--query=0,0"], 2, "--query: has no effect with --model-report"),
        (["--model-report", "--explorer=8"], 2, "--explorer: has no effect with --model-report"),
        (["--limit=200"], 2, "--limit: has no effect without --score"),
        (["--fusion=mean"], 2, "--fusion: has no effect on generic; it is for rollout"),
        (["--disc=0"], 2, "--discard: has no effect on generic; it is for rollout"),
        (["--method=nope"], 2, "invalid choice"),
    ],
)
def test_what_does_not_exist_is_refused(
    words: list[str],
    code: int,
    complaint: str,
    refused: Callable[..., str],
    trained_run: Path,
    picture: Path,
    tmp_path: Path,
) -> None:
    said = refused("attention", trained_run, picture, *words, "--out", tmp_path / "maps", "--device=cpu", code=code)
    assert complaint in said


def test_nothing_to_read_and_nowhere_to_write(
    refused: Callable[..., str], trained_run: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert "--out" in refused("attention", trained_run, picture, "--out", tmp_path / "file" / "x", code=2)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    outcome = refused("attention", trained_run, tmp_path / "nope.jpg", "--out", tmp_path / "maps", code=1)
    assert "nope.jpg" in outcome


def test_compared_classes_may_have_commas_in_their_names() -> None:
    known = {"tench, Tinca tinca", "goldfish, Carassius auratus", "cock", "a", "b", "a,b", "b,a"}
    assert _two_classes("tench, Tinca tinca,goldfish, Carassius auratus", known) == (
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
    )
    assert _two_classes("cock,tench, Tinca tinca", known) == ("cock", "tench, Tinca tinca")
    assert _two_classes("cock,hen", known) == ("cock", "hen")  # the message about an unknown class follows
    for unclear in ("a,b,a", "cock", "cock,hen,duck", "cock,a,b,cock"):
        with pytest.raises(ConfigError, match="--compare: must be two classes, NAME,NAME, got"):
            _two_classes(unclear, known)
