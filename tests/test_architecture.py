"""Who may import whom, read from the source: the directions of CONTRIBUTING.md, no circles, no pickle, short files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"spatialalign_trl": ROOT / "spatialalign_trl", "spatialalign_rewards": ROOT / "rewards"}
MAX_LINES = 400
TOO_LONG_YET: set[str] = set()


@dataclass(frozen=True)
class Import:
    """`importer` (a module's full name) imports `imported`; `at_load`: as soon as the importer is loaded."""

    importer: str
    imported: str
    line: int
    at_load: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """Full name -> file, of every module that is installed."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


def imports_of(name: str, file: Path, known: frozenset[str]) -> Iterator[Import]:
    """All imports in a file, lazy ones and those for type checkers included, as full names of modules."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import losses` imports a module, `from .losses import sft_loss` a name
                one = f"{module}.{alias.name}"
                yield Import(name, one if one in known else module, node.lineno, at_load)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        later = for_types or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load and not later)

    yield from visit(ast.parse(file.read_text(encoding="utf-8"), filename=str(file)), True)


@cache
def all_imports() -> tuple[Import, ...]:
    known = frozenset(modules())
    return tuple(one for name, file in modules().items() for one in imports_of(name, file, known))


def lies_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def library(*rooms: str) -> tuple[str, ...]:
    return tuple(f"spatialalign_trl.{room}" for room in rooms)


# Who -> what it must not know, directly, lazily or for type checking.
BASE = library(
    "files",
    "devices",
    "hub_errors",
    "video",
    "video_cells",
    "near_miss",
    "relations",
    "prompts",
    "prompt_grammar",
    "prompt_loading",
    "prompt_publishing",
    "prompt_sets",
    "posed_video",
    "posed_video_formats",
    "scene_curation",
    "scene_rows",
    "scene_tasks",
    "perception",
    "models",
)
REWARDS = library(
    "rewards", "reward_loading", "reward_combination", "reward_answers", "async_rewards", "http_reward",
    "reward_server", "reward_settings", "hub_rewards",
)  # fmt: skip
STAGES = (*REWARDS, *library("rollout", "scoring", "preferences", "trainer", "evaluation", "hub", "report"))
LOOP = library(
    "self_improvement",
    "self_improvement_config",
    "self_improvement_preferences",
    "self_improvement_publishing",
    "self_improvement_report",
    "self_improvement_samples",
    "self_improvement_trackers",
    "run_settings",
    "prompt_arguments",
    "recipe_arguments",
    "scene_arguments",
    "evaluation_arguments",
    "launch",
)
FORBIDDEN: dict[tuple[str, ...], tuple[str, ...]] = {
    ("spatialalign_trl",): ("recipes", "rewards", "spatialalign_rewards", "tests", "benchmarks"),
    BASE: (*STAGES, *LOOP),
    STAGES: LOOP,
    library("trainer"): library(
        "rewards", "reward_loading", "scoring", "rollout", "preferences", "self_improvement", "evaluation",
        "hub.preference_card", "hub.preference_files", "perception", "tiny_world",
    ),
    REWARDS: library("rollout", "preferences", "trainer", "models", "perception"),
    library("rollout"): library("rewards", "reward_loading", "scoring", "preferences", "trainer", "evaluation"),
    library("models"): library("perception", "relations", "prompts", "prompt_grammar", "prompt_loading", "tiny_world"),
    library("files", "near_miss", "devices", "hub_errors"): ("spatialalign_trl",),
}  # fmt: skip


@pytest.mark.parametrize("importers", FORBIDDEN, ids=lambda names: names[0] + (" ..." if len(names) > 1 else ""))
def test_imports_go_one_way(importers):
    wrong = [
        str(one)
        for one in all_imports()
        if lies_in(one.importer, *importers)
        and lies_in(one.imported, *FORBIDDEN[importers])
        and one.importer != "spatialalign_trl"  # the front door knows every room, lazily
    ]
    assert not wrong, "\n".join(wrong)


