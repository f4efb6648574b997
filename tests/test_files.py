"""Files are written in one step, leftovers of killed processes are removed, and a folder has one process at a time."""

import os
import subprocess
from pathlib import Path

import pytest
from fresh_process import program_command

from spatialalign_trl import files
from spatialalign_trl.files import lock_folder, read_json, remove_leftovers, write_atomic, write_json


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
    of_another_host = leftover(host="another-host", pid=1)
    of_another_program = tmp_path / ".notes.tmp"
    of_another_program.write_bytes(b"")
    assert remove_leftovers(tmp_path) == [of_killed]
    assert set(tmp_path.iterdir()) == {of_running, of_another_host, of_another_program}


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
