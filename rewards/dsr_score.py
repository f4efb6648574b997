"""
DSR-Score as a reward: track animal and object through each video, then score their boxes.

The geometry can be used without videos: `score_tracks(frames, animal, object, dsr_type)` on one video's boxes
(`_dsr_tracks.py`), `score_box_arrays(boxes, dsr_types)` on arrays of many (`_dsr_geometry.py`).
Source: SpatialAlign, arXiv 2602.22745.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from spatialalign_rewards._dsr_geometry import BoxScores, required_frames, score_box_arrays, spatial_offsets
from spatialalign_rewards._dsr_tracks import DSRResult, asks_depth, check_question, score_tracks, score_tracks_batch
from spatialalign_trl.perception.depth import DepthEstimator, add_nearness, get_depth_estimator
from spatialalign_trl.perception.tracks import Tracker, Tracks, get_tracker
from spatialalign_trl.rewards.settings import RewardSettingsOnHub
from spatialalign_trl.text_files import cell_text
from spatialalign_trl.video import Video, check_completions, read_video

__all__ = [
    "BoxScores",
    "DSRResult",
    "DSRScore",
    "GradedVideo",
    "required_frames",
    "score_box_arrays",
    "score_tracks",
    "score_tracks_batch",
    "spatial_offsets",
]

COMPONENTS = ("initial_score", "initial_gap", "final_score", "final_gap")


class GradedVideo(NamedTuple):
    """
    The result of [`DSRScore.grade`] for one video.

    Args:
        result (`DSRResult`):
            Score, components, curves and, for an INVALID video, the reason.
        tracks ([`~spatialalign_trl.perception.tracks.Tracks`]):
            The boxes that the score was computed from, and the tracker's reason for a rejected video.
    """

    result: DSRResult
    tracks: Tracks


class DSRScore(RewardSettingsOnHub):
    """
    Reward in [0, 1]: does the clip start in the prompt's first relation and end in its last? `None` when INVALID.

    About 0.5 means that nothing happened. A perfect left/right clip reaches 1.0, a perfect clip with "top" 0.875. In a
    sequence of more than two relations, those in the middle count as much as the first and the last, and must come in
    order.

    Args:
        tracker (`str` or [`~spatialalign_trl.perception.tracks.Tracker`], *optional*, defaults to
            `"color_segmentation"`):
            What finds the animal and the object: a name in `spatialalign_trl.perception.tracks.TRACKERS` or an object.
            Its models are loaded when the first video is graded, not in the constructor.
        min_frames (`int`, *optional*):
            Number of frames that must show both; by default the paper's 20 of 81, scaled to the clip's length.
        tracker_options (`dict`, *optional*):
            Arguments for a tracker that is given by name: `{"cache_dir": "detections"}`.
        depth_estimator (`str` or [`~spatialalign_trl.perception.depth.DepthEstimator`], *optional*, defaults to
            `"depth_anything"`):
            What distinguishes front from behind. It is loaded and used only for types with F or B.
        depth_options (`dict`, *optional*):
            Arguments for a depth estimator that is given by name: `{"checkpoint": "my-depth-anything"}`.

    Example:

    ```python
    reward = DSRScore()
    scores = reward(prompts=prompts, completions=videos, type=["LR"], animal=["fox"], object=["stump"])
    ```
    """

    required_columns = ("type", "animal", "object")
    installed_name = "dsr_score"

    def __init__(
        self,
        tracker: str | Tracker = "color_segmentation",
        min_frames: int | None = None,
        tracker_options: dict[str, Any] | None = None,
        depth_estimator: str | DepthEstimator = "depth_anything",
        depth_options: dict[str, Any] | None = None,
    ) -> None:
        self.__name__ = "dsr_score"
        self._settings = {
            "tracker": _name_of(tracker),
            "tracker_options": dict(tracker_options or {}),
            "min_frames": min_frames,
            "depth_estimator": _name_of(depth_estimator),
            "depth_options": dict(depth_options or {}),
        }
        self._objects = [part for part in (tracker, depth_estimator) if not isinstance(part, str)]
        self.tracker = get_tracker(tracker, **(tracker_options or {}))
        self.depth_estimator = get_depth_estimator(depth_estimator, **(depth_options or {}))
        # A tracker may need further columns, such as the animal's colour.
        needed = (*DSRScore.required_columns, *getattr(self.tracker, "required_columns", ()))
        self.required_columns = tuple(dict.fromkeys(needed))
        self.min_frames = min_frames

    def check_prompts(
        self,
        type: Sequence[str],
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Check that the prompts can be scored, before anything is sampled for them.

        Args:
            type, animal, object, attribute (sequences of `N` `str`):
                As in `__call__`.

        Raises:
            `ValueError`: for an unknown type, more than one animal or object, an animal that is also the object, or a
                word that the tracker cannot find.
            `FileNotFoundError`, `ConnectionError`, ...: if a model that is needed cannot be loaded.
        """
        for row, question in enumerate(zip(type, animal, object, strict=True)):
            check_question(*question, where=f"prompt {row}")
        check = getattr(self.tracker, "check_prompts", None)
        if check is not None:
            check(animal=animal, object=object, attribute=attribute)
        prepare = getattr(self.depth_estimator, "prepare", None)
        if prepare is not None and any(asks_depth(dsr_type) for dsr_type in type):
            prepare()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Video | str | os.PathLike],
        type: Sequence[str],
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str | None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Score `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                Not used: everything the score needs is in the columns.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`, or paths of mp4 files.
            type, animal, object (sequences of `N` `str`):
                The prompt columns.
            attribute (sequence of `N` `str`, *optional*):
                The animal's adjective, such as `"red"`, for trackers that use it.
            log_extra (callable, *optional*):
                Receives the columns `dsr_<component>` and `dsr_reason`. If there are sequences of more than two
                relations, `dsr_visit_score` and `dsr_visit_gap` are the means over their middle relations.
            log_metric (callable, *optional*):
                Receives the mean of each component.

        Returns:
            `list[float | None]`: one score per video, `None` when INVALID.
        """
        graded = self.grade(completions, type=type, animal=animal, object=object, attribute=attribute)
        results = [video.result for video in graded]
        columns = {name: [getattr(result, name) for result in results] for name in COMPONENTS}
        if any(len(dsr_type) > 2 for dsr_type in type):
            for name in ("visit_score", "visit_gap"):
                visits = [getattr(result, f"{name}s") for result in results]
                columns[name] = [float(np.mean(values)) if values else None for values in visits]
        for name, values in columns.items():
            if log_extra is not None:
                log_extra(f"dsr_{name}", values)
            known = [value for value in values if value is not None]
            if log_metric is not None and known:
                log_metric(f"dsr_{name}", float(np.mean(known)))
        if log_extra is not None:
            log_extra("dsr_reason", [result.reason for result in results])
        return [result.score for result in results]

    def grade(
        self,
        videos: Sequence[Video | str | os.PathLike],
        *,
        type: Sequence[str],
        animal: Sequence[str],
        object: Sequence[str],
        attribute: Sequence[str | None] | None = None,
    ) -> list[GradedVideo]:
        """
        Score `N` videos and return the results with the boxes they were computed from.

        Args:
            videos (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`, or paths of mp4 files.
            type, animal, object, attribute (sequences of `N` `str`):
                As in `__call__`.

        Raises:
            `ValueError`: for a question that cannot be scored, or something that is not a video; names its position.
        """
        for row, question in enumerate(zip(type, animal, object, strict=True)):
            check_question(*question, where=f"video {row}")
        videos = [read_video(video) if isinstance(video, (str, os.PathLike)) else video for video in videos]
        check_completions(videos)
        adjectives = None if attribute is None else [cell_text(adjective) for adjective in attribute]
        tracks = self.tracker.track(videos, animal=animal, object=object, attribute=adjectives)
        if len(tracks) != len(videos):
            raise ValueError(f"The tracker returned {len(tracks)} tracks for {len(videos)} videos.")
        tracks = [self._with_depth(*row) for row in zip(tracks, videos, type, animal, object, strict=True)]
        results = score_tracks_batch(tracks, animal, object, type, min_frames=self.min_frames)
        return [GradedVideo(*pair) for pair in zip(results, tracks, strict=True)]

    def _with_depth(self, tracks: Tracks, video: Video, dsr_type: str, animal: str, object: str) -> Tracks:
        """Add the nearness of animal and object to tracks whose type needs it."""
        if not asks_depth(dsr_type) or tracks.reason is not None or tracks.nearness is not None:
            return tracks
        return add_nearness(tracks, video, self.depth_estimator, animal, object)

    def describe(self) -> dict[str, Any]:
        """
        Return the settings that determine this reward's values. The loop stores them next to the scores, so that
        scores made with another tracker are recognised.
        """
        return self._settings

    def settings(self) -> dict[str, Any]:
        """
        Return the constructor's arguments, as [`~RewardSettingsOnHub.save_pretrained`] writes them.

        Raises:
            `ValueError`: if the tracker or the depth estimator was passed as an object.
        """
        if self._objects:
            raise ValueError(
                f"{self._objects[0]!r} is an object: only parts given by name can be saved, such as "
                "tracker='grounded_sam' with tracker_options={...}."
            )
        return self._settings

    def release(self) -> None:
        """Free the models that grading has loaded; the next video loads them again."""
        for part in (self.tracker, self.depth_estimator):
            release = getattr(part, "release", None)
            if release is not None:
                release()


def _name_of(part: str | object) -> str:
    """Return the name of a part: the string itself, or the class's name of an object."""
    return part if isinstance(part, str) else type(part).__name__
