"""Files are written in one step, leftovers of killed processes are removed, and a folder has one process at a time."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from fresh_process import program_command
from hypothesis import example, given
from hypothesis import strategies as st

from spatialalign_trl import files
from spatialalign_trl.files import (
    MAX_NAME_BYTES,
    confined,
    file_name,
    lock_folder,
    read_json,
    remove_leftovers,
    write_atomic,
    write_json,
)


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.bin"]


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "x", b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_write_atomic_refuses_text(tmp_path):
    with pytest.raises(TypeError, match="takes bytes, got str"):
        write_atomic(tmp_path / "x", "text")


def test_json_round_trip(tmp_path):
    obj = {"a": [1, 2.5, None, True], "ü": "→"}
    assert read_json(write_json(tmp_path / "x.json", obj)) == obj


def test_json_round_trip_of_a_text_that_utf_8_cannot_hold(tmp_path):
    obj = {"\ud800": ["ü", "\udfff"]}
    assert read_json(write_json(tmp_path / "x.json", obj)) == obj


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_not_json(tmp_path, value):
    with pytest.raises(ValueError, match=r"x\.json.*None \(null\)"):
        write_json(tmp_path / "x.json", {"score": value})
    assert not (tmp_path / "x.json").exists()


def test_json_names_the_file_of_an_unknown_type(tmp_path):
    with pytest.raises(TypeError, match=r"x\.json.*set"):
        write_json(tmp_path / "x.json", {1, 2})


def test_read_json_names_the_broken_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(b'{"a": 1')
    with pytest.raises(ValueError, match=r"broken\.json is not a JSON file"):
        read_json(path)


def test_files_of_killed_processes_are_removed_and_those_of_running_ones_kept(tmp_path):
    assert subprocess.run(program_command("die_while_writing.py", tmp_path / "clip.mp4")).returncode == 9
    (of_killed,) = tmp_path.iterdir()
    *name, host, pid, random_part, suffix = of_killed.name.split(".")

    def leftover(*, host: str = host, pid: int) -> Path:
        path = tmp_path / ".".join([*name, host, str(pid), random_part, suffix])
        path.write_bytes(b"")
        return path

    of_running = leftover(pid=os.getpid())
    of_another_host = leftover(host="another-host", pid=int(pid))  # which no longer runs on this one
    of_another_program = tmp_path / ".notes.tmp"
    of_another_program.write_bytes(b"")
    assert remove_leftovers(tmp_path) == [of_killed]
    assert set(tmp_path.iterdir()) == {of_running, of_another_host, of_another_program}


@pytest.mark.parametrize(
    ("error", "is_kept"), [(ProcessLookupError, False), (PermissionError, True), (OSError, True), (None, True)]
)
def test_files_of_another_users_process_are_kept(tmp_path, monkeypatch, error, is_kept):
    """The system answers a signal to a process of another user with a PermissionError: it is running."""
    asked = []

    def kill(pid, signal):
        asked.append((pid, signal))
        if error:
            raise error

    monkeypatch.setattr(os, "kill", kill)
    path = tmp_path / f".clip.mp4.{files._host()}.4711.0123abcd.tmp"
    path.write_bytes(b"")
    assert remove_leftovers(tmp_path) == ([] if is_kept else [path]) and path.exists() == is_kept
    assert asked == [(4711, 0)]


def test_a_folder_is_locked_by_one_process_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    folder = tmp_path / "run"
    with subprocess.Popen(program_command("hold_lock.py", folder), stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"locked\n"
            message = rf"process {other.pid} on \S+ is using .*run\. .*another output_dir"
            with pytest.raises(RuntimeError, match=message), lock_folder(folder):
                pass
            with lock_folder(folder, here=False):  # another process of the same job
                pass
        finally:
            other.kill()
    monkeypatch.setattr(files, "PATIENCE", 10)
    for _ in range(2):
        with lock_folder(folder):
            assert f"process {os.getpid()} on" in (folder / files.HOLDER_FILE).read_text()


# --------------------------------------------------------------------------------------------------- names and paths

ANY_TEXT = st.text(st.characters(), max_size=300)  # lone surrogates as well
HOSTILE = (
    *("", ".", "..", "../../x", "/etc/passwd", "a\x00b", "a\\b", "a:b", "a\nb", " a", "a.", "~", ".hidden", "-x"),
    *("CON", "nul.mp4", "com1", "\ud800", "\u202eb", "x" * 5000, "é" * 200),
)


@given(ANY_TEXT)
def test_any_text_becomes_the_name_of_a_file_in_its_folder(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "names"
    name = file_name(text)
    assert len(name.encode()) <= MAX_NAME_BYTES and name.isprintable()
    assert not set('/\\:*?"<>|') & set(name) and not name.startswith((".", " ")) and not name.endswith((".", " "))
    assert name.split(".")[0].lower() not in ("con", "prn", "aux", "nul", "com1", "lpt9")
    path = write_atomic(folder / f"{name}.mp4", b"x")
    assert path.parent == folder and path.resolve().is_relative_to(folder.resolve())
    assert file_name(name) == name


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_ids_are_changed_and_stay_apart(tmp_path, text):
    name = file_name(text)
    assert (name == text) == (text == "-x")
    assert write_atomic(tmp_path / f"{name}.json", b"x").parent == tmp_path
    assert len({file_name(other) for other in HOSTILE}) == len(HOSTILE)


@given(ANY_TEXT, ANY_TEXT)
@example("a/b", "a_b")
@example("x" * 101, "x" * 102)
def test_different_texts_get_different_names(one, other):
    assert (file_name(one) == file_name(other)) == (one == other)


def test_published_ids_are_names_already(repo_root):
    rows = [json.loads(line) for file in (repo_root / "datasets").rglob("*.jsonl") for line in file.open()]
    ids = [row.get("prompt_id") or row["task_id"] for row in rows]
    assert len(ids) > 1000 and all(file_name(text) == text for text in ids)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "link/x", "link", "a\x00b", None, 3, "\ud800/../../x"]
)
def test_paths_that_leave_their_folder_are_refused(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(tmp_path, root / "link")
    with pytest.raises(ValueError, match="leads out of|is not a path"):
        confined(path, root)


@pytest.mark.parametrize("path", ["x.mp4", "a/../x.mp4", "./a/b/x.mp4", "."])
def test_paths_inside_of_a_folder_are_resolved(tmp_path, path):
    os.symlink(tmp_path, tmp_path / "self")
    for root in (tmp_path, tmp_path / "self"):
        assert confined(path, root) == (tmp_path / path).resolve()
        assert confined(tmp_path / path, root) == (tmp_path / path).resolve()
