"""Makes the task sets `datasets/video4spatial_navigation` and `datasets/video4spatial_grounding`.

Each row is a task in a rendered room: the context, the instruction, and a path that follows it. Rows consist of
numbers and words; `spatialalign_trl.tiny_world.rooms.tasks.render_row` renders their videos at any size and length. No
two splits share a layout, and the split `outdoor` has a style that does not occur in `train`. The same seeds give the
same bytes.

    python recipes/make_video4spatial_rooms.py
    python recipes/make_video4spatial_rooms.py --tasks navigation --num_train 5000 --output runs/rooms
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spatialalign_trl.files import write_atomic
from spatialalign_trl.scenes.tasks import TASKS
from spatialalign_trl.tiny_world.rooms import SPLIT_SEEDS
from spatialalign_trl.tiny_world.rooms.tasks import make_row

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
DRAWN = {"navigation": {"num_context": 24}, "grounding": {"num_context": 24, "min_familiar": 0.5}}
"""Task -> arguments of `make_row`. There are three times as many context frames as the embedded model sees, so that it
can choose among them. A grounding path ends nearer to an object than the recording ever was. With fewer frames, or
with views far from all of them, a correct video could not be distinguished from a wrong one."""

OUTDOOR_FIRST = SPLIT_SEEDS["test"].start + 500_000
"""First seed of the split `outdoor`, which uses test seeds that no indoor room uses."""


def make_rows(task: str, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Yield the first tasks of a split.

    Args:
        task (`str`):
            `"navigation"` or `"grounding"`.
        split (`str`):
            `"train"`, `"validation"`, `"test"` or `"outdoor"`.
        number (`int`):
            Number of tasks. Seeds of rooms without such a task are skipped.
    """
    style = "outdoor" if split == "outdoor" else "indoor"
    seeds = range(OUTDOOR_FIRST, SPLIT_SEEDS["test"].stop) if split == "outdoor" else SPLIT_SEEDS[split]
    made = 0
    for seed in seeds:
        if made == number:
            return
        try:
            row = make_row(seed, task, style, **DRAWN[task])
        except RuntimeError:
            continue
        made += 1
        yield row


def to_jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the rows as JSON lines without spaces."""
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATASETS, help="parent folder of the sets")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="which sets to make")
    for split, number in (("train", 64), ("validation", 16), ("test", 32), ("outdoor", 16)):
        parser.add_argument(f"--num_{split}", type=int, default=number, help=f"number of tasks in the {split} split")
    options = parser.parse_args(arguments)
    for task in options.tasks:
        for split in ("train", "validation", "test", "outdoor"):
            rows = list(make_rows(task, split, getattr(options, f"num_{split}")))
            path = write_atomic(options.output / f"video4spatial_{task}" / f"{split}.jsonl", to_jsonl(rows))
            print(f"{path}: {len(rows)} tasks", flush=True)


if __name__ == "__main__":
    main()
