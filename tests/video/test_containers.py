"""The content of a file decides how it is read, so only videos are opened, no other file through them, and by name."""

import io
import os
import socket
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image
from video_files import clip, encode, shown_frames

from spatialalign_trl.scenes import load_posed_video
from spatialalign_trl.video import (
    MissingVideoError,
    VideoError,
    browser_mp4_of,
    check_video_file,
    frames_of,
    read_fps,
    read_video,
)

READERS = [read_video, read_fps, lambda path: browser_mp4_of(path.read_bytes()), lambda path: frames_of(path, "row 3")]


def picture(image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(clip(1)[0]).save(buffer, image_format, **options)
    return buffer.getvalue()


def audio(container_format: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=48000)
        stream.layout = "mono"
        for part in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, part * 1024
            for resampled in av.AudioResampler(stream.format.name, "mono", 48000).resample(frame):
                container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return buffer.getvalue()


KINDS = {
    "empty": (b"", "an empty file"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page"),
    "html without doctype": (b"<HTML><head></head></HTML>" * 20, "an HTML page"),
    "error of a bucket": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a text file"),
    "json": (b'{"error": "not found"}', "a text file"),
    "m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nprivate.ts\n#EXT-X-ENDLIST\n", "a playlist"),
    "ffconcat": (b"ffconcat version 1.0\nfile private.ts\n", "a list of files"),
    "concat without a header": (b"file 'private.ts'\n", "a text file"),
    "dash": (b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "a playlist"),
    "sdp": (
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n",
        "a session description",
    ),
    "webp": (picture("WEBP"), "a WebP picture"),
    "animated webp": (
        picture("WEBP", save_all=True, append_images=[Image.fromarray(f) for f in clip(4)]),
        "a WebP picture",
    ),
    "png": (picture("PNG"), "a PNG picture"),
    "jpeg": (picture("JPEG"), "a JPEG picture"),
    "bmp": (picture("BMP"), "a BMP picture"),
    "mp3": (audio("mp3", "libmp3lame"), "an audio file"),
    "wav": (audio("wav", "pcm_s16le"), "an audio file"),
    "flac": (audio("flac", "flac"), "an audio file"),
    "aac": (audio("adts", "aac"), "an audio file"),
    "m4a": (audio("mp4", "aac"), "no video stream.*an audio file"),
    "opus": (audio("ogg", "libopus"), "no video stream.*an audio file"),
    "zip": (b"PK\3\4" + bytes(200), "a ZIP archive"),
    "zeros": (bytes(5000), "Invalid data"),
    "noise": (np.random.default_rng(0).bytes(5000), "Invalid data"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".sdp"])
def test_what_is_no_video_is_named_by_every_reader(tmp_path, name, suffix):
    content, kind = KINDS[name]
    file = tmp_path / f"clip{suffix}"
    file.write_bytes(content)
    (tmp_path / "private.ts").write_bytes(encode(clip(), "ts"))
    start = time.monotonic()
    with pytest.raises(VideoError, match=rf"clip{suffix} is not a readable video: .*{kind}" if content else kind):
        read_video(file)
    for read in READERS:
        with pytest.raises(VideoError if read in READERS[:3] else ValueError, match=kind):
            read(file)
    with pytest.raises(VideoError, match="it is not a video file"):
        check_video_file(content, "it")
    assert time.monotonic() - start < 10, "it waited for something"


@pytest.mark.parametrize("content", [KINDS[name][0] for name in ("sdp", "ffconcat", "m3u8", "dash")])
def test_frames_of_a_recording_name_no_other_file_either(tmp_path, content):
    (tmp_path / "private.ts").write_bytes(encode(clip(), "ts"))
    (tmp_path / "r.mp4").write_bytes(content)
    (tmp_path / "r.txt").write_text("0 1 1 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0\n")
    with pytest.raises(VideoError, match="r.mp4 is not a readable video: it is a"):
        load_posed_video(tmp_path / "r.txt")


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n"])
def test_no_address_is_asked(tmp_path, content):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.5)

        def answer():
            try:
                asked.append(server.accept())
            except OSError:
                pass

        thread = threading.Thread(target=answer)
        thread.start()
        for name in (f"tcp:127.0.0.1:{port}", "list.mp4"):
            (tmp_path / name).write_bytes(content.replace(b"{port}", str(port).encode()))
            with pytest.raises(VideoError):
                read_video(tmp_path / name)
        thread.join()
    assert not asked


