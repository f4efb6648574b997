"""Rewards in a file, and what is in the file but is no reward."""

from dataclasses import dataclass


def brightness(prompts, completions, **kwargs):
    return [float(video.mean()) for video in completions]


@dataclass
class Scaled:
    factor: float = 1.0

    def __call__(self, prompts, completions, **kwargs):
        return [self.factor for _ in completions]


class Mute:
    """A class without `__call__`."""


NUMBER = 3
