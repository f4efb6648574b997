"""Read from the source: who may import whom (CONTRIBUTING.md), no circles, no pickle, no markup, short files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"spatialalign_trl": ROOT / "spatialalign_trl", "spatialalign_rewards": ROOT / "rewards"}
MAX_LINES = 400


@dataclass(frozen=True)
class Import:
    """The module `importer` imports `imported`."""

    importer: str
    imported: str
    line: int

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

    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:  # `from . import losses` imports a module, `from .losses import sft_loss` a name
                full_name = f"{module}.{alias.name}"
                yield Import(name, full_name if full_name in known else module, node.lineno)


@cache
def all_imports() -> tuple[Import, ...]:
    known = frozenset(modules())
    return tuple(one for name, file in modules().items() for one in imports_of(name, file, known))


def lies_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# The rooms from the bottom to the top: who may import whom, directly, lazily or for type checking. A room is a folder
# of the library or a module in its root; the rewards are a package of their own.
BASE = {"files", "text_files", "errors", "devices", "safe_text", "video"}
ALLOWED: dict[str, set[str]] = {
    "text_files": set(),
    "files": {"text_files"},
    "errors": set(),
    "devices": set(),
    "safe_text": {"errors"},
    "video": {"files", "errors"},
    "prompts": BASE,
    "perception": BASE | {"prompts"},
    "models": BASE,
    "scenes": BASE | {"prompts", "perception"},
    "rollout": BASE | {"prompts", "models"},
    "rewards": BASE | {"prompts"},
    "preferences": BASE | {"prompts"},
    "hub": BASE,
    "trainer": BASE | {"models", "hub"},
    "evaluation": BASE | {"prompts", "perception", "models", "rollout", "rewards"},
    "report": BASE | {"prompts", "perception", "models", "rewards", "evaluation"},
    "tiny_world": BASE | {"prompts", "perception", "scenes", "models"},
    "planning": BASE | {"models", "trainer"},
    "online": BASE
    | {"planning", "models", "rollout", "rewards", "preferences", "trainer", "evaluation", "report", "hub"},
    "arguments": BASE
    | {"prompts", "scenes", "models", "rewards", "trainer", "evaluation", "report", "online", "tiny_world"},
}
REWARD_FUNCTIONS = {"perception", "prompts", "video", "errors", "files", "text_files", "rewards.settings"}
MAX_ROOT_MODULES = 8


def room_of(module: str) -> str:
    """Return the room of one of the library's modules; the front door has the empty name."""
    return module.removeprefix("spatialalign_trl").lstrip(".").partition(".")[0]


def test_every_room_has_its_place():
    rooms = {room_of(name) for name in modules() if lies_in(name, "spatialalign_trl")} - {""}
    assert rooms == {*ALLOWED, "cli"}  # the command line may use every room, and no room knows of it


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_rooms_below_it(room):
    allowed = ALLOWED[room] | {room, ""}  # the front door says the version
    wrong = [
        str(one)
        for one in all_imports()
        if lies_in(one.importer, f"spatialalign_trl.{room}")
        and (lies_in(one.imported, "spatialalign_rewards", "recipes", "rewards", "tests", "benchmarks")
             or (lies_in(one.imported, "spatialalign_trl") and room_of(one.imported) not in allowed))
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_the_rooms_have_an_order():
    """The table itself has no circle: going through it, every room stands on rooms that were named before."""
    below: set[str] = set()
    for room, allowed in ALLOWED.items():
        assert allowed <= below | {room}, f"{room} is named before {sorted(allowed - below)}"
        below.add(room)


def test_reward_functions_use_only_what_any_reward_may():
    wrong = [
        str(one)
        for one in all_imports()
        if lies_in(one.importer, "spatialalign_rewards")
        and lies_in(one.imported, "spatialalign_trl", "recipes", "rewards")
        and not lies_in(one.imported, *(f"spatialalign_trl.{room}" for room in REWARD_FUNCTIONS))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_root_has_few_modules():
    root = [name for name, file in modules().items() if file.parent == PACKAGES["spatialalign_trl"]]
    assert len([name for name in root if modules()[name].name != "__init__.py"]) <= MAX_ROOT_MODULES - 1, root


def test_nothing_imports_the_command_line():
    """It stands next to the recipes: it may use every room of the library, and no room knows of it."""
    outside = [one for one in all_imports() if not lies_in(one.importer, "spatialalign_trl.cli")]
    assert not [str(one) for one in outside if lies_in(one.imported, "spatialalign_trl.cli")]


def test_nothing_installed_imports_recipes_or_benchmarks():
    for folder in ("recipes", "benchmarks"):
        names = {file.stem for file in (ROOT / folder).glob("*.py")} | {folder}
        assert not [str(one) for one in all_imports() if one.imported.split(".")[0] in names - set(PACKAGES)]


def test_every_import_from_the_house_leads_to_a_module():
    """The tests above see nothing of an import that they resolve wrongly."""
    wrong = [str(one) for one in all_imports() if lies_in(one.imported, *PACKAGES) and one.imported not in modules()]
    assert not wrong, "\n".join(wrong)
    assert sum(lies_in(one.imported, *PACKAGES) for one in all_imports()) > 100


def circle_in(edges: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle of imports, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(edges.get(name, ())):
                if found := walk(other, (*path, name)):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk(name, ()))), [])


