"""
Estimate camera poses by rendering a known scene and comparing, for frames that are too small for keypoints.

A frame of 48 columns has only a handful of keypoints, but all of its pixels carry information about the camera. The
estimator searches for the pose whose rendering is most similar to the frame. The comparison ignores brightness: both
images are blurred a little and normalised to mean 0 and length 1, and their similarity is the inner product.

Rendering takes most of the time. Because a rendering includes its depth, the frame can be warped onto it and the pose
improved many times before the next rendering (direct image alignment, Baker & Matthews 2004).

A video continues a recording: its first frame is searched for where the context ended, and each later frame at the
pose of the previous one, or where the camera would be if it kept moving. Only a frame that is not found there is
searched for from all start poses.

The estimator knows the scene, like an oracle. It must not know where the camera was *asked* to go: the search starts
from the context's cameras and from given start poses, never from the target pose, which would then be found too often.
Known limits: places that look alike are distinguished only by small differences, and a pose is missed if every start
is off by more than about 20 degrees or half a metre.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter

from spatialalign_trl.perception.camera.displacement import displacement
from spatialalign_trl.perception.camera.distance import scene_size
from spatialalign_trl.perception.camera.estimator import CameraEstimate, Sightings, unusable
from spatialalign_trl.perception.camera.geometry import known

if TYPE_CHECKING:
    from spatialalign_trl.video import Video

Render = Callable[[np.ndarray, tuple[int, int], np.ndarray], tuple[np.ndarray, np.ndarray]]
"""`render(poses (n, 4, 4), (height, width), intrinsics (3, 3)) -> uint8 (n, height, width, 3), depth (n, height,
width)`, the depth along the camera's axis, in the unit of the poses."""

BLURS = (6.0, 2.5)
"""Standard deviations of the blur, in hundredths of the width: first coarse, then fine."""
STEPS = (6, 5)
"""Largest number of alignment steps with each blur, between two renderings."""
RENDERINGS = 4
"""Largest number of renderings of one local search."""
ALIKE = 0.75
"""Similarity below which a frame counts as not found in the scene."""
PERFECT = 0.95
"""Similarity at which the support of a pose is 1."""
SURE = 0.9
"""Similarity above which a frame is not searched for elsewhere."""


class _View(NamedTuple):
    """A rendering of the scene from one camera."""

    pose: np.ndarray
    picture: np.ndarray
    depth: np.ndarray


