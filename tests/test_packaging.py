"""What is installed is what the folders contain, and importing it stays light."""

import configparser
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_process import run_program

import spatialalign_trl


@pytest.fixture(scope="module")
def setup_cfg(repo_root):
    config = configparser.ConfigParser()
    config.read(repo_root / "setup.cfg")
    return config


def python(repo_root: Path, *arguments: str) -> str:
    """Run a fresh interpreter in the repository's root and return what it prints."""
    result = subprocess.run([sys.executable, *arguments], cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_version(setup_cfg):
    assert setup_cfg["metadata"]["version"] == spatialalign_trl.__version__
    assert importlib.metadata.version("spatialalign-trl") == spatialalign_trl.__version__


def test_every_folder_with_an_init_is_listed(repo_root, setup_cfg):
    packages = set()
    for top, package in {"spatialalign_trl": "spatialalign_trl", "rewards": "spatialalign_rewards"}.items():
        for init in (repo_root / top).rglob("__init__.py"):
            packages.add(".".join((package, *init.parent.relative_to(repo_root / top).parts)))
    assert sorted(packages) == sorted(setup_cfg["options"]["packages"].split())


def test_the_rewards_folder_is_installed_under_its_own_name(repo_root):
    spec = importlib.util.find_spec("spatialalign_rewards")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).read_bytes() == (repo_root / "rewards" / "__init__.py").read_bytes()


def test_our_rewards_register_as_a_third_partys_would():
    points = {point.name: point for point in importlib.metadata.entry_points(group="spatialalign_trl.rewards")}
    assert points["dsr_score"].load().__name__ == "DSRScore"


def test_package_data_covers_the_embedded_model_and_the_templates(repo_root, setup_cfg):
    for package, patterns in setup_cfg["options.package_data"].items():
        folder = repo_root.joinpath(*package.split("."))
        installed = {file for pattern in patterns.split() for file in folder.glob(pattern)}
        for data_folder in {folder / pattern.split("/")[0] for pattern in patterns.split()}:
            present = {
                file for file in data_folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")
            }
            assert present <= installed, "name these kinds of files in setup.cfg, [options.package_data]"


def test_importing_the_package_is_light(repo_root):
    heavy = "torch", "transformers", "diffusers", "datasets", "trl"
    assert run_program("list_heavy_imports.py", *heavy, cwd=repo_root).stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["spatialalign_trl", "spatialalign_rewards"])
def test_every_public_name_can_be_imported(module):
    package = importlib.import_module(module)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match=f"{module}.*absent"):
        package.absent  # noqa: B018


def test_the_datasets_folder_does_not_hide_hugging_faces_library(repo_root):
    # With an __init__.py the folder would win over the library in `python -m pytest` and `python -m recipes.x`.
    assert (repo_root / "datasets").is_dir()
    assert not (repo_root / "datasets" / "__init__.py").exists()
    assert not (repo_root / "datasets.py").exists()
    code = "import datasets; print(datasets.load_dataset.__module__, datasets.__file__)"
    module, file = python(repo_root, "-c", code).split(maxsplit=1)
    assert module == "datasets.load"
    assert not Path(file.strip()).is_relative_to(repo_root / "datasets")


def test_the_code_is_ruff_clean(repo_root):
    python(repo_root, "-m", "ruff", "check", "--no-cache", ".")
