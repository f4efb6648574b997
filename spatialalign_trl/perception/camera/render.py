"""
Camera poses by render and compare, for frames too small for keypoints, of scenes that can be rendered.

A picture of 48 columns has a handful of keypoints, and all of it says where the camera stood. Of a scene that can be
rendered, the pose is searched whose picture is most like the frame. What is compared is contrast, not brightness:
both pictures are blurred a little and set to mean 0 and length 1, and their likeness is the inner product.

Rendering is what costs time. Since a rendering comes with its depth, the frame can be bent to where it is compared
with, and the pose improved many times before the next rendering (direct image alignment, Baker & Matthews 2004).

A video is a recording that goes on: its first frame is looked for where the context ended, each later one where the
one before was or would be if the camera went on as it did. Only what is not found there is looked for everywhere.

The estimator knows the scene, as an oracle does. It must not know where the camera was *asked* to go: it starts
from the context's cameras and from places that it is given, never from the target, which would be found too often.
Known limits: places that look alike are told apart by what little differs, and a pose between the starts is missed
when all of them are off by more than about 20 degrees or half a metre.
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
"""Deviations of the blur, in hundredths of the width: first to come near, then to be exact."""
STEPS = (6, 5)
"""Steps at most with each blur, between two renderings."""
RENDERINGS = 4
"""Renderings at most on the way uphill."""
ALIKE = 0.75
"""Likeness below which a frame is nowhere in the scene."""
PERFECT = 0.95
SURE = 0.9
"""A frame that is so much like where it was expected is not looked for elsewhere."""


class _View(NamedTuple):
    """What a camera sees."""

    pose: np.ndarray
    picture: np.ndarray
    depth: np.ndarray


class RenderAndCompare:
    """
    Poses by rendering. Follows [`~spatialalign_trl.perception.camera.PoseEstimator`].

    Args:
        render (callable):
            `render(poses, (height, width), intrinsics)` returns the pictures that cameras see, `uint8`
            `(n, height, width, 3)`, and their depth along the camera's axis, `(n, height, width)`.
        starts (`np.ndarray` of shape `(n, 4, 4)`, *optional*):
            Poses from which the search may start, beside the context's and those that the frames before lead to.
        climbs (`int`, *optional*, defaults to `3`):
            How many of the most promising starts are followed where a frame is not where it was expected.
        alike (`float`, *optional*, defaults to `0.75`):
            Likeness, in [-1, 1], that a frame must reach to count as found.
    """

    name = "render_and_compare"

    def __init__(
        self, render: Render, starts: np.ndarray | None = None, climbs: int = 3, alike: float = ALIKE
    ) -> None:
        if climbs < 1:
            raise ValueError(f"climbs is {climbs}; it must be at least 1.")
        self.render, self.climbs, self.alike = render, climbs, alike
        self.starts = np.zeros((0, 4, 4)) if starts is None else np.asarray(starts, float)
        self._kept: dict[bytes, tuple[list[_View], np.ndarray]] = {}

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "climbs": self.climbs, "alike": self.alike, "starts": len(self.starts)}

    def estimate(
        self, context: Video, video: Video, intrinsics: np.ndarray, context_poses: np.ndarray | None = None
    ) -> CameraEstimate:
        """See [`~spatialalign_trl.perception.camera.PoseEstimator`]; the poses are in the renderer's system."""
        if context_poses is None:
            return unusable(len(context), len(video), "render and compare needs the context's poses to start from")
        context_poses = np.asarray(context_poses, float)
        views, likeness = self._follow(video, intrinsics, context_poses)
        poses = np.stack([view.pose for view in views])
        poses[likeness < self.alike] = np.nan
        support = np.clip((likeness - self.alike) / (PERFECT - self.alike), 0, 1)
        looked = list(zip(video, views, known(poses), strict=True))
        sightings = [
            _compare(frame, view.picture) if found else Sightings(np.zeros((0, 2)), np.zeros(0, bool))
            for frame, view, found in looked
        ]
        points = self._points(context_poses, video.shape[1:3], intrinsics)
        size = scene_size(points)
        distances = [_displacement(frame, view, intrinsics, size) if found else 1.0 for frame, view, found in looked]
        return CameraEstimate(
            context_poses.copy(),
            poses,
            support,
            sightings=sightings,
            points=points,
            distance=float(np.mean(distances)),
        )

    def _points(self, poses: np.ndarray, size: tuple[int, int], k: np.ndarray) -> np.ndarray:
        """Every seventh of the points of the scene that cameras see."""
        views, _ = self._looks_from(poses, size, k)
        return np.concatenate([_surface(view, k).reshape(-1, 3)[::7] for view in views])

    def _follow(self, video: Video, k: np.ndarray, context_poses: np.ndarray) -> tuple[list[_View], np.ndarray]:
        """What looks most like every frame, and how much."""
        size = video.shape[1:3]
        last, expected = self._seen(context_poses[-1:], size, k)[0], None
        found, likeness = [], []
        for frame in video:
            goal = [_blurred(frame[None], blur)[0] for blur in BLURS]
            ahead = [last] if expected is None else [last, *self._seen(expected[None], size, k)]
            best = self._climb(goal, _nearest(goal, ahead), k)
            if best[1] < SURE:
                best = max([best, *self._everywhere(goal, context_poses, size, k)], key=lambda one: one[1])
            found.append(best[0])
            likeness.append(best[1])
            if best[1] >= self.alike:
                expected = _gone_on(last.pose, best[0].pose)
                last = best[0]
            else:
                expected = None
        return found, np.array(likeness)

    def _seen(self, poses: np.ndarray, size: tuple[int, int], k: np.ndarray) -> list[_View]:
        return [_View(*one) for one in zip(poses, *self.render(poses, size, k), strict=True)]

    def _everywhere(
        self, goal: list[np.ndarray], context_poses: np.ndarray, size: tuple[int, int], k: np.ndarray
    ) -> list[tuple[_View, float]]:
        kept = [self._looks_from(one, size, k) for one in (context_poses, self.starts) if len(one)]
        views = [view for some, _ in kept for view in some]
        likeness = np.concatenate([looks for _, looks in kept]) @ _contrast(goal[0][None])[0]
        promising = np.argsort(-likeness)[: 2 * self.climbs]
        bent = sorted((_bent(goal, views[i], k, (STEPS[0], 0)) for i in promising), key=lambda one: -one[1])
        # A frame that is like nothing after this is noise, black, or of another scene: no rendering is spent on it.
        poses = [pose for pose, alike in bent[: self.climbs] if alike > self.alike]
        return [self._climb(goal, view, k) for view in self._seen(np.array(poses), size, k)] if poses else []

    def _looks_from(self, starts: np.ndarray, size: tuple[int, int], k: np.ndarray) -> tuple[list[_View], np.ndarray]:
        """What the starts see; the samples of one prompt share it."""
        key = repr(size).encode() + k.tobytes() + starts.tobytes()
        if key not in self._kept:
            if len(self._kept) > 3:
                self._kept.clear()
            views = self._seen(starts, size, k)
            pictures = _blurred(np.stack([view.picture for view in views]), BLURS[0])
            self._kept[key] = views, _contrast(pictures)
        return self._kept[key]

    def _climb(self, goal: list[np.ndarray], view: _View, k: np.ndarray) -> tuple[_View, float]:
        """From a view uphill, until a rendering is no more like the frame than the one before."""
        best = _likeness(goal, view)
        for number in range(RENDERINGS):
            pose, _ = _bent(goal, view, k, STEPS if number == 0 else (0, 2))
            if _small(pose, view.pose):
                break
            other = self._seen(pose[None], view.depth.shape, k)[0]
            likeness = _likeness(goal, other)
            if likeness <= best:
                break
            gained = likeness - best
            view, best = other, likeness
            if gained < 5e-4:
                break
        return view, best


