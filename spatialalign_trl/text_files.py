"""Read text files and tables that people bring: encodings, file and line in errors, and cells that are empty."""

from __future__ import annotations

import math
import os
import unicodedata
from pathlib import Path
from typing import Any

BYTE_ORDER_MARK = "\ufeff"

MISSING_WORDS = frozenset({"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"})
"""What programs write for an empty cell, in lower case: pandas, Python, SQL, R, spreadsheets."""

_UTF_32, _UTF_16 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff"), (b"\xff\xfe", b"\xfe\xff")
_ONLY_WINDOWS = frozenset(range(0x80, 0xA0))
"""Bytes that are letters and quotation marks in Windows' encodings, and control codes in ISO 8859-1."""


class TextFileError(ValueError):
    """
    A file that is no text in UTF-8. The message is one line with the file, the line and the remedy.

    Args:
        name (`str`):
            The file.
        problem (`str`):
            What is wrong with it, and what to do.
        line (`int`, *optional*):
            The line, from 1.
        text (`str`, *optional*, defaults to `""`):
            That line, as far as it can be read.
    """

    def __init__(self, name: str, problem: str, line: int | None = None, text: str = "") -> None:
        self.name, self.problem, self.line, self.text = name, problem, line, text
        super().__init__(f"{self.place}: {problem}" if line else f"{name} {problem}")

    @property
    def place(self) -> str:
        """The file and the line."""
        return self.name if self.line is None else f"{self.name}, line {self.line}"


def read_text(path: str | os.PathLike) -> str:
    """
    Read a text file.

    Args:
        path (`str` or `os.PathLike`):
            The file, in UTF-8. A byte order mark at its start is dropped.

    Returns:
        `str`: the text, with its line ends as they are.

    Raises:
        OSError: if the file cannot be read.
        TextFileError: if it is no text in UTF-8.
    """
    return decode_text(Path(path).read_bytes(), os.fspath(path))


def decode_text(data: bytes, name: str) -> str:
    """
    Decode the content of a text file.

    Args:
        data (`bytes`):
            The content.
        name (`str`):
            The file, for errors and remedies.

    Raises:
        TextFileError: if it is no text in UTF-8.
    """
    file = Path(name).name
    for marks, encoding in ((_UTF_32, "UTF-32"), (_UTF_16, "UTF-16")):
        if data.startswith(marks):
            raise TextFileError(name, f"is encoded in {encoding}. Save it in UTF-8: {_conversion(encoding, file)}")
    if b"\0" in data:
        raise TextFileError(name, "is a binary file, not a text file in UTF-8. Name a text file")
    try:
        return data.decode("utf-8").lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        text = data.split(b"\n")[line - 1].decode("latin-1").strip()
        encoding = "WINDOWS-1252" if _ONLY_WINDOWS & set(data) else "LATIN1"
        remedy = f"Save the file in UTF-8: {_conversion(encoding, file)}"
        if not data[: error.start].isascii():  # a conversion would spoil what is UTF-8 already
            remedy = "The lines before it are UTF-8, so correct that line"
        raise TextFileError(name, f"byte 0x{data[error.start]:02x} is not UTF-8. {remedy}", line, text) from error


def same_text(text: str) -> str:
    """
    Return the form in which two texts are compared: composed (NFC), because systems write `é` as one letter or as two.

    Args:
        text (`str`):
            A file name or an id.
    """
    return unicodedata.normalize("NFC", text)


def cell_text(value: Any) -> str:
    """
    Return a cell of a table as text: `""` if it is empty, NaN, or a word that programs write for an empty cell.

    Args:
        value (`Any`):
            The cell: a text or a number, of Python, NumPy or pandas.

    Raises:
        ValueError: if it is neither.
    """
    if hasattr(value, "item"):  # a scalar of NumPy
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return ""
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        return "" if math.isnan(value) else str(int(value))  # pandas makes 7 to 7.0 if another row is empty
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r:.80} is neither a text nor a number")
    text = str(value).strip()
    return "" if text.casefold() in MISSING_WORDS else text


def _conversion(encoding: str, file: str) -> str:
    return f"iconv -f {encoding} -t UTF-8 {file}"
