"""What MODEL can name, without a network: timm's weights in files and folders, the hub's cache, and refusals."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vit.errors import ConfigError, ModelFileError, VitError
from vit.models import sources
from vit.models.build import build_network
from vit.models.sources import load_model


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is found, and nobody may ask the hub."""

    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=1000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


@pytest.fixture
def weights(tiny: nn.Module, tmp_path: Path) -> Path:
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def scores(file: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return build_network(file)(images)


def test_a_file_of_timms_weights_brings_names_licence_and_preprocessing(tiny: nn.Module, weights: Path) -> None:
    file = load_model(f"timm:test_vit@{weights}")
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(scores(file, images), tiny(images), rtol=0, atol=1e-5)
    assert (file.classes[0], file.classes[-1]) == ("n01440764", "n15075141")
    assert file.descriptions is not None
    assert file.descriptions[0].startswith("tench")
    assert (file.licence, file.origin) == ("apache-2.0", f"timm:test_vit@{weights}")
    assert (file.preprocessing["size"], file.preprocessing["crop_fraction"]) == ((160, 160), 0.95)
    assert load_model(f"timm:test_vit.r160_in1k@{weights}").architecture == file.architecture


def test_a_folder_that_timm_saved_is_read_with_its_labels(tmp_path: Path) -> None:
    model = timm.create_model("test_vit2", num_classes=3, img_size=96)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_config={"label_names": ["a", "b", "c"]})
    file, images = load_model(tmp_path), torch.randn(1, 3, 96, 96)
    assert file.classes == ["a", "b", "c"]
    with torch.no_grad():
        torch.testing.assert_close(scores(file, images), model.eval()(images), rtol=0, atol=1e-5)
    assert load_model(f"timm:{tmp_path}").architecture == file.architecture


@pytest.mark.parametrize(
    ("prefix", "name"), [("visual.trunk.", "test_vit"), ("nobodys.", "test_vit"), ("", "vit_tiny_patch16_224")]
)
def test_layouts_that_timm_itself_converts_are_read(prefix: str, name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, num_classes=0)
    save_file({prefix + key: t for key, t in model.state_dict().items()}, tmp_path / "w.safetensors")
    if prefix == "nobodys.":
        with pytest.raises(ModelFileError, match="no weights of test_vit"):
            load_model(f"timm:{name}@{tmp_path / 'w.safetensors'}")
    else:
        assert load_model(f"timm:{name}@{tmp_path / 'w.safetensors'}").classes == []


def test_a_head_without_class_names_is_left_out(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=17)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    file = load_model(f"timm:test_vit@{tmp_path / 'w.safetensors'}")
    assert (file.classes, file.architecture["classes"]) == ([], 0)
    assert scores(file, torch.randn(1, 3, 160, 160)).shape == (1, 64)


def complaint(source: object, kind: type[VitError] = ModelFileError) -> str:
    with pytest.raises(kind) as caught:
        load_model(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm:vit_tinny_patch16_224", "timm has no model vit_tinny_patch16_224; near it: vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.augregg", "no weights augregg; there are augreg_in21k, augreg_in21k_ft_in1k"),
        ("timm:vit_tiny_patch16_384.nope", "no weights nope; there are augreg_in21k_ft_in1k"),
        ("timm:resnet18", None),
        ("timm:", "a name is missing"),
        ("timm:vit_base_patch16_xp_224", "not supported from timm: block of the class ParallelScalingBlock"),
        ("timm:vit_base_patch16_gap_224", "timm has no pretrained weights of this model; give a file"),
    ],
)
def test_names_that_timm_does_not_have_are_answered_with_those_it_has(source: str, words: str | None) -> None:
    if words is None:  # known to timm: what it is shows when there are weights
        assert "no network" in complaint(source)
    else:
        assert words in complaint(source, ConfigError)


