"""Write folders as a run and an evaluation write them, with small videos, for tests of the page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from spatialalign_trl.evaluation import compare, invalid_reason, summarize
from spatialalign_trl.files import write_json
from spatialalign_trl.models.usage import LoraUsage
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.report.gallery import Clip
from spatialalign_trl.report.write import write_run_notes
from spatialalign_trl.video import write_video

FRAMES, HEIGHT, WIDTH = 9, 20, 30
TYPES = ("LR", "LT", "RL")
USAGE = LoraUsage(
    "tiny", dtype="float32", prompt="a fox", noise_seed=7, call={"num_frames": 17, "max_sequence_length": 32}, fps=8
)
EVIL = "</script><script>alert('a')</script><img src=x onerror=alert(1)> & \u2028 {{ 7*7 }} \"quoted\" 'twice'"


def moving_video(shade: int) -> np.ndarray:
    """Return a video of a square that moves from the left to the right."""
    video = np.full((FRAMES, HEIGHT, WIDTH, 3), shade, np.uint8)
    for time in range(FRAMES):
        video[time, 8:14, 2 * time : 2 * time + 6] = (250, 200, 0)
    return video


def grade(videos, *, type, animal, object, attribute=None):
    """Return what DSR-Score's `grade` returns; frame 4 is not counted."""
    counted = np.array([0, 1, 2, 3, 5, 6, 7, 8])
    rising = np.linspace(-1, 1, len(counted))
    graded = []
    for dsr_type, name, other in zip(type, animal, object, strict=True):
        boxes = [np.array([[2.0 * t, 8, 2 * t + 6, 14], [20, 10, 28, 18]]) for t in range(FRAMES)]
        tracks = Tracks([FrameBoxes(t, (name, other), boxes[t]) for t in range(FRAMES) if t != 4], FRAMES)
        middle = np.zeros((len(dsr_type) - 2, len(counted)))
        result = SimpleNamespace(
            initial_curve=-rising, visit_curves=middle, final_curve=rising, frame_indices=counted, score=0.5,
            visit_frames=tuple(range(3, 1 + len(dsr_type))),
        )  # fmt: skip
        graded.append(SimpleNamespace(result=result, tracks=tracks))
    return graded


def samples_of(policy: str, rewards, folder: Path, prompts: int, seeds: int, first_seed: int = 100_000):
    """Make `(samples, clips)` and write a video for each; `rewards(prompt, seed)` returns the scores."""
    samples, clips = [], []
    for number in range(prompts):
        for seed in range(seeds):
            words = {"type": TYPES[number % len(TYPES)], "animal": "fox", "object": "stump", "attribute": "red"}
            row = {"prompt_id": f"p{number}", "prompt": f"{EVIL} {number}", **words}
            reward = rewards(number, seed)
            reason = {"dsr_reason": "only 3 of 9 frames show the fox"} if reward is None else {}
            scores = {"dsr_score": reward}
            sample = SimpleNamespace(prompt_id=f"p{number}", row=row, rewards=scores, reward=reward, components=reason)
            name = f"{policy}-{number}-{seed}"
            file = write_video(folder / "samples" / f"{name}.mp4", moving_video(20 * number % 240), fps=8, crf=0)
            why = invalid_reason(sample) if reward is None else None
            place = file.relative_to(folder).as_posix()
            clips.append(Clip(policy, name, f"p{number}", first_seed + seed, place, row, reward, why))
            samples.append(sample)
    return samples, clips


def base_reward(prompt: int, seed: int) -> float | None:
    return None if (prompt, seed) == (1, 1) else 0.3 + 0.1 * seed


def aligned_reward(prompt: int, seed: int) -> float | None:
    return 0.05 if (prompt, seed) == (2, 0) else 0.72 + 0.04 * prompt


def run_folder(folder: Path, prompts: int = 6, seeds: int = 2) -> Path:
    """Write the folder of a finished run of two rounds."""
    by_policy = {
        name: samples_of(name, rewards, folder, prompts, seeds)
        for name, rewards in (("base", base_reward), ("aligned", aligned_reward))
    }
    base, aligned = (by_policy[name][0] for name in ("base", "aligned"))
    logs = [
        {"step": k, "loss": 0.7, "rewards/margins": 0.1 * k, "mse/chosen": 0.4, "mse/rejected": 0.4 + 0.1 * k,
         "distance_to_reference": 0.05 * k}
        for k in range(1, 4)
    ]  # fmt: skip
    rounds = [
        {"round": k, "policy_revision": f"tiny@{k}", "sampled_from": f"tiny@{k - 1}", "training": logs,
         "preferences": {"share_without_pair": 0.4 / k, "pairs": 5}}
        for k in (1, 2)
    ]  # fmt: skip
    results = {
        "base": summarize(base, {"sharpness": 0.5}),
        "aligned": summarize(aligned, {"sharpness": 0.4}),
        "difference": compare(base, aligned),
        "verdict": {"warning": True, "message": f"sharpness fell {EVIL}"},
        "rounds": rounds,
        "settings": {"model": "tiny", "rewards": {"dsr_score": {"tracker": "other"}}, "beta": 1.0, "data_seed": 7},
        "versions": {"python": "3.11"},
    }
    write_json(folder / "results.json", results)
    clips = {name: by_policy[name][1] for name in by_policy}
    write_run_notes(
        folder, clips, [[0.2, 0.6, None], [0.8, 0.9, 0.7]], "accelerate launch recipes/spatialalign.py", USAGE
    )
    return folder


def evaluation_folder(folder: Path) -> Path:
    """Write the folder of an evaluation of three policies, one of which has other seeds than the rest."""
    from datasets import Dataset

    by_policy = {
        "base": samples_of("base", base_reward, folder, 3, 2),
        "mine": samples_of("mine", aligned_reward, folder, 3, 2),
        "theirs": samples_of("theirs", aligned_reward, folder, 3, 2, first_seed=7),
    }
    results = {
        "kind": "evaluation",
        "format": 1,
        "baseline": "base",
        "policies": {
            name: {"model": "tiny", "lora": None, "folder": None, "summary": summarize(samples)}
            for name, (samples, _) in by_policy.items()
        },
        "differences": {
            name: {"rewards": compare(by_policy["base"][0], by_policy[name][0]), "quality": {}}
            for name in ("mine", "theirs")
        },
        "rewards": {"dsr_score": {"tracker": "other"}},
        "seeds": [100_000, 100_001],
        "settings": {"seeds": 2},
        "versions": {"python": "3.11"},
    }
    write_json(folder / "results.json", results)
    columns: dict[str, list] = {}
    for _, clips in by_policy.values():
        for clip in clips:
            fields = {name: value for name, value in clip.to_dict().items() if name not in ("row", "reason")}
            scores = {"reward/dsr_score": clip.reward, "invalid_reason": clip.reason}
            for name, value in {**clip.row, **fields, **scores}.items():
                columns.setdefault(name, []).append(value)
    Dataset.from_dict(columns).to_parquet(folder / "samples.parquet")
    return folder
