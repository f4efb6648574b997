"""Boxes of a fox that walks around a stump, for tests of DSR-Score."""

from __future__ import annotations

import numpy as np

from spatialalign_trl.perception.tracks import FrameBoxes

LABELS = ("fox", "stump")
STUMP = (100.0, 100.0, 120.0, 120.0)
# Centres of a 20 x 20 fox that is fully left of, right of, and on top of the stump (no overlap, exclusive).
PLACES = {"L": (60.0, 110.0), "R": (160.0, 110.0), "T": (110.0, 60.0)}


def box_at(center, size=20.0):
    """Return the square box around a centre."""
    x, y = center
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def frames_of(fox_boxes, stump=STUMP):
    """Return a frame for every box of the fox: (number, labels, boxes)."""
    return [(k, LABELS, np.array([fox, stump])) for k, fox in enumerate(fox_boxes)]


def walk(start, end, num_frames=24):
    """Return a straight walk that rests for the three frames at each end over which the score averages."""
    start, end = np.array(PLACES[start]), np.array(PLACES[end])
    times = np.clip((np.arange(num_frames) - 2) / max(num_frames - 5, 1), 0, 1)
    return frames_of([box_at(start + (end - start) * t) for t in times])


def frame_boxes(frames):
    """Return frames as a tracker returns them."""
    return [FrameBoxes(*frame) for frame in frames]
