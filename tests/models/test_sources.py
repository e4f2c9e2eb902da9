"""What MODEL can name, without a network: timm's weights in files and folders, the hub's cache, and refusals."""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.utils import CheckpointSaver
from torch import nn

from vit.errors import ConfigError, ModelFileError, VitError
from vit.models.build import build_network
from vit.models.notes import note
from vit.models.sources import load_model
from vit.models.timm_source import TIMM_MODULES


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
    file = load_model(f"timm:test_vit.r160_in1k@{weights}")
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(scores(file, images), tiny(images), rtol=0, atol=1e-5)
    assert (file.classes[0], file.classes[-1]) == ("n01440764", "n15075141")
    assert file.descriptions is not None
    assert file.descriptions[0].startswith("tench")
    assert (file.licence, file.origin) == ("apache-2.0", f"timm:test_vit.r160_in1k@{weights}")
    assert (file.preprocessing["size"], file.preprocessing["crop_fraction"]) == ((160, 160), 0.95)


def test_a_file_without_a_tag_is_anybodys(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither ImageNet's names nor the licence of timm's weights: 1000 classes may be any."""
    note.cache_clear()
    file = load_model(f"timm:test_vit@{weights}")
    assert file.classes == [str(number) for number in range(1000)]
    assert (file.licence, file.descriptions) == ("unknown (local file)", None)
    assert file.architecture == load_model(f"timm:test_vit.r160_in1k@{weights}").architecture
    load_model(f"timm:test_vit@{weights}")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"note       timm:test_vit@{weights}: its 1000 classes have no names; they are called 0 to 999"]


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


@torch.no_grad()
def test_classes_without_names_are_numbers(tmp_path: Path) -> None:
    model, images = timm.create_model("test_vit", num_classes=10).eval(), torch.randn(1, 3, 160, 160)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    file = load_model(f"timm:test_vit@{tmp_path / 'w.safetensors'}")
    assert file.classes == [str(number) for number in range(10)]
    torch.testing.assert_close(scores(file, images), model(images), rtol=0, atol=1e-5)
    timm.models.save_for_hf(model, tmp_path / "folder", safe_serialization=True)
    assert load_model(tmp_path / "folder").classes == file.classes


def test_names_that_a_folder_gives_twice_or_with_words(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3)
    labels = {"label_names": ["crane", "hen", "crane"], "label_descriptions": {"hen": "a bird"}}
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_config=labels)
    file = load_model(tmp_path)
    assert file.classes == ["crane (0)", "hen", "crane (2)"]
    assert file.descriptions == ["crane (0)", "a bird", "crane (2)"]


def test_a_projection_of_clip_is_not_a_head_of_classes(tmp_path: Path) -> None:
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    model: Any = timm.create_model("vit_base_patch32_clip_224", num_classes=512, **options)
    torch.nn.init.zeros_(model.head.bias)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    change_json(tmp_path / "config.json", model_args=options)
    assert (load_model(tmp_path).classes, load_model(tmp_path).architecture["classes"]) == ([], 0)
    torch.nn.init.ones_(model.head.bias)  # of somebody who trained as many classes
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert len(load_model(tmp_path).classes) == model.num_classes == 512


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """What timm's training script leaves: model_best.pth.tar with optimizer, options and, perhaps, EMA weights."""

    def save(model: nn.Module, ema: nn.Module | None = None, **args: Any) -> Path:
        optimizer = torch.optim.AdamW(model.parameters())
        sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
        optimizer.step()
        averaged = None if ema is None else timm.utils.ModelEmaV3(ema)
        options = argparse.Namespace(
            **{"model": "test_vit", "lr": 0.1, "img_size": None, "gp": None, "mean": None} | args
        )
        saver = CheckpointSaver(
            model, optimizer, args=options, model_ema=averaged, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
        )
        saver.save_checkpoint(0, 50.0)
        return tmp_path / "model_best.pth.tar"

    return save


@torch.no_grad()
def test_a_checkpoint_of_timms_script_is_read_and_its_ema_preferred(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    with torch.enable_grad():
        model, ema = (timm.create_model("test_vit", num_classes=5) for _ in range(2))
        path = saved(model, ema)
    note.cache_clear()
    file, images = load_model(f"timm:test_vit@{path}"), torch.randn(2, 3, 160, 160)
    assert any("its EMA weights are used" in record.getMessage() for record in caplog.records)
    assert file.classes == ["0", "1", "2", "3", "4"]
    torch.testing.assert_close(scores(file, images), ema.eval()(images), rtol=0, atol=1e-5)
    raw = build_network(file, "raw")
    torch.testing.assert_close(raw(images), model.eval()(images), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema", "state_dict_ema", None])
@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".pth.tar", ".ckpt"])
def test_other_layouts_of_checkpoints_are_read(
    tiny: nn.Module, prefix: str, key: str | None, ending: str, tmp_path: Path
) -> None:
    state = {prefix + name: tensor for name, tensor in tiny.state_dict().items()}
    old = ending == ".pt"  # the format of before torch 1.6
    torch.save(
        state if key is None else {key: state, "epoch": 3},
        tmp_path / f"m{ending}",
        _use_new_zipfile_serialization=not old,
    )
    images = torch.randn(1, 3, 160, 160)
    file = load_model(f"timm:test_vit@{tmp_path / f'm{ending}'}")
    torch.testing.assert_close(scores(file, images), tiny(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_checkpoints_options_decide_pooling_size_and_preparation(saved: Saved) -> None:
    with torch.enable_grad():
        model: Any = timm.create_model("test_vit", num_classes=4, img_size=96, global_pool="avg", patch_size=8)
        options = {"img_size": 96, "gp": "avg", "model_kwargs": {"patch_size": 8}}
        path = saved(model, **options, mean=[0.5, 0.4, 0.3], crop_pct=0.9, interpolation="bilinear")
    file, images = load_model(f"timm:test_vit@{path}"), torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(scores(file, images), model.eval()(images), rtol=0, atol=1e-5)
    prepared = file.preprocessing
    assert (prepared["size"], prepared["mean"], prepared["crop_fraction"]) == ((96, 96), (0.5, 0.4, 0.3), 0.9)
    assert prepared["interpolation"] == "bilinear"
    words = complaint(f"timm:vit_tiny_patch16_224@{path}")
    assert words == f"{path}: weights of test_vit, not of vit_tiny_patch16_224; give timm:test_vit@{path}"


def test_a_checkpoint_that_holds_more_than_plain_values_is_refused(tiny: nn.Module, tmp_path: Path) -> None:
    source = f"timm:test_vit@{tmp_path / 'm.pth'}"
    torch.save({"state_dict": tiny.state_dict(), "args": argparse.Namespace(out=tmp_path)}, tmp_path / "m.pth")
    assert complaint(source).startswith(
        f"{tmp_path / 'm.pth'}: holds objects that could run code; such files are refused (path"
    )
    torch.save({"state_dict": {"cls_token": 3}}, tmp_path / "m.pth")
    assert complaint(source) == f"{tmp_path / 'm.pth'}: no tensors by name"
    torch.save([1], tmp_path / "m.pth")
    assert complaint(source) == f"{tmp_path / 'm.pth'}: no tensors by name"
    (tmp_path / "m.pth").write_bytes(b"just some text")
    assert "cut, damaged, or no checkpoint at all" in complaint(source)


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
    torch.save(deep, tmp_path / "pickle.safetensors")
    assert "a pickle under another name" in complaint(f"timm:test_vit@{tmp_path / 'pickle.safetensors'}")
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "not a valid safetensors file" in complaint(f"timm:test_vit@{weights}")
    assert "no such file" in complaint("timm:test_vit@nope.safetensors")
    with_nan = {**deep, "norm.weight": torch.full_like(deep["norm.weight"], torch.nan)}
    save_file(with_nan, tmp_path / "nan.safetensors")
    assert "the weights hold NaN" in complaint(f"timm:test_vit@{tmp_path / 'nan.safetensors'}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: w.update({"pos_embed": torch.zeros(1, 51, 64)}),
            "pos_embed: expected 1 x 101 x 64, found 1 x 51 x 64",
        ),
        (
            lambda w: w.update({"patch_embed.proj.weight": torch.zeros(64, 1, 16, 16)}),
            "patch_embed.proj.weight: expected 64 x 3 x 16 x 16, found 64 x 1 x 16 x 16",
        ),
        (lambda w: w.update({"norm.bias": torch.zeros(64, dtype=torch.int8)}), "norm.bias: expected floating-point"),
        (lambda w: w.update({"norm.bias": torch.zeros(64, dtype=torch.bool)}), "norm.bias: expected floating-point"),
        (lambda w: w.update({"norm.bias": torch.zeros(64).to(torch.float8_e4m3fn)}), "found float8_e4m3fn"),
        (lambda w: w.pop("norm.bias"), "norm.bias: expected 64 values, missing"),
        (lambda w: w.update({"head.weight": torch.zeros(())}), "head.weight: expected"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_what_is_expected(change: Any, words: str, weights: Path) -> None:
    state = load_file(weights)
    change(state)
    save_file(state, weights)
    said = complaint(f"timm:test_vit@{weights}")
    assert said.startswith(f"{weights}: no weights of test_vit: ")
    assert words in said


@pytest.mark.parametrize(
    ("source", "suggestion"),
    [
        ("vit_tiny_patch16_224", "weights of timm are timm:vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.augreg_in21k", "weights of timm are timm:vit_tiny_patch16_224.augreg_in21k"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "weights of timm are timm:vit_tiny_patch16_224.augreg_in21k"),
        ("hf_hub:timm/vit_tiny_patch16_224", "weights of timm are timm:vit_tiny_patch16_224"),
        ("google/vit-base-patch16-224", "weights of the Hugging Face hub are hf:google/vit-base-patch16-224"),
        ("hf-hub:google/vit-base-patch16-224", "weights of the Hugging Face hub are hf:google/vit-base-patch16-224"),
        ("vit_tinny_patch16_224", "near it: timm:vit_tiny_patch16_224"),
        ("S/16", "to train this size from scratch, it is --model.name S/16"),
        ("runs/first", None),
        ("model.safetensors", None),
    ],
)
def test_a_name_that_is_no_path_is_answered_with_what_it_may_mean(
    source: str, suggestion: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    said = complaint(source)
    assert said.startswith(f"{source}: no such file or folder")
    assert (suggestion in said) if suggestion else said.endswith("no such file or folder")


@pytest.mark.parametrize("name", ["my model", "a/b/c", "", "a/", "/x", "../x", "a b/c", "-x", "caf\u00e9"])
def test_what_cannot_be_a_name_on_the_hub_is_refused(name: str) -> None:
    assert "not a folder, and not a name on the hub, which is OWNER/NAME" in complaint(f"hf:{name}", ConfigError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": 3}, "architecture: not a str"),
        ({"architecture": "hf-hub:somebody/model"}, "timm has no model hf-hub:somebody/model"),
        ({"pretrained_cfg": []}, "pretrained_cfg: not a dict"),
        ({"pretrained_cfg": {"mean": "grey"}}, "must be three numbers"),
        ({"pretrained_cfg": {"input_size": 3}}, "how images are prepared"),
        ({"model_args": {"depth": 10**9}}, "blocks: expected 1000000000, found 6"),
        ({"model_args": {"img_size": "large"}}, "timm cannot make this model"),
        ({"model_args": {"nobody": 1}}, "timm cannot make this model"),
    ],
)
def test_a_folder_of_timm_with_values_of_wrong_types_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=3), tmp_path, safe_serialization=True)
    change_json(tmp_path / "config.json", **changes)
    assert words in complaint(tmp_path, VitError)
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    assert "not valid JSON" in complaint(tmp_path)


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
    assert len(rows) >= 398
    assert {row["pixels"] for name, row in rows.items() if "patch14_siglip" in name and "_384" in name} == {"384 x 384"}
    known = {name for module in TIMM_MODULES for name in timm.list_models(module=module, pretrained=True)}
    assert rows.keys() <= known
    row = rows["vit_small_patch14_dinov2.lvd142m"]
    assert (row["parameters_millions"], row["pixels"], row["licence"]) == ("22.1", "518 x 518", "apache-2.0")
