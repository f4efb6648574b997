"""`spatialalign new-reward`: its package can be installed, is found by name and passes its own tests."""

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

from spatialalign_trl.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_installs_is_found_by_its_name_and_passes_its_tests(here):
    assert main(["new-reward", "smooth-motion"]) == 0
    site = here / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--target", str(site), "./smooth-motion", cwd=here)
    path = os.pathsep.join([str(site), str(Path(__file__).parents[2])])
    code = (
        "import numpy as np\n"
        "from spatialalign_trl.rewards.convention import reward_name\n"
        "from spatialalign_trl.rewards.loading import load_reward\n"
        "reward = load_reward('smooth_motion', full=5.0)\n"
        "clip = np.stack([np.full((4, 4, 3), k, np.uint8) for k in range(3)])\n"
        "print(reward_name(reward), reward(prompts=['p'], completions=[clip]), reward.describe())"
    )
    (here / "elsewhere").mkdir()
    assert run("-c", code, cwd=here / "elsewhere", PYTHONPATH=path) == "smooth_motion [0.2] {'full': 5.0}\n"
    tests = here / "smooth-motion" / "tests"
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(tests), cwd=here, PYTHONPATH=path)
    assert "5 passed" in output and "skipped" not in output


def test_the_written_files(here, capsys, repo_root):
    assert main(["new-reward", "far_away2"]) == 0
    folder = here / "far_away2"
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    assert set(files) == {
        "pyproject.toml", "README.md", "reward_config.json", "far_away2.py", "tests/test_far_away2.py"
    }  # fmt: skip
    assert "--reward_funcs far_away2" in capsys.readouterr().out
    project = tomllib.loads(files["pyproject.toml"].read_text())["project"]
    assert project["entry-points"]["spatialalign_trl.rewards"] == {"far_away2": "far_away2:FarAway2"}
    assert project["name"] == "far-away2" and "license" not in project
    config = json.loads(files["reward_config.json"].read_text())
    (class_,) = (node for node in ast.parse(files["far_away2.py"].read_text()).body if isinstance(node, ast.ClassDef))
    assert config["reward"] == f"far_away2.py:{class_.name}"
    for file in files.values():
        assert "$" not in file.read_text().replace("'{\"", "")
    settings = str(repo_root / "pyproject.toml")
    run("-m", "ruff", "check", "--no-cache", "--config", settings, str(folder), cwd=here)
    run("-m", "ruff", "format", "--check", "--no-cache", "--config", settings, str(folder), cwd=here)


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
def test_invalid_names_are_refused(here, capsys, name, message):
    with pytest.raises(SystemExit) as stop:
        main(["new-reward", name])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not list(here.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_existing_files_are_kept(here, capsys, kind):
    place = here / "mine"
    {"folder": place.mkdir, "file": place.touch, "dangling link": lambda: place.symlink_to("nowhere")}[kind]()
    with pytest.raises(SystemExit):
        main(["new-reward", "mine"])
    assert "mine exists already" in capsys.readouterr().err
    assert not place.is_dir() or not list(place.iterdir())


def test_an_incomplete_package_is_removed(here, monkeypatch, capsys):
    from spatialalign_trl.cli import new_reward

    monkeypatch.setitem(new_reward.FILES, "LAST", "absent.txt")
    with pytest.raises(SystemExit):
        main(["new-reward", "mine"])
    assert "absent.txt" in capsys.readouterr().err and not (here / "mine").exists()