@lru_cache(maxsize=64)
def _blurring(length: int, sigma: float) -> np.ndarray:
    """The blur of a line of pixels as a matrix `(length, length)`."""
    places = np.arange(length)
    weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _blurred(pictures: np.ndarray, blur: float) -> np.ndarray:
    """Pictures `(n, height, width, channels)`, blurred by `blur` hundredths of the width."""
    count, height, width, channels = pictures.shape
    rows, columns = (_blurring(length, blur * width / 100) for length in (height, width))
    lower = rows @ pictures.reshape(count, height, -1).astype(np.float32)
    return (columns @ lower.reshape(-1, width, channels)).reshape(pictures.shape)


def _contrast(pictures: np.ndarray) -> np.ndarray:
    """Pictures as vectors `(n, pixels)` of mean 0 and length 1."""
    flat = pictures.reshape(len(pictures), -1)
    # Not per colour channel, so that a wall's paint counts: only the brightness of the whole is left out.
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _nearest(goal: list[np.ndarray], views: list[_View]) -> _View:
    """The view that is most like a frame from afar."""
    pictures = _blurred(np.stack([view.picture for view in views]), BLURS[0])
    return views[int((_contrast(pictures) @ _contrast(goal[0][None])[0]).argmax())]


def _likeness(goal: list[np.ndarray], view: _View) -> float:
    pair = _contrast(np.stack([goal[-1], _blurred(view.picture[None], BLURS[-1])[0]]))
    return float(pair[0] @ pair[1])


