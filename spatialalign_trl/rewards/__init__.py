"""The reward protocol: find, call, run and combine rewards (the rewards themselves are in the top-level `rewards/`).

A reward is a callable in TRL's convention that returns one `float | None` per video; `runner.py` describes it. Names
are resolved when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loading": ["RewardFunc", "load_reward"],
        "runner": ["RewardFailure", "RewardOutput", "RewardRunner"],
        "scoring": ["score_samples"],
    },
)
