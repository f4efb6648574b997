"""What a file decodes to is limited, and known before memory is taken for it."""

import base64
import io
import resource
import subprocess
import sys

import av
import pytest
from video_files import clip, encode

from spatialalign_trl.cli import main
from spatialalign_trl.rewards.remote import request_body
from spatialalign_trl.rewards.server import RewardServer, read_request
from spatialalign_trl.video import (
    MAX_PIXELS,
    VideoError,
    browser_mp4_of,
    encode_video,
    max_pixels,
    read_fps,
    read_video,
)

PIXELS = clip().size // 3


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Black frames of 4096x4096, all but the first one nothing but "as before": 3.9 GB in some hundred kilobytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height = stream.width = 4096
        stream.pix_fmt = "yuv420p"
        black = av.VideoFrame(4096, 4096, "yuv420p")
        for plane in black.planes:
            plane.update(bytes(plane.buffer_size))
        packets = []
        for number in range(2):
            black.pts = number
            packets += stream.encode(black)
        for number in range(80):
            packet = av.Packet(bytes(packets[min(number, 1)]))
            packet.stream, packet.time_base = stream, stream.codec_context.time_base
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            container.mux(packet)
    return buffer.getvalue()


def test_the_limit_is_well_above_any_video_models_output(monkeypatch):
    monkeypatch.delenv("SPATIALALIGN_MAX_PIXELS", raising=False)
    assert max_pixels() == MAX_PIXELS > 8 * 129 * 720 * 1280


def test_a_setting_changes_it(monkeypatch):
    data = encode(clip())
    for limit in (PIXELS, PIXELS + 1):
        monkeypatch.setenv("SPATIALALIGN_MAX_PIXELS", str(limit))
        assert read_video(data).size == 3 * PIXELS
    monkeypatch.setenv("SPATIALALIGN_MAX_PIXELS", str(PIXELS - 1))
    message = rf"17 frames of 192x144, {PIXELS} pixels in all, but the limit is {PIXELS - 1}.*SPATIALALIGN_MAX_PIXELS"
    for read in (read_video, read_fps, browser_mp4_of):
        with pytest.raises(VideoError, match=message):
            read(data)


@pytest.mark.parametrize("text", ["0", "-5", "1e9", "many"])
def test_a_setting_that_is_no_number_is_named(monkeypatch, text):
    monkeypatch.setenv("SPATIALALIGN_MAX_PIXELS", text)
    with pytest.raises(ValueError, match=f"SPATIALALIGN_MAX_PIXELS='{text}': must be a whole number above 0"):
        read_video(encode(clip()))


def test_a_command_refuses_a_wrong_setting_before_it_starts(monkeypatch, capsys):
    monkeypatch.setenv("SPATIALALIGN_MAX_PIXELS", "2 GB")
    with pytest.raises(SystemExit, match="2"):
        main(["score", "cat.mp4", "--prompt", "p"])
    assert "SPATIALALIGN_MAX_PIXELS='2 GB': must be a whole number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["mkv", "gif", "mp4"])
def test_frames_that_a_long_pause_would_repeat_count_too(kind, monkeypatch):
    data = encode(clip(5), kind, places=[0, 1, 2, 3, 4000])
    monkeypatch.setenv("SPATIALALIGN_MAX_PIXELS", str(2000 * 144 * 192))
    for read in (read_video, read_fps):
        with pytest.raises(VideoError, match=r"decodes to (39|40)\d\d frames"):
            read(data)


PROGRAM = """\
import resource, sys
from spatialalign_trl.video import VideoError, read_video
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_video(sys.argv[1])
except VideoError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


def test_a_bomb_takes_no_memory(bomb, tmp_path):
    (tmp_path / "bomb.mp4").write_bytes(bomb)
    command = [sys.executable, "-c", PROGRAM, tmp_path / "bomb.mp4"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "the limit is" in answer
    assert int(answer.split()[0]) < 300, "megabytes"


def test_the_server_refuses_it_too(bomb):
    request = {"prompts": ["p"], "videos": [base64.b64encode(bomb).decode()], "columns": {}}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"videos\[0\].*(bytes of pixels|the limit is)"):
        read_request(request)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


def test_the_server_tells_rewards_each_files_rate():
    received = []

    def reward(prompts, completions, fps=None, **columns):
        received.append(fps)
        return [1.0] * len(prompts)

    videos = [base64.b64encode(encode_video(clip(), fps)).decode() for fps in (8, 24)]
    server = RewardServer(reward, port=0)
    try:
        server.score({"prompts": ["p", "q"], "videos": videos, "columns": {}})
        server.score({"prompts": ["p", "q"], "videos": videos, "columns": {"fps": [5, 6]}})
    finally:
        server.server_close()
    assert received == [[8.0, 24.0], [5, 6]]
    assert request_body(["p"], [clip()], {}, [8]) != request_body(["p"], [clip()], {}, [24])
