"""`spatialalign new-reward`: create a package with one reward, its tests and its entry point, to start from."""

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
from spatialalign_trl.errors import printable
from spatialalign_trl.safe_text import printable_lines

TEMPLATES = Path(__file__).resolve().parent / "templates" / "new_reward"

FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "reward_config.json": "reward_config.json.txt",
    "$module.py": "reward.py.txt",
    "tests/test_$module.py": "test_reward.py.txt",
}
"""Maps each file of the new package to its template."""

DESCRIPTION = """\
Write an installable package with one reward, its tests and its entry point into the folder ./NAME.

  spatialalign new-reward smooth_motion
  pip install -e smooth_motion pytest && pytest smooth_motion
  accelerate launch recipes/spatialalign.py --reward_funcs smooth_motion

NAME is the name for --reward_funcs: lower-case letters, digits and _ (or -, which becomes _)."""


def build_parser() -> Parser:
    """Build the parser of `spatialalign new-reward`."""
    parser = Parser(prog="spatialalign new-reward", description=DESCRIPTION)
    parser.add_argument("name", metavar="NAME", help="the name of the reward and of the new folder")
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    name = parser.read(words).name
    try:
        module = module_name(name)
        files = write_package(Path(name), module)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for file in files:
        print(printable(file))
    print(printable_lines(f"\nnext:  pip install -e {name} pytest && pytest {name}\nthen:  --reward_funcs {module}"))
    return 0


def module_name(name: str) -> str:
    """Return the name of the reward and its Python module for a name as the user typed it.

    Raises:
        ValueError: when it is not a valid name, or something installed has that name already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name):
        words = re.findall(r"[a-z0-9]+", name.lower())
        proposal = "_".join(words).lstrip("0123456789_") or "my_reward"
        raise ValueError(
            f"{name!r} cannot be a reward's name. Use lower-case letters, digits and single _ or - between them, with "
            f"a letter first. Perhaps {proposal!r}?"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise ValueError(f"{name!r} is a keyword or a module of Python itself. Perhaps '{module}_reward'?")
    from spatialalign_trl.rewards.convention import installed_rewards

    if module in installed_rewards():
        raise ValueError(
            f"a reward {module!r} is installed already. Choose another name, because rewards are found by name"
        )
    if importlib.util.find_spec(module) is not None:
        raise ValueError(
            f"a package {module!r} is installed already, and the new one would hide it. Perhaps '{module}_reward'?"
        )
    return module


def write_package(folder: Path, module: str) -> list[Path]:
    """Write the package from the templates.

    Args:
        folder (`Path`): The folder to create.
        module (`str`): The name of the reward and its module, from [`module_name`].

    Returns:
        `list[Path]`: the files written.

    Raises:
        FileExistsError: when the folder exists already.
    """
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists already. Choose another name, or remove it first")
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
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete package would block the next attempt
        raise
    return written
