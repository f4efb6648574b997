"""Makes the prompt set `datasets/tiny_world_prompts` again: `train.jsonl`, `validation.jsonl` and `test.jsonl`.

Training prompts show combinations of scene, colour, animal and object that the embedded model was pretrained on. The
combinations held out from pretraining are dealt, one by one and in an order given by a hash, to the validation and the
test split: choose hyper-parameters on the one, report results on the other. Types and verbs take turns, so every split
is balanced over them; a combination that comes again comes with another type. The same seed gives the same bytes.

    python recipes/make_tiny_world_prompts.py --output datasets/tiny_world_prompts
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from math import gcd, lcm
from pathlib import Path

from spatialalign_trl.prompts import DSR_TYPES, DSRPrompt
from spatialalign_trl.prompts.sets import check_balanced, hash_order, write_splits
from spatialalign_trl.tiny_world.clips import caption_for
from spatialalign_trl.tiny_world.renderer import Scene
from spatialalign_trl.tiny_world.vocabulary import VERBS, split_combinations

DATASET_FOLDER = Path(__file__).resolve().parent.parent / "datasets" / "tiny_world_prompts"


def make_prompts(*, seed: int, num_train: int, num_validation: int, num_test: int) -> dict[str, list[DSRPrompt]]:
    """The prompts of the three splits.

    Raises:
        ValueError: If a split could not be balanced over the six types, or if there are too few combinations for it.
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    check_balanced({f"num_{split}": number for split, number in sizes.items()})
    pretraining, held_out = (
        [words for _, words in hash_order(combinations, seed)] for combinations in split_combinations()
    )
    combinations = {"train": pretraining, "validation": held_out[0::2], "test": held_out[1::2]}
    return {split: _make_split(split, combinations[split], number) for split, number in sizes.items()}


def _make_split(split: str, combinations: Sequence[tuple[str, str, str, str]], number: int) -> list[DSRPrompt]:
    """Prompts of one split: types, verbs and combinations take turns."""
    # With a number of combinations that shares no factor with the number of types, going through the combinations
    # again and again meets each of them with every type before a prompt comes twice.
    used = max(count for count in range(1, len(combinations) + 1) if gcd(count, len(DSR_TYPES)) == 1)
    if number > used * len(DSR_TYPES):
        raise ValueError(
            f"num_{split} is {number}: {used} combinations in {len(DSR_TYPES)} types give at most "
            f"{used * len(DSR_TYPES)} different prompts"
        )
    prompts = []
    for index in range(number):
        scene, color, animal, object = combinations[index % used]
        dsr_type = DSR_TYPES[index % len(DSR_TYPES)]
        # The shift after every twelve (the types' and the verbs' common period) lets each type meet each verb.
        verb = VERBS[(index + index // lcm(len(DSR_TYPES), len(VERBS))) % len(VERBS)]
        shown = Scene(scene=scene, color=color, animal=animal, object=object, verb=verb, type=dsr_type)
        prompts.append(replace(caption_for(shown), prompt_id=f"tiny-{split}-{dsr_type}-{index:03d}"))
    return prompts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATASET_FOLDER, help="the folder of the three splits")
    parser.add_argument("--seed", type=int, default=0, help="another seed chooses and deals other combinations")
    parser.add_argument("--num_train", type=int, default=240, help="training prompts, a multiple of 6")
    parser.add_argument("--num_validation", type=int, default=60, help="validation prompts, a multiple of 6")
    parser.add_argument("--num_test", type=int, default=60, help="test prompts, a multiple of 6")
    options = parser.parse_args(arguments)

    sizes = {name: getattr(options, name) for name in ("num_train", "num_validation", "num_test")}
    write_splits(options.output, make_prompts(seed=options.seed, **sizes))


if __name__ == "__main__":
    main()
