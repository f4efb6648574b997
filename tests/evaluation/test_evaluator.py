"""Evaluate policies on a random pipeline: equal seeds, nothing computed twice, and the content of the files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
from datasets import Dataset
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, saved_wan

import spatialalign_trl.evaluation as evaluation_face
from spatialalign_trl.arguments.evaluation import run_and_write
from spatialalign_trl.evaluation import Evaluation, PolicySampling, QualityGuards
from spatialalign_trl.evaluation.comparison import Evaluated, compare_policies
from spatialalign_trl.evaluation.policies import Policy, plan_policies
from spatialalign_trl.models import load_video_model
from spatialalign_trl.prompts import DSR_TYPES, build_prompt
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rollout.store import SampleStore
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config

WORDS = {"scene": "In a meadow", "animal": "fox", "object": "stump", "verb": "jumps"}
ROWS = [build_prompt(**WORDS, type=DSR_TYPES[k], prompt_id=f"p{k}").to_row() for k in range(3)]
SAMPLING = {
    "num_frames": NUM_FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 2, "guidance_scale": 1.0,
}  # fmt: skip


class Brightness:
    """A reward that counts the videos it scores. Dark videos are INVALID."""

    def __init__(self) -> None:
        self.__name__ = "brightness"
        self.scored = 0

    def __call__(self, prompts, completions, log_extra=None, **kwargs):
        self.scored += len(completions)
        values = [float(video.mean()) / 255 for video in completions]
        log_extra("brightness_reason", [None if value > 0.1 else "too dark" for value in values])
        return [value if value > 0.1 else None for value in values]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def loras(model, tmp_path_factory) -> list[str]:
    """Two folders with LoRAs of the model that change its videos."""
    import torch

    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        adapted = load_video_model(model, device="cpu")
        attach_lora(adapted, default_lora_config(adapted, r=2, alpha=2))
        for name, parameter in adapted.transformer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        folders.append(str(adapted.save_lora(tmp_path_factory.mktemp("lora")).parent))
    return folders


def evaluation(
    policies: list[Policy], output_dir: Path, reward=None, rows=ROWS, baseline=None, guards=None, **overrides
) -> Evaluation:
    sampling = {
        "load_model": lambda name: load_video_model(name, device="cpu"),
        "seeds": 2,
        "settings": SAMPLING,
        "video_crf": 0,
        **overrides,
    }
    return Evaluation(
        policies,
        rows,
        RewardRunner(reward or Brightness()),
        output_dir,
        sampling=PolicySampling(**sampling),
        guards=None if guards is None else QualityGuards(guards),
        baseline=baseline,
    )


@pytest.fixture(scope="module")
def finished(model, loras, tmp_path_factory) -> SimpleNamespace:
    """A run of the model and one LoRA on it."""
    folder = tmp_path_factory.mktemp("evaluation")
    policies = plan_policies([model], [f"ours={loras[0]}"], [])
    results = run_and_write(evaluation(policies, folder), {"settings": {"a": 1}})
    return SimpleNamespace(folder=folder, policies=policies, results=results)


def test_a_lora_that_does_not_load_is_refused_before_anything_is_sampled(model, loras, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{loras[0]}/pytorch_lora_weights.safetensors")
    renamed = {key.replace("transformer.", "transformer.other_"): value for key, value in weights.items()}
    save_file(renamed, tmp_path / "foreign.safetensors")
    policies = plan_policies([model], [loras[0], f"foreign={tmp_path / 'foreign.safetensors'}"], [])
    with pytest.raises(ValueError, match="foreign.safetensors' fits the transformer"):
        evaluation(policies, tmp_path / "out").run()
    assert not list((tmp_path / "out" / "samples").glob("*.mp4"))


def samples_of(folder: Path) -> list[dict]:
    return Dataset.from_parquet(str(folder / "samples.parquet"), cache_dir=str(folder / "cache")).to_list()


def test_it_leaves_results_tables_and_samples(finished):
    written = json.loads((finished.folder / "results.json").read_text())
    assert written == json.loads(json.dumps(finished.results))
    assert written["baseline"] == "base" and list(written["policies"]) == ["base", "ours"]
    for policy in written["policies"].values():
        summary = policy["summary"]
        assert {f"S@{tau}" for tau in (0.5, 0.6, 0.7, 0.8, 0.9)} | {"invalid_rate", "by_type"} <= set(summary)
        assert {"frame_change", "sharpness", "flicker"} <= set(summary["quality"])
        assert summary["num_videos"] == 6
    difference = written["differences"]["ours"]
    assert difference["paired_by"] == "seed" and difference["num_pairs"] == 6
    low, high = difference["quality"]["sharpness"]["interval"]
    assert low <= difference["quality"]["sharpness"]["difference"] <= high
    assert difference["verdict"]["message"] and written["settings"] == {"a": 1}
    for text in ((finished.folder / name).read_text() for name in ("table.md", "table.tex")):
        assert "base" in text and "ours" in text and re.search(r"reward\\?_mean", text)


def test_every_difference_is_the_policy_minus_the_baseline(finished):
    base, ours = (finished.results["policies"][name]["summary"] for name in ("base", "ours"))
    found = finished.results["differences"]["ours"]
    assert {"S@0.5", "reward_mean"} <= set(found["rewards"]) and {"frame_change", "sharpness"} <= set(found["quality"])
    for name, change in {**found["rewards"], **found["quality"]}.items():
        before, after = (side[name] if name in side else side["quality"][name] for side in (base, ours))
        assert change["difference"] == pytest.approx(after - before, abs=1e-9), name
        assert change["interval"][0] - 1e-9 <= change["difference"] <= change["interval"][1] + 1e-9, name
    assert found["rewards"]["reward_mean"]["difference"] != 0 != found["quality"]["sharpness"]["difference"]


def test_the_videos_are_stored_with_the_quality_and_the_frame_rate_of_the_settings(finished):
    for video in (finished.folder / "samples").glob("*.mp4"):
        with av.open(str(video)) as container:  # lossless is not the default
            stream = container.streams.video[0]
            assert stream.codec_context.pix_fmt == "gbrp" and stream.average_rate == 16


def test_the_samples_table_has_each_videos_prompt_score_quality_and_file(finished):
    rows = samples_of(finished.folder)
    assert len(rows) == 12
    store = SampleStore(finished.folder / "samples")
    for row in rows:
        assert (finished.folder / row["video"]).is_file()
        stored = store.load(row["sample_id"])
        assert (stored.reward, stored.prompt_id, stored.seed) == (row["reward"], row["prompt_id"], row["seed"])
        assert row["prompt"] == stored.row["prompt"] and row["type"] == stored.row["type"]
        assert row["reward/brightness"] == row["reward"] and row["quality/sharpness"] > 0
        assert (row["reward"] is None) == (row["invalid_reason"] == "too dark")
        assert "brightness_reason" in json.loads(row["components"])


def test_policies_get_the_same_seeds_and_differ_in_their_videos(finished):
    by_policy = {"base": {}, "ours": {}}
    for row in samples_of(finished.folder):
        by_policy[row["policy"]][row["prompt_id"], row["seed"]] = (finished.folder / row["video"]).read_bytes()
    assert by_policy["base"].keys() == by_policy["ours"].keys() and len(by_policy["base"]) == 6
    assert not set(by_policy["base"].values()) & set(by_policy["ours"].values())


def test_a_rerun_samples_nothing_and_another_lora_only_what_is_missing(finished, model, loras, monkeypatch, tmp_path):
    sampled, measured_videos = [], []
    from spatialalign_trl.evaluation import looks
    from spatialalign_trl.models.wan import WanVideoModel

    sample, measure = WanVideoModel.sample, looks.QualityMeasures._measure_video
    monkeypatch.setattr(
        WanVideoModel, "sample", lambda self, c, n, seeds, s: sampled.extend(seeds) or sample(self, c, n, seeds, s)
    )
    monkeypatch.setattr(looks.QualityMeasures, "_measure_video", lambda *a: measured_videos.append(a) or measure(*a))
    reward = Brightness()
    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    again = run_and_write(evaluation(finished.policies, folder, reward), {"settings": {"a": 1}})
    assert json.dumps(again) == json.dumps(finished.results)
    assert (sampled, reward.scored, measured_videos) == ([], 0, [])

    more = plan_policies([model], [f"ours={loras[0]}", f"theirs={loras[1]}"], [])
    results, _ = evaluation(more, folder, reward).run()
    assert len(sampled) == reward.scored == len(measured_videos) == 6
    assert list(results["differences"]) == ["ours", "theirs"]
    assert results["policies"]["ours"] == finished.results["policies"]["ours"]


def test_a_folder_in_the_authors_naming_scores_as_the_samples_that_it_holds(finished, tmp_path):
    rows, videos = samples_of(finished.folder), tmp_path / "theirs"
    videos.mkdir()
    for row in rows:
        if row["policy"] == "base":
            name = f"{row['prompt_id']}_F81_seed{row['seed']:02d}.mp4"
            (videos / name).write_bytes((finished.folder / row["video"]).read_bytes())
    (videos / "unknown_F81_seed00.mp4").write_bytes((finished.folder / rows[0]["video"]).read_bytes())
    policies = plan_policies([], [], [str(videos)])
    reward = Brightness()
    results = run_and_write(evaluation(policies, tmp_path / "out", reward), {})
    assert results["policies"]["theirs"]["summary"] == finished.results["policies"]["base"]["summary"]
    assert reward.scored == 6
    assert len(results["problems"]) == 1 and "'unknown'" in results["problems"][0]
    evaluation(policies, tmp_path / "out", reward).run()
    assert reward.scored == 6  # scores are kept
    assert {row["video"] for row in samples_of(tmp_path / "out")} <= {str(path) for path in videos.iterdir()}


def test_a_runs_samples_are_grouped_by_their_policy_and_need_no_prompts(finished, tmp_path):
    policies = plan_policies([], [], [f"run={finished.folder / 'samples'}"])
    results, _ = evaluation(policies, tmp_path, rows=[]).run()
    first, second = results["policies"]
    assert first == results["baseline"] == "run base" and second.startswith("run ")
    for name, original in ((first, "base"), (second, "ours")):
        assert results["policies"][name]["summary"] == finished.results["policies"][original]["summary"]
    assert not (tmp_path / "results.json").exists(), "Evaluation.run only returns the results"
    theirs = results["differences"][second]
    assert theirs["rewards"] == finished.results["differences"]["ours"]["rewards"]
    assert theirs["paired_by"] == "seed"


def test_a_model_and_a_folder_are_compared_on_the_prompts_they_share(finished, model, tmp_path):
    videos = tmp_path / "others"
    videos.mkdir()
    sampled = next(row for row in samples_of(finished.folder) if row["prompt_id"] == "p1")
    (videos / "p1.mp4").write_bytes((finished.folder / sampled["video"]).read_bytes())
    policies = plan_policies([model], [], [f"others={videos}"])
    results, _ = evaluation(policies, tmp_path / "out", samples_dir=finished.folder / "samples").run()
    difference = results["differences"]["others"]
    assert (difference["num_prompts"], difference["num_pairs"], difference["paired_by"]) == (1, 1, "prompt")
    assert any("2 prompts have no video" in problem for problem in results["problems"])


def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "empty").mkdir()

    def nothing(name):
        pytest.fail("a model was loaded")

    model = [Policy("base", model="tiny")]
    with pytest.raises(ValueError, match="There are no prompts|needs prompts"):
        evaluation(model, tmp_path, rows=[], load_model=nothing)
    with pytest.raises(ValueError, match=r"unknown quality guard 'flick'. Did you mean 'flicker'"):
        evaluation(model, tmp_path, guards=["flick"], load_model=nothing)
    with pytest.raises(ValueError, match=r"baseline='bse' is none of the policies. Did you mean 'base'"):
        evaluation(model, tmp_path, baseline="bse", load_model=nothing)
    with pytest.raises(ValueError, match="seeds=0"):
        evaluation(model, tmp_path, seeds=0, load_model=nothing)
    with pytest.raises(ValueError, match="no video in .*empty fits a prompt: it holds no video"):
        evaluation([Policy("x", folder=str(tmp_path / "empty"))], tmp_path)


def test_a_damaged_video_is_a_problem_and_the_others_are_evaluated(finished, tmp_path):
    videos = tmp_path / "samples"
    videos.mkdir()
    for file in (finished.folder / "samples").iterdir():
        (videos / file.name).write_bytes(file.read_bytes())
    broken = sorted(videos.glob("*.mp4"))[0]
    broken.write_bytes(broken.read_bytes()[:-10])
    results, _ = evaluation(plan_policies([], [], [f"run={videos}"]), tmp_path / "out").run()
    assert sum(policy["summary"]["num_videos"] for policy in results["policies"].values()) == 11
    assert any(broken.name in problem and "damaged" in problem for problem in results["problems"])


def test_no_module_hides_a_function_of_the_face():
    """A module of the same name would replace `evaluation.compare` as soon as anything imports the module."""
    names = {name for name in evaluation_face.__all__ if isinstance(getattr(evaluation_face, name), ModuleType)}
    assert not names
    assert not {path.stem for path in Path(evaluation_face.__file__).parent.glob("*.py")} & set(
        evaluation_face.__all__
    )


# Pairing


def measured(
    prompt_ids: list[str], seeds: list[int], rewards: list[float], sharpness: list[float | None]
) -> Evaluated:
    samples = [
        SampleStore.new_sample({"prompt_id": p, "prompt": p}, s, {}, "x")
        for p, s in zip(prompt_ids, seeds, strict=True)
    ]
    for sample, reward in zip(samples, rewards, strict=True):
        sample.reward = reward
    return Evaluated(Policy("x"), None, samples, {}, {"sharpness": sharpness})


def test_videos_are_paired_by_seed_in_whatever_order_they_come():
    base = measured(["a", "a", "b"], [0, 1, 0], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    other = measured(["b", "a", "a"], [0, 1, 0], [0.8, 0.7, 0.6], [0.8, None, 0.6])
    found = compare_policies(base, other)
    assert found["paired_by"] == "seed" and found["num_pairs"] == 3
    assert found["rewards"]["reward"]["interval"] == pytest.approx([0.5, 0.5])
    assert found["quality"]["sharpness"]["num_pairs"] == 2
    assert found["quality"]["sharpness"]["difference"] == pytest.approx(0.5)


def test_other_models_videos_are_paired_by_prompt():
    base = measured(["a", "a", "b"], [0, 1, 0], [0.1, 0.2, 0.3], [0.0] * 3)
    other = measured(["a", "b", "b", "c"], [7, 7, 8, 7], [0.5, 0.6, 0.7, 0.8], [0.0] * 4)
    found = compare_policies(base, other)
    assert (found["paired_by"], found["num_pairs"], found["num_prompts"]) == ("prompt", 2, 2)
    assert found["rewards"]["reward"]["difference"] == pytest.approx((0.4 + 0.3) / 2)
    assert compare_policies(base, measured(["z"], [0], [0.5], [0.0])) == {
        "num_prompts": 0, "num_pairs": 0, "paired_by": "prompt",
    }  # fmt: skip


# A guard that compares with the baseline


def test_a_guard_that_compares_sees_the_baselines_video_of_the_same_seed(finished, model, monkeypatch, tmp_path):
    from spatialalign_trl.evaluation import guards

    def drift(videos, rows, base_videos):
        pairs = zip(videos, base_videos, strict=True)
        return {"drift": [float(np.abs(v.astype(float) - b).mean()) for v, b in pairs]}

    monkeypatch.setitem(guards.GUARDS, "mine", "spatialalign_trl.evaluation.guards:mine_drift")
    monkeypatch.setattr(guards, "mine_drift", drift, raising=False)
    results, _ = evaluation(
        [*finished.policies, Policy("twin", folder=str(finished.folder / "samples"))],
        tmp_path,
        samples_dir=finished.folder / "samples",
        guards=["mine"],
    ).run()
    quality = {name: policy["summary"]["quality"] for name, policy in results["policies"].items()}
    assert "drift" not in quality["base"] and quality["ours"]["drift"] > 0
    assert quality["twin base"]["drift"] == 0.0
