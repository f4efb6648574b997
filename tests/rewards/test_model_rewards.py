"""Rewards with a pretrained model compute their formulas and refuse other checkpoints; the models here are random."""

import builtins

import numpy as np
import pytest
import torch
from tiny_judges import saved_clip, saved_dinov2, saved_llava
from tiny_perception import random_video

from spatialalign_rewards import CLIPIQA, Aesthetic, CLIPSimilarity, IdentityConsistency, VLMJudge
from spatialalign_rewards._sampled_frames import evenly_spaced
from spatialalign_rewards.identity import animal_crops, consistency
from spatialalign_rewards.vlm_judge import read_grade
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks
from spatialalign_trl.rewards.runner import RewardRunner, load_reward

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return saved_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return saved_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return saved_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def videos():
    return [random_video(6, seed=seed) for seed in range(2)]


def test_frames_are_spread_from_the_first_to_the_last():
    video = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1).repeat(3, -1)
    assert evenly_spaced(video, 3)[:, 0, 0, 0].tolist() == [0, 4, 8]
    assert evenly_spaced(video, 20).shape == evenly_spaced(video, None).shape == video.shape
    assert evenly_spaced(video, 1)[:, 0, 0, 0].tolist() == [0]


# --------------------------------------------------------------------------------------------------------------- CLIP


def test_clip_similarity_is_the_models_own_cosine(clip, videos):
    reward = load_reward("clip_similarity", checkpoint=clip, num_frames=None, **CPU)
    scores = reward(prompts=["a fox", "a cat"], completions=videos)
    model, processor = reward.pretrained.load()
    size = {"height": 32, "width": 32}
    pixels = processor.image_processor(list(videos[1]), size=size, do_center_crop=False, return_tensors="pt")
    with torch.no_grad():
        output = model(**processor.tokenizer(["a cat"], return_tensors="pt"), **pixels)
    expected = output.logits_per_image / model.logit_scale.exp()
    assert scores[1] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert scores[0] != scores[1] and all(-1 <= score <= 1 for score in scores)


def test_clip_similarity_sees_the_sides_of_the_frame(clip):
    black = np.zeros((3, 32, 96, 3), np.uint8)
    white_side = black.copy()
    white_side[:, :, :20] = 255  # a centre crop would lose it
    reward = CLIPSimilarity(clip, **CPU)
    assert reward(["a fox"], [black]) != reward(["a fox"], [white_side])


def test_clip_similarity_does_not_depend_on_batches(clip, videos):
    together, alone = (CLIPSimilarity(clip, **options, **CPU) for options in ({}, {"batch_size": 1}))
    assert together(["a fox"], videos[:1])[0] == pytest.approx(alone(["a fox"], videos[:1])[0])


def test_a_prompt_longer_than_clip_reads_is_cut(clip, videos):
    (score,) = CLIPSimilarity(clip, **CPU)(["fox " * 200], videos[:1])
    assert -1 <= score <= 1


def test_clip_iqa_is_the_softmax_of_good_against_bad(clip, videos):
    pytest.importorskip("torchmetrics")
    reward = load_reward("clip_iqa", checkpoint=clip, prompts=[["a good photo", "a bad photo"]], **CPU)
    (score,) = reward(prompts=["p"], completions=videos[:1])
    similar = CLIPSimilarity(clip, num_frames=None, **CPU)
    frames = [np.stack([frame]) for frame in videos[0]]
    good, bad = (np.array(similar([text] * 6, frames)) for text in ("a good photo", "a bad photo"))
    assert score == pytest.approx((1 / (1 + np.exp(100 * (bad - good)))).mean(), abs=1e-4)


def test_clip_iqa_is_the_mean_over_its_prompts_and_logs_each(clip, videos):
    pytest.importorskip("torchmetrics")
    logged = {}
    scores = CLIPIQA(clip, batch_size=4, **CPU)(["p"] * 2, videos, log_extra=logged.__setitem__)
    assert set(logged) == {"clip_iqa_natural", "clip_iqa_quality"}
    assert scores == pytest.approx(np.mean([logged["clip_iqa_natural"], logged["clip_iqa_quality"]], axis=0).tolist())


def test_aesthetic_is_clip_iqa_with_the_prompt_beautiful(clip, videos):
    pytest.importorskip("torchmetrics")
    aesthetic = load_reward("aesthetic", checkpoint=clip, **CPU)
    assert aesthetic.__name__ == "aesthetic" and aesthetic.describe()["prompts"] == ["beautiful"]
    beautiful = CLIPIQA(clip, prompts=["beautiful"], **CPU)
    assert aesthetic(["p"] * 2, videos) == beautiful(["p"] * 2, videos)


