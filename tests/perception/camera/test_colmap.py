"""COLMAP's estimator with a pycolmap that records what it is asked, and finds what a test says."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from spatialalign_trl.perception.camera.colmap import ColmapEstimator
from spatialalign_trl.perception.camera.estimator import PoseEstimator, get_pose_estimator

CONTEXT, VIDEO, SIZE = 4, 3, (6, 8)
INTRINSICS = np.array([[10.0, 0, 3.5], [0, 11.0, 2.5], [0, 0, 1]])
FRAMES = np.random.default_rng(0).integers(0, 256, (CONTEXT + VIDEO, *SIZE, 3), dtype=np.uint8)


def camera(number: int) -> np.ndarray:
    """Return a camera-to-world pose that differs in every entry from that of other numbers."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.1 * number, 0.2, 0.3 * number]).as_matrix()
    pose[:3, 3] = (number, 2 * number, -1)
    return pose


def image(number: int, points: int = 40, has_pose: bool = True) -> SimpleNamespace:
    """Return an image of a model as pycolmap returns it: with a world-to-camera matrix of three rows."""
    matrix = np.linalg.inv(camera(number))[:3] if has_pose else None
    return SimpleNamespace(
        name=f"{number:05d}.png",
        has_pose=has_pose,
        num_points3D=points,
        cam_from_world=lambda: SimpleNamespace(matrix=lambda: matrix),
    )


def model(images, points=((0.0, 1, 2), (3, 4, 5))) -> SimpleNamespace:
    return SimpleNamespace(
        images=dict(enumerate(images)),
        points3D={7 + k: SimpleNamespace(xyz=np.array(point)) for k, point in enumerate(points)},
        num_reg_images=lambda: sum(found.has_pose for found in images),
    )


class FakeColmap(SimpleNamespace):
    """The part of pycolmap that the estimator uses. `models` is what the mapper returns."""

    def __init__(self, models) -> None:
        self.calls: list[str] = []
        self.models = models
        super().__init__(
            Device=SimpleNamespace(cpu="the cpu"),
            CameraMode=SimpleNamespace(SINGLE="one camera", AUTO="many"),
            ImageReaderOptions=lambda **options: options,
            IncrementalPipelineOptions=lambda **options: options,
        )

    def set_random_seed(self, seed):
        self.calls.append("seed")
        self.seed = seed

    def extract_features(self, database, images, *, camera_mode, reader_options, device):
        self.calls.append("extract")
        self.folder, self.database = Path(images), Path(database)
        files = sorted(self.folder.iterdir())
        self.pictures = {file.name: np.asarray(Image.open(file)) for file in files}
        self.camera_mode, self.reader_options, self.devices = camera_mode, reader_options, [device]

    def match_exhaustive(self, database, *, device):
        self.calls.append("match")
        assert Path(database) == self.database
        self.devices.append(device)

    def incremental_mapping(self, database, images, folder, options):
        self.calls.append("map")
        assert (Path(database), Path(images)) == (self.database, self.folder)
        self.options = options
        return self.models


def estimate(monkeypatch, models, **options):
    """Return the estimate for context and video, and the fake that it was computed with."""
    colmap = FakeColmap(models)
    monkeypatch.setitem(sys.modules, "pycolmap", colmap)
    estimator = ColmapEstimator(**options)
    estimator.prepare()
    return estimator.estimate(FRAMES[:CONTEXT], FRAMES[CONTEXT:], INTRINSICS), colmap


EVERY = [image(number) for number in range(CONTEXT + VIDEO)]


def test_poses_are_camera_to_world_and_divided_into_context_and_video(monkeypatch):
    found, _ = estimate(monkeypatch, {0: model(EVERY)})
    expected = np.stack([camera(number) for number in range(CONTEXT + VIDEO)])
    np.testing.assert_allclose(found.context_poses, expected[:CONTEXT], atol=1e-12)
    np.testing.assert_allclose(found.poses, expected[CONTEXT:], atol=1e-12)
    np.testing.assert_array_equal(found.points, [[0, 1, 2], [3, 4, 5]])
    assert found.context_kind == "moving" and found.sightings is None and found.distance is None


def test_all_frames_are_written_without_loss_in_their_order(monkeypatch):
    _, colmap = estimate(monkeypatch, {0: model(EVERY)})
    assert list(colmap.pictures) == [f"{number:05d}.png" for number in range(CONTEXT + VIDEO)]
    for picture, frame in zip(colmap.pictures.values(), FRAMES, strict=True):
        np.testing.assert_array_equal(picture, frame)
    assert not colmap.folder.exists() and not colmap.database.parent.exists()  # temporary


