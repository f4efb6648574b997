"""Text files are read in UTF-8 with any number of byte order marks; others are refused with file, line and remedy."""

import math
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.files import read_json
from spatialalign_trl.text_files import TextFileError, cell_text, decode_text, read_text, same_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"))


@given(TEXTS, st.integers(0, 2))
def test_a_text_in_utf8_is_read_as_it_was_written_with_or_without_a_mark(text, marks):
    assert decode_text(("\ufeff" * marks + text).encode(), "a.csv") == text


@given(TEXTS, st.sampled_from(["utf-16", "utf-32"]))
def test_other_unicode_encodings_are_named_with_the_conversion(text, encoding):
    with pytest.raises(TextFileError, match=f"^a.csv is encoded in {encoding.upper()}.*iconv -f {encoding.upper()}"):
        decode_text(text.encode(encoding), "a.csv")


@given(st.lists(st.text("abc ,\r", max_size=5), max_size=5), st.sampled_from("àéîñöü’“€"))
def test_a_wrong_encoding_names_the_line_and_the_conversion_that_gives_the_text_back(lines, letter):
    text = "".join(f"{line}\n" for line in lines) + letter
    with pytest.raises(TextFileError) as raised:
        decode_text(text.encode("cp1252"), "folder/a.csv")
    assert f"folder/a.csv, line {len(lines) + 1}: byte 0x{letter.encode('cp1252').hex()} is not UTF-8" in str(
        raised.value
    )
    encoding = str(raised.value).split("iconv -f ")[1].split()[0]
    assert text.encode("cp1252").decode(encoding) == text


def test_a_file_of_two_encodings_is_not_advised_to_be_converted():
    with pytest.raises(TextFileError, match="line 2: byte 0xf1 is not UTF-8. The lines before it are UTF-8"):
        decode_text("é\n".encode() + "ñ".encode("latin-1"), "a.csv")


def test_a_binary_file_is_called_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\0")
    with pytest.raises(TextFileError, match=r"a\.txt is a binary file"):
        read_text(tmp_path / "a.txt")


def test_json_may_begin_with_a_mark_and_names_its_file_when_it_is_damaged(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}
    for content in (b"[" * 100_000, b'{"a": "\xf1"}', b"{", "{}".encode("utf-16")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json") as raised:
            read_json(file)
        assert "elete" not in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "  ",
        math.nan,
        np.float32("nan"),
        pd.NA,
        pd.NaT,
        "NaN",
        "nan",
        " None ",
        "null",
        "N/A",
        "#N/A",
        "<NA>",
    ],
)
def test_an_empty_cell_is_empty_whatever_a_program_wrote(value):
    assert cell_text(value) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [("007", "007"), (7, "7"), (7.0, "7"), (np.int64(7), "7"), (0.5, "0.5"), ("nanny", "nanny"), (" red ", "red")],
)
def test_other_cells_are_texts(value, text):
    assert cell_text(value) == text


@pytest.mark.parametrize("value", [True, [], {"a": 1}, b"red", np.bool_(False)])
def test_what_is_neither_text_nor_number_is_refused(value):
    with pytest.raises(ValueError, match="neither a text nor a number"):
        cell_text(value)


@given(st.text())
def test_composed_and_decomposed_texts_are_the_same(text):
    assert same_text(unicodedata.normalize("NFD", text)) == same_text(unicodedata.normalize("NFC", text))
