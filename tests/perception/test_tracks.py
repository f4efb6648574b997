"""Finding a tracker, and the shape of what it returns."""

import sys

import numpy as np
import pytest

from spatialalign_trl.perception.tracks import TRACKERS, FrameBoxes, Tracker, Tracks, get_tracker


class SilentTracker:
    name = "silent"

    def track(self, videos, *, animal, object, attribute=None):
        return [Tracks([], num_frames=len(video)) for video in videos]


def test_tracks_iterate_over_their_frames():
    frames = [FrameBoxes(3, ("fox",), np.zeros((1, 4)))]
    tracks = Tracks(frames, num_frames=9)
    assert list(tracks) == frames
    assert len(tracks) == 1
    assert tracks.reason is None


def test_an_object_is_used_as_it_is():
    tracker = SilentTracker()
    assert get_tracker(tracker) is tracker
    assert isinstance(tracker, Tracker)


def test_a_name_is_looked_up_and_imported_on_first_use(tmp_path, monkeypatch):
    (tmp_path / "lazy_tracker.py").write_text("class Lazy:\n    name = 'lazy'\n    def track(self): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "lazy", "lazy_tracker:Lazy")
    assert "lazy_tracker" not in sys.modules
    assert get_tracker("lazy").name == "lazy"


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="'colour_segmentation'. Did you mean 'color_segmentation'"):
        get_tracker("colour_segmentation")


@pytest.mark.parametrize(
    ("wrong", "message"), [(SilentTracker, r"pass SilentTracker\(\)"), (object(), "method track")]
)
def test_what_cannot_track_is_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        get_tracker(wrong)
