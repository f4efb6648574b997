"""The repositories that the loopback Hub stores: branches of commits, each with all files of its state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".safetensors", ".parquet", ".mp4", ".png", ".bin", ".pt", ".arrow")


class HubError(Exception):
    """An error response, with the headers that the client reads."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class Commit:
    """A state of a repository. `oid`: 40 hexadecimal digits; `files`: path -> content."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository. `kind`: `"model"` or `"dataset"`; `branches`: name -> commits, oldest first."""

    kind: str
    name: str
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def at(self, revision: str | None) -> Commit:
        """Return the head of a branch, or the commit with an id."""
        if revision in (None, "HEAD"):
            revision = "main"
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        """Add a commit to a branch and return its id, which is the same whenever the same commits are made."""
        commits = self.branches[branch]
        seed = repr((self.kind, self.name, branch, len(commits), message, sorted(files)))
        oid = hashlib.sha1(seed.encode()).hexdigest()
        commits.append(Commit(oid, message, files))
        return oid


def file_entry(path: str, data: bytes) -> dict[str, Any]:
    """Return a file's entry in the tree; `oid` is git's."""
    entry = {"type": "file", "path": path, "size": len(data)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def folder_entry(path: str) -> dict[str, Any]:
    """Return a folder's entry in the tree."""
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