@pytest.mark.parametrize("source", ["timm:vit_tiny_patch16_224", "hf:somebody/model"])
def test_without_a_network_one_line_says_so(source: str) -> None:
    assert complaint(source).endswith("not in the cache, and it cannot be downloaded: no network")


def test_weights_published_as_a_pickle_alone_are_not_read() -> None:
    assert "published as a pickle alone" in complaint("timm:vit_huge_patch14_gap_224.in1k_ijepa")


def test_files_that_do_not_hold_the_weights_are_named(weights: Path, tmp_path: Path) -> None:
    assert "no weights of vit_tiny_patch16_224: " in complaint(f"timm:vit_tiny_patch16_224@{weights}")
    deep = load_file(weights)
    missing = {name: tensor for name, tensor in deep.items() if not name.startswith("blocks.5.")}
    save_file(missing, tmp_path / "shallow.safetensors")
    assert "blocks.5.norm1.weight" in complaint(f"timm:test_vit@{tmp_path / 'shallow.safetensors'}")
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "cnn.safetensors")
    assert "no weights of test_vit" in complaint(f"timm:test_vit@{tmp_path / 'cnn.safetensors'}")
    torch.save(deep, tmp_path / "weights.pth")
    assert "a pickle, which is not read" in complaint(f"timm:test_vit@{tmp_path / 'weights.pth'}")
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "no whole safetensors file" in complaint(f"timm:test_vit@{weights}")
    assert "no such file" in complaint("timm:test_vit@nope.safetensors")
    with_nan = {**deep, "norm.weight": torch.full_like(deep["norm.weight"], torch.nan)}
    save_file(with_nan, tmp_path / "nan.safetensors")
    assert "the weights hold NaN" in complaint(f"timm:test_vit@{tmp_path / 'nan.safetensors'}")


def test_a_cnn_is_refused_by_what_it_is(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "cnn.safetensors")
    words = complaint(f"timm:resnet10t@{tmp_path / 'cnn.safetensors'}", ConfigError)
    assert words == "not supported from timm: model of the class ResNet"


@pytest.fixture
def cache(tiny: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put weights into a hub cache as its client would; gives the blob."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repository: str) -> Path:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        commit = "0" * 40
        for name in ("blobs", "refs", f"snapshots/{commit}"):
            (folder / name).mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        save_file(tiny.state_dict(), folder / "blobs" / "new")
        digest = hashlib.sha256((folder / "blobs" / "new").read_bytes()).hexdigest()
        blob = (folder / "blobs" / "new").rename(folder / "blobs" / digest)
        (folder / "snapshots" / commit / "model.safetensors").symlink_to(f"../../blobs/{digest}")
        return blob

    return put


def test_what_is_in_the_cache_needs_no_network(tiny: nn.Module, cache: Callable[[str], Path]) -> None:
    cache("timm/test_vit.r160_in1k")
    file, images = load_model("timm:test_vit"), torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(scores(file, images), tiny(images), rtol=0, atol=1e-5)
    assert file.origin == "timm:test_vit.r160_in1k"


def test_a_damaged_cache_is_noticed(cache: Callable[[str], Path]) -> None:
    blob = cache("timm/test_vit.r160_in1k")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert complaint("timm:test_vit").endswith("damaged in the cache; delete it, and it is downloaded again")


def test_a_config_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    assert "no model.safetensors in it" in complaint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in complaint(tmp_path)


def test_the_list_of_pretrained_weights_is_timms() -> None:
    """A part of it, built anew, stands in the list as it is."""
    import csv

    from vit.cli.models import PRETRAINED

    with PRETRAINED.open(newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) >= 390
    known = {name for module in sources.TIMM_MODULES for name in timm.list_models(module=module, pretrained=True)}
    assert rows.keys() <= known
    row = rows["vit_small_patch14_dinov2.lvd142m"]
    assert (row["parameters_millions"], row["pixels"], row["licence"]) == ("22.1", "518 x 518", "apache-2.0")
