"""The online loop: sample, score, pair, train and evaluate, round after round.

`trainer` runs the stages, `rounds` pairs a round's samples, `publishing` and `preference_repo` write and push what a
run produces. Names are resolved when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["OnlineSpatialAlignConfig"],
        "trainer": ["OnlineSpatialAlignTrainer"],
        "log_samples": ["LogSamples"],
        "preference_card": ["RoundSummary", "preference_card"],
        "preference_files": ["write_pairs", "write_samples"],
    },
)