def test_the_intrinsics_are_given_in_colmaps_pixels_and_not_refined(monkeypatch):
    _, colmap = estimate(monkeypatch, {0: model(EVERY)})
    assert colmap.reader_options["camera_model"] == "PINHOLE"
    assert [float(value) for value in colmap.reader_options["camera_params"].split(",")] == [10, 11, 4, 3]
    assert colmap.camera_mode == "one camera"
    refined = {name: value for name, value in colmap.options.items() if name.startswith("ba_refine")}
    assert refined == dict.fromkeys(
        ("ba_refine_focal_length", "ba_refine_principal_point", "ba_refine_extra_params"), False
    )


def test_it_is_repeatable_and_runs_on_the_cpu(monkeypatch):
    _, colmap = estimate(monkeypatch, {0: model(EVERY)})
    assert colmap.calls == ["seed", "extract", "match", "map"]
    assert colmap.seed == 0 and colmap.options["num_threads"] == 1 and colmap.devices == ["the cpu", "the cpu"]


def test_the_largest_model_is_used_whatever_its_place(monkeypatch):
    small = model([image(number) for number in (0, 1, 2)], points=((9, 9, 9),))
    for models in ({0: small, 1: model(EVERY)}, {0: model(EVERY), 1: small}):
        found, _ = estimate(monkeypatch, models)
        assert np.isfinite(found.poses).all() and len(found.points) == 2


def test_images_without_a_pose_are_unknown_and_have_no_support(monkeypatch):
    images = [image(number) for number in (0, 1, 3, 6)] + [image(4, has_pose=False)]
    found, _ = estimate(monkeypatch, {0: model(images)})
    assert np.isfinite(found.context_poses).all(axis=(1, 2)).tolist() == [True, True, False, True]
    assert np.isfinite(found.poses).all(axis=(1, 2)).tolist() == [False, False, True]
    assert found.support.tolist() == [0, 0, 0.4]


@pytest.mark.parametrize(("points", "support"), [(0, 0.0), (25, 0.25), (100, 1.0), (700, 1.0)])
def test_support_is_the_number_of_points_up_to_a_hundred(monkeypatch, points, support):
    images = [image(number, points if number == 5 else 40) for number in range(CONTEXT + VIDEO)]
    found, _ = estimate(monkeypatch, {0: model(images)})
    assert found.support.tolist() == [0.4, support, 0.4]


@pytest.mark.parametrize(("min_frames", "usable"), [(2, True), (3, False)])
def test_too_few_context_cameras_make_the_context_unusable(monkeypatch, min_frames, usable):
    images = [image(number) for number in (0, 3, 4, 5, 6)]  # two of the context, all of the video
    found, _ = estimate(monkeypatch, {0: model(images)}, min_frames=min_frames)
    assert (found.context_kind == "moving") == usable
    if not usable:
        assert found.context_kind == "unusable" and found.reason == "COLMAP found 2 of 4 context cameras"
        assert found.context_poses.shape == (CONTEXT, 4, 4) and found.poses.shape == (VIDEO, 4, 4)
        assert np.isnan(found.poses).all() and not found.support.any()


def test_the_default_needs_three_context_cameras(monkeypatch):
    assert ColmapEstimator().describe() == {"name": "colmap", "min_frames": 3}
    two, three = ([image(number) for number in numbers] for numbers in ((0, 1), (0, 1, 2)))
    assert estimate(monkeypatch, {0: model(two)})[0].context_kind == "unusable"
    assert estimate(monkeypatch, {0: model(three)})[0].context_kind == "moving"
    with pytest.raises(ValueError, match="min_frames is 1; it must be at least 2"):
        ColmapEstimator(min_frames=1)


def test_no_model_and_a_model_without_points_are_no_errors(monkeypatch):
    found, _ = estimate(monkeypatch, {})
    assert found.context_kind == "unusable" and found.reason == "COLMAP found 0 of 4 context cameras"
    found, _ = estimate(monkeypatch, {0: model(EVERY, points=())})
    assert found.points.shape == (0, 3)


def test_it_is_found_by_its_name():
    estimator = get_pose_estimator("colmap", min_frames=2)
    assert isinstance(estimator, ColmapEstimator) and isinstance(estimator, PoseEstimator)