def test_no_circles():
    """Lazy imports and those for type checkers count: a circle is a circle, whenever it closes."""
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for one in all_imports():
        if one.imported in edges and one.imported != one.importer:
            edges[one.importer].add(one.imported)
    circle = circle_in(edges)
    assert not circle, "imports go in a circle: " + " -> ".join(circle)


SOURCES = [
    file
    for folder in ("spatialalign_trl", "rewards", "recipes", "benchmarks")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


def test_files_are_short():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    long = {name: n for name, n in lengths.items() if n > MAX_LINES}
    assert not long, f"longer than {MAX_LINES} lines, split them: {long}"


REGISTERED = re.compile(r'"(spatialalign_(?:trl|rewards)[a-z0-9_.]*):([A-Za-z_][A-Za-z0-9_]*)"')


@pytest.mark.parametrize(
    "place", sorted({found.groups() for file in SOURCES for found in REGISTERED.finditer(file.read_text())})
)
def test_every_registered_class_is_where_its_registry_says(place):
    """Registries name modules in strings, which no import and no checker of imports ever looks at."""
    module, name = place
    assert module in modules()
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


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


# A `str` is markup to rich, and its escape codes are obeyed by a terminal: texts go through one of these functions.
SAFE_TEXTS = {"terminal_text", "printable", "printable_lines"}
RICH_METHODS = {"print", "rule", "add_row", "add_column"}
RICH_TEXTS = {"title", "caption", "header"}


def unsafe_texts(file: Path, *, plain_prints: bool) -> Iterator[str]:
    """Places where a file shows a text that may be markup or a code: through rich, or with `print`."""
    source = file.read_text(encoding="utf-8")
    has_tables = "from rich.table import Table" in source  # trackers have tables, too
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = node.func.attr if isinstance(node.func, ast.Attribute) else None
        function = node.func.id if isinstance(node.func, ast.Name) else None
        if method in RICH_METHODS or (has_tables and function == "Table") or (plain_prints and function == "print"):
            texts = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg in RICH_TEXTS)]
            wrong = [text for text in texts if not is_shown_safely(text)]
            yield from (f"{file.name}, line {text.lineno}: {ast.unparse(text)[:80]}" for text in wrong)


def is_shown_safely(text: ast.expr) -> bool:
    """Return whether what is shown is a constant, a table, or a text from one of the safe functions."""
    if isinstance(text, ast.Starred):  # *map(terminal_text, cells)
        call = text.value
        is_map = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "map"
        return is_map and isinstance(call.args[0], ast.Name) and call.args[0].id in SAFE_TEXTS
    if isinstance(text, ast.IfExp):
        return is_shown_safely(text.body) and is_shown_safely(text.orelse)
    if isinstance(text, ast.Call) and isinstance(text.func, ast.Name):
        return text.func.id in SAFE_TEXTS or text.func.id.endswith("table")
    if isinstance(text, ast.Name):
        return text.id == "table" or text.id.isupper()  # a constant
    return isinstance(text, ast.Constant)


def test_no_text_is_shown_as_markup_or_code():
    library = PACKAGES["spatialalign_trl"]
    found = [place for file in SOURCES for place in unsafe_texts(file, plain_prints=library in file.parents)]
    assert not found, "show these with terminal_text (rich) or printable (print):\n" + "\n".join(found)


# The tests of this file must see what a module that breaks every rule does.

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
    assert {one.imported for one in imports_of("spatialalign_trl.trainer.culprit", file, known)} == {
        "pickle", "typing", "spatialalign_trl.trainer.losses", "spatialalign_trl.rewards",
        "spatialalign_trl.preferences", "torch", "spatialalign_trl.rollout.store",
    }  # fmt: skip
    assert len(list(pickling(file))) == 4


TEXTS = """\
from rich.table import Table
console.print(f"{name}", markup=False)
console.print(terminal_text(name), other)
run.console.rule(name)
table = Table("a", *names, title=title)
table.add_row("a", *map(str, row))
table.add_column(column, justify="left")
print(name, sep=sep)
"""

SAFE = """\
from rich.table import Table
console.print(table, terminal_text(f"{name}", style), rich_table(names))
table = Table("a", title=terminal_text(title))
table.add_column(terminal_text(name))
table.add_row("[bold]a", terminal_text(b), *map(terminal_text, row))
print(printable_lines(text), "b", file=sys.stderr)
"""


def test_unsafe_texts_are_seen_and_safe_ones_are_not(tmp_path):
    file = tmp_path / "shown.py"
    file.write_text(TEXTS)
    assert len(list(unsafe_texts(file, plain_prints=True))) == 8
    assert len(list(unsafe_texts(file, plain_prints=False))) == 7
    file.write_text(SAFE)
    assert not list(unsafe_texts(file, plain_prints=True))


def test_a_circle_is_seen():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
