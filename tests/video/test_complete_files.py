"""A file that broke off is refused wherever it broke off, and a complete one is read whatever it hides or repeats."""

import io
import os
from functools import cache

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_files import CODECS, FRAMES, clip, encode, shown_frames, trimmed

from spatialalign_trl.video import VideoError, check_video_file, read_fps, read_timed_video, read_video

FASTSTART = "faststart"
VARIANTS = {
    "mp4": {},
    FASTSTART: {"muxer": {"movflags": "+faststart"}},
    "fragmented": {"muxer": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "4"}},
    "mov": {},
    "webm": {},
    "mkv": {},
    "live mkv": {"muxer": {"live": "1"}},
    "gif": {},
    "apng": {},
    "hevc": {},
    "prores": {},
    "vp8": {"options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
}
AT_A_BOUNDARY = {"fragmented": 3}
"""Cuts between two fragments leave a file that is complete as far as anybody can tell; at most so many."""


@cache
def made(name: str) -> bytes:
    """A complete file."""
    kind = {FASTSTART: "mp4", "fragmented": "mp4", "live mkv": "mkv"}.get(name, name)
    if name == FASTSTART:  # FFmpeg moves the header only in a file with a name
        return faststart(encode(clip(), kind))
    return encode(clip(), kind, **VARIANTS[name])


def faststart(data: bytes) -> bytes:
    """Move the header of an mp4 before its data."""
    boxes, at = {}, 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        boxes[data[at + 4 : at + 8]] = data[at : at + length]
        at += length
    moov = bytearray(boxes[b"moov"])
    table = moov.find(b"stco") + 8
    for entry in range(int.from_bytes(moov[table : table + 4], "big")):
        place = table + 4 + 4 * entry
        moov[place : place + 4] = (int.from_bytes(moov[place : place + 4], "big") + len(moov)).to_bytes(4, "big")
    others = [box for name, box in boxes.items() if name not in (b"ftyp", b"moov")]
    return b"".join([boxes[b"ftyp"], bytes(moov), *others])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_that_broke_off_is_refused_wherever_it_did(name):
    data = made(name)
    assert shown_frames(read_video(data), clip()) == list(range(FRAMES))
    step = max(1, len(data) // 150)
    cuts = sorted({*range(step, len(data), step), *range(len(data) - 40, len(data))})
    read = []
    for cut in cuts:
        try:
            read_video(data[:cut])
        except VideoError:
            continue
        read.append(cut)
    assert len(read) <= AT_A_BOUNDARY.get(name, 0), f"of {len(data)} bytes, {read} were read as if they were all"


@pytest.mark.parametrize("name", ["mp4", FASTSTART, "webm", "mkv"])
@given(share=st.floats(0.001, 0.999))
def test_no_reader_takes_a_part_for_the_whole(name, share):
    part = made(name)[: int(len(made(name)) * share)]
    for read in (read_video, read_timed_video, read_fps, lambda data: check_video_file(data, "it")):
        with pytest.raises(VideoError):
            read(part)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.webm"])
def test_the_message_names_the_file_and_the_remedy(tmp_path, name):
    data = encode(clip(), name[4:])
    (tmp_path / name).write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(
        VideoError, match=rf"{name} is not a readable video: it is truncated.*Download or make it again"
    ):
        read_video(tmp_path / name)


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize(("first", "count"), [(0, 10), (3, 10), (9, 8), (16, 1)])
def test_a_losslessly_trimmed_file_is_complete_and_shows_its_part(kind, first, count):
    data = trimmed(encode(clip(), kind), first, count, rate=8)
    assert shown_frames(read_video(data), clip()) == list(range(first, first + count))
    for cut in range(len(data) // 10, len(data), len(data) // 10):
        with pytest.raises(VideoError):
            read_video(data[:cut])


@pytest.mark.parametrize("kind", CODECS)
def test_a_variable_frame_rate_is_no_sign_of_loss(kind):
    places = [0, 1, 3, 4, 9, 10, 11, 12, 20]
    video = read_video(encode(clip(9), kind, places=places))
    expected = [int(np.searchsorted(places, step, side="right")) - 1 for step in range(20)]
    assert shown_frames(video, clip(9))[:20] == expected


@pytest.mark.parametrize("kind", CODECS)
def test_the_pixels_of_a_plain_file_are_the_decoders(kind):
    """What a reader does for other files changes nothing in plain ones."""
    data = encode(clip(), kind)
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.reformat(format="rgb24").to_ndarray() for frame in container.decode(video=0)]
    np.testing.assert_array_equal(read_video(data), np.stack(frames))


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv", "gif", "hevc", "avi"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_a_part_that_was_never_written_is_noticed(kind, share):
    """A download that reserved the space of the file first ends in zeros."""
    data = encode(clip(), kind)
    start = data.find(b"mdat") + 4 if kind in ("mp4", "hevc") else 0
    end = data.find(b"moov") - 4 if kind in ("mp4", "hevc") else len(data)
    lost = start + int((end - start) * share)
    with pytest.raises(VideoError):
        read_video(data[:lost] + bytes(end - lost) + data[end:])


def test_joined_transport_streams_are_complete():
    data = encode(clip(), "ts")
    assert len(read_video(data + data)) == 2 * FRAMES
    with pytest.raises(VideoError, match="ends inside a packet"):
        read_video(data[:-100])


@pytest.mark.parametrize("cores", [1, 4])
def test_the_number_of_cores_does_not_matter(cores, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    with pytest.raises(VideoError):
        read_video(made("mp4")[:-300])
