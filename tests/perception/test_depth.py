"""Test the nearness of boxes on depth maps, and Depth Anything with a tiny random model of the same class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatialalign_trl.perception.depth import (
    DepthAnythingEstimator,
    DepthEstimator,
    add_nearness,
    box_nearness,
    get_depth_estimator,
)
from spatialalign_trl.perception.tracks import FrameBoxes, Tracks

NOTHING = (np.nan,) * 4


def steps(num_frames=1, height=20, width=40):
    """Return depth maps that rise from 0 at the left edge to 1 at the right edge."""
    return np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (num_frames, height, width)).copy()


def pair(*boxes):
    return np.array([boxes], float)


# ------------------------------------------------------------------------------------------------ boxes on depth maps


def test_nearness_is_the_median_as_a_share_of_the_clips_range():
    maps = steps()
    far, near = np.percentile(maps, (5, 95))
    nearness = box_nearness(maps, pair((10, 5, 13, 15), (30, 0, 31, 20)))
    np.testing.assert_allclose(
        nearness, [[(maps[0, 0, 11] - far) / (near - far), (maps[0, 0, 30] - far) / (near - far)]]
    )
    assert box_nearness(maps, pair((0, 0, 1, 1), (39, 0, 40, 1))).tolist() == [[0.0, 1.0]]  # outside the range


maps_and_boxes = st.integers(1, 4).flatmap(
    lambda frames: st.tuples(
        hnp.arrays(np.float32, (frames, 12, 16), elements=st.floats(-8, 8, width=16)),
        hnp.arrays(np.float64, (frames, 2, 4), elements=st.floats(-5, 20) | st.just(np.nan)),
    )
)


@given(maps_and_boxes)
def test_nearness_is_in_range_or_unknown(case):
    maps, boxes = case
    nearness = box_nearness(maps, boxes)
    assert nearness.shape == boxes.shape[:2]
    known = ~np.isnan(nearness)
    assert ((nearness[known] >= 0) & (nearness[known] <= 1)).all()
    empty = np.isnan(boxes).any(axis=2) | ~(boxes[:, :, 2:] > boxes[:, :, :2]).all(axis=2)
    assert not known[empty].any()


@given(maps_and_boxes, st.integers(-3, 3), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_scale_and_offset_of_the_maps_do_not_matter(case, shift, scale):
    maps, boxes = case
    np.testing.assert_allclose(box_nearness(maps * scale + shift, boxes), box_nearness(maps, boxes), atol=1e-3)


@given(maps_and_boxes)
def test_exchanging_the_boxes_exchanges_their_nearness(case):
    maps, boxes = case
    np.testing.assert_array_equal(box_nearness(maps, boxes[:, ::-1]), box_nearness(maps, boxes)[:, ::-1])


def test_where_boxes_overlap_the_free_parts_are_measured():
    maps = np.zeros((1, 20, 40), np.float32)
    maps[:, :, :4] = -1  # the far end of the range
    maps[:, 5:15, 20:30] = 1  # the fox, which covers most of the sofa's box
    sofa, fox = (14, 5, 30, 15), (20, 5, 30, 15)
    animal, object = box_nearness(maps, pair(fox, sofa))[0]
    assert animal == 1.0
    assert object == 0.5  # the median of the whole box would be the depth of the fox


def test_a_box_that_is_mostly_covered_is_measured_as_a_whole():
    maps = np.zeros((1, 20, 40), np.float32)
    maps[:, :, :20] = 1
    maps[:, 5:15, 30:31] = 1  # a sliver that is not covered
    nearness = box_nearness(maps, pair((30, 5, 40, 15), (31, 5, 40, 15)))
    assert nearness.tolist() == [[0.0, 0.0]]


def test_in_a_clip_of_constant_depth_nothing_is_in_front():
    nearness = box_nearness(np.full((2, 8, 8), 3.0), np.array([[(0, 0, 4, 4), (4, 4, 8, 8)], [(0, 0, 4, 4), NOTHING]]))
    np.testing.assert_array_equal(nearness, [[0.5, 0.5], [0.5, np.nan]])


def test_the_range_is_that_of_the_clip_and_not_of_each_frame():
    maps = np.concatenate([steps() * 0.5, steps()])
    boxes = np.tile(pair((18, 0, 20, 20), (30, 0, 32, 20)), (2, 1, 1))
    first, second = box_nearness(maps, boxes)
    assert (first < second).all()


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((2, 4, 4)), r"shape \(1, height, width\), got \(2, 4, 4\)"),
        (np.zeros((1, 4)), r"got \(1, 4\)"),
        (np.full((1, 4, 4), np.inf), "finite; the one of frame 0 is not"),
    ],
)
def test_invalid_maps_are_refused(maps, message):
    with pytest.raises(ValueError, match=message):
        box_nearness(maps, pair(NOTHING, NOTHING))


class Brightness:
    def nearness(self, video):
        return video.mean(axis=-1, dtype=np.float32)


def test_tracks_get_the_nearness_of_the_frames_that_show_both():
    video = np.repeat((steps(4) * 255).astype(np.uint8)[..., None], 3, axis=-1)
    fox, stump = (30, 0, 34, 9), (10, 0, 14, 9)
    tracks = Tracks(
        [
            FrameBoxes(3, ("stump", "fox"), np.array([stump, fox], float)),
            FrameBoxes(1, ("fox", "stump"), np.array([fox, stump], float)),
            FrameBoxes(0, ("fox",), np.array([fox], float)),
        ],
        num_frames=4,
        details={"valid": 2},
    )
    added = add_nearness(tracks, video, Brightness(), "fox", "stump")
    assert tracks.nearness is None
    assert (added.frames, added.num_frames, added.details) == (tracks.frames, 4, {"valid": 2})
    assert np.isnan(added.nearness[[0, 2]]).all()
    assert (added.nearness[[1, 3], 0] > added.nearness[[1, 3], 1]).all()
    np.testing.assert_array_equal(added.nearness[1], added.nearness[3])


# -------------------------------------------------------------------------------------------------- the estimator


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_depth_anything(tmp_path_factory.mktemp("depth_anything"))


def write_tiny_depth_anything(folder, **options):
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=4,
        head_hidden_size=4,
        **options,
    )
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for (
            parameter
        ) in model.head.parameters():  # the random output would be negative, and the final ReLU would zero it
            parameter.abs_()
    model.save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14, do_resize=True
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).integers(0, 255, (5, 24, 40, 3), dtype=np.uint8)


def test_depth_anything_returns_one_map_per_frame(checkpoint, video):
    estimator = DepthAnythingEstimator(checkpoint, device="cpu")
    assert isinstance(estimator, DepthEstimator)
    assert not estimator.pretrained.is_loaded
    maps = estimator.nearness(video)
    assert (maps.shape, maps.dtype) == (video.shape[:3], np.float32)
    assert maps.std() > 0
    for size in (1, 2, 5):
        batched = DepthAnythingEstimator(checkpoint, batch_size=size, device="cpu").nearness(video)
        np.testing.assert_allclose(batched, maps, atol=1e-5 * np.abs(maps).max())


def test_depth_anything_is_loaded_once_and_released(checkpoint, video):
    estimator = DepthAnythingEstimator(checkpoint, device="cpu")
    estimator.prepare()
    assert not estimator.pretrained.is_loaded
    maps = estimator.nearness(video[:1])
    model, _ = estimator.pretrained.load()
    estimator.nearness(video[:1])
    assert estimator.pretrained.load()[0] is model
    estimator.release()
    assert not estimator.pretrained.is_loaded
    np.testing.assert_array_equal(estimator.nearness(video[:1]), maps)


def test_the_depth_of_a_metric_checkpoint_is_inverted(tmp_path, checkpoint, video):
    metric = write_tiny_depth_anything(tmp_path, depth_estimation_type="metric", max_depth=20)
    near = DepthAnythingEstimator(metric, device="cpu").nearness(video)
    import torch

    model, processor = DepthAnythingEstimator(metric, device="cpu").pretrained.load()
    with torch.inference_mode():
        depth = model(**processor(images=list(video), return_tensors="pt")).predicted_depth
    assert (near > 0).all()
    size = near.shape[1:]
    expected = torch.nn.functional.interpolate(1 / depth[:, None], size, mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(near, expected, rtol=1e-5)


def test_an_unavailable_checkpoint_is_named_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="absent"):
        DepthAnythingEstimator(tmp_path / "absent").prepare()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="depth-anything/Depth-Anything-V2-Small-hf.*hf download"):
        DepthAnythingEstimator().prepare()
    (tmp_path / "config.json").write_text('{"model_type": "zoedepth"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="kind 'zoedepth', but here depth_anything is needed"):
        DepthAnythingEstimator(tmp_path).prepare()
    with pytest.raises(ValueError, match="batch_size is 0"):
        DepthAnythingEstimator(batch_size=0)


def test_estimators_are_given_by_name_or_as_objects():
    assert get_depth_estimator("depth_anything", batch_size=3).batch_size == 3
    estimator = Brightness()
    assert get_depth_estimator(estimator) is estimator
    with pytest.raises(ValueError, match="no depth estimator named 'depth_anythin'. Did you mean 'depth_anything'"):
        get_depth_estimator("depth_anythin")
    with pytest.raises(TypeError, match="no option 'batchsize'. Did you mean 'batch_size'"):
        get_depth_estimator("depth_anything", batchsize=3)
    with pytest.raises(TypeError, match=r"depth estimator must be an instance.*pass Brightness\(\)"):
        get_depth_estimator(Brightness)
    with pytest.raises(TypeError, match=r"depth estimator needs a method nearness\(video\).*depth_anything"):
        get_depth_estimator(object())
    with pytest.raises(TypeError, match="options batch_size are for a depth estimator given by name"):
        get_depth_estimator(estimator, batch_size=3)
