"""The model file: what is saved comes back, and what is damaged or foreign is refused in one line."""

import json
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vit.data.config import Preprocessing
from vit.errors import ConfigError, ModelFileError
from vit.models.architecture import VisionArchitecture
from vit.models.build import architecture_from, build_network
from vit.models.file import ModelFile, classifier_file, read_model, save_model
from vit.models.vision import VisionTransformer

TINY = VisionArchitecture((16, 24), (8, 8), dim=32, depth=2, heads=4, hidden=48, classes=3, layer_scale=0.1)
NAMES = ["chat \N{CAT FACE}", "two\nlines", "odd \udce9 byte"]
PREPROCESSING = asdict(Preprocessing((16, 24), mean=(0.1, 0.2, 0.3)))


def make(*, ema: bool = False, seed: int = 0) -> ModelFile:
    torch.manual_seed(seed)
    network = VisionTransformer(TINY)
    torch.nn.init.normal_(network.head.weight)
    model = classifier_file(network, NAMES, PREPROCESSING)
    if ema:
        model.ema = {name: tensor * 0.5 for name, tensor in model.raw.items()}
    return model


def small() -> ModelFile:
    """A file of few bytes, for the tests that damage each of them."""
    shape = {"image_size": [8, 8], "patch_size": [8, 8], "dim": 4, "depth": 1, "heads": 1, "hidden": 4, "classes": 2}
    return ModelFile(
        "classifier", shape, ["a", "b"], {"size": [8, 8]}, raw={"w": torch.arange(5.0), "b": torch.ones(2)}
    )


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def save_checkpoint(model: ModelFile, path: Path) -> None:
    """As a training run leaves it."""
    state = {f"network.{name}": tensor for name, tensor in model.raw.items()}
    state |= {f"ema.{name}": tensor for name, tensor in (model.ema or {}).items()}
    torch.save({"vit": model.header(), "state_dict": state}, path)


WRITERS: dict[str, Callable[[ModelFile, Path], None]] = {".safetensors": save_model, ".ckpt": save_checkpoint}


