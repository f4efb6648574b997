"""
Evaluate policies side by side: how well videos follow their prompts, and how good they look.

`statistics` and `guards` compute the numbers, `verdict` judges them, and `evaluator` samples, scores and measures.
`report/evaluation_files.py` writes `results.json`, the tables and `samples.parquet`. Names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "statistics": [
            "BOOTSTRAP_DRAWS",
            "COMPONENTS",
            "DSR",
            "EVALUATION_SEED",
            "HEADLINE",
            "MEANS",
            "THRESHOLDS",
            "Scored",
            "bootstrap_interval",
            "compare",
            "headline_of",
            "headline_score",
            "headline_value",
            "invalid_reason",
            "mean_difference",
            "success_rate",
            "summarize",
        ],
        "guards": ["GUARDS", "frame_statistics", "get_guard", "measure_quality"],
        "verdict": ["compare_quality", "compare_rewards", "reward_hacking_verdict"],
        "policies": ["Policy"],
        "evaluator": ["Evaluation", "EvaluationResults", "PolicySampling", "QualityGuards"],
    },
)
