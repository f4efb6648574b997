"""Load the reward `smooth_motion` by its name and print its name, the score of a clip, and its settings."""

import numpy as np

from spatialalign_trl.rewards.convention import reward_name
from spatialalign_trl.rewards.loading import load_reward

reward = load_reward("smooth_motion", full=5.0)
clip = np.stack([np.full((4, 4, 3), k, np.uint8) for k in range(3)])
print(reward_name(reward), reward(prompts=["p"], completions=[clip]), reward.describe())
