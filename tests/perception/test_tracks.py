"""Test the lookup of trackers, and the container of their results."""

import sys

import numpy as np
import pytest
from fresh_process import PROGRAMS

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
    assert tracks.nearness is None
    assert tracks.details == {}


def test_an_object_is_returned_unchanged():
    tracker = SilentTracker()
    assert get_tracker(tracker) is tracker
    assert isinstance(tracker, Tracker)


def test_a_name_is_looked_up_and_imported_on_first_use(tmp_path, monkeypatch):
    (tmp_path / "lazy_tracker.py").write_text("class Lazy:\n    name = 'lazy'\n    def track(self): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "lazy", "lazy_tracker:Lazy")
    assert "lazy_tracker" not in sys.modules
    assert get_tracker("lazy").name == "lazy"


def test_the_error_for_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="'colour_segmentation'. Did you mean 'color_segmentation'"):
        get_tracker("colour_segmentation")


@pytest.mark.parametrize(
    ("wrong", "message"), [(SilentTracker, r"pass SilentTracker\(\)"), (object(), "method track")]
)
def test_objects_that_cannot_track_are_refused(wrong, message):
    with pytest.raises(TypeError, match=message):
        get_tracker(wrong)


@pytest.fixture
def lazy_trackers(monkeypatch):
    monkeypatch.syspath_prepend(PROGRAMS)
    monkeypatch.setitem(TRACKERS, "lazy", "trackers_with_options:Lazy")
    monkeypatch.setitem(TRACKERS, "open", "trackers_with_options:Open")
    monkeypatch.setitem(TRACKERS, "grouped", "trackers_with_options:Grouped")


def test_options_reach_a_named_tracker(lazy_trackers):
    assert get_tracker("lazy", cache_dir="here").cache_dir == "here"
    assert get_tracker("open", anything=1).options == {"anything": 1}
    assert get_tracker("grouped", label_mode="span").detector == {"label_mode": "span"}


def test_the_error_for_an_unknown_option_suggests_the_nearest(lazy_trackers):
    with pytest.raises(TypeError, match="tracker 'lazy' has no option 'cache'. Did you mean 'cache_dir'"):
        get_tracker("lazy", cache="here")
    with pytest.raises(TypeError, match="tracker 'grouped' has no option 'detector'"):
        get_tracker("grouped", detector={})
    with pytest.raises(TypeError, match="'color_segmentation' has no option 'device'"):
        get_tracker("color_segmentation", device="cpu")


def test_options_are_refused_with_an_object():
    with pytest.raises(TypeError, match="options cache_dir, device are for a tracker given by name"):
        get_tracker(SilentTracker(), cache_dir="here", device="cpu")