@pytest.mark.parametrize(
    "name",
    ["a:b.mp4", "http:x.mp4", "file:x.mp4", "concat:a|b.mp4", "data:,x.mp4", "pipe:0", "%d.mp4", "%03d.mp4", "-i.mp4",
     "ä ö.mp4", "e\u0301.mp4", "two\nlines.mp4", "no suffix", "x.m3u8", "x.png", "x.txt", "x.sdp", "[1].mp4", "~.mp4"],
)  # fmt: skip
def test_a_name_is_a_path_whatever_it_looks_like(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(name, "wb") as file:
        file.write(encode(clip(5)))
    for path in (name, tmp_path / name):
        assert len(read_video(path)) == 5
        assert read_fps(path) == 8


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, what in {
        "none.mp4": "there is no such video file",
        "link.mp4": r"there is no such video file \(it is a link to .*gone.mp4\)",
        "pipe.mp4": "it is not a file",
        ".": "it is not a file",
    }.items():
        with pytest.raises(MissingVideoError, match=what) as caught:
            read_video(tmp_path / name)
        assert isinstance(caught.value, VideoError) and isinstance(caught.value, FileNotFoundError)


def test_metadata_in_another_encoding_is_no_obstacle():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["title"] = "TITLEx"
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 144, 192, "yuv420p"
        for frame in clip(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    latin = buffer.getvalue().replace(b"TITLEx", b"TITL\xc9x")
    assert latin != buffer.getvalue() and len(read_video(latin)) == 3


# ------------------------------------------------------------------------------------------------ which of the streams


def with_streams(container_format: str, *tracks: tuple[np.ndarray, str, bool]) -> bytes:
    """A file of several streams, each of frames, an encoder, and whether it is the file's cover."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        streams = []
        for video, codec, is_cover in tracks:
            stream = container.add_stream(codec, rate=8)
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
            if is_cover:
                stream.disposition = av.stream.Disposition.attached_pic
            streams.append(stream)
        for stream, (video, _, _) in zip(streams, tracks, strict=True):
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return buffer.getvalue()


COVER = (np.full((1, 432, 576, 3), 90, np.uint8), "mjpeg", True)
PICTURE = (COVER[0], "mjpeg", False)
PREVIEW = (clip()[:, ::4, ::4], "libx264", False)
SLIDES = (np.full((3, 432, 576, 3), 90, np.uint8), "libx264", False)
MOVIE = (clip(), "libx264", False)


@pytest.mark.parametrize("container_format", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("other", [COVER, PICTURE, PREVIEW, SLIDES], ids=["cover", "picture", "preview", "slides"])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_movie_is_read_whatever_lies_beside_it(container_format, other, is_first):
    data = with_streams(container_format, *((other, MOVIE) if is_first else (MOVIE, other)))
    assert shown_frames(read_video(data), clip()) == list(range(17))
    page = browser_mp4_of(data, min_height=1)
    assert shown_frames(read_video(page), clip()) == list(range(17))
    with av.open(io.BytesIO(page)) as container:
        assert (len(container.streams.video) == 1) or other is COVER


def test_a_cover_alone_is_no_video():
    with pytest.raises(VideoError, match="no video stream"):
        read_video(with_streams("mp4", COVER))


def test_of_two_equal_streams_the_first_is_read():
    other = (clip()[::-1], "libx264", False)
    assert shown_frames(read_video(with_streams("mp4", MOVIE, other)), clip()) == list(range(17))


def test_frames_of_two_sizes_are_refused():
    def raw(video):
        return with_streams("h264", (video, "libx264", False))

    assert len(read_video(raw(clip()))) == 17
    with pytest.raises(VideoError, match="its size changes, frame 17 is 48x36, the first one 192x144"):
        read_video(raw(clip()) + raw(clip()[:, ::4, ::4]))


@pytest.mark.parametrize("kind", ["mp4", "mov", "webm", "mkv"])
def test_a_damaged_header_is_refused_as_any_damage(kind):
    data = encode(clip(), kind)
    if kind in ("mp4", "mov"):  # broken off inside the header, which is at the end here
        start, end = data.find(b"moov") - 4, len(data)
        parts = [data[:8] + data[start:cut] for cut in range(start + 20, end, 37)]
        parts.append(data.replace(b"avc1", b"none"))
    else:
        at = data.find(b"V_")
        parts = [data[: at + 2] + b"NONE" + data[at + 6 :], *(data[:cut] for cut in range(8, at + 40, 9))]
    for part in parts:
        for read in (read_video, read_fps, browser_mp4_of, lambda content: check_video_file(content, "it")):
            with pytest.raises(VideoError):
                read(part)
