"""The loopback Hub behaves towards the real clients as the real Hub does, and fails on request."""

from __future__ import annotations

import subprocess
import sys
import time

import httpx2
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import TOKEN


@pytest.fixture
def folder(tmp_path):
    content = {
        "a.txt": b"hello",
        "sub/b.safetensors": bytes(range(256)) * 4,
        "README.md": b"---\ntags: [x]\n---\nhi\n",
    }
    for name, data in content.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    return tmp_path / "folder", content


def pushed(folder) -> None:
    HfApi().create_repo("tester/thing", private=True)
    HfApi().upload_folder(repo_id="tester/thing", folder_path=folder)


def test_what_is_uploaded_comes_back_regular_and_lfs(loopback_client, folder):
    path, content = folder
    pushed(path)
    files = loopback_client.files("model", "tester/thing")
    assert {name: files[name] for name in content} == content
    assert loopback_client.count("PUT", "/lfs-storage/") == 1 and loopback_client.repo("model", "tester/thing").private
    there = snapshot_download("tester/thing")
    assert {name: open(f"{there}/{name}", "rb").read() for name in content} == content
    assert open(hf_hub_download("tester/thing", "a.txt"), "rb").read() == b"hello"


def test_commits_keep_history_and_unchanged_files_make_none(loopback_client, folder):
    path, _ = folder
    pushed(path)
    first = HfApi().repo_info("tester/thing").sha
    HfApi().upload_folder(repo_id="tester/thing", folder_path=path)
    assert HfApi().repo_info("tester/thing").sha == first
    HfApi().delete_file("a.txt", "tester/thing")
    assert len(HfApi().list_repo_commits("tester/thing")) == 3
    assert HfApi().list_repo_files("tester/thing") == [".gitattributes", "README.md", "sub/b.safetensors"]
    assert open(hf_hub_download("tester/thing", "a.txt", revision=first), "rb").read() == b"hello"
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().upload_file(
            path_or_fileobj=b"x", path_in_repo="c", repo_id="tester/thing", parent_commit=first, commit_message="late"
        )


def test_absent_things_are_told_apart(loopback_client, folder):
    pushed(folder[0])
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("tester/nothing", "a.txt")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("tester/thing", "nothing.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("tester/thing", "a.txt", revision="nothing")
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo("tester/thing")
    HfApi().create_repo("tester/thing", exist_ok=True)
    HfApi().create_branch("tester/thing", branch="side")
    with pytest.raises(ValueError, match="metadata"):
        HfApi().upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="tester/thing")


def test_a_token_is_asked_for_where_the_hub_asks_for_one(loopback_client, folder):
    pushed(folder[0])
    assert HfApi().whoami()["name"] == "tester"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()
    for token in (False, "hf_wrong"):
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi(token=token).create_repo("tester/other")
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="c", repo_id="tester/thing")
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi(token=token).repo_info("tester/thing")  # private
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi().create_repo("stranger/thing")
    assert set(loopback_client.repos) == {("model", "tester/thing")}


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412, 429, 500, 503, None])
def test_faults_hit_so_often_as_they_are_told(loopback_client, status):
    fault = loopback_client.fail("POST", "/api/repos/create", status, times=2, headers={"Retry-After": "0"})
    ask = HfApi().create_repo
    for _ in range(2):
        with pytest.raises(httpx2.RemoteProtocolError if status is None else HfHubHTTPError):
            ask("tester/thing")
    assert fault.hits == 2 and not loopback_client.repos
    assert ask("tester/thing").repo_id == "tester/thing"


def test_an_answer_can_be_late_or_lost_after_the_work_was_done(loopback_client):
    loopback_client.fail("GET", "whoami", 503, delay=0.2)
    start = time.perf_counter()
    with pytest.raises(HfHubHTTPError, match="503"):
        HfApi().whoami()
    assert time.perf_counter() - start >= 0.2
    loopback_client.fail("POST", "/api/repos/create", after=True)
    with pytest.raises(httpx2.RemoteProtocolError):
        HfApi().create_repo("tester/thing")
    assert ("model", "tester/thing") in loopback_client.repos


def test_a_dataset_goes_and_comes_in_this_process(loopback_client):
    Dataset.from_dict({"x": [1, 2, 3]}).push_to_hub("tester/numbers", private=True)
    assert load_dataset("tester/numbers", split="train")["x"][:] == [1, 2, 3]
    assert [row["x"] for row in load_dataset("tester/numbers", split="train", streaming=True)] == [1, 2, 3]


def test_a_fresh_process_finds_the_hub_in_its_environment(loopback_client, folder, tmp_path):
    pushed(folder[0])
    code = "import huggingface_hub as h; print(open(h.hf_hub_download('tester/thing', 'a.txt')).read())"
    for token, words in ((TOKEN, "hello"), (None, "RepositoryNotFoundError")):
        environment = loopback_client.environment(tmp_path / f"home{token}", token)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert words in done.stdout + done.stderr
