"""Run a Hugging Face Hub on this machine, with the endpoints that `huggingface_hub`, `datasets` and `diffusers` use.

It runs in threads of the test's process, keeps everything in memory, and fails on request:

    with LoopbackHub() as hub:
        hub.fail("POST", "/commit/", status=503, times=2)       # the next two commits
        subprocess.run([...], env=hub.environment(tmp_path))    # a fresh process whose Hub is this one
        hub.files("dataset", "tester/prefs")                    # {"README.md": b"...", ...}

The client's modules read `HF_ENDPOINT` when they are imported. A process that has imported them already is redirected
with [`redirect_clients`] (the fixture `loopback_client` does that). Xet is off: uploads are regular or LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

TOKEN = "hf_" + "LoopbackSecret" * 2
"""The token of the user of [`LoopbackHub`]. Tests search files and logs for it."""

LFS_SUFFIXES = (".safetensors", ".parquet", ".mp4", ".png", ".bin", ".pt", ".arrow")
ERROR_CODES = {401: "", 403: "", 404: "RepoNotFound", 409: "", 412: "", 429: "", 500: "", 503: ""}
_TIME = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Commit:
    """A state of a repository. `oid`: 40 hexadecimal digits; `files`: path -> content."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """`branches`: name -> commits, oldest first."""

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


@dataclass
class Fault:
    """A failure of requests with a matching method and path.

    Args:
        method: `"POST"`, ..., or `"*"` for any method.
        path: a regular expression that is searched for in the path.
        times: the number of requests that fail.
        status: the status of the response. With `None` the connection is dropped without a response.
        headers: headers of the response, such as `{"Retry-After": "1"}`.
        delay: seconds before the response or the drop.
        after: whether the request is carried out first, so that only its response is lost.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    after: bool = False
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        return self.hits < self.times and self.method in ("*", method) and bool(re.search(self.path, path))


class HubError(Exception):
    """An error response, with the headers that the client reads."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code


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
    """Register a method of [`LoopbackHub`] that receives the path's named groups."""

    def register(function: Route) -> Route:
        _ROUTES.append((method, re.compile(path), function))
        return function

    return register


_API_REPO = r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
_REPO = r"/(?P<kind>datasets/|)(?P<repo>[^/]+/[^/]+?)"