def _camera(intrinsics: np.ndarray) -> tuple[float, ...]:
    """fx, fy, cx, cy."""
    return tuple(float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))


@lru_cache(maxsize=8)
def _rays(size: tuple[int, int], camera: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels' rays where z is 1."""
    fx, fy, cx, cy = camera
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    return (columns - cx) / fx, (rows - cy) / fy


def _bent(
    goal: list[np.ndarray], view: _View, intrinsics: np.ndarray, steps: tuple[int, ...]
) -> tuple[np.ndarray, float]:
    """The pose at which a frame was taken, by bending it onto a view of nearly the same, and how alike both are then
    where they overlap."""
    fx, fy, cx, cy = camera = _camera(intrinsics)
    x, y = _rays(view.depth.shape, camera)
    height, width = view.depth.shape
    points = _ahead(view, intrinsics).reshape(-1, 3).T
    away, alike = np.eye(4), -1.0
    for blur, frame, most in zip(BLURS, goal, steps, strict=True):
        if not most:
            continue
        stride = max(1, int(blur * width / 100 / 1.5))
        kept = (np.arange(height)[::stride, None] * width + np.arange(width)[::stride]).ravel()
        ours = _blurred(view.picture[None], blur).reshape(-1, 3)[kept]
        slopes = _slopes(view, x, y, fx, fy, blur).reshape(6, -1, 3)[:, kept]
        chosen = points[:, kept]
        for _ in range(most):
            back = np.linalg.inv(away)
            seen = back[:3, :3] @ chosen + back[:3, 3:]
            z = np.maximum(seen[2], 1e-3)
            column, row = fx * seen[0] / z + cx, fy * seen[1] / z + cy
            inside = (seen[2] > 0.05) & (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            if inside.sum() < 0.3 * len(inside):
                return view.pose @ away, -1.0
            theirs = _sampled(frame, column[inside], row[inside])
            mine = ours[inside]
            a, b = mine - mine.mean(), theirs - theirs.mean()
            length = np.sqrt((a * a).sum())
            if length < 1e-3:  # the view is of one colour there, and says nothing
                return view.pose @ away, -1.0
            gain = length / max(np.sqrt((b * b).sum()), 1e-6)
            alike = float((a * b).sum() * gain / length**2)
            used = slopes[:, inside].reshape(6, -1)
            used = used - used.mean(axis=1, keepdims=True)
            a, b = a.ravel(), b.ravel()
            used = used - np.outer(used @ a / length**2, a)
            normal = used @ used.T
            normal[np.diag_indices(6)] *= 1.003
            normal[np.diag_indices(6)] += 1e-6
            step = _capped(np.linalg.solve(normal, used @ (b * gain - a)))
            away = _nudged(np.eye(4), step) @ away
            if np.abs(step).max() < 1e-3:
                break
    return view.pose @ away, alike


def _sampled(picture: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Colours `(n, 3)` between the pixels of a picture."""
    height, width = picture.shape[:2]
    left, top = (np.minimum(one.astype(np.int64), end - 2) for one, end in ((column, width), (row, height)))
    right, down = (column - left)[:, None].astype(np.float32), (row - top)[:, None].astype(np.float32)
    flat, at = picture.reshape(-1, picture.shape[2]), top * width + left
    upper = flat[at] * (1 - right) + flat[at + 1] * right
    lower = flat[at + width] * (1 - right) + flat[at + width + 1] * right
    return upper * (1 - down) + lower * down


def _slopes(view: _View, x: np.ndarray, y: np.ndarray, fx: float, fy: float, blur: float) -> np.ndarray:
    """How a view changes `(6, height, width, 3)` as its camera moves along its own axes and turns around them."""
    # An edge moves with what is in front.
    near = maximum_filter(1 / view.depth, 3)
    still = np.zeros_like(x)
    right = fx * np.stack([-near, still, x * near, x * y, -1 - x * x, y])
    down = fy * np.stack([still, -near, y * near, 1 + y * y, -x * y, -x])
    by_row, by_column = np.gradient(view.picture.astype(np.float32), axis=(0, 1))
    return _blurred(-(right[..., None] * by_column + down[..., None] * by_row), blur)


def _gone_on(before: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Where a camera comes to that goes on as it went from one pose to the next."""
    pose = np.eye(4)
    pose[:3, :3] = last[:3, :3] @ before[:3, :3].T @ last[:3, :3]
    pose[:3, 3] = 2 * last[:3, 3] - before[:3, 3]
    return pose


def _small(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two poses are the same within 2 mm and a twentieth of a degree."""
    return bool(np.abs(one[:3, 3] - other[:3, 3]).max() < 2e-3 and np.abs(one[:3, :3] - other[:3, :3]).max() < 1e-3)


def _nudged(pose: np.ndarray, step: np.ndarray) -> np.ndarray:
    """A pose moved by `step[:3]` in its own axes and turned by the rotation vector `step[3:]`."""
    from scipy.spatial.transform import Rotation

    nudge = np.eye(4)
    nudge[:3, :3], nudge[:3, 3] = Rotation.from_rotvec(step[3:]).as_matrix(), step[:3]
    return pose @ nudge


def _capped(step: np.ndarray) -> np.ndarray:
    """At most 0.4 units and 0.25 radians at a time: farther than that the derivatives mean nothing."""
    sizes = np.array([np.linalg.norm(step[:3]) / 0.4, np.linalg.norm(step[3:]) / 0.25, 1.0])
    return step / sizes.max()


def _ahead(view: _View, intrinsics: np.ndarray) -> np.ndarray:
    """Where the pixels of a view lie from its camera, `(height, width, 3)`."""
    x, y = _rays(view.depth.shape, _camera(intrinsics))
    depth = np.minimum(view.depth, 1e3)
    return np.stack([x * depth, y * depth, depth], axis=-1)


def _surface(view: _View, intrinsics: np.ndarray) -> np.ndarray:
    """Where they lie in the scene."""
    return _ahead(view, intrinsics) @ view.pose[:3, :3].T + view.pose[:3, 3]


def _displacement(frame: np.ndarray, view: _View, intrinsics: np.ndarray, size: float) -> float:
    ours, theirs = _blurred(np.stack([frame, view.picture]), BLURS[-1])
    return displacement(ours, theirs, _surface(view, intrinsics), size)


def _compare(frame: np.ndarray, view: np.ndarray) -> Sightings:
    """Patches of a twelfth of the height: seen where the pictures differ by less than half of what the rendered patch
    differs from a picture of one colour."""
    side = max(3, frame.shape[0] // 12)
    rows, columns = (length // side for length in view.shape[:2])

    def patches(differences: np.ndarray) -> np.ndarray:
        whole = np.abs(differences[: rows * side, : columns * side]).reshape(rows, side, columns, side, 3)
        return whole.mean(axis=(1, 3, 4)).ravel()

    ours, theirs = frame.astype(np.float32), view.astype(np.float32)
    seen = patches(ours - theirs) < 0.5 * patches(theirs - theirs.mean(axis=(0, 1)))
    top, left = np.mgrid[0:rows, 0:columns] * side + side / 2
    return Sightings(np.stack([left.ravel(), top.ravel()], axis=1), seen)
