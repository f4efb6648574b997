"""A second file named `my_rewards.py`, with a reward of the same name."""


def brightness(prompts, completions, **kwargs):
    return ["other"]
