"""`spatialalign new-reward` writes a package that can be installed, is found by name and passes its own tests."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fresh_process import PROGRAMS

from spatialalign_trl.cli import main


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run Python with these arguments and return what it prints."""
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new_package(folder: Path, name: str) -> Path:
    """Run the command in a folder and return the package's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["new-reward", name]) == 0
    return folder / name


@pytest.fixture
def empty_folder(tmp_path, monkeypatch) -> Path:
    """Return the current folder, in which there is nothing."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# A package that is installed


@pytest.fixture(scope="module")
def smooth_motion(tmp_path_factory) -> Path:
    return new_package(tmp_path_factory.mktemp("smooth"), "smooth-motion")


@pytest.fixture(scope="module")
def python_path(smooth_motion, tmp_path_factory) -> str:
    """Install the package, and return a PYTHONPATH of the installation and this checkout."""
    site = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--target", str(site), "./smooth-motion", cwd=smooth_motion.parent)
    return os.pathsep.join([str(site), str(Path(__file__).parents[2])])


def test_an_installed_package_is_found_by_its_name(python_path, empty_folder):
    program = str(PROGRAMS / "score_with_smooth_motion.py")
    assert run(program, cwd=empty_folder, PYTHONPATH=python_path) == "smooth_motion [0.2] {'full': 5.0}\n"


def test_a_package_passes_its_own_tests(smooth_motion, python_path):
    tests = str(smooth_motion / "tests")
    options = ("-q", "-p", "no:cacheprovider", "-rs")
    output = run("-m", "pytest", *options, tests, cwd=smooth_motion.parent, PYTHONPATH=python_path)
    assert "5 passed" in output and "skipped" not in output


# The files of a package


@pytest.fixture(scope="module")
def far_away(tmp_path_factory) -> dict[str, str]:
    """Write a package and return its files: path -> text."""
    folder = new_package(tmp_path_factory.mktemp("far"), "far_away2")
    return {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_package_has_code_tests_and_settings(far_away):
    assert set(far_away) == {
        "pyproject.toml", "README.md", "reward_config.json", "far_away2.py", "tests/test_far_away2.py"
    }  # fmt: skip


def test_the_command_prints_how_to_use_the_reward(empty_folder, capsys):
    new_package(empty_folder, "far_away2")
    assert "--reward_funcs far_away2" in capsys.readouterr().out


def test_the_project_registers_the_class_and_claims_no_license(far_away):
    project = tomllib.loads(far_away["pyproject.toml"])["project"]
    assert project["entry-points"]["spatialalign_trl.rewards"] == {"far_away2": "far_away2:FarAway2"}
    assert project["name"] == "far-away2" and "license" not in project


def test_the_config_for_the_hub_names_the_class(far_away):
    config = json.loads(far_away["reward_config.json"])
    (class_,) = (node for node in ast.parse(far_away["far_away2.py"]).body if isinstance(node, ast.ClassDef))
    assert config["reward"] == f"far_away2.py:{class_.name}"


def test_no_placeholder_of_the_templates_is_left(far_away):
    for text in far_away.values():
        assert "$" not in text.replace("'{\"", "")


def test_the_code_of_a_package_is_ruff_clean(empty_folder, repo_root):
    folder, settings = str(new_package(empty_folder, "far_away2")), str(repo_root / "pyproject.toml")
    run("-m", "ruff", "check", "--no-cache", "--config", settings, folder, cwd=empty_folder)
    run("-m", "ruff", "format", "--check", "--no-cache", "--config", settings, folder, cwd=empty_folder)


# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Smooth Motion", "'Smooth Motion' cannot be a reward's name.*Perhaps 'smooth_motion'"),
        ("../escape", "Perhaps 'escape'"),
        ("a/b", "cannot be a reward's name"),
        ("2d", "Perhaps 'd'"),
        ("_", "Perhaps 'my_reward'"),
        ("a__b", "cannot be a reward's name"),
        ("", "cannot be a reward's name"),
        ("lambda", "of Python itself. Perhaps 'lambda_reward'"),
        ("json", "of Python itself"),
        ("dsr-score", "a reward 'dsr_score' is installed already"),
        ("numpy", "a package 'numpy' is installed already.*'numpy_reward'"),
    ],
)
def test_invalid_names_are_refused(empty_folder, capsys, name, message):
    with pytest.raises(SystemExit) as stop:
        main(["new-reward", name])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_existing_files_are_kept(empty_folder, capsys, kind):
    place = empty_folder / "mine"
    {"folder": place.mkdir, "file": place.touch, "dangling link": lambda: place.symlink_to("nowhere")}[kind]()
    with pytest.raises(SystemExit):
        main(["new-reward", "mine"])
    assert "mine exists already" in capsys.readouterr().err
    assert not place.is_dir() or not list(place.iterdir())


def test_an_incomplete_package_is_removed(empty_folder, monkeypatch, capsys):
    from spatialalign_trl.cli import new_reward

    monkeypatch.setitem(new_reward.FILES, "LAST", "absent.txt")
    with pytest.raises(SystemExit):
        main(["new-reward", "mine"])
    assert "absent.txt" in capsys.readouterr().err and not (empty_folder / "mine").exists()