def test_prompts_of_clip_iqa_must_be_a_list(clip):
    pytest.importorskip("torchmetrics")
    with pytest.raises(ValueError, match="prompts is 'quality'"):
        Aesthetic(clip, prompts="quality")


def test_without_torchmetrics_the_extra_is_named(clip, monkeypatch):
    original_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("torchmetrics"):
            raise ImportError("no torchmetrics")
        return original_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r"'aesthetic' needs torchmetrics: pip install 'spatialalign-trl\[clip-iqa\]'"
    ):
        Aesthetic(clip).check_prompts()


# ----------------------------------------------------------------------------------------------------------- identity


class Boxes:
    """A tracker that returns given boxes, with the frames in the wrong order."""

    name = "boxes"

    def __init__(self, boxes, reason=None):
        self.boxes, self.reason = boxes, reason

    def track(self, videos, *, animal, object, attribute=None):
        frames = [
            FrameBoxes(k, (noun, "stump"), np.array([box, (0, 0, 9, 9)], float))
            for noun in animal[:1]
            for k, box in enumerate(self.boxes)
        ]
        return [Tracks(frames[::-1], len(videos[0]), self.reason) for _ in videos]


WORDS = {"animal": ["fox"], "object": ["stump"]}


def test_consistency_is_the_formula():
    first, second, third = np.eye(3)[0], np.eye(3)[1], (np.eye(3)[0] + np.eye(3)[1]) / 2**0.5
    assert consistency(np.stack([first] * 4)) == pytest.approx(1.0)
    # t=1: (0 + 0) / 2; t=2: (cos 45 + cos 45) / 2
    assert consistency(np.stack([first, 5 * second, third])) == pytest.approx(2**-0.5 / 2)


def test_identity_crops_in_time_order_and_falls_when_the_animal_changes(dinov2):
    boxes = [(10 + k, 10, 40 + k, 40) for k in range(6)]
    ground = np.full((6, 48, 80, 3), 60, np.uint8)
    fox = np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8)
    same, changed = ground.copy(), ground.copy()
    for k in range(6):
        same[k, 10:40, 10 + k : 40 + k] = changed[k, 10:40, 10 + k : 40 + k] = fox
    changed[3:, 10:40, 10:60] = (250, 20, 20)
    reward = IdentityConsistency(tracker=Boxes(boxes), checkpoint=dinov2, batch_size=4, **CPU)
    crops = animal_crops(same, reward.tracker.track([same], **WORDS)[0], "fox")
    assert len(crops) == 6 and all((crop == fox).all() for crop in crops)
    (same_score,), (changed_score,) = reward(["p"], [same], **WORDS), reward(["p"], [changed], **WORDS)
    assert same_score == pytest.approx(1.0, abs=1e-5) and changed_score < same_score - 1e-3


@pytest.mark.parametrize(
    ("tracker", "reason"),
    [
        (Boxes([(0, 0, 0, 0)] * 6), "the fox was found on 0 of 6 frames; at least 2 are needed"),
        (Boxes([(0, 0, 20, 20)] * 6, "too redundant"), "too redundant"),
    ],
)
def test_identity_is_invalid_if_the_tracker_refused_or_found_too_little(dinov2, videos, tracker, reason):
    logged = {}
    reward = IdentityConsistency(tracker=tracker, checkpoint=dinov2, **CPU)
    assert reward(["p"], videos[:1], **WORDS, log_extra=logged.__setitem__) == [None]
    assert logged["identity_reason"] == [reason]


def test_boxes_are_cut_at_the_frames_edges():
    video = np.zeros((2, 20, 30, 3), np.uint8)
    boxes = [
        FrameBoxes(0, ("fox",), np.array([[-5.0, 2.5, 12.2, 25.0]])),
        FrameBoxes(1, ("fox",), np.array([[40.0, 2, 50, 9]])),
    ]
    assert [crop.shape for crop in animal_crops(video, Tracks(boxes, 2), "fox")] == [(18, 13, 3)]