class RenderAndCompare:
    """
    Estimates poses by rendering. Implements the protocol [`~spatialalign_trl.perception.camera.PoseEstimator`].

    Args:
        render (callable):
            `render(poses, (height, width), intrinsics)` returns the images that cameras see, `uint8`
            `(n, height, width, 3)`, and their depth along the camera's axis, `(n, height, width)`.
        starts (`np.ndarray` of shape `(n, 4, 4)`, *optional*):
            Further start poses of the search, in addition to the context's and those predicted from earlier frames.
        climbs (`int`, *optional*, defaults to `3`):
            Number of the most promising start poses that are refined if a frame is not found where it was expected.
        alike (`float`, *optional*, defaults to `0.75`):
            Smallest similarity, in [-1, 1], at which a frame counts as found.

    Raises:
        `ValueError`: when `climbs` is below 1.
    """

    name = "render_and_compare"

    def __init__(
        self, render: Render, starts: np.ndarray | None = None, climbs: int = 3, alike: float = ALIKE
    ) -> None:
        if climbs < 1:
            raise ValueError(f"climbs is {climbs}; it must be at least 1.")
        self.render, self.climbs, self.alike = render, climbs, alike
        self.starts = np.zeros((0, 4, 4)) if starts is None else np.asarray(starts, float)
        self._cached_views: dict[bytes, tuple[list[_View], np.ndarray]] = {}

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-serialisable."""
        return {"name": self.name, "climbs": self.climbs, "alike": self.alike, "starts": len(self.starts)}

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """
        Estimate poses in the renderer's coordinate system, see
        [`~spatialalign_trl.perception.camera.PoseEstimator`].
        """
        if context_poses is None:
            return unusable(len(context), len(video), "render and compare needs the context's poses to start from")
        context_poses = np.asarray(context_poses, float)

        # 1. Poses, and how similar their renderings are to the frames
        views, similarities = self._track(video, intrinsics, context_poses)
        poses = np.stack([view.pose for view in views])
        poses[similarities < self.alike] = np.nan
        support = np.clip((similarities - self.alike) / (PERFECT - self.alike), 0, 1)

        # 2. Which patches of the renderings the frames show
        found_frames = list(zip(video, views, known(poses), strict=True))
        sightings = [
            _compare(frame, view.picture) if found else Sightings(np.zeros((0, 2)), np.zeros(0, bool))
            for frame, view, found in found_frames
        ]

        # 3. Points of the scene (every seventh of those that the context shows), and SD
        context_views, _ = self._views_from(context_poses, video.shape[1:3], intrinsics)
        points = np.concatenate([_surface(view, intrinsics).reshape(-1, 3)[::7] for view in context_views])
        size = scene_size(points)
        distances = [
            _displacement(frame, view, intrinsics, size) if found else 1.0 for frame, view, found in found_frames
        ]
        return CameraEstimate(
            context_poses.copy(),
            poses,
            support,
            sightings=sightings,
            points=points,
            distance=float(np.mean(distances)),
        )

    def _track(self, video: Video, k: np.ndarray, context_poses: np.ndarray) -> tuple[list[_View], np.ndarray]:
        """Return the most similar rendering of every frame, and the similarities."""
        size = video.shape[1:3]
        last, expected = self._render_views(context_poses[-1:], size, k)[0], None
        views, similarities = [], []
        for frame in video:
            # Search near the last pose, or where the camera would be if it kept moving
            goal = [_blurred(frame[None], blur)[0] for blur in BLURS]
            nearby = [last] if expected is None else [last, *self._render_views(expected[None], size, k)]
            view, similarity = self._climb(goal, _most_similar(goal, nearby), k)
            if similarity < SURE:
                candidates = [(view, similarity), *self._search(goal, context_poses, size, k)]
                view, similarity = max(candidates, key=lambda candidate: candidate[1])
            views.append(view)
            similarities.append(similarity)

            # Predict the next pose
            if similarity >= self.alike:
                expected = _extrapolated(last.pose, view.pose)
                last = view
            else:
                expected = None
        return views, np.array(similarities)

    def _render_views(self, poses: np.ndarray, size: tuple[int, int], k: np.ndarray) -> list[_View]:
        return [_View(*view) for view in zip(poses, *self.render(poses, size, k), strict=True)]

    def _search(
        self, goal: list[np.ndarray], context_poses: np.ndarray, size: tuple[int, int], k: np.ndarray
    ) -> list[tuple[_View, float]]:
        """Search for a frame from the context's poses and all start poses."""
        # Align the frame with the most similar views
        rendered = [self._views_from(poses, size, k) for poses in (context_poses, self.starts) if len(poses)]
        views = [view for start_views, _ in rendered for view in start_views]
        similarities = np.concatenate([pictures for _, pictures in rendered]) @ _normalised(goal[0][None])[0]
        promising = np.argsort(-similarities)[: 2 * self.climbs]
        aligned = (_aligned(goal, views[i], k, (STEPS[0], 0)) for i in promising)
        aligned = sorted(aligned, key=lambda alignment: -alignment[1])

        # A frame that is still not similar to any view is noise, black, or of another scene: do not render for it
        poses = [pose for pose, similarity in aligned[: self.climbs] if similarity > self.alike]
        return [self._climb(goal, view, k) for view in self._render_views(np.array(poses), size, k)] if poses else []

    def _views_from(self, poses: np.ndarray, size: tuple[int, int], k: np.ndarray) -> tuple[list[_View], np.ndarray]:
        """Return views and their normalised pictures, cached because the samples of one prompt share them."""
        key = repr(size).encode() + k.tobytes() + poses.tobytes()
        if key not in self._cached_views:
            if len(self._cached_views) > 3:
                self._cached_views.clear()
            views = self._render_views(poses, size, k)
            pictures = _blurred(np.stack([view.picture for view in views]), BLURS[0])
            self._cached_views[key] = views, _normalised(pictures)
        return self._cached_views[key]

    def _climb(self, goal: list[np.ndarray], view: _View, k: np.ndarray) -> tuple[_View, float]:
        """Improve a view until a new rendering is not more similar to the frame than the last one."""
        best = _similarity(goal, view)
        for number in range(RENDERINGS):
            pose, _ = _aligned(goal, view, k, STEPS if number == 0 else (0, 2))
            if _nearly_equal(pose, view.pose):
                break
            candidate = self._render_views(pose[None], view.depth.shape, k)[0]
            similarity = _similarity(goal, candidate)
            if similarity <= best:
                break
            gain = similarity - best
            view, best = candidate, similarity
            if gain < 5e-4:
                break
        return view, best


