"""Grade random clips with DSR-Score and print the results.

Arguments: `push` to grade with a new reward and push it to the Hub, or `load` to grade with the pushed one; its name.
"""

import sys

import numpy as np

from spatialalign_rewards import DSRScore
from spatialalign_trl.rewards.loading import load_reward


def main(action: str, repo: str) -> None:
    if action == "push":
        reward = DSRScore(min_frames=3)
        reward.push_to_hub(repo)
    else:
        reward = load_reward(repo)
    clips = list(np.random.default_rng(0).integers(0, 256, (2, 9, 32, 48, 3), dtype=np.uint8))
    print(*reward.grade(clips, type=["LR"] * 2, animal=["fox"] * 2, object=["stump"] * 2, attribute=["red"] * 2))


if __name__ == "__main__":
    main(*sys.argv[1:])
