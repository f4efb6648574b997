"""
Object grounding as a reward: does the video end with the named object of the scene in view, at its real place?

    R = V * sqrt(C) * S * M * D                                                                   all in [0, 1]

    V  mean over the last 5 frames of the best box of   min(confidence / 0.5, 1) * centred * size * B
       centred  exp(-(dx^2 + dy^2) / (2 * 0.35^2)), with dx and dy measured from the frame's middle in half frames
       size     sqrt(min(area / 3 %, 1))
       B        the same object: among the context's points that should be in the box, seen from the estimated camera,
                the share that is found there, relative to the same share of the whole frame (at least 0.2): rises
                from 0 at a ratio of 0.2 to 1 at 0.5
    C  mean over frames of min(share of inliers of the pose / 0.5, 1)
    S  exp(-(ratio - 6) / 6) if one step changes the picture, or moves the camera, `ratio` > 6 times as much as the
       other steps do, else 1
    M  min(share of the steps in which something moves / 0.6, 1); a still video has 0
    D  1 if the frames have depth, 0 for a zoom into a still picture: falls from 1 where a 2-D similarity explains 80 %
       of the keypoints to 0 where it explains 95 %

Without B, a video with the target pasted into the picture would be the best of all: visibility alone gives it 0.99.

The paper's evaluation measures are logged in addition to the reward if `distance_estimator` is given or the pose
estimator measures distance itself: SD (see `spatialalign_trl/perception/camera/distance.py` and `displacement.py`),
and IF, the mean of V without B if SD < 0.2, else 0.
Source of task and gate: Video4Spatial, arXiv 2512.03040; the formula is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialalign_rewards._sampled_frames import check_counts
from spatialalign_rewards._scene_scoring import (
    BadInput,
    SceneGrade,
    SceneReward,
    choose_frames,
    continuity_factor,
    for_row,
    in_box,
    read_scene,
    support_factor,
)
from spatialalign_trl.perception.camera.diagnosis import cut_factor, flat_share, moving_share, steps
from spatialalign_trl.perception.camera.distance import GOOD_DISTANCE
from spatialalign_trl.perception.camera.estimator import CameraEstimate, PoseEstimator, Sightings
from spatialalign_trl.perception.camera.geometry import known
from spatialalign_trl.perception.detections import Detections, Detector
from spatialalign_trl.perception.tracks import make_named
from spatialalign_trl.video import frames_of

DETECTORS = {
    "grounding_dino": "spatialalign_trl.perception.grounding_dino:GroundingDINODetector",
    "room_objects": "spatialalign_trl.tiny_world.rooms.cameras:RoomObjects",
}

GOOD_CONFIDENCE = 0.5
CENTRED = 0.35
GOOD_AREA = 0.03
SAME_OBJECT = (0.2, 0.5)
MIN_USUAL = 0.2
MIN_BOX_POINTS = 4
UNPROVEN = 0.3
"""B of a box in which too few of the context's points should be: there is no evidence for or against it."""
MOVING_SHARE = 0.6
FLAT = (0.8, 0.95)