@lru_cache(maxsize=64)
def _blur_matrix(length: int, sigma: float) -> np.ndarray:
    """Return the Gaussian blur of a line of pixels as a matrix `(length, length)`."""
    positions = np.arange(length)
    weights = np.exp(-0.5 * ((positions[:, None] - positions) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _blurred(pictures: np.ndarray, blur: float) -> np.ndarray:
    """Return pictures `(n, height, width, channels)` blurred by `blur` hundredths of the width."""
    count, height, width, channels = pictures.shape
    rows, columns = (_blur_matrix(length, blur * width / 100) for length in (height, width))
    blurred_rows = rows @ pictures.reshape(count, height, -1).astype(np.float32)
    return (columns @ blurred_rows.reshape(-1, width, channels)).reshape(pictures.shape)


def _normalised(pictures: np.ndarray) -> np.ndarray:
    """Return pictures as vectors `(n, pixels)` of mean 0 and length 1."""
    flat = pictures.reshape(len(pictures), -1)
    # Subtract one mean for all channels, so that the colour of a wall counts and only the overall brightness does not.
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _most_similar(goal: list[np.ndarray], views: list[_View]) -> _View:
    """Return the view that is most similar to a frame with the coarse blur."""
    pictures = _blurred(np.stack([view.picture for view in views]), BLURS[0])
    return views[int((_normalised(pictures) @ _normalised(goal[0][None])[0]).argmax())]


def _similarity(goal: list[np.ndarray], view: _View) -> float:
    """Return the similarity of a frame and a view with the fine blur, in [-1, 1]."""
    pair = _normalised(np.stack([goal[-1], _blurred(view.picture[None], BLURS[-1])[0]]))
    return float(pair[0] @ pair[1])


def _camera(intrinsics: np.ndarray) -> tuple[float, ...]:
    """Return fx, fy, cx, cy."""
    return tuple(float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))


@lru_cache(maxsize=8)
def _rays(size: tuple[int, int], camera: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the pixels' rays at z = 1."""
    fx, fy, cx, cy = camera
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    return (columns - cx) / fx, (rows - cy) / fy


def _aligned(
    goal: list[np.ndarray], view: _View, intrinsics: np.ndarray, steps: tuple[int, ...]
) -> tuple[np.ndarray, float]:
    """Align a frame with a view by Gauss-Newton steps, and return its pose and their similarity (-1 if unknown)."""
    fx, fy, cx, cy = camera = _camera(intrinsics)
    x, y = _rays(view.depth.shape, camera)
    height, width = view.depth.shape
    points = _camera_points(view, intrinsics).reshape(-1, 3).T
    motion, similarity = np.eye(4), -1.0  # of the frame's camera relative to the view's
    for blur, frame, max_steps in zip(BLURS, goal, steps, strict=True):
        if not max_steps:
            continue

        # 1. Take pixels of the view in steps of the blur, with their derivatives by the camera's motion
        stride = max(1, int(blur * width / 100 / 1.5))
        pixels = (np.arange(height)[::stride, None] * width + np.arange(width)[::stride]).ravel()
        view_colours = _blurred(view.picture[None], blur).reshape(-1, 3)[pixels]
        derivatives = _derivatives(view, x, y, fx, fy, blur).reshape(6, -1, 3)[:, pixels]
        view_points = points[:, pixels]
        for _ in range(max_steps):
            # 2. Project the view's points to the frame
            back = np.linalg.inv(motion)
            moved = back[:3, :3] @ view_points + back[:3, 3:]
            z = np.maximum(moved[2], 1e-3)
            column, row = fx * moved[0] / z + cx, fy * moved[1] / z + cy
            inside = (moved[2] > 0.05) & (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            if inside.sum() < 0.3 * len(inside):
                return view.pose @ motion, -1.0

            # 3. Compare the colours there, up to brightness and gain
            theirs = _sampled(frame, column[inside], row[inside])
            ours = view_colours[inside]
            a, b = ours - ours.mean(), theirs - theirs.mean()
            length = np.sqrt((a * a).sum())
            if length < 1e-3:  # the view is of a single colour there
                return view.pose @ motion, -1.0
            gain = length / max(np.sqrt((b * b).sum()), 1e-6)
            similarity = float((a * b).sum() * gain / length**2)

            # 4. Solve for the motion that reduces the difference, damped and limited
            jacobian = derivatives[:, inside].reshape(6, -1)
            jacobian = jacobian - jacobian.mean(axis=1, keepdims=True)
            a, b = a.ravel(), b.ravel()
            jacobian = jacobian - np.outer(jacobian @ a / length**2, a)
            normal = jacobian @ jacobian.T
            normal[np.diag_indices(6)] *= 1.003
            normal[np.diag_indices(6)] += 1e-6
            step = _limited(np.linalg.solve(normal, jacobian @ (b * gain - a)))
            motion = _moved(np.eye(4), step) @ motion
            if np.abs(step).max() < 1e-3:
                break
    return view.pose @ motion, similarity


def _sampled(picture: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Interpolate colours `(n, 3)` between the pixels of a picture."""
    height, width = picture.shape[:2]
    left, top = np.minimum(column.astype(np.int64), width - 2), np.minimum(row.astype(np.int64), height - 2)
    right, down = (column - left)[:, None].astype(np.float32), (row - top)[:, None].astype(np.float32)
    flat, index = picture.reshape(-1, picture.shape[2]), top * width + left
    upper = flat[index] * (1 - right) + flat[index + 1] * right
    lower = flat[index + width] * (1 - right) + flat[index + width + 1] * right
    return upper * (1 - down) + lower * down


def _derivatives(view: _View, x: np.ndarray, y: np.ndarray, fx: float, fy: float, blur: float) -> np.ndarray:
    """Return the derivatives `(6, height, width, 3)` of a view by its camera's translation and rotation."""
    # An edge moves with the nearer of its two sides.
    inverse_depth = maximum_filter(1 / view.depth, 3)
    zero = np.zeros_like(x)
    right = fx * np.stack([-inverse_depth, zero, x * inverse_depth, x * y, -1 - x * x, y])
    down = fy * np.stack([zero, -inverse_depth, y * inverse_depth, 1 + y * y, -x * y, -x])
    by_row, by_column = np.gradient(view.picture.astype(np.float32), axis=(0, 1))
    return _blurred(-(right[..., None] * by_column + down[..., None] * by_row), blur)


def _extrapolated(before: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the next pose of a camera that repeats its motion between two poses."""
    pose = np.eye(4)
    pose[:3, :3] = last[:3, :3] @ before[:3, :3].T @ last[:3, :3]
    pose[:3, 3] = 2 * last[:3, 3] - before[:3, 3]
    return pose


def _nearly_equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two poses are equal within 2 mm and a twentieth of a degree."""
    difference = np.abs(first - second)
    return bool(difference[:3, 3].max() < 2e-3 and difference[:3, :3].max() < 1e-3)


def _moved(pose: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return a pose translated by `step[:3]` and rotated by the rotation vector `step[3:]`, in its own axes."""
    from scipy.spatial.transform import Rotation

    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = Rotation.from_rotvec(step[3:]).as_matrix(), step[:3]
    return pose @ motion


def _limited(step: np.ndarray) -> np.ndarray:
    """Limit a step to 0.4 units and 0.25 radians, because the derivatives are valid only nearby."""
    sizes = np.array([np.linalg.norm(step[:3]) / 0.4, np.linalg.norm(step[3:]) / 0.25, 1.0])
    return step / sizes.max()


def _camera_points(view: _View, intrinsics: np.ndarray) -> np.ndarray:
    """Return the points that the pixels of a view show, in its camera's axes, `(height, width, 3)`."""
    x, y = _rays(view.depth.shape, _camera(intrinsics))
    depth = np.minimum(view.depth, 1e3)
    return np.stack([x * depth, y * depth, depth], axis=-1)


def _surface(view: _View, intrinsics: np.ndarray) -> np.ndarray:
    """Return the points that the pixels of a view show, in the scene, `(height, width, 3)`."""
    return _camera_points(view, intrinsics) @ view.pose[:3, :3].T + view.pose[:3, 3]


def _displacement(frame: np.ndarray, view: _View, intrinsics: np.ndarray, size: float) -> float:
    """Return the displacement of a frame from a view of the same pose, with the fine blur."""
    blurred_frame, blurred_view = _blurred(np.stack([frame, view.picture]), BLURS[-1])
    return displacement(blurred_frame, blurred_view, _surface(view, intrinsics), size)


def _compare(frame: np.ndarray, view: np.ndarray) -> Sightings:
    """Compare a frame with its rendering in patches of a twelfth of the height."""
    # A patch is seen if both differ by less than half of the rendering's contrast: its difference from one colour.
    side = max(3, frame.shape[0] // 12)
    rows, columns = (length // side for length in view.shape[:2])

    def patch_means(differences: np.ndarray) -> np.ndarray:
        patches = np.abs(differences[: rows * side, : columns * side]).reshape(rows, side, columns, side, 3)
        return patches.mean(axis=(1, 3, 4)).ravel()

    frame, view = frame.astype(np.float32), view.astype(np.float32)
    seen = patch_means(frame - view) < 0.5 * patch_means(view - view.mean(axis=(0, 1)))
    top, left = np.mgrid[0:rows, 0:columns] * side + side / 2
    return Sightings(np.stack([left.ravel(), top.ravel()], axis=1), seen)
