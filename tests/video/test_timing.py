"""A movement is the same whatever its file leaves out: frames are repeated by their time stamps, at the own rate."""

import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from video_files import CODECS, clip, encode, shown_frames, trimmed

from spatialalign_trl.scenes import load_posed_video
from spatialalign_trl.video import read_fps, read_timed_video
from spatialalign_trl.video.timing import find_timing

RATES = [8, 16, 24, 25, 30, 60, Fraction(24000, 1001), Fraction(30000, 1001)]

# ------------------------------------------------------------------------------------------------------------ stamps


def steps_and_stamps(rate, places, tick):
    """Exact time stamps of frames on a grid, as a container with this tick writes them."""
    return [float(round(place / rate / tick) * tick) for place in places]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("tick", [Fraction(1, 90000), Fraction(1, 1000), Fraction(1, 100)])
def test_a_constant_rate_changes_nothing(rate, tick):
    if rate * tick > Fraction(1, 2):  # 60 frames a second do not fit into hundredths
        pytest.skip("the container cannot hold this rate")
    times = steps_and_stamps(rate, range(81), tick)
    timing = find_timing(times, times[-1] + float(1 / Fraction(rate)), [])
    assert timing.indices is None
    assert timing.fps == pytest.approx(float(rate), rel=0.01)
    assert find_timing(times, None, [float(rate)]).fps == float(rate)


@given(
    rate=st.sampled_from(RATES[:5]),
    holds=st.lists(st.integers(1, 6), min_size=12, max_size=60).filter(lambda holds: holds[:-1].count(1) > 5),
)
def test_left_out_frames_come_back(rate, holds):
    places = np.cumsum([0, *holds[:-1]])
    end = float(sum(holds) / Fraction(rate))
    timing = find_timing(steps_and_stamps(rate, places.tolist(), Fraction(1, 1000)), end, [])
    expected = np.repeat(np.arange(len(holds)), holds)
    found = np.arange(len(holds)) if timing.indices is None else timing.indices
    assert found.tolist() == expected.tolist()
    assert timing.fps == pytest.approx(float(rate), rel=0.01)


@given(steps=st.lists(st.floats(0.005, 0.4), min_size=1, max_size=60), hold=st.floats(0, 2))
def test_frames_are_shown_at_their_time_whatever_it_is(steps, hold):
    times = np.concatenate([[0.0], np.cumsum(steps)])
    timing = find_timing(times.tolist(), float(times[-1] + hold), [])
    indices = np.arange(len(times)) if timing.indices is None else timing.indices
    assert (np.diff(indices) >= 0).all() and indices[0] == 0 and indices.max() < len(times)
    middles = (np.arange(len(indices)) + 0.5) / timing.fps
    shown_since = times[indices]
    # A frame is shown from its stamp on; stamps may be off by the jitter that counts as none.
    assert (shown_since <= middles + 1.0 / timing.fps).all()
    assert len(indices) >= (times[-1] * timing.fps) * 0.9


@given(seed=st.integers(0, 1000))
def test_a_cameras_jitter_is_none(seed):
    jitter = np.random.default_rng(seed).uniform(-0.15, 0.15, 90)
    times = (np.arange(90) + jitter) / 30
    assert find_timing(times.tolist(), None, []).indices is None


@pytest.mark.parametrize("times", [None, [], [0.0], [0.0, 0.1, 0.1, 0.2], [0.0, 0.2, 0.1]])
def test_without_usable_stamps_the_frames_are_taken_as_they_are(times):
    timing = find_timing(times, None, [12.0])
    assert timing.indices is None and timing.fps == 12.0
    assert find_timing(times, None, []).fps == 16.0


def test_the_two_halves_of_a_change_of_rate_last_as_long_as_they_do():
    times = [k / 24 for k in range(24)] + [1 + k / 48 for k in range(48)]
    timing = find_timing(times, 2.0, [])
    halves = [np.count_nonzero(timing.indices < 24), np.count_nonzero(timing.indices >= 24)]
    assert halves[0] == pytest.approx(halves[1], abs=1)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("rate", [8, 25])
def test_each_files_own_rate_is_found(kind, rate):
    data = encode(clip(), kind, rate)
    assert read_timed_video(data).fps == pytest.approx(rate, rel=0.01)
    assert read_fps(data) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("kind", [kind for kind in CODECS if kind != "avi"])
def test_merged_frames_are_shown_as_long_as_they_last(kind):
    places = [0, 1, 2, 5, 6, 7, 12, 13, 14, 15, 16]
    timed = read_timed_video(encode(clip(11), kind, 8, places=places))
    expected = [int(np.searchsorted(places, step, side="right")) - 1 for step in range(17)]
    assert shown_frames(timed.video, clip(11)) == expected
    assert timed.fps == pytest.approx(8, rel=0.01)


@pytest.mark.parametrize("kind", ["mp4", "mov", "hevc", "webm", "mkv", "gif"])
def test_the_last_frame_is_shown_until_its_end(kind):
    timed = read_timed_video(encode(clip(9), kind, places=[0, 1, 2, 5, 6, 7, 8, 9, 10], end=16))
    assert shown_frames(timed.video, clip(9)) == [0, 1, 2, 2, 2, 3, 4, 5, 6, 7, *[8] * 6]


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
@given(steps=st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 6]), min_size=8, max_size=16), frames=st.sampled_from("023"))
@settings(max_examples=25)
def test_the_order_of_decoding_adds_no_frames(kind, steps, frames):
    """An mp4 says how long each packet is the last one decoded, which with B-frames is not how long it is shown."""
    places = np.cumsum([0, *steps]).tolist()
    video = clip(len(places))
    timed = read_timed_video(encode(video, kind, places=places, options={"bf": frames}))
    scale = round(8 / timed.fps)  # frames that are all two steps apart are at half the rate
    expected = [int(np.searchsorted(places, k * scale, side="right")) - 1 for k in range(places[-1] // scale + 1)]
    assert shown_frames(timed.video, video) == expected


@pytest.mark.parametrize("still", [1, 4])
def test_a_gif_whose_last_frames_are_equal_keeps_its_end(still):
    """Pillow merges equal frames into one with a longer duration."""
    video = clip()
    pictures = [Image.fromarray(frame) for frame in [*video, *[video[-1]] * (still - 1)]]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=120)
    assert shown_frames(read_timed_video(buffer.getvalue()).video, video) == [*range(17), *[16] * (still - 1)]


def test_cameras_belong_to_the_frames_that_a_trimmed_recording_shows(tmp_path):
    (tmp_path / "r.mp4").write_bytes(trimmed(encode(clip(), options={"g": "30"}), 4, 9, rate=8))
    camera = "1 1 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"
    for count in (9, 5):  # every frame has a camera; every other one
        stamps = range(0, 9 * 125000, 125000 * (9 // count) if count == 9 else 250000)
        (tmp_path / "r.txt").write_text("".join(f"{stamp} {camera}\n" for stamp in stamps))
        recording = load_posed_video(tmp_path / "r.txt")
        shown = shown_frames(recording.frames(range(count)), clip())
        assert shown == [4 + stamp // 125000 for stamp in stamps]
