"""Makes the prompt set `datasets/tiny_world_prompts`: `train.jsonl`, `validation.jsonl` and `test.jsonl`.

Training prompts use combinations of scene, colour, animal and object that the embedded model was pretrained on. The
combinations held out from pretraining are ordered by a hash and assigned alternately to the validation and test
splits: choose hyper-parameters on the former, report results on the latter. Types and verbs alternate, so every split
is balanced over them. A combination that occurs again has another type. The same seed gives the same bytes.

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
    """Make the prompts of the three splits.

    Args:
        seed (`int`):
            Another seed selects other combinations.
        num_train, num_validation, num_test (`int`):
            Sizes of the splits, positive multiples of 6.

    Returns:
        `dict[str, list[DSRPrompt]]`: split -> prompts.

    Raises:
        ValueError: If a split cannot be balanced over the six types, or if there are too few combinations for it.
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    check_balanced({f"num_{split}": number for split, number in sizes.items()})
    pretraining, held_out = (
        [words for _, words in hash_order(combinations, seed)] for combinations in split_combinations()
    )
    combinations = {"train": pretraining, "validation": held_out[0::2], "test": held_out[1::2]}
    return {split: _make_split(split, combinations[split], number) for split, number in sizes.items()}


def _make_split(split: str, combinations: Sequence[tuple[str, str, str, str]], number: int) -> list[DSRPrompt]:
    """Make the prompts of one split from alternating types, verbs and combinations."""
    # If the number of combinations shares no factor with the number of types, cycling through both pairs each
    # combination with every type before a prompt repeats.
    used = max(count for count in range(1, len(combinations) + 1) if gcd(count, len(DSR_TYPES)) == 1)
    if number > used * len(DSR_TYPES):
        raise ValueError(
            f"num_{split}={number}: {used} combinations in {len(DSR_TYPES)} types give at most "
            f"{used * len(DSR_TYPES)} different prompts. Use a smaller number."
        )
    prompts = []
    for index in range(number):
        scene, color, animal, object = combinations[index % used]
        dsr_type = DSR_TYPES[index % len(DSR_TYPES)]
        # Types and verbs have a common period of twelve. Shifting the verbs after it pairs each type with each verb.
        verb = VERBS[(index + index // lcm(len(DSR_TYPES), len(VERBS))) % len(VERBS)]
        words = Scene(scene=scene, color=color, animal=animal, object=object, verb=verb, type=dsr_type)
        prompts.append(replace(caption_for(words), prompt_id=f"tiny-{split}-{dsr_type}-{index:03d}"))
    return prompts


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATASET_FOLDER, help="folder for the three splits")
    parser.add_argument("--seed", type=int, default=0, help="another seed selects other combinations")
    parser.add_argument("--num_train", type=int, default=240, help="number of training prompts, a multiple of 6")
    parser.add_argument("--num_validation", type=int, default=60, help="number of validation prompts, a multiple of 6")
    parser.add_argument("--num_test", type=int, default=60, help="number of test prompts, a multiple of 6")
    options = parser.parse_args(arguments)

    sizes = {name: getattr(options, name) for name in ("num_train", "num_validation", "num_test")}
    write_splits(options.output, make_prompts(seed=options.seed, **sizes))


if __name__ == "__main__":
    main()
