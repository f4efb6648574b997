"""Run the code blocks of docs/training.md, with only names and sizes changed."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest
from tiny_pairs import video_pairs
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, saved_wan

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text()
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def blocks(kind: str) -> str:
    """Join the page's blocks of one kind into one program, in their order on the page."""
    return "\n".join(re.findall(rf"```python {kind}\n(.*?)```", PAGE, flags=re.DOTALL))


def test_every_block_belongs_to_a_program_that_is_run():
    assert set(re.findall(r"```python ?(\w*)", PAGE)) == {"online", "offline"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


def run(program: str, changes: dict[str, str]) -> dict[str, object]:
    """Replace parts of a program, run it, and return its variables."""
    for old, new in changes.items():
        assert old in program, f"docs/training.md no longer contains {old!r}. Adapt this test to the page."
        program = program.replace(old, new)
    names: dict[str, object] = {}
    exec(compile(program, "docs/training.md", "exec"), names)
    return names


def test_online(model, tmp_path, monkeypatch, loopback_client):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    size = f"num_frames={NUM_FRAMES}, height={HEIGHT}, width={WIDTH}, num_inference_steps=1, guidance_scale=1.0"
    tiny = f"{size}, evaluation_seeds=1, use_cpu=True, disable_tqdm=True, score_threshold=0.5"
    names = run(
        blocks("online"),
        {
            WAN: model,
            'reward_funcs="dsr_score"': "reward_funcs=lambda completions, **_: [v.sum() % 9 / 9 for v in completions]",
            "num_rounds=1,": f"num_rounds=1, {tiny},",
            "num_generations=10": "num_generations=4",
            "gradient_accumulation_steps=6": "gradient_accumulation_steps=1",
            "max_steps=3000": "max_steps=2",
            '"train")': '"train").select(range(3))',
            '"test"),': '"test").select(range(2)),',
            "select(range(20))": "select(range(2, 4))",
        },
    )
    assert names["results"]["aligned"]["num_videos"] == 2
    pushed = loopback_client.files("model", "tester/wan")
    assert pushed["pytorch_lora_weights.safetensors"] and b"# Wan that knows left from right" in pushed["README.md"]
    assert "# Wan that knows left from right" in (tmp_path / "runs/wan/README.md").read_text()
    assert list((tmp_path / "runs/wan/rounds/01/policy").rglob("events.out.tfevents*"))


def test_offline(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = video_pairs(2)
    for column in ("chosen", "rejected"):  # as in a dataset from the Hub, where they would be decoded
        pairs = pairs.cast_column(column, datasets.Video())
    (tmp_path / "pairs" / "data").mkdir(parents=True)
    pairs.to_parquet(tmp_path / "pairs" / "data" / "train-00000-of-00001.parquet")
    tiny = "use_cpu=True, disable_tqdm=True, report_to='none', max_steps="
    names = run(
        blocks("offline"),
        {
            WAN: model,
            "me/spatial-pairs": str(tmp_path / "pairs"),
            "max_steps=3000": f"{tiny}2",
            "max_steps=500": f"{tiny}1",
        },
    )
    assert isinstance(names["pairs"].features["chosen"], datasets.Video)
    assert names["pipe"].get_active_adapters() and names["trainer"].state.global_step == 1
    assert names["trainer"].state.log_history[0].get("distance_to_reference", 1) > 0  # the reference is the base
