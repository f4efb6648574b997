"""Makes the prompt set `datasets/dsr_prompts`, `train.jsonl` and `test.jsonl`, from its `words.yaml`.

All combinations of a scene, an animal and an object that fits the scene are ordered by a hash of the seed and the
words. The first ones become the test split, and the next ones the training split. The splits therefore share no
combination, and a larger training split changes neither the test prompts nor the earlier training prompts. The six
types alternate, so both splits are balanced over them. The same seed and words give the same bytes.

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
    """The content of a prompt without its type. No two prompts have the same combination."""

    scene: str
    animal: str
    object: str


def ordered_combinations(words: dict[str, Any], seed: int) -> list[tuple[bytes, Combination]]:
    """Order all combinations by the digest of their words.

    Args:
        words (`dict`):
            `animals` (animal -> verbs), `scenes` (setting -> scenes) and `objects` (setting or `"anywhere"` ->
            objects).
        seed (`int`):
            Another seed gives another order.

    Returns:
        `list[tuple[bytes, Combination]]`: pairs of digest and combination. The digest also determines the verb.
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
    """Make the prompts of both splits.

    Args:
        words (`dict`):
            See `ordered_combinations`.
        seed (`int`):
            Another seed selects other combinations.
        num_train, num_test (`int`):
            Sizes of the splits, positive multiples of 6.

    Returns:
        `dict[str, list[DSRPrompt]]`: split -> prompts.

    Raises:
        ValueError: If a split cannot be balanced over the six types, or if there are too few combinations.
    """
    check_balanced({"num_train": num_train, "num_test": num_test})
    combinations = ordered_combinations(words, seed)
    if num_train + num_test > len(combinations):
        raise ValueError(
            f"num_train={num_train}, num_test={num_test}: the words give only {len(combinations)} prompts. "
            "Use smaller splits or more words."
        )
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
    """Parse the command line and write the splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--words", type=Path, default=DATASET_FOLDER / "words.yaml", help="YAML file with the word lists"
    )
    parser.add_argument("--output", type=Path, default=DATASET_FOLDER, help="folder for train.jsonl and test.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="another seed selects other combinations")
    parser.add_argument("--num_train", type=int, default=1200, help="number of training prompts, a multiple of 6")
    parser.add_argument("--num_test", type=int, default=120, help="number of test prompts, a multiple of 6")
    options = parser.parse_args(arguments)

    words = yaml.safe_load(options.words.read_text(encoding="utf-8"))
    splits = make_prompts(words, seed=options.seed, num_train=options.num_train, num_test=options.num_test)
    write_splits(options.output, splits)


if __name__ == "__main__":
    main()
