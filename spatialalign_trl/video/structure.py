"""Check a file against the sizes that its own container announces, so that a download that broke off is noticed.

FFmpeg reads a file that breaks off as a shorter one, without an error. Most containers say how long they are: boxes
(mp4, mov), elements (mkv, webm), chunks (avi, apng), blocks up to a trailer (gif).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from spatialalign_trl.video.errors import unreadable

_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_RIFF_SLACK = 8
"""Bytes by which the sizes that avi writers announce may be too large."""


def check_structure(file: BinaryIO, name: str) -> bool:
    """
    Walk over the parts of a file, by the sizes in their headers.

    Args:
        file (binary file):
            The file, which can be searched.
        name (`str`):
            How the error calls it.

    Returns:
        `bool`: whether the container proves that nothing is missing. If not, it may be complete nevertheless.

    Raises:
        VideoError: if the file ends before its container does.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    for is_this, walk in _WALKS:
        if is_this(head):
            try:
                return walk(file, size)
            except EOFError as error:
                raise unreadable(name, f"it is truncated, {error}. Download or make it again") from error
    return False


def _take(file: BinaryIO, count: int, what: str) -> bytes:
    """Read bytes that must be there."""
    data = file.read(count)
    if len(data) < count:
        raise EOFError(f"it ends inside {what}")
    return data


def _walk_boxes(file: BinaryIO, size: int) -> bool:
    """Walk over the boxes of an mp4 or mov (ISO 14496-12, 4.2)."""
    position, last = 0, b""
    while position < size:
        file.seek(position)
        header = file.read(8)
        if not any(header):  # padding
            break
        if len(header) < 8:
            raise EOFError("it ends inside the header of a box")
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if not all(32 <= letter < 127 or letter == 0xA9 for letter in kind):
            break  # what follows the movie is of another program
        if length == 1:
            length = int.from_bytes(_take(file, 8, "the header of a box"), "big")
        elif length == 0:  # up to the end of the file, wherever that is
            return False
        if length < 8:
            break
        if position + length > size:
            raise EOFError(f"its box {kind.decode('latin-1')!r} ends at byte {position + length}, the file at {size}")
        position, last = position + length, kind
    if last in (b"moof", b"sidx", b"styp"):
        raise EOFError("its last fragment has no data")
    return False  # fragments may be missing: the samples are counted


def _walk_elements(file: BinaryIO, size: int) -> bool:
    """Walk over the elements of an mkv or webm (RFC 8794), into the segment and its clusters."""
    position, end, is_known = 0, size, False
    while position < end:
        file.seek(position)
        identity, _ = _variable_integer(file, keep_marker=True)
        length, is_unknown = _variable_integer(file)
        content = file.tell()
        if not is_unknown and content + length > size:
            raise EOFError(f"its element {identity:X} ends at byte {content + length}, the file at {size}")
        if identity == _SEGMENT:
            is_known = not is_unknown
            end = content + length if is_known else size
        elif identity not in (_EBML, _CLUSTER) and is_unknown:
            raise EOFError(f"its element {identity:X} has no size")
        position = content if identity in (_SEGMENT, _CLUSTER) else content + length
    return is_known


def _variable_integer(file: BinaryIO, keep_marker: bool = False) -> tuple[int, bool]:
    """Read an integer of 1 to 8 bytes, and whether all its bits are set, which means an unknown size."""
    first = _take(file, 1, "an element")[0]
    count = 9 - first.bit_length()
    if count > (4 if keep_marker else 8):
        raise EOFError(f"byte {file.tell() - 1} starts no element, so data was lost before it")
    rest = int.from_bytes(_take(file, count - 1, "an element"), "big")
    marker = 1 << (8 - count)
    value = ((first if keep_marker else first & (marker - 1)) << (8 * (count - 1))) | rest
    return value, not keep_marker and value == (1 << (7 * count)) - 1


def _walk_chunks(file: BinaryIO, size: int) -> bool:
    """Walk over the RIFF chunks of an avi."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        length = int.from_bytes(header[4:], "little")
        if length in (0, 0xFFFFFFFF):  # written by a program that did not know the length
            return False
        if position + 8 + length > size + _RIFF_SLACK:
            raise EOFError(f"its chunk ends at byte {position + 8 + length}, the file at {size}")
        position += 8 + length + length % 2
    return True  # the number of frames in the header counts those that were dropped


def _walk_transport(file: BinaryIO, size: int) -> bool:
    """Check that an MPEG transport stream (ISO 13818-1) ends with a whole packet."""
    file.seek(0)
    if file.read(189)[188:] == b"G" and size % 188:
        raise EOFError("it ends inside a packet")
    return False


def _walk_png(file: BinaryIO, size: int) -> bool:
    """Walk over the chunks of an apng up to its last one."""
    file.seek(8)
    while True:
        header = _take(file, 8, "a chunk, before its last one")
        _take(file, int.from_bytes(header[:4], "big") + 4, f"its chunk {header[4:].decode('latin-1')!r}")
        if header[4:] == b"IEND":
            return True


def _walk_gif(file: BinaryIO, size: int) -> bool:
    """Walk over the blocks of a gif up to its trailer (GIF89a, appendix A)."""

    def skip_colours(flags: int) -> None:
        if flags & 0x80:
            _take(file, 3 << (1 + (flags & 7)), "a table of colours")

    file.seek(6)
    skip_colours(_take(file, 7, "its header")[4])
    while (kind := _take(file, 1, "its blocks, before the trailer")) != b"\x3b":
        if kind == b"\x21":
            _take(file, 1, "an extension")
        elif kind == b"\x2c":
            skip_colours(_take(file, 9, "the header of a frame")[8])
            _take(file, 1, "a frame")
        else:
            raise EOFError(f"byte {file.tell() - 1} starts no block, so data was lost before it")
        while length := _take(file, 1, "a frame")[0]:
            _take(file, length, "a frame")
    return True


_WALKS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], bool]], ...] = (
    (lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"), _walk_boxes),
    (lambda head: head.startswith(b"\x1a\x45\xdf\xa3"), _walk_elements),
    (lambda head: head[:4] == b"RIFF" and head[8:] == b"AVI ", _walk_chunks),
    (lambda head: head.startswith(b"G") and not head.startswith(b"GIF"), _walk_transport),
    (lambda head: head.startswith(b"\x89PNG"), _walk_png),
    (lambda head: head.startswith((b"GIF87a", b"GIF89a")), _walk_gif),
)
