"""Run a loop to its end, and the same loop killed several times at random moments; started by test_killed_runs.py.

Children are forked from a process that has imported everything, so that a start takes no time for imports. This
process runs no model itself, so that it has no threads that a fork would lose.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_loop import config, luck, prompts  # noqa: E402

from spatialalign_trl.models import load_video_model
from spatialalign_trl.online.trainer import OnlineSpatialAlignTrainer


def run(folder: str, output: Path) -> None:
    args = config(output, max_steps=6, save_steps=1, ema_decay=0.5, contact_sheet_prompts=0)
    model = load_video_model(folder, device="cpu")
    OnlineSpatialAlignTrainer(model, luck, args, prompts("train", "red"), prompts("eval", "blue")).train()


def child(folder: str, output: Path, seconds: float | None) -> tuple[bool, float]:
    """Run the loop in a child process and kill it after some seconds; return (ended by itself, duration)."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            torch.set_num_threads(1)
            run(folder, output)
            code = 0
        finally:
            os._exit(code)
    deadline = started + (200 if seconds is None else seconds)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, "the run failed by itself"
            return True, time.monotonic() - started
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False, time.monotonic() - started
        time.sleep(0.01)


def main(folder: str, output: Path, kills: int) -> None:
    draw = random.Random(int(time.time()))
    ended, duration = child(folder, output / "whole", None)
    assert ended
    moments = []
    while len(moments) < kills:
        ended, _ = child(folder, output / "killed", draw.uniform(0.1, 0.7) * duration)
        if ended and moments:
            break
        if ended:  # the machine was busier when the whole run was timed: start again and kill sooner
            shutil.rmtree(output / "killed")
            duration /= 2
            continue
        moments.append(sorted(p.relative_to(output).as_posix() for p in (output / "killed").rglob("*") if p.is_file()))
    if not ended:
        ended, _ = child(folder, output / "killed", None)
    (output / "report.json").write_text(json.dumps({"kills": len(moments), "files": [len(m) for m in moments]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
