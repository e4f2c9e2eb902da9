"""`vit.load` and what it returns: every way to hand over a picture gives the same answer."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vit
from vit.data.config import Preprocessing
from vit.errors import ConfigError, ModelFileError, UnreadableImage
from vit.models.architecture import VisionArchitecture
from vit.models.file import ModelFile, classifier_file, save_model
from vit.models.vision import VisionTransformer

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def model_file() -> ModelFile:
    torch.manual_seed(0)
    network = VisionTransformer(VisionArchitecture((16, 16), (8, 8), 32, 2, 2, 48, classes=3))
    torch.nn.init.normal_(network.head.weight)
    model = classifier_file(network, CLASSES, asdict(Preprocessing((16, 16))))
    model.ema = {name: tensor * 0.8 for name, tensor in model.raw.items()}
    return model


@pytest.fixture(scope="module")
def run(model_file: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    save_model(model_file, folder / "model.safetensors")
    state = {f"network.{name}": tensor for name, tensor in model_file.raw.items()}
    state |= {f"ema.{name}": tensor for name, tensor in (model_file.ema or {}).items()}
    torch.save({"vit": model_file.header(), "state_dict": state}, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> vit.Classifier:
    return vit.load(run, device="cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [20, 26, 3], smooth enough to survive a JPEG."""
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((26, 20), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def picture(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


def test_all_files_of_a_run_give_the_same_predictions(run: Path, picture: Path) -> None:
    places = (run, str(run), run / "model.safetensors", run / "checkpoints" / "last.ckpt")
    answers = [vit.load(place).predict(picture) for place in places]
    assert all(answer == answers[0] for answer in answers)


def test_a_prediction_names_the_classes_best_first(model: vit.Classifier, picture: Path) -> None:
    (answer,) = model.predict(picture)
    assert sorted(answer.classes) == CLASSES
    assert list(answer.probabilities) == sorted(answer.probabilities, reverse=True)
    assert sum(answer.probabilities) == pytest.approx(1)


def test_the_numbers_are_the_networks_own(model: vit.Classifier, pixels: np.ndarray) -> None:
    image = torch.from_numpy(model.transform(pixels)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std))
    with torch.no_grad():
        expected = model.network((image - mean) / std).softmax(dim=1)[0]
    (answer,) = model.predict(pixels)
    assert dict(zip(answer.classes, answer.probabilities, strict=True)) == pytest.approx(
        dict(zip(CLASSES, expected.tolist(), strict=True)), rel=1e-5
    )


def test_every_kind_of_one_picture_gives_the_same_answer(
    model: vit.Classifier, pixels: np.ndarray, picture: Path
) -> None:
    expected = model.predict(pixels)
    assert len(expected) == 1
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    prepared = model.normalise(model.prepare(pixels)[None])
    for name, image in {
        "path": picture,
        "str": str(picture),
        "pil": Image.fromarray(pixels),
        "list of one": [picture],
        "tensor": tensor,
        "tensor batch": tensor[None],
        "array batch": pixels[None],
        "preprocessed": prepared,
        "pil with alpha": Image.fromarray(pixels).convert("RGBA"),
    }.items():
        assert model.predict(image) == expected, name


def test_many_pictures_keep_their_order_whatever_the_batch_size(model: vit.Classifier) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (16 + i, 30 - i, 3), dtype=np.uint8) for i in range(5)]
    expected = [model.predict(array)[0] for array in arrays]

    def one_by_one() -> Iterator[np.ndarray]:
        yield from arrays

    for images in (arrays, tuple(arrays), one_by_one(), [Image.fromarray(array) for array in arrays]):
        for found, wanted in zip(model.predict(images, batch_size=2), expected, strict=True):
            assert found.classes == wanted.classes
            assert found.probabilities == pytest.approx(wanted.probabilities, rel=1e-5)
    stacked = torch.from_numpy(np.stack([array[:16, :20] for array in arrays])).permute(0, 3, 1, 2)
    assert len(model.predict(stacked, batch_size=2)) == 5
    assert len(model.predict(torch.randn(5, 3, 16, 16), batch_size=2)) == 5


def test_different_kinds_can_stand_in_one_list(model: vit.Classifier, pixels: np.ndarray, picture: Path) -> None:
    answers = model.predict([picture, pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)])
    assert len(answers) == 4
    assert all(answer.classes == answers[0].classes for answer in answers)