# ---------------------------------------------------------------------------------------------------------- VLM judge


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("7", 0.7), (" 10.\n", 1.0), ("0", 0.0), ("8/10", 0.8), ("8 / 10.", 0.8),
        ("", None), ("11", None), ("-3", None), ("7.5", None), ("seven", None), ("Grade: 7", None), ("7 or 8", None),
        ("7/5", None), ("7%", None), ("100", None),
    ],
)  # fmt: skip
def test_only_a_whole_number_from_0_to_10_is_a_grade(answer, grade):
    assert read_grade(answer) == grade


def test_the_judge_receives_the_frames_and_the_prompt(llava, videos, monkeypatch):
    judge = load_reward("vlm_judge", checkpoint=llava, num_frames=3, max_new_tokens=4, **CPU)
    model, processor = judge.pretrained.load()
    calls, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: calls.append(inputs) or generate(**inputs))
    judge(["a fox {jumps}"], videos[:1])
    assert calls[0]["pixel_values"].shape == (3, 3, 32, 32) and not calls[0]["do_sample"]
    words = processor.tokenizer.decode(calls[0]["input_ids"][0], skip_special_tokens=True)
    assert "jumps" in words.replace(" ", "")


def test_an_answer_of_the_judge_that_is_no_grade_is_logged(llava, videos):
    """A random model answers with letters."""
    judge, logged = VLMJudge(llava, num_frames=3, max_new_tokens=4, **CPU), {}
    assert judge(["a fox {jumps}"], videos[:1], log_extra=logged.__setitem__) == [None]
    assert "the judge answered '" in logged["vlm_judge_reason"][0]


def test_the_judge_gives_the_same_answer_again(llava, videos):
    judge = VLMJudge(llava, num_frames=3, max_new_tokens=4, **CPU)
    assert judge.ask("a fox", videos[0]) == judge.ask("a fox", videos[0])


def test_the_judges_grade_becomes_the_reward(llava, videos, monkeypatch):
    judge = VLMJudge(llava, **CPU)
    answers = iter(["7", "The video is great", "10/10"])
    monkeypatch.setattr(judge, "ask", lambda prompt, video: next(answers))
    output = RewardRunner(judge)(["p"] * 3, [videos[0]] * 3)
    assert output.rewards == [0.7, None, 1.0] and output.errors == {}
    assert output.extra["vlm_judge_reason"] == [None, "the judge answered 'The video is great', no grade", None]


def test_a_question_without_the_prompt_is_refused(llava):
    with pytest.raises(ValueError, match="must contain {prompt}"):
        VLMJudge(llava, question="How good is it?")


# --------------------------------------------------------------------------------------------------------- all rewards

MODELS = {
    "clip_similarity": "clip",
    "clip_iqa": "clip",
    "aesthetic": "clip",
    "identity": "dinov2",
    "vlm_judge": "llava",
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_loaded_on_first_use_and_released(name, request, videos):
    if name in ("clip_iqa", "aesthetic"):
        pytest.importorskip("torchmetrics")
    options = {"tracker": Boxes([(5, 5, 30, 30)] * 6)} if name == "identity" else {}
    reward = load_reward(name, checkpoint=request.getfixturevalue(MODELS[name]), **options, **CPU)
    runner = RewardRunner(reward)
    runner.check_prompts([{"prompt": "a fox", "animal": "fox", "object": "stump"}])
    assert runner.names == [name] and not reward.pretrained.is_loaded
    first = runner(["a fox"], videos[:1], WORDS)
    assert first.errors == {} and reward.pretrained.is_loaded
    runner.release()
    assert not reward.pretrained.is_loaded
    assert runner(["a fox"], videos[:1], WORDS).rewards == first.rewards
    assert runner.describe()[name]["checkpoint"] == str(reward.pretrained.checkpoint)


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_or_foreign_checkpoint_is_refused_before_anything_is_sampled(name, tmp_path, clip, dinov2):
    if name in ("clip_iqa", "aesthetic"):
        pytest.importorskip("torchmetrics")
    options = {"tracker": Boxes([])} if name == "identity" else {}
    row = [{"prompt": "a fox", "animal": "fox", "object": "stump"}]
    with pytest.raises(FileNotFoundError, match="there is no checkpoint folder"):
        RewardRunner(load_reward(name, checkpoint=str(tmp_path / "absent"), **options)).check_prompts(row)
    foreign, kind = (clip, "clip") if name in ("identity", "vlm_judge") else (dinov2, "dinov2")
    with pytest.raises(ValueError, match=f"of the kind '{kind}'"):
        RewardRunner(load_reward(name, checkpoint=foreign, **options)).check_prompts(row)
