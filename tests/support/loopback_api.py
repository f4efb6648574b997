"""The endpoints of the loopback Hub: what the real Hub's clients ask for, answered from repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from loopback_storage import LFS_SUFFIXES, HubError, Repo, file_entry, folder_entry

_TIME = "2026-01-01T00:00:00.000Z"


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Response:
    data: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Route = Callable[..., Response]
_ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(method: str, path: str) -> Callable[[Route], Route]:
    """Register a method of [`HubApi`] that receives the path's named groups."""

    def register(function: Route) -> Route:
        _ROUTES.append((method, re.compile(path), function))
        return function

    return register


_API_REPO = r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
_REPO = r"/(?P<kind>datasets/|)(?P<repo>[^/]+/[^/]+?)"


class HubApi:
    """
    The repositories of a Hub with one user, and its endpoints.

    Args:
        url: the address of the server, for links in responses.
        user: the owner of the token.
        token: the only token that is accepted.
        organizations: namespaces in addition to the user's own that the token may write to.
    """

    def __init__(self, url: str, user: str, token: str, organizations: tuple[str, ...]) -> None:
        self.url, self.user, self.token, self.organizations = url, user, token, organizations
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        """Uploaded LFS files: sha256 -> content."""

    def repo(self, kind: str, name: str) -> Repo:
        """Return a repository; `kind` is `"model"` or `"dataset"`."""
        try:
            return self.repos[kind, name]
        except KeyError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def respond(self, request: Request) -> Response:
        """Return the response to a request.

        Raises:
            HubError: if the Hub refuses the request.
        """
        method = "GET" if request.method == "HEAD" else request.method
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token != self.token:
            raise HubError(401, "Invalid credentials in Authorization header")
        for route_method, pattern, function in _ROUTES:
            if route_method == method and (match := pattern.fullmatch(request.path)):
                return function(self, request, **match.groupdict())
        raise HubError(404, f"the loopback Hub has no {request.method} {request.path}")

    def _require_token(self, request: Request) -> None:
        if not request.headers.get("Authorization"):
            raise HubError(401, "Invalid username or password.")

    def _readable(self, request: Request, kind: str, name: str) -> Repo:
        """Return a repository. Without access to it, the response is the same as if it did not exist."""
        repo = self.repo(kind, name)
        if repo.private and not request.headers.get("Authorization"):
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def _writable(self, request: Request, kind: str, name: str) -> Repo:
        self._require_token(request)
        self._check_namespace(name.split("/")[0])
        return self.repo(kind, name)

    def _check_namespace(self, namespace: str) -> None:
        if namespace not in (self.user, *self.organizations):
            raise HubError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Response:
        self._require_token(request)
        access = {"displayName": "loopback", "role": "write", "createdAt": _TIME}
        return Response(
            {
                "type": "user",
                "id": "0" * 24,
                "name": self.user,
                "fullname": self.user,
                "orgs": [{"type": "org", "name": name} for name in self.organizations],
                "auth": {"type": "access_token", "accessToken": access},
            }
        )

    @route("POST", "/api/validate-yaml")
    def _validate_card(self, request: Request) -> Response:
        text = request.json()["content"].replace("\r\n", "\n")
        match = re.match(r"---\n(.*?)\n?---\n", text, re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else {}
            problem = None if metadata is None or isinstance(metadata, dict) else "the metadata is no mapping"
        except yaml.YAMLError as error:
            problem = str(error)
        errors = [{"message": problem}] if problem else []
        return Response({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Response:
        self._require_token(request)
        options = request.json()
        kind, namespace = options.get("type") or "model", options.get("organization") or self.user
        self._check_namespace(namespace)
        name = f"{namespace}/{options['name']}"
        url = f"{self.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.repos:
            words = f"You already created this {kind} repo"
            return Response({"error": words, "url": url}, 409, {"X-Error-Message": words})
        private = bool(options.get("private")) or options.get("visibility") == "private"
        repo = self.repos[kind, name] = Repo(kind, name, private, {"main": []})
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.commit("main", "initial commit", {".gitattributes": attributes.encode()})
        return Response({"url": url, "name": name, "id": "0" * 24})

    @route("DELETE", "/api/repos/delete")
    def _delete(self, request: Request) -> Response:
        options = request.json()
        kind, name = options.get("type") or "model", f"{options.get('organization') or self.user}/{options['name']}"
        self._writable(request, kind, name)
        del self.repos[kind, name]
        return Response({})

    @route("POST", _API_REPO + "/branch/(?P<branch>.+)")
    def _create_branch(self, request: Request, kind: str, repo: str, branch: str) -> Response:
        branches = self._writable(request, kind, repo).branches
        if branch in branches:
            raise HubError(409, f"Reference already exists: {branch}")
        start = self.repos[kind, repo].at((request.json() if request.body else {}).get("startingPoint"))
        branches[branch] = [start]
        return Response({})

    # Reading

    @route("GET", _API_REPO + "(?:/revision/(?P<revision>.+))?")
    def _info(self, request: Request, kind: str, repo: str, revision: str | None) -> Response:
        repository = self._readable(request, kind, repo)
        commit = repository.at(revision)
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(commit.files.items())]
        return Response(
            {
                "_id": "0" * 24,
                "id": repo,
                "author": repo.split("/")[0],
                "sha": commit.oid,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
                "lastModified": _TIME,
                "createdAt": _TIME,
            }
        )

    @route("GET", _API_REPO + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
    def _tree(self, request: Request, kind: str, repo: str, revision: str, folder: str | None) -> Response:
        files = self._readable(request, kind, repo).at(revision).files
        prefix = f"{folder.strip('/')}/" if folder else ""
        inside = {path: path[len(prefix) :].split("/") for path in files if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        deep = request.query.get("recursive", "").lower() in ("true", "1")
        folders = {prefix + "/".join(parts[:n]) for parts in inside.values() for n in range(1, len(parts))}
        listed = sorted(path for path, parts in inside.items() if deep or len(parts) == 1)
        listed_folders = sorted(path for path in folders if deep or "/" not in path[len(prefix) :])
        return Response([*map(folder_entry, listed_folders), *(file_entry(path, files[path]) for path in listed)])

    @route("POST", _API_REPO + "/paths-info/(?P<revision>.+)")
    def _paths_info(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        files = self._readable(request, kind, repo).at(revision).files
        is_json = request.body[:1] == b"{"
        paths = request.json()["paths"] if is_json else urllib.parse.parse_qs(request.body.decode())["paths"]
        entries = [file_entry(path, files[path]) for path in paths if path in files]
        entries += [folder_entry(path) for path in paths if any(file.startswith(f"{path}/") for file in files)]
        return Response(entries)

    @route("GET", _API_REPO + "/refs")
    def _refs(self, request: Request, kind: str, repo: str) -> Response:
        branches = self._readable(request, kind, repo).branches
        listed = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
            for name, commits in branches.items()
        ]
        return Response({"branches": listed, "tags": [], "converts": []})

    @route("GET", _API_REPO + "/commits/(?P<revision>.+)")
    def _history(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        commits = self._readable(request, kind, repo).branches[revision]
        return Response(
            [
                {"id": commit.oid, "title": commit.message, "message": "", "authors": [], "date": _TIME}
                for commit in reversed(commits)
            ]
        )

    @route("GET", _REPO + "/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
    def _file(self, request: Request, kind: str, repo: str, revision: str, path: str) -> Response:
        commit = self._readable(request, kind.removesuffix("s/") or "model", repo).at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        data = commit.files[path]
        entry = file_entry(path, data)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if byte_range is None:
            return Response(data, 200, headers)
        start, end = int(byte_range[1]), min(int(byte_range[2] or len(data) - 1), len(data) - 1)
        return Response(data[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    # Writing

    @route("POST", _API_REPO + "/preupload/(?P<revision>.+)")
    def _preupload(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        files = self._writable(request, kind, repo).at(revision).files
        answers = []
        for file in request.json()["files"]:
            path = file["path"]
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular"}
            if path in files:
                entry = file_entry(path, files[path])
                answer["oid"] = entry.get("lfs", entry)["oid"]
            answers.append({**answer, "shouldIgnore": False})
        return Response({"files": answers})

    @route("POST", _REPO + r"\.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, kind: str, repo: str) -> Response:
        self._writable(request, kind.removesuffix("s/") or "model", repo)
        objects = []
        for blob in request.json()["objects"]:
            answer = {"oid": blob["oid"], "size": blob["size"]}
            if blob["oid"] not in self.blobs:
                answer["actions"] = {"upload": {"href": f"{self.url}/lfs-storage/{blob['oid']}"}}
            objects.append(answer)
        return Response({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs-storage/(?P<oid>[0-9a-f]{64})")
    def _lfs_put(self, request: Request, oid: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, "the content has another checksum")
        self.blobs[oid] = request.body
        return Response()

    @route("POST", _API_REPO + "/commit/(?P<revision>.+)")
    def _post_commit(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        repository = self._writable(request, kind, repo)
        head, message = repository.at(revision), ""
        files = dict(head.files)
        for line in request.body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head.oid):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif operation["key"] == "deletedFolder":
                files = {k: v for k, v in files.items() if not k.startswith(value["path"].rstrip("/") + "/")}
            else:
                raise HubError(400, f"the loopback Hub does not support {operation['key']!r}")
        oid = repository.commit(revision, message, files)
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.url}/{prefix}{repo}/commit/{oid}"
        return Response({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