def test_weights_in_bf16_predict_nearly_the_same(picture: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(VisionArchitecture((16, 16), (8, 8), 32, 2, 2, 48, classes=3, positions="sincos"))
    torch.nn.init.normal_(network.head.weight)
    file = classifier_file(network, CLASSES, asdict(Preprocessing((16, 16))))
    save_model(file, tmp_path / "fp32.safetensors")
    save_model(replace(file, raw={n: t.bfloat16() for n, t in file.raw.items()}), tmp_path / "bf16.safetensors")
    full, low = (vit.load(tmp_path / f"{name}.safetensors", device="cpu") for name in ("fp32", "bf16"))
    assert next(low.network.parameters()).dtype == torch.bfloat16
    (expected,), (found,) = full.predict(picture), low.predict(picture)
    assert found.classes == expected.classes
    assert found.probabilities == pytest.approx(expected.probabilities, abs=0.05)
    assert vit.attention_maps(low, picture).values.isfinite().all()


@pytest.mark.parametrize(("top", "count"), [(1, 1), (2, 2), (5, 3), (1000, 3)])
def test_no_more_classes_come_back_than_there_are(top: int, count: int, model: vit.Classifier, picture: Path) -> None:
    assert len(model.predict(picture, top=top)[0].classes) == count


def test_nothing_gives_nothing(model: vit.Classifier) -> None:
    assert model.predict([]) == []
    assert model.features([]).shape == (0, 32)


def test_features_are_what_the_head_sees(model: vit.Classifier, pixels: np.ndarray, picture: Path) -> None:
    features = model.features([picture, pixels, picture], batch_size=2)
    assert features.shape == (3, 32)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features[0], features[1])
    with torch.no_grad():
        chances = model.network.head(features[0]).softmax(dim=0)
    assert chances.max().item() == pytest.approx(model.predict(picture)[0].probabilities[0], rel=1e-5)


def test_averaged_weights_are_used_unless_raw_ones_are_asked_for(run: Path, picture: Path, tmp_path: Path) -> None:
    answers = {which: vit.load(run, weights=which).predict(picture) for which in ("ema", "raw", None)}
    assert answers["ema"] == answers[None]
    assert answers["ema"] != answers["raw"]


def test_averaged_weights_that_are_not_there_are_refused(model_file: ModelFile, picture: Path, tmp_path: Path) -> None:
    save_model(ModelFile(**{**vars(model_file), "ema": None}), tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="keeps no averaged weights"):
        vit.load(tmp_path / "m.safetensors", weights="ema")
    assert vit.load(tmp_path / "m.safetensors").predict(picture)


def test_a_picture_that_cannot_be_decoded_is_named(model: vit.Classifier, picture: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(UnreadableImage, match=r"broken\.png"):
        model.predict([picture, broken])
    with pytest.raises(UnreadableImage, match=r"absent\.png"):
        model.features(tmp_path / "absent.png")


def test_a_picture_turned_by_its_metadata_is_seen_upright(
    model: vit.Classifier, pixels: np.ndarray, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    assert model.predict(tmp_path / "turned.png") == model.predict(pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_picture_is_turned_by_its_metadata_as_its_file_is(
    model: vit.Classifier, pixels: np.ndarray, tmp_path: Path, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    for loaded in (False, True):
        with Image.open(path) as opened:
            if loaded:
                opened.load()
            assert torch.equal(model.prepare(opened), model.prepare(path))
    if orientation > 1:
        assert not torch.equal(model.prepare(path), model.prepare(np.array(Image.fromarray(pixels))))


@pytest.mark.parametrize("size", [(16, 16), (20, 26), (16, 400)])
def test_arrays_turned_about_or_not_to_be_written_to_are_taken_as_they_are(
    model: vit.Classifier, size: tuple[int, int]
) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = model.prepare(array)
    backwards = np.ascontiguousarray(array[..., ::-1])  # as OpenCV reads
    locked = array.copy()
    locked.flags.writeable = False
    for same in (backwards[..., ::-1], locked, np.asfortranarray(array), array[::-1].copy()[::-1]):
        assert torch.equal(model.prepare(same), expected)
    before = locked.copy()
    model.prepare(locked).zero_()
    assert (locked == before).all()


def test_sixteen_bits_are_seen_as_eight(model: vit.Classifier, pixels: np.ndarray, tmp_path: Path) -> None:
    grey = pixels[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "8.png")
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    deep.save(tmp_path / "16.png")
    expected = model.predict(tmp_path / "8.png")[0]
    for image in (tmp_path / "16.png", deep):
        found = model.predict(image)[0]
        assert found.classes == expected.classes
        assert found.probabilities == pytest.approx(expected.probabilities, abs=0.01)


def test_transparency_lies_over_white_in_memory_as_in_a_file(
    model: vit.Classifier, pixels: np.ndarray, tmp_path: Path
) -> None:
    clear = Image.fromarray(pixels)
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 26).astype(np.uint8), (20, 1))))
    clear.save(tmp_path / "clear.png")
    assert model.predict(clear) == model.predict(tmp_path / "clear.png")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.int64),
        torch.zeros(3, 16, 16),
    ],
)
def test_other_arrays_are_refused_with_what_was_expected(image: object, model: vit.Classifier) -> None:
    with pytest.raises(ValueError, match=r"must be (uint8|float) \["):
        model.predict(image)  # type: ignore[arg-type]


def test_what_is_no_model_is_refused(picture: Path, tmp_path: Path) -> None:
    for path in (picture, tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelFileError, match=str(path)):
            vit.load(path)
