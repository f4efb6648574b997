"""Test Grounding DINO as a detector: batches, thresholds, and the two ways to label boxes."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_perception import bert_tokenizer, random_video, saved_grounding_dino

from spatialalign_trl.perception.detections import Detector
from spatialalign_trl.perception.grounded_sam import GroundedSAMTracker
from spatialalign_trl.perception.grounding_dino import (
    GroundingDINODetector,
    assign_spans,
    caption,
    is_plain,
    label_names,
    label_spans,
)
from spatialalign_trl.perception.validity import assess

NAMES = ("cat", "bench")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved_grounding_dino(tmp_path_factory.mktemp("grounding_dino"))


def make_detector(checkpoint, **options) -> GroundingDINODetector:
    return GroundingDINODetector(checkpoint, device="cpu", **options)


def logits_of(probabilities: dict[int, float], tokens: int = 16) -> torch.Tensor:
    """Return the logits of one box from the probabilities of some tokens; other tokens have almost 0."""
    logits = torch.full((tokens,), -9.0)
    for token, probability in probabilities.items():
        logits[token] = torch.logit(torch.tensor(probability))
    return logits


def read(checkpoint, names, boxes: list[dict[int, float]], label_mode: str, **options):
    """Let the detector read given logits, without running the model."""
    detector = make_detector(checkpoint, label_mode=label_mode, **options)
    _, processor = detector.pretrained.load()
    input_ids = torch.tensor([processor.tokenizer(caption(names))["input_ids"]])
    outputs = SimpleNamespace(
        logits=torch.stack([logits_of(box) for box in boxes])[None],
        pred_boxes=torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(len(boxes), 1)[None],
    )
    (detections,) = detector._read(outputs, input_ids, (48, 80), names, processor)
    return detections


def test_the_text_is_that_of_the_paper():
    assert caption(["cat", "fire hydrant"]) == "cat. fire hydrant."


@pytest.mark.parametrize(
    ("names", "spans"),
    [
        (("cat", "bench"), [[1], [3]]),
        (("hamster", "fire hydrant"), [[1, 2], [4, 5, 6]]),
        (("cat", "chaise longue"), [[1], [3, 4]]),  # an unknown word is a token too
    ],
)
def test_every_name_has_its_span_of_tokens(names, spans):
    tokenizer = bert_tokenizer()
    assert label_spans(tokenizer(caption(names))["input_ids"], names, tokenizer) == spans


@pytest.mark.parametrize("names", [("cat.dog", "bench"), ("", "bench"), ("cat", "bench", "fox")])
def test_names_that_are_not_in_the_text_one_by_one_are_refused(names):
    tokenizer = bert_tokenizer()
    text = caption(names) if len(names) < 3 else caption(names[:2])
    with pytest.raises(ValueError, match="one by one"):
        label_spans(tokenizer(text)["input_ids"], names, tokenizer)


def test_a_split_name_stays_whole_in_span_mode_and_is_broken_up_in_exact_mode(checkpoint):
    """The tokens are ham ##ster . fire hydra ##nt . (from 1). Real boxes rarely fit all of a name's tokens."""
    names = ("hamster", "fire hydrant")
    boxes = [{1: 0.8, 2: 0.2}, {4: 0.1, 5: 0.7, 6: 0.25}]
    assert read(checkpoint, names, boxes, "exact").labels == ("ham", "hydra")
    found = read(checkpoint, names, boxes, "span")
    assert found.labels == names
    assert found.scores == pytest.approx([0.8, 0.7], abs=1e-6)
    whole = [{1: 0.8, 2: 0.5}, {4: 0.4, 5: 0.7, 6: 0.35}]
    assert read(checkpoint, names, whole, "exact").labels == read(checkpoint, names, whole, "span").labels == names