class LoopbackHub:
    """
    The server and its repositories.

    Args:
        user: the owner of the token.
        token: the only token that is accepted.
        organizations: namespaces in addition to the user's own that the token may write to.
    """

    def __init__(self, user: str = "tester", token: str = TOKEN, organizations: tuple[str, ...] = ("org",)) -> None:
        self.user, self.token, self.organizations = user, token, organizations
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """(method, path) of all requests, including failed ones."""
        self.errors: list[str] = []
        """Tracebacks of bugs in this server; [`stop`] raises them."""
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving.

        Raises:
            AssertionError: if a request met a bug in this server.
        """
        self._stopping.set()  # ends requests that a fault delays
        self._server.shutdown()
        self._server.server_close()
        assert not self.errors, "\n".join(self.errors)

    # For tests

    def fail(
        self,
        method: str,
        path: str,
        status: int | None = None,
        times: int = 1,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        after: bool = False,
    ) -> Fault:
        """Make future requests fail; see [`Fault`]."""
        fault = Fault(method, path, times, status, dict(headers or {}), delay, after)
        with self._lock:
            self.faults.append(fault)
        return fault

    def repo(self, kind: str, name: str) -> Repo:
        """Return a repository; `kind` is `"model"` or `"dataset"`."""
        try:
            return self.repos[kind, name]
        except KeyError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def files(self, kind: str, name: str, revision: str | None = None) -> dict[str, bytes]:
        """Return path -> content of a repository, by default of its main branch."""
        return dict(self.repo(kind, name).at(revision).files)

    def count(self, method: str, path: str) -> int:
        """Return the number of requests with this method and a path that matches."""
        return sum(
            requested == method and bool(re.search(path, request_path)) for requested, request_path in self.requests
        )

    def environment(self, home: str | os.PathLike, token: str | None = TOKEN) -> dict[str, str]:
        """Return the environment of a process that uses this Hub, with caches in `home`; `token=None`: logged out."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        return environment | self._variables(home) | ({"HF_TOKEN": token} if token else {})

    def _variables(self, home: str | os.PathLike) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    # Requests

    def answer(self, request: Request) -> Response | Fault:
        """Return the response, or the [`Fault`] that applies to the request."""
        with self._lock:
            self.requests.append((request.method, request.path))
            fault = next((f for f in self.faults if f.matches(request.method, request.path)), None)
            if fault is not None:
                fault.hits += 1
                if not fault.after:
                    return fault
            try:
                response = self._respond(request)
            except HubError as error:
                response = Response({"error": str(error)}, error.status, error.headers)
            return fault or response

    def wait(self, seconds: float) -> None:
        """Wait for a fault's delay, or until the server stops."""
        self._stopping.wait(seconds)

    def _respond(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        given = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given and given != self.token:
            raise HubError(401, "Invalid credentials in Authorization header")
        for known, pattern, function in _ROUTES:
            if known == method and (match := pattern.fullmatch(request.path)):
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
        asked = request.json()
        kind, namespace = asked.get("type") or "model", asked.get("organization") or self.user
        self._check_namespace(namespace)
        name = f"{namespace}/{asked['name']}"
        url = f"{self.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.repos:
            words = f"You already created this {kind} repo"
            return Response({"error": words, "url": url}, 409, {"X-Error-Message": words})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.repos[kind, name] = Repo(private, {"main": []})
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self._commit(kind, name, "main", "initial commit", {".gitattributes": attributes.encode()})
        return Response({"url": url, "name": name, "id": "0" * 24})

    @route("DELETE", "/api/repos/delete")
    def _delete(self, request: Request) -> Response:
        asked = request.json()
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or self.user}/{asked['name']}"
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
        shown = [path for path, parts in inside.items() if deep or len(parts) == 1]
        shown_folders = [path for path in folders if deep or "/" not in path[len(prefix) :]]
        return Response([*map(_folder_entry, sorted(shown_folders)), *(_entry(p, files[p]) for p in sorted(shown))])

    @route("POST", _API_REPO + "/paths-info/(?P<revision>.+)")
    def _paths_info(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        files = self._readable(request, kind, repo).at(revision).files
        is_json = request.body[:1] == b"{"
        asked = request.json()["paths"] if is_json else urllib.parse.parse_qs(request.body.decode())["paths"]
        found = [_entry(path, files[path]) for path in asked if path in files]
        found += [_folder_entry(path) for path in asked if any(file.startswith(f"{path}/") for file in files)]
        return Response(found)

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
        entry = _entry(path, data)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if wanted is None:
            return Response(data, 200, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        return Response(data[start : end + 1], 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    # Writing

    @route("POST", _API_REPO + "/preupload/(?P<revision>.+)")
    def _preupload(self, request: Request, kind: str, repo: str, revision: str) -> Response:
        files = self._writable(request, kind, repo).at(revision).files
        answers = []
        for asked in request.json()["files"]:
            path = asked["path"]
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular"}
            if path in files:
                entry = _entry(path, files[path])
                answer["oid"] = entry.get("lfs", entry)["oid"]
            answers.append({**answer, "shouldIgnore": False})
        return Response({"files": answers})

    @route("POST", _REPO + r"\.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, kind: str, repo: str) -> Response:
        self._writable(request, kind.removesuffix("s/") or "model", repo)
        objects = []
        for asked in request.json()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.blobs:
                answer["actions"] = {"upload": {"href": f"{self.url}/lfs-storage/{asked['oid']}"}}
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
        head, message = self._writable(request, kind, repo).at(revision), ""
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
        oid = self._commit(kind, repo, revision, message, files)
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.url}/{prefix}{repo}/commit/{oid}"
        return Response({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _commit(self, kind: str, name: str, branch: str, message: str, files: dict[str, bytes]) -> str:
        commits = self.repos[kind, name].branches[branch]
        seed = repr((kind, name, branch, len(commits), message, sorted(files)))
        oid = hashlib.sha1(seed.encode()).hexdigest()
        commits.append(Commit(oid, message, files))
        return oid


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """Return a file's entry in the tree; `oid` is git's."""
    entry = {"type": "file", "path": path, "size": len(data)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


def _handler_of(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            """Log nothing."""

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _serve(self) -> None:
            address = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(address.query))
            path = urllib.parse.unquote(address.path)
            try:
                answer = hub.answer(Request(self.command, path, query, self.headers, self._body()))
            except Exception:
                hub.errors.append(f"{self.command} {path}\n{traceback.format_exc()}")
                answer = Response({"error": "the loopback Hub has a bug"}, 500)
            if isinstance(answer, Fault):
                hub.wait(answer.delay)
                if answer.status is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                words = f"the loopback Hub has a fault with status {answer.status}"
                headers = {"X-Error-Message": words, **answer.headers}
                if ERROR_CODES.get(answer.status):
                    headers["X-Error-Code"] = ERROR_CODES[answer.status]
                answer = Response({"error": words}, answer.status, headers)
            self._send(answer)

        def _send(self, response: Response) -> None:
            is_raw = isinstance(response.data, bytes)
            data = response.data if is_raw else json.dumps(response.data).encode()
            try:
                self.send_response(response.status)
                for name, value in {"Content-Type": "application/json", **response.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # a client that did not wait for a delayed answer

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    return Handler


def redirect_clients(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Redirect the clients of this process, which read their settings when they were imported: `huggingface_hub`,
    `datasets` and `diffusers` use `hub` with its user's token, and keep their caches in `home`.
    """
    import datasets.config
    import huggingface_hub
    from huggingface_hub import HfFileSystem, constants, hf_api

    for name, value in {**hub._variables(home), "HF_TOKEN": hub.token}.items():
        monkeypatch.setenv(name, value)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        "HF_DATASETS_CACHE": home / "datasets",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
    }.items():
        monkeypatch.setattr(datasets.config, name, value)
    for name in list(sys.modules):  # modules that copied the switch when they were imported
        module = sys.modules[name]
        if name.split(".")[0] in ("diffusers", "peft") and getattr(module, "HF_HUB_OFFLINE", None) is True:
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    HfFileSystem.clear_instance_cache()
    huggingface_hub.close_session()
