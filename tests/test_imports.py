"""Who may import whom, read from the syntax trees: the rules that keep the parts apart."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "vit").rglob("*.py"))}
BASE = ("vit.errors", "vit.files", "vit.names", "vit.scripts", "vit.signals")
"""what every part may use: they import nothing of ours but each other"""
THIRD_PARTY_OF_NN = {"torch", "einops"}


@cache
def tree(file: str) -> ast.Module:
    return ast.parse(FILES[file].read_text(encoding="utf-8"))


@cache
def imports(file: str) -> frozenset[str]:
    """Full names of all that a file imports anywhere: `vit.nn.Attention`, `torch.nn.functional`."""
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute, so that this test can read them"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def is_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def files(*folders: str) -> list[str]:
    return [file for file in FILES if is_in(file.removesuffix(".py").replace("/", "."), *folders)]


def importers(package: str) -> set[str]:
    return {file for file in FILES if any(is_in(name, package) for name in imports(file))}


def offences(part: str, *forbidden: str, allowed: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{file} imports {name}"
        for file in files(part)
        for name in sorted(imports(file))
        if is_in(name, *forbidden) and not is_in(name, *allowed)
    ]


def module_file(name: str) -> str | None:
    """The file of a full name: `vit.nn.Attention` is found in vit/nn/__init__.py."""
    path = name.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py", f"{path.rpartition('/')[0]}.py"):
        if candidate in FILES:
            return candidate
    parent = f"{path.rpartition('/')[0]}/__init__.py"
    return parent if parent in FILES else None


def reached(file: str) -> Iterator[str]:
    """All that importing a file can bring, through any number of files of ours; imports in functions count too."""
    seen, todo = set(), [file]
    while todo:
        if (current := todo.pop()) in seen:
            continue
        seen.add(current)
        for name in imports(current):
            yield name
            if is_in(name, "vit") and (target := module_file(name)):
                todo.append(target)


def test_there_are_files_to_read() -> None:
    assert {"vit/nn/attention.py", "vit/models/vision.py", "vit/data/config.py"} <= set(FILES)


def test_nn_imports_torch_einops_the_standard_library_and_itself() -> None:
    known = THIRD_PARTY_OF_NN | sys.stdlib_module_names
    for file in files("vit.nn"):
        for name in imports(file):
            assert name.partition(".")[0] in known or is_in(name, "vit.nn"), f"{file} imports {name}"


def test_models_import_nn_and_themselves() -> None:
    assert offences("vit.models", "lightning", "vit", allowed=("vit.nn", "vit.models", "vit.data.config", *BASE)) == []


def test_what_every_part_may_use_imports_no_part() -> None:
    for module in BASE:
        assert offences(module, "vit", "torch", "lightning", allowed=BASE) == []


def test_tasks_do_not_import_the_command_line() -> None:
    assert offences("vit.tasks", "vit.cli") == []


def test_data_imports_no_model_and_no_task() -> None:
    assert offences("vit.data", "vit.models", "vit.nn", "vit.tasks", "vit.cli", "vit.explain", "vit.evaluate") == []


def test_evaluate_imports_neither_data_nor_models() -> None:
    assert offences("vit.evaluate", "lightning", "vit", allowed=("vit.evaluate", *BASE)) == []


def test_explain_imports_neither_data_nor_tasks() -> None:
    assert offences("vit.explain", "lightning", "vit.data", "vit.tasks", "vit.cli", allowed=("vit.data.config",)) == []


def test_lightning_stays_in_tasks_the_data_module_and_the_command_line() -> None:
    home = {*files("vit.tasks", "vit.cli"), "vit/data/module.py"}
    assert importers("lightning") | importers("pytorch_lightning") <= home


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_timm_and_transformers_stay_in_models_and_tasks(package: str) -> None:
    assert importers(package) <= set(files("vit.models", "vit.tasks"))


def test_albumentations_is_imported_by_one_file() -> None:
    assert importers("albumentations") == {"vit/data/augment.py"}


@pytest.mark.parametrize("file", files("vit.nn", "vit.models", "vit.evaluate", "vit.explain"))
def test_nothing_of_the_inner_parts_reaches_lightning(file: str) -> None:
    assert [name for name in reached(file) if is_in(name, "lightning", "pytorch_lightning")] == []


def test_following_imports_finds_what_is_imported_indirectly() -> None:
    assert "vit.nn.functional.attention" in set(reached("vit/models/vision.py"))  # by way of vit/nn/__init__.py


@pytest.mark.parametrize(
    "unsafe",
    ["weights_only=False", "pickle.load", "allow_pickle=True", "register_forward_hook", "register_forward_pre"],
)
def test_no_file_does_what_is_never_done(unsafe: str) -> None:
    # unparsed, so that spaces and line breaks hide nothing and comments do not count
    assert [file for file in FILES if unsafe in ast.unparse(tree(file))] == []


def test_no_file_imports_pickle() -> None:
    assert importers("pickle") | importers("dill") | importers("joblib") == set()


def test_exactly_one_module_is_called_attention() -> None:
    bases: dict[str, set[str]] = {}
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}

    def is_module(name: str) -> bool:
        return name == "Module" or any(is_module(base) for base in bases.get(name, ()))

    assert is_module("VisionTransformer")  # by way of Transformer
    assert [name for name in bases if "Attention" in name and is_module(name)] == ["Attention"]


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in memory after importing modules in a fresh interpreter."""
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_model_brings_no_training_framework() -> None:
    evaluate = [name.removesuffix(".py").replace("/", ".") for name in files("vit.evaluate") if "__init__" not in name]
    loaded = loaded_by("vit.nn", "vit.models.vision", *evaluate)
    assert "torch" in loaded
    assert loaded & {"lightning", "pytorch_lightning", "timm", "albumentations", "torchvision", "transformers"} == set()


def test_configuration_is_read_without_torch() -> None:
    loaded = loaded_by("vit.data.config", "vit.models.architecture")
    assert loaded & {"torch", "numpy", "lightning", "timm", "albumentations", "torchvision"} == set()
