"""The rollout samples every prompt and seed once, whatever the batches and processes, and continues after a stop."""

import io
import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import tiny_pipelines
import torch
from datasets import Dataset

from spatialalign_trl.models import SamplingSettings, WanVideoModel, load_video_model
from spatialalign_trl.rollout import SampleStore, noise_seed, roll_out

SETTINGS = SamplingSettings(5, 16, 16, num_inference_steps=2, guidance_scale=3.0, negative_prompt="blurry", fps=8)
ROWS = [
    {"prompt_id": f"p{i}", "prompt": f"In a meadow, a fox is on the left of a stump {i // 2}", "type": "LR"}
    for i in range(3)
]
SEEDS = [0, 1]


class CountingModel(WanVideoModel):
    """A model that records the prompts it embeds and the seeds it samples."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.embedded, self.sampled = [], []

    def encode_prompts(self, prompts):
        self.embedded.extend(prompts)
        return super().encode_prompts(prompts)

    def sample(self, conditioning, negative_conditioning, seeds, settings):
        self.sampled.append(list(seeds))
        return super().sample(conditioning, negative_conditioning, seeds, settings)


@pytest.fixture
def model():
    return CountingModel(tiny_pipelines.wan_pipeline())


@pytest.fixture
def store(tmp_path):
    return SampleStore(tmp_path / "samples")


def contents(store):
    return {path.name: path.read_bytes() for path in store.directory.iterdir()}


def test_every_prompt_and_seed_is_sampled_in_order(model, store):
    samples = roll_out(model, ROWS, SEEDS, SETTINGS, store, batch_size=4)
    assert [(sample.prompt_id, sample.seed) for sample in samples] == [(f"p{i}", s) for i in range(3) for s in SEEDS]
    assert [len(batch) for batch in model.sampled] == [4, 2]
    # Prompts p0 and p1 are the same text, and no text is embedded twice.
    assert sorted(model.embedded) == sorted({row["prompt"] for row in ROWS} | {"blurry"})
    for sample in samples:
        assert sample.row == ROWS[int(sample.prompt_id[1:])]
        assert sample.settings == SETTINGS.to_dict()
        assert store.video(sample.sample_id).shape == (5, 16, 16, 3)
        assert store.latents(sample.sample_id).shape == model.latent_shape(5, 16, 16)
        assert not sample.scored


@pytest.mark.parametrize(("crf", "fps"), [(0, 8), (18, 12.5), (30, 24)])
def test_videos_are_stored_with_the_quality_and_the_frame_rate_of_the_settings(model, store, crf, fps):
    settings = SETTINGS.updated({"fps": fps})
    options = {} if crf == 18 else {"crf": crf}
    (sample,) = roll_out(model, ROWS[:1], SEEDS[:1], settings, store, **options)
    content = store.video_bytes(sample.sample_id)
    assert (f"crf={crf}.0" if crf else "rc=cqp").encode() in content  # as x264 notes in what it writes
    with av.open(io.BytesIO(content)) as container:
        assert float(container.streams.video[0].average_rate) == fps


def test_a_rerun_does_nothing(model, store):
    first = roll_out(model, ROWS, SEEDS, SETTINGS, store)
    store.write_scores(first[0].sample_id, {"dsr_score": 0.5}, 0.5)
    before = contents(store)
    model.sampled.clear()
    model.embedded.clear()
    rerun = roll_out(model, ROWS, SEEDS, SETTINGS, SampleStore(store.directory))
    assert model.sampled == model.embedded == []
    assert contents(store) == before
    assert [sample.sample_id for sample in rerun] == [sample.sample_id for sample in first]
    assert [sample.scored for sample in rerun] == [True] + [False] * 5


def test_only_what_is_missing_is_sampled(model, store):
    roll_out(model, ROWS[:2], SEEDS[:1], SETTINGS, store)
    model.sampled.clear()
    roll_out(model, ROWS, SEEDS, SETTINGS, store)
    sampled = [seed for batch in model.sampled for seed in batch]
    assert sorted(sampled) == sorted(noise_seed(s, p) for p, s in [("p0", 1), ("p1", 1), ("p2", 0), ("p2", 1)])


def test_other_settings_or_weights_are_other_samples(model, store):
    other = SamplingSettings(**{**SETTINGS.to_dict(), "guidance_scale": 1.0})
    sets = [
        roll_out(model, ROWS, SEEDS, SETTINGS, store),
        roll_out(model, ROWS, SEEDS, SETTINGS, store, policy_revision="round-1"),
        roll_out(model, ROWS, SEEDS, other, store),
    ]
    assert len({sample.sample_id for samples in sets for sample in samples}) == len(store.samples()) == 18


def test_a_sample_does_not_depend_on_the_batch(model, tmp_path):
    small, large = SampleStore(tmp_path / "small"), SampleStore(tmp_path / "large")
    roll_out(model, ROWS, SEEDS, SETTINGS, small, batch_size=1)
    roll_out(model, list(reversed(ROWS)), SEEDS, SETTINGS, large, batch_size=5)
    for sample in small.samples():
        latents = small.latents(sample.sample_id)
        torch.testing.assert_close(latents, large.latents(sample.sample_id), rtol=1e-4, atol=1e-4)


def test_prompts_do_not_share_their_noise(model, store):
    a, b = roll_out(model, ROWS[:2], [0], SETTINGS, store)
    assert a.row["prompt"] == b.row["prompt"]
    assert not torch.allclose(store.latents(a.sample_id), store.latents(b.sample_id))


def test_the_noise_seed_is_a_fixed_function():
    """Another one would change every sample of every store."""
    assert noise_seed(0, "p0") == 7200369393554211335
    assert len({noise_seed(seed, prompt) for seed in range(20) for prompt in "abc"}) == 60
    assert all(0 <= noise_seed(seed, "x") < 2**63 for seed in range(100))


def test_an_interruption_loses_at_most_the_batch_in_flight(model, store, monkeypatch):
    decode, calls = model.decode_latents, []

    def interrupted(latents, batch_size=None):
        calls.append(len(latents))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(latents, batch_size)

    monkeypatch.setattr(model, "decode_latents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        roll_out(model, ROWS, SEEDS, SETTINGS, store, batch_size=2)
    assert len(store.samples()) == 2
    monkeypatch.undo()
    model.sampled.clear()
    assert len(roll_out(model, ROWS, SEEDS, SETTINGS, store, batch_size=2)) == 6
    assert [len(batch) for batch in model.sampled] == [2, 2]


@pytest.mark.parametrize("num_done", [3, 5])
def test_an_interrupted_rollout_ends_with_the_same_bytes(num_done, tmp_path, monkeypatch):
    """On the embedded model, which rounds otherwise in a batch of one than in a batch of several."""
    model = load_video_model("tiny", device="cpu")
    settings = model.default_settings().updated({"num_inference_steps": 1, "num_frames": 5})
    whole, resumed = SampleStore(tmp_path / "whole"), SampleStore(tmp_path / "resumed")
    roll_out(model, ROWS, SEEDS, settings, whole, batch_size=4)
    add = resumed.add

    def interrupted(*args, **kwargs):
        if len(resumed.samples()) == num_done:
            raise KeyboardInterrupt
        return add(*args, **kwargs)

    monkeypatch.setattr(resumed, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        roll_out(model, ROWS, SEEDS, settings, resumed, batch_size=4)
    monkeypatch.undo()
    kept = contents(resumed)
    assert len(resumed.samples()) == num_done
    written = {path: path.stat().st_mtime_ns for path in resumed.directory.iterdir()}
    roll_out(model, ROWS, SEEDS, settings, resumed, batch_size=4)
    assert contents(resumed) == contents(whole)
    assert kept.items() <= contents(resumed).items()
    assert all(path.stat().st_mtime_ns == time for path, time in written.items()), "a finished video was written again"


def test_damaged_samples_are_sampled_again_with_the_same_result(model, store):
    samples = roll_out(model, ROWS, SEEDS, SETTINGS, store, batch_size=1)
    before = contents(store)
    for sample, suffix in zip(samples, [".mp4", ".safetensors", ".json"], strict=False):
        path = store.path(sample.sample_id, suffix)
        path.write_bytes(path.read_bytes()[:-20])
    model.sampled.clear()
    with pytest.warns(UserWarning, match="made again") as warned:
        roll_out(model, ROWS, SEEDS, SETTINGS, SampleStore(store.directory), batch_size=1)
    assert len(model.sampled) == len(warned) == 3  # one warning each
    assert contents(store) == before


def test_no_guidance_needs_no_negative_prompt(model, store):
    settings = SamplingSettings(**{**SETTINGS.to_dict(), "guidance_scale": 1.0})
    roll_out(model, ROWS[:1], [0], settings, store)
    assert "blurry" not in model.embedded


def test_released_encoders_are_loaded_for_the_rollout_only(tmp_path, store):
    model = load_video_model(tiny_pipelines.saved_wan(tmp_path / "wan"), device="cpu")
    model.release_encoders()
    roll_out(model, ROWS[:1], SEEDS, SETTINGS, store)
    assert not model.has_encoders
    assert len(store.samples()) == 2


@pytest.mark.parametrize(
    ("rows", "seeds", "batch_size", "message"),
    [
        ([{"prompt": "a fox"}], [0], 1, r"rows\[0\] has no 'prompt_id'"),
        ([{"prompt_id": "a", "prompt": ""}], [0], 1, r"rows\[0\] has no 'prompt'"),
        ([ROWS[0], ROWS[1], ROWS[0]], [0], 1, r"rows\[2\] and rows\[0\] share the prompt_id 'p0'"),
        (ROWS, [0, 1, 0], 1, r"seeds repeat: \[0, 1, 0\]"),
        (ROWS, [0], 0, "batch_size is 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_sampled(model, store, rows, seeds, batch_size, message):
    with pytest.raises(ValueError, match=message):
        roll_out(model, rows, seeds, SETTINGS, store, batch_size=batch_size)
    assert model.sampled == []


def test_illegal_sizes_fail_first(model, store):
    with pytest.raises(ValueError, match="num_frames=6:"):
        roll_out(model, ROWS, SEEDS, SamplingSettings(6, 16, 16, 2, 1.0), store)


def test_prompts_may_be_a_dataset(model, store):
    samples = roll_out(model, Dataset.from_list(ROWS), [0], SETTINGS, store)
    assert [sample.row for sample in samples] == ROWS


@pytest.mark.slow
def test_two_processes_share_the_work_and_see_all_of_it(model, tmp_path):
    """`accelerate launch --cpu --num_processes 2` silently runs one process, so this asks torchrun, and asserts it."""
    folder = tiny_pipelines.saved_wan(tmp_path / "wan")
    script = Path(__file__).parents[1] / "support" / "rollout_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, str(script), folder, str(tmp_path / "two")], check=True, timeout=300)
    reports = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [report["world"] for report in reports] == [2, 2]
    # Rows are dealt in turn: process 0 has rows 0 and 2, process 1 has row 1.
    assert [report["sampled"] for report in reports] == [4, 2]
    single = SampleStore(tmp_path / "single")
    expected = roll_out(load_video_model(folder, device="cpu"), ROWS, SEEDS, SETTINGS, single)
    together = SampleStore(tmp_path / "two" / "samples")
    ids = [sample.sample_id for sample in expected]
    assert reports[0]["ids"] == reports[1]["ids"] == ids
    assert len(together.samples()) == 6
    for sample_id in ids:
        torch.testing.assert_close(together.latents(sample_id), single.latents(sample_id), rtol=1e-4, atol=1e-4)