class ObjectGrounding(SceneReward):
    """
    Reward in [0, 1]: does the video end with the named object of the scene in view? `None` if the row cannot be
    scored.

    Columns: `context` (the recording), `object` (its name, such as "green plant"), `intrinsics` (of the context's
    frames), and `context_poses` if they are known.

    Args:
        detector (`str` or [`~spatialalign_trl.perception.detections.Detector`], *optional*, defaults to
            `"grounding_dino"`):
            What finds the object on single frames.
        detector_options (`dict`, *optional*):
            Arguments for a detector that is given by name; `label_mode` defaults to `"span"`.
        pose_estimator, pose_options, distance_estimator, distance_options (*optional*):
            See [`~spatialalign_rewards.scene_navigation.SceneNavigation`].
        frames (`int`, *optional*, defaults to `8`):
            Evenly spaced frames of the whole video that poses are estimated for, in addition to the last ones.
        last_frames (`int`, *optional*, defaults to `5`):
            Frames at the end that must show the object.
        context_frames (`int`, *optional*, defaults to `24`):
            Number of frames of the context to use, evenly spaced. A path that ends close to an object needs more of
            them than one that stays near the recording's path.

    Raises:
        `ValueError`: for a count below its minimum, or an unknown detector or estimator.
        `TypeError`: for an option that a detector or an estimator does not have.
    """

    required_columns = ("context", "object", "intrinsics")
    installed_name = "object_grounding"

    def __init__(
        self,
        detector: str | Detector = "grounding_dino",
        detector_options: dict[str, Any] | None = None,
        pose_estimator: str | PoseEstimator | Callable[..., Any] = "sift",
        pose_options: dict[str, Any] | None = None,
        frames: int = 8,
        last_frames: int = 5,
        context_frames: int = 24,
        distance_estimator: str | PoseEstimator | None = None,
        distance_options: dict[str, Any] | None = None,
    ) -> None:
        check_counts(frames=frames, last_frames=last_frames)
        super().__init__(pose_estimator, pose_options, distance_estimator, distance_options, context_frames)
        self.detector = get_detector(detector, detector_options or {})
        self.frames, self.last_frames = frames, last_frames
        self._add_required_columns()
        self._parts_given["detector"] = detector
        self._options["detector_options"] = dict(detector_options or {})

    @property
    def _parts(self) -> list[Any]:
        return [*super()._parts, self.detector]

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine this reward's values."""
        detector = self._parts_given["detector"]
        name = detector if isinstance(detector, str) else type(detector).__name__
        return {**super().describe(), "detector": name, "frames": self.frames, "last_frames": self.last_frames}

    def check_prompts(self, object: Sequence[str], **columns: Any) -> None:
        """Check the rows as [`SceneReward.check_prompts`] does, and the names of the objects."""
        for row, name in enumerate(object):
            _check_name(name, f"prompt {row}: object")
        super().check_prompts(**columns)

    def grade(self, video: Any, row: Mapping[str, Any]) -> SceneGrade:
        """Score one video and return the reward with its factors. See [`SceneReward.grade`]."""
        # 1. Choose the frames to look at
        video, name = frames_of(video, "the video"), _check_name(row["object"], "object")
        changes = steps(video)
        last = np.arange(max(len(video) - self.last_frames, 0), len(video))
        chosen = np.union1d(choose_frames(changes, self.frames), last)

        # 2. Estimate their poses
        try:
            scene = read_scene(row["context"], row.get("context_poses"), row["intrinsics"], video, self.context_frames)
            estimate = self.estimate(scene, video[chosen], row)
        except BadInput as error:
            return SceneGrade(None, str(error))

        # 3. Find the object on the last frames
        at_end = np.searchsorted(chosen, last)
        detector = for_row(self.detector, row)
        if hasattr(detector, "detect_at"):  # a detector that knows the scene needs the camera's pose
            found = detector.detect_at(video[last], [name], estimate.poses[at_end], scene.intrinsics)
        else:
            found = detector.detect(video[last], [name])
        visible, proven = visibility(found, name, estimate, at_end, video.shape[1:3])

        # 4. Multiply the factors
        factors = {
            "V": proven,
            "visible": visible,
            "C": support_factor(estimate),
            "S": min(cut_factor(changes), continuity_factor(estimate, chosen)),
            "M": min(moving_share(changes) / MOVING_SHARE, 1.0),
            "D": depth_factor(flat_share(video, scene.intrinsics)),
            "registered": float(known(estimate.poses).mean()),
        }
        reward = factors["V"] * np.sqrt(factors["C"]) * factors["S"] * factors["M"] * factors["D"]

        # 5. Explain a reward of 0, and add the measures that are only logged
        reason = None
        if not factors["registered"]:
            reason = "no frame was found in the scene of the context"
        elif not visible:
            reason = f"no {name} was found at the end"
        elif not factors["M"]:
            reason = "nothing moves in the video"
        distance = self.distance(scene, video, estimate, row)
        if self.distance_estimator is not None or distance is not None:
            factors["SD"] = distance
            factors["IF"] = visible if distance is not None and distance < GOOD_DISTANCE else 0.0
        return SceneGrade(float(reward), reason, factors)


