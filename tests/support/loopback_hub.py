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

import os
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from loopback_api import HubApi, Request, Response
from loopback_server import Fault, HubServer
from loopback_storage import Commit, HubError, Repo

__all__ = ["TOKEN", "Commit", "LoopbackHub", "redirect_clients"]

TOKEN = "hf_" + "LoopbackSecret" * 2
"""The token of the user of [`LoopbackHub`]. Tests search files and logs for it."""


class LoopbackHub:
    """
    The server and its repositories.

    Args:
        user: the owner of the token.
        token: the only token that is accepted.
        organizations: namespaces in addition to the user's own that the token may write to.
    """

    def __init__(self, user: str = "tester", token: str = TOKEN, organizations: tuple[str, ...] = ("org",)) -> None:
        self.token = token
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """(method, path) of all requests, including failed ones."""
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._server = HubServer(self.answer, self._stopping.wait)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._api = HubApi(self.url, user, token, organizations)

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
        assert not self._server.errors, "\n".join(self._server.errors)

    # For tests

    @property
    def repos(self) -> dict[tuple[str, str], Repo]:
        """Return all repositories: (kind, name) -> repository."""
        return self._api.repos

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
        return self._api.repo(kind, name)

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

    # For the server

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
                response = self._api.respond(request)
            except HubError as error:
                response = Response({"error": str(error)}, error.status, error.headers)
            return fault or response


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
