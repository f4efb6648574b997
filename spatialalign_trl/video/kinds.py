"""Say what a file is that is no video, from its first bytes."""

from __future__ import annotations

HEAD_BYTES = 4096
"""Number of bytes at the start of a file that [`other_kind`] looks at."""

_PICTURE = "Make a video of it, such as an mp4"
_ARCHIVE = "Unpack it"
_AUDIO = "an audio file without a video"
_LIST = "which names other files and is not opened. Give the video itself"

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the video that it stands for. Run `git lfs pull`"),
    (b"#EXTM3U", f"a playlist (m3u8), {_LIST}"),
    (b"ffconcat version", f"a list of files (ffconcat), {_LIST}"),
    (b"[playlist]", f"a playlist, {_LIST}"),
    (b"v=0", f"a session description (SDP), {_LIST}"),
    (b"ID3", _AUDIO),
    (b"fLaC", _AUDIO),
    (b"\xff\xfb", _AUDIO),
    (b"\xff\xf1", _AUDIO),
    (b"\xff\xd8\xff", f"a JPEG picture. {_PICTURE}"),
    (b"BM", f"a BMP picture. {_PICTURE}"),
    (b"II*\0", f"a TIFF picture. {_PICTURE}"),
    (b"MM\0*", f"a TIFF picture. {_PICTURE}"),
    (b"PK\3\4", f"a ZIP archive. {_ARCHIVE}"),
    (b"\x1f\x8b", f"a gzip archive. {_ARCHIVE}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive. {_ARCHIVE}"),
    (b"Rar!", f"a RAR archive. {_ARCHIVE}"),
    (b"%PDF", "a PDF document"),
    (b"\x93NUMPY", "a NumPy array. Write it as a video, for example with `write_video`"),
)
_RIFF = {b"WEBP": f"a WebP picture. {_PICTURE}, or a GIF", b"WAVE": _AUDIO}
_BRANDS = {b"avif": "an AVIF picture", b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"mif1": "a HEIF picture"}


def other_kind(head: bytes) -> str | None:
    """
    Return what a file is if it is known not to be a video.

    Args:
        head (`bytes`):
            The first `HEAD_BYTES` of the file.

    Returns:
        `str`, *optional*: such as `"a Git LFS pointer, ..."`, with the remedy; `None` if it may be a video.
    """
    if not head:
        return "an empty file. Download or make it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, kind in _SIGNATURES:
        if text.startswith(signature) or head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return f"{_BRANDS[head[8:12]]}. {_PICTURE}"
    if head.startswith(b"\x89PNG") and b"acTL" not in head:
        return f"a PNG picture. {_PICTURE}"
    return _kind_of_text(text, head)


def _kind_of_text(text: bytes, head: bytes) -> str | None:
    """Return which kind of text a file is, if it is one. No container starts with 64 printable bytes."""
    if text[:64].lower().startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return "an HTML page, probably of a login or an error. Download the video again"
    if text.startswith(b"<MPD") or b"<MPD" in head:
        return f"a playlist (DASH), {_LIST}"
    printable = all(byte in b"\t\n\r\f" or 32 <= byte < 127 or byte >= 128 for byte in head[:64])
    if printable and b"\0" not in head and not head.startswith(b"YUV4MPEG2"):
        return "a text file, not a video. Download or make it again"
    return None