def visibility(
    found: Sequence[Detections], name: str, estimate: CameraEstimate, frames: np.ndarray, size: tuple[int, int]
) -> tuple[float, float]:
    """
    Measure how well the object is in view, without and with the evidence that it is the scene's object.

    Args:
        found (sequence of [`~spatialalign_trl.perception.detections.Detections`]):
            The detections on the last frames.
        name (`str`):
            The object.
        estimate ([`~spatialalign_trl.perception.camera.estimator.CameraEstimate`]):
            The poses of all chosen frames.
        frames (`np.ndarray`):
            The positions of the last frames in `estimate`.
        size (tuple of 2 `int`):
            Height and width of the frames.

    Returns:
        `(float, float)`: V without B, and V. Each is the mean over the frames of the best box, in [0, 1].
    """
    visible, proven = [], []
    for detections, frame in zip(found, frames, strict=True):
        sightings = None if estimate.sightings is None else estimate.sightings[frame]
        has_pose = known(estimate.poses[frame : frame + 1])[0]
        frame_visible, frame_proven = [0.0], [0.0]
        for box, score, label in zip(*detections, strict=True):
            if label == name:
                frame_visible.append(min(score / GOOD_CONFIDENCE, 1.0) * _in_view(box, size))
                frame_proven.append(frame_visible[-1] * same_object(sightings, box) if has_pose else 0.0)
        visible.append(max(frame_visible))
        proven.append(max(frame_proven))
    return float(np.mean(visible)), float(np.mean(proven))


def same_object(sightings: Sightings | None, box: np.ndarray) -> float:
    """
    Return B of one box.

    Args:
        sightings ([`~spatialalign_trl.perception.camera.estimator.Sightings`] or `None`):
            Which of the context's points the frame shows; `None` from an estimator without points, for which B is 1.
        box (`np.ndarray` of shape `(4,)`):
            `x1, y1, x2, y2` in pixels.
    """
    if sightings is None:
        return 1.0
    count, share = in_box(sightings, box)
    if count < MIN_BOX_POINTS:
        return UNPROVEN
    low, high = SAME_OBJECT
    # How much of the context a correct frame shows again depends on the context: less if it was filmed from afar.
    usual = max(sightings.share(), MIN_USUAL)
    return float(np.clip((share / usual - low) / (high - low), 0, 1))


def depth_factor(flat: float | None) -> float:
    """Return D for a share from [`~spatialalign_trl.perception.camera.diagnosis.flat_share`]; 1 for `None`."""
    if flat is None:
        return 1.0
    low, high = FLAT
    return float(np.clip((high - flat) / (high - low), 0, 1))


def get_detector(detector: str | Detector, options: dict[str, Any]) -> Detector:
    """
    Return a detector, looking it up if it is given by name.

    Args:
        detector (`str` or [`~spatialalign_trl.perception.detections.Detector`]):
            A key of `DETECTORS`, or an object.
        options (`dict`):
            Arguments for a detector that is given by name.

    Raises:
        `ValueError`: if no detector has that name.
        `TypeError`: for an option that it does not have, or an object without a `detect` method.
    """
    if isinstance(detector, str):
        if detector == "grounding_dino":  # "span" keeps a name of two words together
            options = {"label_mode": "span", **options}
        return make_named(detector, DETECTORS, kind="detector", options=options)
    methods = ("detect", "detect_at", "for_row")
    if isinstance(detector, type) or not any(callable(getattr(detector, method, None)) for method in methods):
        raise TypeError(
            f"A detector needs a method detect(video, names); {detector!r} has none, or is a class. Pass such an "
            f"object or one of the names {', '.join(DETECTORS)}."
        )
    if options:
        raise TypeError(f"The options {', '.join(options)} are only for a detector given by name. Leave them out.")
    return detector


def _in_view(box: np.ndarray, size: tuple[int, int]) -> float:
    """Return `centred * size` of a box, clipped to the frame."""
    height, width = size
    x1, y1, x2, y2 = np.clip(box, 0, [width, height, width, height])
    area = max(x2 - x1, 0) * max(y2 - y1, 0) / (width * height)
    dx, dy = (x1 + x2) / width - 1, (y1 + y2) / height - 1
    return float(np.exp(-(dx**2 + dy**2) / (2 * CENTRED**2)) * np.sqrt(min(area / GOOD_AREA, 1.0)))


def _check_name(name: Any, where: str) -> str:
    """Return the name of an object, or raise a `ValueError` that opens with `where`."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} is {name!r}; the name of an object of the scene is needed, such as 'green plant'.")
    return name
