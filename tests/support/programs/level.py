"""A reward that tests push to the Hub. It creates the file `$LEVEL_EXECUTED` when it is imported."""

import os
from pathlib import Path

VERSION = 1

Path(os.environ["LEVEL_EXECUTED"]).touch()


class Level:
    def __init__(self, level=0.0, trainer=None):
        self.__name__, self.level = "level", level

    def __call__(self, prompts, completions, **kwargs):
        return [self.level + VERSION] * len(completions)


def plain(prompts, completions, **kwargs):
    return [VERSION] * len(completions)
