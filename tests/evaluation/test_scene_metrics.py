"""Measures of scene videos: means over tasks, paired differences, and no entries without values."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from spatialalign_trl.evaluation.scene_metrics import (
    PSNR_OF_EQUALS,
    compare_scenes,
    comparison_rows,
    psnr,
    scene_values,
    summarize_scenes,
    write_comparison,
)
from spatialalign_trl.files import read_json

GREY = np.full((2, 4, 4, 3), 100, np.uint8)


class Store(dict):
    def video(self, sample_id: str) -> np.ndarray:
        return self[sample_id]


def sample(task: int, seed: int, policy: str, reward: float | None, **components: object) -> SimpleNamespace:
    return SimpleNamespace(
        sample_id=f"{policy}{task}{seed}", prompt_id=f"task {task}", seed=seed, rewards={"nav": reward},
        components={f"nav_{name}": value for name, value in components.items()} | {"nav_reason": "why", "other": 1.0},
    )  # fmt: skip


def test_psnr_of_a_known_error():
    assert psnr(GREY, GREY + 5) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(GREY, GREY) == PSNR_OF_EQUALS
    assert psnr(GREY, np.zeros_like(GREY)) == psnr(np.zeros_like(GREY), GREY)  # uint8 does not wrap around
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\).*\(1, 4, 4, 3\)"):
        psnr(GREY, GREY[:1])


def test_values_are_numbers_of_the_rewards_alone():
    samples = [
        sample(0, 0, "a", 0.5, SD=0.1, flag=True, P=float("nan")),
        sample(1, 0, "a", None, SD=None, rotation_error=7),
    ]
    store = Store({item.sample_id: GREY for item in samples})
    values = scene_values(samples, store, {"task 1": GREY + 5})
    assert values == {
        "psnr": [None, pytest.approx(34.15, abs=0.01)], "nav": [0.5, None], "nav_invalid_rate": [0.0, 1.0],
        "nav_SD": [0.1, None], "nav_rotation_error": [None, 7.0],
    }  # fmt: skip
    assert "psnr" not in scene_values(samples, store, {})
    summary = summarize_scenes(values | {"never": [None, None]}, ["task 0", "task 1"])
    assert summary["nav_SD"] == {"mean": 0.1, "interval": [0.1, 0.1], "num_videos": 1} and "never" not in summary


def test_policies_are_compared_pair_by_pair_and_the_intervals_are_over_tasks(tmp_path):
    rng = np.random.default_rng(0)
    base = [sample(task, seed, "a", task / 10, P=rng.random()) for task in range(8) for seed in range(2)]
    other = [sample(task, seed, "b", task / 10 + 0.2, P=None) for task in range(8) for seed in range(2)]
    store = Store({item.sample_id: GREY + (item.sample_id[0] == "a") * np.uint8(9) for item in [*base, *other]})
    comparison = compare_scenes(base, other, store, {f"task {task}": GREY + 1 for task in range(8)})
    assert comparison["num_tasks"] == 8 and comparison["base"]["nav"]["num_videos"] == 16
    gain = comparison["difference"]["nav"]
    assert gain["difference"] == pytest.approx(0.2) and gain["interval"] == pytest.approx([0.2, 0.2])
    low, high = comparison["base"]["nav"]["interval"]
    assert comparison["base"]["nav"]["mean"] == pytest.approx(0.35) and low < 0.35 < high
    assert comparison["difference"]["psnr"]["difference"] == pytest.approx(20 * np.log10(8))
    assert "nav_P" not in comparison["difference"] and "nav_P" not in comparison["other"]
    rows = {row[0]: row[1:] for row in comparison_rows(comparison)}
    assert rows["nav"] == ["0.350", "0.550", "+0.200 [+0.200, +0.200]"] and rows["nav_P"][1:] == ["-", "-"]

    console = Console(file=StringIO(), width=100)
    write_comparison(tmp_path, comparison, ("before", "after"), console)
    assert read_json(tmp_path / "scene_metrics.json").keys() == {"before", "after", "difference", "num_tasks"}
    assert "after" in console.file.getvalue() and "8 held-out tasks" in console.file.getvalue()
    with pytest.raises(ValueError, match="same tasks and seeds"):
        compare_scenes(base, other[1:], store, {})
