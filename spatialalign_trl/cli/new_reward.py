"""`spatialalign new-reward`: a package with one reward, its test and its entry point, to begin from."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from spatialalign_trl.cli.parsing import Parser

TEMPLATES = Path(__file__).resolve().parent / "templates" / "new_reward"

FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "reward_config.json": "reward_config.json.txt",
    "$module.py": "reward.py.txt",
    "tests/test_$module.py": "test_reward.py.txt",
}
"""File of the new package -> its template."""

DESCRIPTION = """\
Write an installable package with one reward, its tests and its entry point into the folder ./NAME.

  spatialalign new-reward smooth_motion
  pip install -e smooth_motion pytest && pytest smooth_motion
  accelerate launch recipes/spatialalign.py --reward_funcs smooth_motion

NAME is what --reward_funcs will call it: small letters, digits and _ (or -, which becomes _)."""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="spatialalign new-reward", description=DESCRIPTION)
    parser.add_argument("name", metavar="NAME", help="the reward's name, and the folder that is made")
    return parser


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    name = parser.read(words).name
    try:
        module = module_name(name)
        files = write_package(Path(name), module)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for file in files:
        print(file)
    print(f"\nnext:  pip install -e {name} pytest && pytest {name}\nthen:  --reward_funcs {module}")
    return 0


def module_name(name: str) -> str:
    """The Python module and the reward's name, for a name as it was typed.

    Raises:
        ValueError: it is no name, or belongs to something that is installed.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name):
        words = re.findall(r"[a-z0-9]+", name.lower())
        proposal = "_".join(words).lstrip("0123456789_") or "my_reward"
        raise ValueError(
            f"{name!r} cannot be a reward's name: small letters, digits and single _ or - between them, a letter "
            f"first. Perhaps {proposal!r}?"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise ValueError(f"{name!r} is a word or a module of Python itself. Perhaps '{module}_reward'?")
    from spatialalign_trl.rewards.convention import installed_rewards

    if module in installed_rewards():
        raise ValueError(f"a reward {module!r} is installed already: two of one name cannot be told apart")
    if importlib.util.find_spec(module) is not None:
        raise ValueError(f"a package {module!r} is installed already and would be hidden. Perhaps '{module}_reward'?")
    return module


def write_package(folder: Path, module: str) -> list[Path]:
    """Fills the templates in.

    Returns:
        The files written.

    Raises:
        FileExistsError: the folder is there.
    """
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} is there already; choose another name, or remove it first")
    words = {
        "module": module,
        "distribution": module.replace("_", "-"),
        "class_name": "".join(part.capitalize() for part in module.split("_")),
    }
    written = []
    try:
        for target, source in FILES.items():
            file = folder / Template(target).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATES / source).read_text(encoding="utf-8")
            file.write_text(Template(text).substitute(words), encoding="utf-8")
            written.append(file)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half a package would be in the way of the next try
        raise
    return written
