"""Make a video of a camera that walks up to an object in a room, and videos that only pretend to: reward hacks."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import cv2
import numpy as np

from spatialalign_trl.perception.detections import Detections
from spatialalign_trl.tiny_world.rooms import Room, RoomObject, intrinsics_for, look, render, sample_room
from spatialalign_trl.video import Video

SIZE = (240, 416)
FRAMES = 13
FIRST_SEED = 2_000_000


def walk(target: RoomObject, share: float) -> np.ndarray:
    """Return a pose on a turning path across the room, to an object at the north wall that is out of view at first."""
    x, z = target.centre[0] + 2.2 - 2.0 * share, target.centre[2] - 4.2 + 1.8 * share
    return look((x, -1.4, z), -85 + 80 * min(1.15 * share, 1.0), -4 - 8 * share)


def recording(target: RoomObject, share: float) -> np.ndarray:
    """Return a pose of the context recording, which shows that half of the room."""
    x, z = target.centre[0] + 2.0 - 1.6 * share, target.centre[2] - 4.9 + 2.0 * share
    return look((x, -1.4 - 0.1 * np.sin(6 * share), z), -80 + 82 * share, -8)


def find_room() -> tuple[Room, RoomObject]:
    """Return the first room with a bookshelf at the north wall and space for the two paths, and the bookshelf."""
    for seed in range(FIRST_SEED, FIRST_SEED + 200):
        room = sample_room(seed)
        for target in room.objects:
            if target.kind != "bookshelf" or room.layout.half[1] - target.centre[2] > 0.4:
                continue
            poses = [path(target, share) for path in (walk, recording) for share in np.linspace(0, 1, 9)]
            if room.clearance(np.array(poses)[:, :3, 3]).min() > 0.25:
                return room, target
    raise RuntimeError("No room has a bookshelf at its north wall. Choose another target.")


@dataclass
class Case:
    """A video with its name, and the boxes of everything that looks like the target on its last frames."""

    name: str
    video: Video
    boxes: list[np.ndarray | None]


@dataclass
class World:
    """The row that all cases respond to, and the cases: `correct` and the hacks."""

    room: Room
    row: dict
    cases: dict[str, Case]
    walk_poses: np.ndarray


def build_world() -> World:
    """Render all cases. This takes a few seconds."""
    room, target = find_room()
    intrinsics = intrinsics_for(SIZE)
    dense = np.stack([walk(target, share) for share in np.linspace(0, 1, 2 * FRAMES - 1)])
    rendering = render(room, dense, SIZE)
    index = room.objects.index(target)
    context_poses = np.stack([recording(target, share) for share in np.linspace(0, 1, 12)])
    row = {
        "context": render(room, context_poses, SIZE).frames,
        "context_poses": context_poses,
        "camera_poses": dense[::2],
        "intrinsics": intrinsics,
        "object": target.name,
    }
    other = render(sample_room(room.seed + 1), dense[::4], SIZE).frames.repeat(2, axis=0)[:FRAMES]
    boxes = [None if np.isnan(box).any() else box for box in rendering.boxes[:, index]]

    def picked(frames: np.ndarray) -> tuple[Video, list]:
        return rendering.frames[frames], [boxes[k] for k in frames]

    correct, correct_boxes = picked(np.arange(0, 2 * FRAMES, 2))
    every = {"correct": (correct, correct_boxes)}
    every["static"] = picked(np.zeros(FRAMES, int))
    every["static at the target"] = picked(np.full(FRAMES, 2 * FRAMES - 2))
    every["freeze at half"] = picked(np.minimum(np.arange(0, 2 * FRAMES, 2), FRAMES - 1))
    every["half motion"] = picked(np.arange(FRAMES))
    every["mirrored"] = correct[:, :, ::-1].copy(), [_mirrored(box) for box in correct_boxes]
    every["reversed"] = correct[::-1].copy(), correct_boxes[::-1]
    every["jump cut"] = picked(np.r_[0 : FRAMES // 2, 2 * FRAMES - 1 - (FRAMES - FRAMES // 2) : 2 * FRAMES - 1])
    every["2-D zoom"] = _zoomed(rendering.frames[FRAMES - 1], boxes[FRAMES - 1])
    every["black"] = np.zeros_like(correct), [None] * FRAMES
    every["noise"] = np.random.default_rng(0).integers(0, 256, correct.shape, np.uint8), [None] * FRAMES
    every["target pasted in"] = _pasted(rendering.frames[:FRAMES], correct[-1], correct_boxes[-1])
    every["other room"] = other, correct_boxes
    cases = {name: Case(name, video, list(of)) for name, (video, of) in every.items()}
    return World(room, row, cases, dense[::2])


class PerfectDetector:
    """A detector that finds everything that looks like the target, genuine or not: the row contains the boxes."""

    def for_row(self, columns: dict) -> SimpleNamespace:
        """Return a detector that returns the row's boxes."""
        boxes = columns["boxes"]

        def detect(video: Video, names: list[str]) -> list[Detections]:
            return [
                Detections(np.zeros((0, 4)), np.zeros(0), ())
                if box is None
                else Detections(box[None].astype(float), np.array([0.9]), (names[0],))
                for box in boxes[-len(video) :]
            ]

        return SimpleNamespace(detect=detect)


def _mirrored(box: np.ndarray | None) -> np.ndarray | None:
    return None if box is None else np.array([SIZE[1] - box[2], box[1], SIZE[1] - box[0], box[3]])


def _zoomed(frame: np.ndarray, box: np.ndarray) -> tuple[Video, list]:
    """Make a video that zooms into one frame around the target."""
    height, width = SIZE
    frames, boxes = [], []
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    for zoom in np.linspace(1, 2.2, FRAMES):
        share = (zoom - 1) / 1.2
        centre = np.array([(1 - share) * width / 2 + share * x, (1 - share) * height / 2 + share * y])
        shift = np.array([width, height]) / 2 - zoom * centre
        matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
        frames.append(cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REFLECT))
        boxes.append(np.clip(zoom * box + np.tile(shift, 2), 0, [width, height, width, height]))
    return np.stack(frames), boxes


def _pasted(video: Video, frame: np.ndarray, box: np.ndarray) -> tuple[Video, list]:
    """Cut the target out of a frame that shows it, and paste it into the centre of every frame of another video."""
    x1, y1, x2, y2 = box.astype(int)
    cut = cv2.resize(frame[y1:y2, x1:x2], None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    top, left = (SIZE[0] - cut.shape[0]) // 2, (SIZE[1] - cut.shape[1]) // 2
    pasted = video.copy()
    pasted[:, top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return pasted, [np.array([left, top, left + cut.shape[1], top + cut.shape[0]])] * len(video)
