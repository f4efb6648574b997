"""The launch check warns if several processes were requested and only one runs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
from fresh_process import PROGRAMS

from spatialalign_trl.arguments import launch
from spatialalign_trl.arguments.launch import check_launch

ACCELERATE = ["/venv/bin/python3.11", "/venv/bin/accelerate", "launch"]


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ([*ACCELERATE, "--cpu", "--num_processes", "2", "recipes/spatialalign.py"], 2),
        ([*ACCELERATE, "--cpu", "--num_processes=3", "recipes/spatialalign.py", "--beta", "2"], 3),
        ([*ACCELERATE, "--num-processes", "4", "-m", "package.job"], 4),
        (["/usr/bin/python", "-u", "-m", "accelerate.commands.launch", "--num_processes", "2", "x.py"], 2),
        (["python", "/lib/site-packages/accelerate/commands/launch.py", "--num_processes", "2", "x.py"], 2),
        (["/venv/bin/accelerate-launch", "--num_processes", "2", "x.py"], 2),
        ([*ACCELERATE, "--num_processes", "1", "x.py"], 1),
        ([*ACCELERATE, "x.py"], 1),
        ([*ACCELERATE, "--cpu", "x.py", "--num_processes", "8"], 1),  # the script's own flag
        ([*ACCELERATE, "--num_processes"], 1),
        ([*ACCELERATE, "--num_processes", "two", "x.py"], 1),
        (["bash", "-c", "--num_processes", "2"], 1),
        (["pytest", "/home/me/accelerate-experiments", "--num_processes", "2"], 1),
        ([], 1),
    ],
)
def test_the_number_asked_for_is_read_from_the_launchers_command_line(command, asked):
    assert launch._requested_processes([*command, ""]) == asked  # /proc ends it with a zero byte


def test_one_process_where_two_were_asked_for_is_warned_about(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(launch, "_parent_command", lambda: [*ACCELERATE, "--cpu", "--num_processes", "2", "x.py"])
    with pytest.warns(UserWarning, match="asked for 2 processes and started one.*--multi_gpu --num_processes 2"):
        check_launch()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.warns(UserWarning, match="started one"):
        check_launch()


@pytest.mark.parametrize(
    ("world_size", "command"), [("2", [*ACCELERATE, "--num_processes", "2", "x.py"]), (None, [*ACCELERATE, "x.py"])]
)
def test_a_launch_that_did_what_was_asked_is_not(monkeypatch, world_size, command):
    monkeypatch.setattr(launch, "_parent_command", lambda: command)
    if world_size is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_launch()


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="the parent's command line is in /proc on Linux")
def test_the_parents_command_line_is_read():
    code = "from spatialalign_trl.arguments import launch; print(launch._parent_command())"
    outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    done = subprocess.run([sys.executable, "-c", outer, code, "--mark"], capture_output=True, text=True, check=True)
    assert "'--mark'" in done.stdout


def accelerate_launch(script: os.PathLike, *flags: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK")}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision", "no"]
    return subprocess.run(
        [*launcher, *flags, str(script)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="the parent's command line is in /proc on Linux")
def test_accelerate_starts_one_process_on_cpus_and_the_script_says_so():
    script = PROGRAMS / "check_launch.py"
    done = accelerate_launch(script, "--cpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ran") == 1  # should this be 2 one day, the check has no reason left
    assert "accelerate was asked for 2 processes and started one" in done.stderr
    # what the warning recommends does start two
    done = accelerate_launch(script, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ran") == 2 and "started one" not in done.stderr
