"""Makes the prompt set `datasets/dsr_prompts` again, `train.jsonl` and `test.jsonl`, from its `words.yaml`.

All combinations of a scene, an animal and an object that may stand in that scene are put in an order given by a hash
of the seed and the words. The first ones become the test split, the next ones the training split: the splits share no
combination, and asking for a larger training split changes neither the test prompts nor the earlier training prompts.
The six types take turns, so both splits are balanced over them. The same seed and words give the same bytes.

    python recipes/make_dsr_prompts.py --output datasets/dsr_prompts
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spatialalign_trl.prompts import DSR_TYPES, DSRPrompt, build_prompt
from spatialalign_trl.prompts.sets import check_balanced, hash_order, write_splits

DATASET_FOLDER = Path(__file__).resolve().parent.parent / "datasets" / "dsr_prompts"


class Combination(NamedTuple):
    """What is shown, before it is known where the animal goes; no two prompts show the same."""

    scene: str
    animal: str
    object: str


def ordered_combinations(words: dict[str, Any], seed: int) -> list[tuple[bytes, Combination]]:
    """All combinations with their digests, which order them and decide on the verb.

    Args:
        words (`dict`): `animals` (animal -> verbs), `scenes` (setting -> scenes) and `objects` (setting or
            `"anywhere"` -> objects).
        seed (`int`): Another seed gives another order.
    """
    combinations = [
        Combination(scene, animal, object)
        for setting, scenes in words["scenes"].items()
        for scene in scenes
        for animal in words["animals"]
        for object in words["objects"]["anywhere"] + words["objects"][setting]
    ]
    return hash_order(combinations, seed)


def make_prompts(words: dict[str, Any], *, seed: int, num_train: int, num_test: int) -> dict[str, list[DSRPrompt]]:
    """The prompts of both splits.

    Raises:
        ValueError: If a split could not be balanced over the six types, or if there are too few combinations.
    """
    check_balanced({"num_train": num_train, "num_test": num_test})
    combinations = ordered_combinations(words, seed)
    if num_train + num_test > len(combinations):
        raise ValueError(f"{num_train} + {num_test} prompts were asked for; the words give {len(combinations)}")
    splits = {"test": combinations[:num_test], "train": combinations[num_test : num_test + num_train]}
    return {
        split: [
            _make_prompt(f"{split}_{i:04d}", DSR_TYPES[i % len(DSR_TYPES)], *row, words) for i, row in enumerate(rows)
        ]
        for split, rows in splits.items()
    }


def _make_prompt(
    name: str, dsr_type: str, digest: bytes, combination: Combination, words: dict[str, Any]
) -> DSRPrompt:
    verbs = words["animals"][combination.animal]
    verb = verbs[int.from_bytes(digest[:8], "big") % len(verbs)]
    return build_prompt(**combination._asdict(), type=dsr_type, verb=verb, prompt_id=f"{name}_{dsr_type}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, default=DATASET_FOLDER / "words.yaml", help="the word lists")
    parser.add_argument("--output", type=Path, default=DATASET_FOLDER, help="the folder of train.jsonl and test.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other combinations")
    parser.add_argument("--num_train", type=int, default=1200, help="training prompts, a multiple of 6")
    parser.add_argument("--num_test", type=int, default=120, help="test prompts, a multiple of 6")
    options = parser.parse_args(arguments)

    words = yaml.safe_load(options.words.read_text(encoding="utf-8"))
    splits = make_prompts(words, seed=options.seed, num_train=options.num_train, num_test=options.num_test)
    write_splits(options.output, splits)


if __name__ == "__main__":
    main()