def test_a_box_that_fits_both_names_gets_the_better_one_in_span_mode(checkpoint):
    box = [{1: 0.45, 3: 0.6}]
    assert read(checkpoint, NAMES, box, "exact").labels == ("cat bench",)
    assert read(checkpoint, NAMES, box, "span").labels == ("bench",)


def test_a_box_that_fits_the_full_stop_only_is_no_detection_in_span_mode(checkpoint):
    box = [{2: 0.9, 1: 0.2}]
    assert read(checkpoint, NAMES, box, "exact").labels == (".",)
    assert read(checkpoint, NAMES, box, "span").labels == ()


@pytest.mark.parametrize("label_mode", ["exact", "span"])
def test_only_boxes_above_the_threshold_count(checkpoint, label_mode):
    boxes = [{1: 0.41}, {1: 0.39}, {3: 0.99}]
    found = read(checkpoint, NAMES, boxes, label_mode)
    assert found.labels == ("cat", "bench")
    assert found.scores == pytest.approx([0.41, 0.99], abs=1e-6)
    assert read(checkpoint, NAMES, boxes, label_mode, box_threshold=0.5).labels == ("bench",)
    assert found.boxes.dtype == found.scores.dtype == np.float64
    assert found.boxes == pytest.approx(np.array([[32, 14.4, 48, 33.6]] * 2), abs=1e-4)


@pytest.mark.parametrize("label_mode", ["exact", "span"])
def test_names_come_back_as_they_were_given(checkpoint, label_mode):
    assert read(checkpoint, ("Cat", "BENCH"), [{1: 0.9}, {3: 0.9}], label_mode).labels == ("Cat", "BENCH")


@pytest.mark.parametrize(
    "name",
    [
        "t-shirt",
        "T-Shirt",
        "T - shirt",
        "piñata",
        "PIÑATA",
        "fire  hydrant",
        "guinea\u00a0pig",
        "guinea\tpig",
        "hams\u00adter",
    ]
    + [unicodedata.normalize("NFD", "piñata"), "guinea\u3000pig"],
)
@pytest.mark.parametrize("label_mode", ["exact", "span"])
def test_a_noun_is_found_by_its_tokens_however_it_is_written(checkpoint, name, label_mode):
    """The label of a perfect box is what the tokenizer makes of the noun, such as "t - shirt"."""
    names = (name, "bench")
    tokens = len(bert_tokenizer()(name, add_special_tokens=False)["input_ids"])
    boxes = [dict.fromkeys(range(1, tokens + 1), 0.9), {tokens + 2: 0.9}]
    found = read(checkpoint, names, boxes, label_mode)
    assert found.labels == names
    assert assess([found] * 20, *names).valid == 20


@given(
    st.lists(
        st.sampled_from(["t-shirt", "Piñata", "fire hydrant", "guinea pig", "cat", "Fox"]), min_size=2, max_size=2
    )
)
def test_two_writings_of_one_noun_have_one_label(nouns):
    tokenizer = bert_tokenizer()
    label_of = {name: label for noun in nouns for label, name in label_names([noun], tokenizer).items()}
    for noun, label in label_of.items():
        for other in (
            noun.upper(),
            unicodedata.normalize("NFD", noun),
            noun.replace(" ", "  "),
            noun.replace("-", " - "),
        ):
            assert label_names([other], tokenizer) == {label: other}
        assert not is_plain(noun) or label == noun.lower()
    assert len(set(label_of.values())) == len(label_of)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("piñata", "pinata"), "'piñata' and 'pinata' are the same to the detector, 'pinata'"),
        (("t-shirt", "t - shirt"), "'t-shirt' and 't - shirt' are the same"),
        (("\u200b", "cat"), "makes no words of"),
        (("[SEP]", "cat"), "makes no words of"),
    ],
)
def test_nouns_that_the_detector_cannot_tell_apart_are_refused_before_the_model_is_loaded(checkpoint, names, message):
    detector = make_detector(checkpoint)
    with pytest.raises(ValueError, match=message):
        detector.check_names(names)
    tracker = GroundedSAMTracker(detector, SimpleNamespace(fingerprint=str, release=lambda: None))
    with pytest.raises(ValueError, match=f"prompt 1: .*{message}"):
        tracker.check_prompts(animal=["fox", names[0]], object=["t-shirt", names[1]])
    assert not detector.pretrained.is_loaded