def refusal(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    return message.removeprefix(str(path))


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("suffix", WRITERS)
def test_everything_comes_back(suffix: str, ema: bool, tmp_path: Path) -> None:
    model = make(ema=ema)
    model.licence, model.origin = "CC0", "drawn\nby hand"
    WRITERS[suffix](model, tmp_path / f"m{suffix}")
    back = read_model(tmp_path / f"m{suffix}")
    assert same_tensors(back.raw, model.raw)
    assert (back.ema is None) == (not ema)
    if model.ema is not None:
        assert back.ema is not None
        assert same_tensors(back.ema, model.ema)
    assert list(back.classes) == NAMES
    assert (back.kind, back.licence, back.origin) == ("classifier", "CC0", "drawn\nby hand")
    assert architecture_from(back.architecture) == TINY
    assert Preprocessing.from_json(back.preprocessing) == Preprocessing(**PREPROCESSING)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_loaded_network_computes_what_the_saved_one_did(suffix: str, tmp_path: Path) -> None:
    model = make(ema=True)
    WRITERS[suffix](model, tmp_path / f"m{suffix}")
    images = torch.randn(2, 3, 16, 24)
    back = read_model(tmp_path / f"m{suffix}")
    for which, state in (("raw", model.raw), ("ema", model.ema), (None, model.ema)):
        network = VisionTransformer(TINY).eval()
        network.load_state_dict(state)  # type: ignore[arg-type]
        built = build_network(back, which)  # type: ignore[arg-type]
        assert not built.training
        assert torch.equal(built(images), network(images))


def test_a_checkpoint_and_a_model_file_of_equal_weights_compute_the_same_bits(tmp_path: Path) -> None:
    """A safetensors file is mapped into memory as it is; of tensors at odd addresses CPU kernels round otherwise."""
    torch.manual_seed(0)
    architecture = VisionArchitecture((48, 48), (8, 8), dim=100, depth=2, heads=2, hidden=201, classes=7)
    network = VisionTransformer(architecture).eval()
    torch.nn.init.normal_(network.head.weight)
    model = classifier_file(network, list("abcdefg"), PREPROCESSING)
    for suffix, write in WRITERS.items():
        write(model, tmp_path / f"model{suffix}")
    one, other = (build_network(read_model(tmp_path / f"model{suffix}")) for suffix in (".ckpt", ".safetensors"))
    assert {parameter.data_ptr() % 64 for parameter in other.parameters()} == {0}
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 48, 48)
        with torch.inference_mode():
            assert torch.equal(one(images), other(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_tensors_keep_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small()
    model.raw = {"w": torch.tensor([[0, 1], [1, 0]]).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    save_model(model, tmp_path / "m.safetensors")
    assert same_tensors(read_model(tmp_path / "m.safetensors").raw, model.raw)


def test_parts_of_larger_tensors_and_transposed_ones_are_saved_as_they_are(tmp_path: Path) -> None:
    model = small()
    whole = torch.arange(24.0).reshape(4, 6)
    model.raw = {"transposed": whole.T, "part": whole[1:3, ::2], "empty": torch.empty(0, 3)}
    save_model(model, tmp_path / "m.safetensors")
    assert same_tensors(read_model(tmp_path / "m.safetensors").raw, model.raw)


def test_averaged_weights_are_refused_where_there_are_none(tmp_path: Path) -> None:
    save_model(make(), tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="keeps no averaged weights"):
        read_model(tmp_path / "m.safetensors").weights("ema")


def test_a_run_folder_stands_for_its_model_or_else_its_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    seeds = {"checkpoints/last.ckpt": 1, "checkpoints/best.ckpt": 2, "model.safetensors": 3}
    for name, seed in seeds.items():
        model = make(seed=seed)
        WRITERS[Path(name).suffix](model, tmp_path / name)
        assert same_tensors(read_model(tmp_path).raw, model.raw), name


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 60, 0.5, 0.9, -1])
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_cut_file_is_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    WRITERS[suffix](make(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert refusal(path).startswith(": empty file" if kept == 0 else ": cut, damaged, or no ")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("content", [b"just some text\n" * 20, b"\0" * 5000, b"\xff" * 5000, b"PK\x03\x04", b"{}"])
def test_something_else_under_the_name_of_a_model_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    assert "cut, damaged, or no" in refusal(path)


class Malicious:
    """A pickle that runs code when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_never_runs_its_code(writer: str, suffix: str, tmp_path: Path) -> None:
    path, marker = tmp_path / f"m{suffix}", tmp_path / "marker"
    content = {"vit": make().header(), "state_dict": {}, "payload": Malicious(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    reason = "objects that could run code" if (writer, suffix) == ("torch", ".ckpt") else "cut, damaged, or no"
    assert reason in refusal(path)
    assert not marker.exists()


def test_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "other.safetensors")
    assert "vit did not write" in refusal(tmp_path / "other.safetensors")
    save_file({"w": torch.ones(3)}, tmp_path / "meta.safetensors", metadata={"format": "pt"})
    assert "vit did not write" in refusal(tmp_path / "meta.safetensors")
    for number, content in enumerate(({"state_dict": {}}, [1, 2], torch.ones(3), {"vit": 5})):
        torch.save(content, tmp_path / f"{number}.ckpt")
        assert "vit did not write" in refusal(tmp_path / f"{number}.ckpt")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["raw", "ema"])
def test_weights_that_are_no_numbers_are_refused_by_name(part: str, value: float, suffix: str, tmp_path: Path) -> None:
    model = make(ema=True)
    getattr(model, part)["head.weight"][1, 2] = value
    WRITERS[suffix](model, tmp_path / f"m{suffix}")
    assert "NaN or infinity (head.weight)" in refusal(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("suffix", WRITERS)
def test_another_format_version_is_refused(suffix: str, tmp_path: Path) -> None:
    class Later(ModelFile):
        def header(self) -> dict[str, Any]:
            return {**super().header(), "format": 2}

    WRITERS[suffix](Later(**vars(small())), tmp_path / f"m{suffix}")
    assert "format 2; this version reads format 1" in refusal(tmp_path / f"m{suffix}")


def test_an_incomplete_header_is_refused(tmp_path: Path) -> None:
    model = small()
    model.classes = None  # type: ignore[assignment]
    save_model(model, tmp_path / "m.safetensors")
    assert "incomplete header: classes is missing" in refusal(tmp_path / "m.safetensors")


def misfits() -> dict[str, tuple[ModelFile, str]]:
    other_kind, fewer_names, missing, wrong_shape, unknown = (make() for _ in range(5))
    other_kind.kind = "captioner"
    fewer_names.classes = NAMES[:2]
    del missing.raw["norm.weight"]
    wrong_shape.architecture = asdict(replace(TINY, hidden=64))
    unknown.architecture["wings"] = 2
    return {
        "kind": (other_kind, "architecture.decoder: missing"),
        "names": (fewer_names, "classes: 2 class names for 3 outputs"),
        "missing": (missing, "weights and architecture do not fit"),
        "shape": (wrong_shape, "weights and architecture do not fit"),
        "unknown": (unknown, "architecture.wings: unknown field"),
    }


@pytest.mark.parametrize("name", misfits())
def test_a_sound_file_whose_parts_do_not_fit_builds_no_network(name: str, tmp_path: Path) -> None:
    model, words = misfits()[name]
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError) as caught:
        build_network(read_model(tmp_path / "m.safetensors"), source=tmp_path / "m.safetensors")
    assert str(caught.value).startswith(f"{tmp_path / 'm.safetensors'}: {words}")
    assert "\n" not in str(caught.value)


def outcome(path: Path) -> str:
    """`refused`, `same`, or what went wrong."""
    try:
        back = read_model(path)
    except ModelFileError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    expected = small()
    same = same_tensors(back.raw, expected.raw) and json.dumps(back.header()) == json.dumps(expected.header())
    return "same" if same else "loaded something else"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_flipped_bit_anywhere_is_refused_or_has_no_effect(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    WRITERS[suffix](small(), path)
    data = path.read_bytes()
    bits = random.Random(0)
    outcomes = {}
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << bits.randrange(8)
        path.write_bytes(damaged)
        outcomes[position] = outcome(path)
    assert set(outcomes.values()) <= {"refused", "same"}
    assert sum(what == "refused" for what in outcomes.values()) > len(data) / 3


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_damage_is_refused_or_has_no_effect(edits: list[tuple[int, bytes]], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(small(), path)
    data = bytearray(path.read_bytes())
    for place, new in edits:
        start = place % len(data)
        data[start : start + len(new)] = new
    path.write_bytes(data)
    assert outcome(path) in ("refused", "same")


@pytest.mark.parametrize("name", ["absent.safetensors", "absent.ckpt", "absent"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / name) == ": no such file or folder"


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "no model in it" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert refusal(tmp_path / "model.safetensors") == ": not a regular file"
    assert "no model in it" in refusal(tmp_path)
