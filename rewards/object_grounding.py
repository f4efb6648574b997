"""
Object grounding as a reward: does the video end with the named object in view, the real one, where it stands?

    R = V * sqrt(C) * S * M * D                                                                   all in [0, 1]

    V  mean over the last 5 frames of the best box of   min(confidence / 0.5, 1) * centred * size * B
       centred  exp(-(dx^2 + dy^2) / (2 * 0.35^2)), with dx and dy in halves of the frame from its middle
       size     sqrt(min(area / 3 %, 1))
       B        the same object: of the context's points that belong into the box, seen from the estimated camera, the
                share whose picture is there, as part of the same share of the whole frame (0.2 at least): from 0.2
                (0) to 0.5 (1)
    C  mean over frames of min(share of inliers of the pose / 0.5, 1)
    S  exp(-(ratio - 6) / 6) where one step changes the picture, or moves the camera, `ratio` > 6 times as much as
       others do, else 1
    M  min(share of the steps in which something moves / 0.6, 1); a still video has 0
    D  1 where the frames have depth, to 0 for a zoom into a still: from 80 % of the keypoints that a 2-D similarity
       explains (1) to 95 % (0)

Without B a target that is pasted into the picture is the best video of all: visibility alone says 0.99.

The paper's evaluation pair is logged beside the reward where `distance_estimator` is given, or the pose estimator
measures it: SD (see `spatialalign_trl/perception/camera/distance.py`, `displacement.py`), and IF, the mean of V
without B where SD < 0.2 and 0 elsewhere.
Source of task and gate: Video4Spatial, arXiv 2512.03040; the formula is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialalign_rewards._scene_scoring import (
    BadInput,
    SceneGrade,
    SceneReward,
    continuity_factor,
    for_row,
    in_box,
    looked_at,
    read_scene,
    support_factor,
)
from spatialalign_trl.perception.camera.diagnosis import cut_factor, flat_share, moving_share, steps
from spatialalign_trl.perception.camera.distance import GOOD_DISTANCE
from spatialalign_trl.perception.camera.estimator import CameraEstimate, PoseEstimator, Sightings
from spatialalign_trl.perception.camera.geometry import known
from spatialalign_trl.perception.detections import Detections, Detector
from spatialalign_trl.perception.tracks import make_named
from spatialalign_trl.rewards.settings import RewardSettingsOnHub
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
"""B of a box into which too few points of the context belong: nothing speaks for it."""
MOVING_SHARE = 0.6
FLAT = (0.8, 0.95)


class ObjectGrounding(SceneReward, RewardSettingsOnHub):
    """
    Reward in [0, 1]: does the video end with the named object of the scene in view? `None` when the row cannot be
    scored.

    Columns: `context` (the recording), `object` (its name: "green plant"), `intrinsics` (of the context's frames), and
    `context_poses` where they are known.

    Args:
        detector (`str` or [`~spatialalign_trl.perception.detections.Detector`], *optional*, defaults to
            `"grounding_dino"`):
            What finds the object on single frames.
        detector_options (`dict`, *optional*):
            Arguments of the detector when it is given by name; `label_mode` is `"span"` unless it is set.
        pose_estimator, pose_options, distance_estimator, distance_options (*optional*):
            As of [`~spatialalign_rewards.scene_navigation.SceneNavigation`].
        context_frames (`int`, *optional*, defaults to `24`):
            Frames of the context that are used, evenly spaced. A path that ends near an object takes more of them
            than one that stays where the recording was.
        frames (`int`, *optional*, defaults to `8`):
            Frames of the whole video whose poses are estimated, beside the last ones.
        last_frames (`int`, *optional*, defaults to `5`):
            Frames at the end that must show the object.
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
        for name, value in (("frames", frames), ("last_frames", last_frames)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        super().__init__(pose_estimator, pose_options, distance_estimator, distance_options, context_frames)
        self.detector = get_detector(detector, detector_options or {})
        self.frames, self.last_frames = frames, last_frames
        self._need_columns()
        self._given += (detector,)
        self._options["detector_options"] = dict(detector_options or {})

    @property
    def _parts(self) -> list[Any]:
        return [*super()._parts, self.detector]

    def describe(self) -> dict[str, Any]:
        """What this reward was made with."""
        given = self._given[2]
        name = given if isinstance(given, str) else type(given).__name__
        return {**super().describe(), "detector": name, "frames": self.frames, "last_frames": self.last_frames}

    def check_prompts(self, object: Sequence[str], **columns: Any) -> None:
        """As [`SceneReward.check_prompts`], and the names."""
        for row, name in enumerate(object):
            _check_name(name, f"prompt {row}: object")
        super().check_prompts(**columns)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Any],
        context: Sequence[Any],
        object: Sequence[str],
        intrinsics: Sequence[Any],
        context_poses: Sequence[Any] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Score `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not read.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`, or paths of mp4 files.
            context, object, intrinsics, context_poses (sequences of `N`):
                The columns; see the class.
            log_extra, log_metric (callables, *optional*):
                Get every factor as `object_grounding_<factor>`, and the reasons; with a `distance_estimator` also `SD`
                and `IF`.

        Returns:
            `list[float | None]`: one reward a video, `None` when INVALID.
        """
        columns = {"context": context, "object": object, "intrinsics": intrinsics, "context_poses": context_poses}
        return self.grade_all(completions, columns, kwargs, log_extra, log_metric)

    def grade(self, video: Any, row: Mapping[str, Any]) -> SceneGrade:
        """
        Score one video, and keep what the reward was made of.

        Args:
            video: As one of `completions`.
            row (mapping): The columns of its row.
        """
        video, name = frames_of(video, "the video"), _check_name(row["object"], "object")
        changes = steps(video)
        last = np.arange(max(len(video) - self.last_frames, 0), len(video))
        chosen = np.union1d(looked_at(changes, self.frames), last)
        try:
            scene = read_scene(row["context"], row.get("context_poses"), row["intrinsics"], video, self.context_frames)
            estimate = self.estimate(scene, video[chosen], row)
        except BadInput as error:
            return SceneGrade(None, str(error))
        at_end = np.searchsorted(chosen, last)
        detector = for_row(self.detector, row)
        if hasattr(detector, "detect_at"):  # one that knows the scene, and needs to know where the camera stands
            found = detector.detect_at(video[last], [name], estimate.poses[at_end], scene.intrinsics)
        else:
            found = detector.detect(video[last], [name])
        visible, proven = visibility(found, name, estimate, at_end, video.shape[1:3])
        factors = {
            "V": proven,
            "visible": visible,
            "C": support_factor(estimate),
            "S": min(cut_factor(changes), continuity_factor(estimate, chosen)),
            "M": min(moving_share(changes) / MOVING_SHARE, 1.0),
            "D": depth_factor(flat_share(video, scene.intrinsics)),
            "registered": float(known(estimate.poses).mean()),
        }
        reason = None
        if not factors["registered"]:
            reason = "no frame was found in the scene of the context"
        elif not visible:
            reason = f"no {name} was found at the end"
        elif not factors["M"]:
            reason = "nothing moves in the video"
        reward = factors["V"] * np.sqrt(factors["C"]) * factors["S"] * factors["M"] * factors["D"]
        distance = self.distance(scene, video, estimate, row)
        if self.distance_estimator is not None or distance is not None:
            factors["SD"] = distance
            factors["IF"] = visible if distance is not None and distance < GOOD_DISTANCE else 0.0
        return SceneGrade(float(reward), reason, factors)


def visibility(
    found: Sequence[Detections], name: str, estimate: CameraEstimate, frames: np.ndarray, size: tuple[int, int]
) -> tuple[float, float]:
    """
    How well the object is in view, without and with the proof that it is the scene's.

    Args:
        found (sequence of [`~spatialalign_trl.perception.detections.Detections`]):
            On the last frames.
        name (`str`):
            The object.
        estimate ([`~spatialalign_trl.perception.camera.CameraEstimate`]):
            Of more frames.
        frames (`np.ndarray`):
            Which of them are the last.
        size (tuple of 2 `int`):
            Height and width.

    Returns:
        `(float, float)`: means over the frames of the best box, each in [0, 1].
    """
    visible, proven = [], []
    for detections, frame in zip(found, frames, strict=True):
        sightings = None if estimate.sightings is None else estimate.sightings[frame]
        placed = known(estimate.poses[frame : frame + 1])[0]
        plain, sure = [0.0], [0.0]
        for box, score, label in zip(*detections, strict=True):
            if label == name:
                plain.append(min(score / GOOD_CONFIDENCE, 1.0) * _in_view(box, size))
                sure.append(plain[-1] * same_object(sightings, box) if placed else 0.0)
        visible.append(max(plain))
        proven.append(max(sure))
    return float(np.mean(visible)), float(np.mean(proven))


def same_object(sightings: Sightings | None, box: np.ndarray) -> float:
    """B of one box; 1 from an estimator that has no points to look for."""
    if sightings is None:
        return 1.0
    count, share = in_box(sightings, box)
    if count < MIN_BOX_POINTS:
        return UNPROVEN
    low, high = SAME_OBJECT
    # What a correct frame shows again of the context depends on the context: less of a distant one.
    usual = max(sightings.share(), MIN_USUAL)
    return float(np.clip((share / usual - low) / (high - low), 0, 1))


def depth_factor(flat: float | None) -> float:
    """D, from [`~spatialalign_trl.perception.camera_diagnosis.flat_share`]; 1 where nothing can be told."""
    if flat is None:
        return 1.0
    low, high = FLAT
    return float(np.clip((high - flat) / (high - low), 0, 1))


def get_detector(detector: str | Detector, options: dict[str, Any]) -> Detector:
    """
    Give back a detector, looking it up when it is named.

    Raises:
        `ValueError`: when no detector has that name.
        `TypeError`: for an option that it does not take, or an object that has no `detect` method.
    """
    if isinstance(detector, str):
        if detector == "grounding_dino":  # a name of two words must not come back in pieces
            options = {"label_mode": "span", **options}
        return make_named(detector, DETECTORS, kind="detector", options=options)
    methods = ("detect", "detect_at", "for_row")
    if isinstance(detector, type) or not any(callable(getattr(detector, method, None)) for method in methods):
        raise TypeError(
            f"A detector needs a method detect(video, names); {detector!r} has none, or is a class. Pass such an "
            f"object or one of the names {', '.join(DETECTORS)}."
        )
    if options:
        raise TypeError(f"The options {', '.join(options)} are for a detector given by name.")
    return detector


def _in_view(box: np.ndarray, size: tuple[int, int]) -> float:
    height, width = size
    x1, y1, x2, y2 = np.clip(box, 0, [width, height, width, height])
    area = max(x2 - x1, 0) * max(y2 - y1, 0) / (width * height)
    dx, dy = (x1 + x2) / width - 1, (y1 + y2) / height - 1
    return float(np.exp(-(dx**2 + dy**2) / (2 * CENTRED**2)) * np.sqrt(min(area / GOOD_AREA, 1.0)))


def _check_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} is {name!r}; the name of an object of the scene is needed, such as 'green plant'.")
    return name
