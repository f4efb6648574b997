"""The paper's run, in numbers, for the tests of the planner."""

from spatialalign_trl.planning.workload import Workload

RUN = Workload(
    train_prompts=1200, eval_prompts=120, generations=10, rounds=1, evaluation_seeds=5, evaluations=2,
    pair_strategy="threshold", pairs_per_prompt=None, pools_rounds=True, win_rate=0.2, steps=3000, epochs=3.0, batch=1,
    accumulation=6, gpus=8, latent_bytes=4 * 16 * 21 * 60 * 104, video_bytes=1.6e6,
)  # fmt: skip