def test_spans_are_scored_by_their_best_token():
    probabilities = np.array([[0.1, 0.9, 0.2, 0.3], [0.1, 0.2, 0.3, 0.8], [0.1, 0.2, 0.1, 0.3]])
    kept, scores, names = assign_spans(probabilities, [[0, 1], [3]], 0.4)
    assert kept.tolist() == [0, 1] and scores.tolist() == [0.9, 0.8] and names.tolist() == [0, 1]


@pytest.mark.parametrize("label_mode", ["exact", "span"])
def test_batches_give_the_same_boxes_as_single_frames(checkpoint, label_mode):
    video = random_video(5)
    # A threshold that all boxes of a random model exceed.
    options = {"box_threshold": 0.0, "text_threshold": 0.2, "label_mode": label_mode}
    single = make_detector(checkpoint, batch_size=1, **options).detect(video, NAMES)
    batched = make_detector(checkpoint, batch_size=3, **options).detect(video, NAMES)
    assert len(single) == len(batched) == 5
    for expected, found in zip(single, batched, strict=True):
        assert len(expected.labels) == 20
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert not np.allclose(single[0].boxes, single[4].boxes), "frames must differ for this test to mean anything"


def test_a_frame_without_detections_is_empty(checkpoint):
    for label_mode in ("exact", "span"):
        for found in make_detector(checkpoint, box_threshold=1.0, label_mode=label_mode).detect(
            random_video(2), NAMES
        ):
            assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.labels == ()


def test_one_text_is_given_for_every_image(checkpoint, monkeypatch):
    detector, texts = make_detector(checkpoint, batch_size=2), []
    _, processor = detector.pretrained.load()

    def spy(images, text, **kwargs):
        texts.append(text)
        return processor(images=images, text=text, **kwargs)

    monkeypatch.setattr(detector.pretrained, "_loaded", (detector.pretrained.load()[0], spy))
    spy.post_process_grounded_object_detection = processor.post_process_grounded_object_detection
    detector.detect(random_video(3), NAMES)
    assert texts == [["cat. bench."] * 2, ["cat. bench."]]


def test_the_fingerprint_covers_everything_that_boxes_depend_on_and_loads_nothing(checkpoint, tmp_path):
    other = saved_grounding_dino(tmp_path, seed=1)
    detectors = [
        make_detector(checkpoint),
        make_detector(other),
        make_detector(checkpoint, box_threshold=0.35),
        make_detector(checkpoint, text_threshold=0.25),
        make_detector(checkpoint, label_mode="span"),
    ]
    assert len({detector.fingerprint() for detector in detectors}) == len(detectors)
    assert not any(detector.pretrained.is_loaded for detector in detectors)
    # The batch size and unused thresholds are not part of it.
    assert make_detector(checkpoint, batch_size=4).fingerprint() == detectors[0].fingerprint()
    assert (
        make_detector(checkpoint, label_mode="span", text_threshold=0.25).fingerprint() == detectors[-1].fingerprint()
    )


def test_the_weights_are_loaded_on_first_use_and_released(checkpoint):
    detector = make_detector(checkpoint)
    assert isinstance(detector, Detector)
    assert not detector.pretrained.is_loaded
    detector.detect(random_video(1), NAMES)
    assert detector.pretrained.is_loaded
    detector.release()
    assert not detector.pretrained.is_loaded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_threshold": 1.5}, "box_threshold is 1.5"),
        ({"text_threshold": -0.1}, "text_threshold is -0.1"),
        ({"label_mode": "spam"}, "'spam'. Did you mean 'span'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroundingDINODetector(**options)