def test_rewards_use_only_what_any_reward_may():
    allowed = (
        "spatialalign_rewards",
        *library("perception", "prompts", "video", "video_cells", "near_miss", "files", "reward_settings"),
    )
    wrong = [
        str(one)
        for one in all_imports()
        if lies_in(one.importer, "spatialalign_rewards")
        and lies_in(one.imported, *PACKAGES, "recipes", "rewards")
        and not lies_in(one.imported, *allowed)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line():
    """It stands beside the recipes: it may use every room of the library, and no room knows of it."""
    cli = library("cli")
    outside = [one for one in all_imports() if not lies_in(one.importer, *cli)]
    assert not [str(one) for one in outside if lies_in(one.imported, *cli)]
    assert any(lies_in(one.importer, *cli) for one in all_imports())


def test_nothing_installed_imports_recipes_or_benchmarks():
    for folder in ("recipes", "benchmarks"):
        names = {file.stem for file in (ROOT / folder).glob("*.py")} | {folder}
        assert not [str(one) for one in all_imports() if one.imported.split(".")[0] in names - set(PACKAGES)]


def test_every_import_from_the_house_leads_to_a_module():
    """A directions test sees nothing of a module that it resolves wrongly."""
    wrong = [str(one) for one in all_imports() if lies_in(one.imported, *PACKAGES) and one.imported not in modules()]
    assert not wrong, "\n".join(wrong)
    assert sum(lies_in(one.imported, *PACKAGES) for one in all_imports()) > 100


def test_no_circles():
    """Among imports that happen when modules load; a folder's __init__ counts where it is named."""
    edges = {name: set() for name in modules()}
    for one in all_imports():
        if one.at_load and one.imported in edges and one.imported != one.importer:
            edges[one.importer].add(one.imported)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "imports go in a circle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in edges:
        walk(name, ())


SOURCES = [
    file
    for folder in ("spatialalign_trl", "rewards", "recipes", "benchmarks")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


def test_files_are_short():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    long = {name: n for name, n in lengths.items() if n > MAX_LINES and name not in TOO_LONG_YET}
    assert not long, f"longer than {MAX_LINES} lines, split them: {long}"


PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}


def pickling(file: Path) -> Iterator[str]:
    """Places where a file reads or writes pickles."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        place = f"{file.name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (f"{place}: {alias.name}" for alias in node.names if alias.name.split(".")[0] in PICKLERS)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            if node.module.split(".")[0] in PICKLERS or names & UNPICKLING_CALLS:
                yield f"{place}: from {node.module}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLING_CALLS:
            yield f"{place}: {ast.unparse(node)}"
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            if getattr(node.value, "value", None) is (node.arg == "allow_pickle"):
                yield f"{place}: {ast.unparse(node)}"


def test_nothing_is_pickled():
    found = [place for file in SOURCES for place in pickling(file)]
    assert not found, "\n".join(found)


# The test's own eyes: what it must see in a module that breaks every rule.

CULPRIT = """\
import pickle
from typing import TYPE_CHECKING
from . import losses
from ..rewards import RewardRunner
if TYPE_CHECKING:
    from ..preferences import Pair
def late():
    import torch
    from spatialalign_trl.rollout import store
    return torch.load("x", weights_only=False), np.load("y", allow_pickle=True)
"""


def test_relative_lazy_and_type_checking_imports_are_seen(tmp_path):
    file = tmp_path / "culprit.py"
    file.write_text(CULPRIT)
    known = frozenset({"spatialalign_trl.trainer.losses", "spatialalign_trl.rollout.store"})
    seen = {one.imported: one.at_load for one in imports_of("spatialalign_trl.trainer.culprit", file, known)}
    assert seen == {
        "pickle": True, "typing": True, "spatialalign_trl.trainer.losses": True, "spatialalign_trl.rewards": True,
        "spatialalign_trl.preferences": False, "torch": False, "spatialalign_trl.rollout.store": False,
    }  # fmt: skip
    assert len(list(pickling(file))) == 4
