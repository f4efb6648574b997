"""Makes the task sets `datasets/video4spatial_{navigation,grounding}` and those of flat rooms beside them.

Each row is a task in a rendered room: the context, the instruction, and a path that follows it. Rows consist of
numbers and words; `spatialalign_trl.tiny_world.rooms.tasks.render_row` renders their videos at any size and length. No
two splits share a layout, and the split `outdoor` has a style that does not occur in `train`. The same seeds give the
same bytes.

    python recipes/make_video4spatial_rooms.py
    python recipes/make_video4spatial_rooms.py --style flat
    python recipes/make_video4spatial_rooms.py --tasks navigation --num_train 5000 --output runs/rooms

Textured rooms are for frames of 240x416 pixels. Flat rooms, whose sets end in `_flat`, are for 32x48.
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
DRAWN = {
    "indoor": {"navigation": {"num_context": 24}, "grounding": {"num_context": 24, "min_familiar": 0.5}},
    "flat": {"navigation": {"num_context": 24}, "grounding": {"num_context": 24}},
}
"""Style -> task -> arguments of `make_row`. There are three times as many context frames as the embedded model sees,
so that it can choose among them. A grounding path ends nearer to an object than the recording ever was: in textured
rooms, with views far from all of the recording's, keypoints could not tell a correct video from a wrong one."""

OUTDOORS = {"indoor": "outdoor", "flat": "flat_outdoor"}
"""Style -> the style of the split `outdoor`."""

SUFFIXES = {"indoor": "", "flat": "_flat"}
"""Style -> end of the sets' names."""

SIZES = {
    "indoor": {"train": 64, "validation": 16, "test": 32, "outdoor": 16},
    "flat": {"train": 128, "validation": 64, "test": 64, "outdoor": 32},
}
"""Style -> split -> number of tasks."""

OUTDOOR_FIRST = SPLIT_SEEDS["test"].start + 500_000
"""First seed of the split `outdoor`, which uses test seeds that no indoor room uses."""


def make_rows(task: str, split: str, number: int, style: str = "indoor") -> Iterator[dict[str, Any]]:
    """Yield the first tasks of a split.

    Args:
        task (`str`):
            `"navigation"` or `"grounding"`.
        split (`str`):
            `"train"`, `"validation"`, `"test"` or `"outdoor"`.
        number (`int`):
            Number of tasks. Seeds of rooms without such a task are skipped.
        style (`"indoor"` or `"flat"`, *optional*, defaults to `"indoor"`):
            Style of the rooms; the split `outdoor` has the gardens of that style.
    """
    drawn = DRAWN[style][task]
    style = OUTDOORS[style] if split == "outdoor" else style
    seeds = range(OUTDOOR_FIRST, SPLIT_SEEDS["test"].stop) if split == "outdoor" else SPLIT_SEEDS[split]
    made = 0
    for seed in seeds:
        if made == number:
            return
        try:
            row = make_row(seed, task, style, **drawn)
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
    parser.add_argument("--style", choices=list(SIZES), default="indoor", help="style of the rooms")
    for split in SIZES["indoor"]:
        default = ", ".join(f"{sizes[split]} {style}" for style, sizes in SIZES.items())
        parser.add_argument(
            f"--num_{split}", type=int, help=f"number of tasks in the {split} split (default: {default})"
        )
    options = parser.parse_args(arguments)
    for task in options.tasks:
        folder = options.output / f"video4spatial_{task}{SUFFIXES[options.style]}"
        for split, size in SIZES[options.style].items():
            number = getattr(options, f"num_{split}")
            rows = list(make_rows(task, split, size if number is None else number, options.style))
            path = write_atomic(folder / f"{split}.jsonl", to_jsonl(rows))
            print(f"{path}: {len(rows)} tasks", flush=True)


if __name__ == "__main__":
    main()
