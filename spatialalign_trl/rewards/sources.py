"""
Fingerprint the code of a reward, so that scores of two versions of it are never taken for each other.

The fingerprint covers the file that defines the reward, and the files beside it (in its folder, or in its package)
that this file imports, directly or through each other.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from spatialalign_trl.rewards.convention import RewardFunc, unwrap_reward

if TYPE_CHECKING:
    from spatialalign_trl.rewards.runner import RewardRunner

LIBRARY = "spatialalign_trl"

# By the class or function. Taken once, when the run starts: what runs is the code that was imported, whatever becomes
# of the file while the run goes on.
_FINGERPRINTS: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()


def source_fingerprint(reward: RewardFunc) -> str | None:
    """
    Return a fingerprint of the code of a reward.

    Args:
        reward (callable):
            The reward: a function, an instance of a class, or a `functools.partial` of either.

    Returns:
        `str`: such as `"my_reward.py and 1 more file, sha256 0123456789abcdef"`; of a client, what its server tells.
        `None` if the code cannot be read, or the server does not tell it.
    """
    reward = unwrap_reward(reward)
    if hasattr(reward, "server_fingerprint"):
        return reward.server_fingerprint()
    definition = reward if inspect.isroutine(reward) or isinstance(reward, type) else type(reward)
    if definition not in _FINGERPRINTS:
        _FINGERPRINTS[definition] = _fingerprint(definition)
    return _FINGERPRINTS[definition]


def source_fingerprints(runner: RewardRunner) -> dict[str, str | None]:
    """Return the fingerprint of the code of each reward of a runner, by name; see [`source_fingerprint`]."""
    named = zip(runner.names, runner.reward_funcs, strict=True)
    return {name: source_fingerprint(reward) for name, reward in named}


def _fingerprint(definition: Any) -> str | None:
    name = getattr(definition, "__module__", None) or ""
    module = sys.modules.get(name)
    if name.partition(".")[0] == LIBRARY:
        return None
    file = getattr(module, "__file__", None)
    # A script also holds what has nothing to do with the reward, such as the settings of the run.
    if module is None or name == "__main__" or file is None or not Path(file).is_file():
        try:
            return (
                f"{definition.__qualname__}, sha256 {sha256(inspect.getsource(definition).encode()).hexdigest()[:16]}"
            )
        except (OSError, TypeError):
            return None
    files = _files_of(module, Path(file))
    digest = sha256()
    for path, content in files.items():
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    others = len(files) - 1
    more = f" and {others} more file{'s' if others > 1 else ''}" if others else ""
    return f"{Path(file).name}{more}, sha256 {digest.hexdigest()[:16]}"


def _files_of(module: ModuleType, file: Path) -> dict[Path, bytes]:
    """Return the content of the module's file and of the files beside it that it imports, in a fixed order."""
    package = module.__name__.partition(".")[0] if "." in module.__name__ else None
    root = Path(next(iter(sys.modules[package].__path__))) if package in sys.modules else file.parent
    contents: dict[Path, bytes] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop(0)
        if path in contents:
            continue
        contents[path] = path.read_bytes()
        try:
            tree = ast.parse(contents[path])
        except (SyntaxError, ValueError):  # it was edited since it was imported
            continue
        waiting += sorted(_imported_files(tree, path, package, root))
    return {path: contents[path] for path in sorted(contents)}


def _imported_files(tree: ast.AST, path: Path, package: str | None, root: Path) -> Iterator[Path]:
    """Find the imported modules that are files in the package, or in the folder of a file without one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, folder = [alias.name for alias in node.names], None
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names]
            folder = path.parents[node.level - 1] if node.level else None
        else:
            continue
        for name in names:
            parts = name.split(".")
            if folder is None and package is not None:
                if parts[0] != package:
                    continue
                parts = parts[1:]
            start = folder or root
            # `from x import y`: y is a module, or a name in the module x.
            for length in (len(parts), len(parts) - 1):
                stem = start.joinpath(*parts[:length])
                found = [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
                if length and found:
                    yield found[0]
                    break
