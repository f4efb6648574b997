"""Rows of csv, jsonl, json and txt files: what is read right, and what is a row's problem without being another's."""

import csv
import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.prompts import load_prompts
from spatialalign_trl.prompts.loading import load_readable_prompts, prompt_from_row
from spatialalign_trl.prompts.rows import FILE_READERS, RowError, read_rows, try_rows

PROMPT = "In a park, a red {} is on the left of a bench, then the {} jumps to the right of the bench."
ANIMALS = ["fox", "cat", "dog", "cow"]
PROMPTS = [PROMPT.format(animal, animal) for animal in ANIMALS]
PARTS = {"scene": "In a meadow", "animal": "fox", "object": "stump", "type": "LR", "verb": "jumps"}


def rows_of(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(try_rows(path, "test"))


def csv_of(rows, **options):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


ROWS = [{"prompt_id": f"00{k}", "prompt": prompt} for k, prompt in enumerate(PROMPTS)]
FILES = {
    ".csv": csv_of(ROWS),
    ".CSV": csv_of(ROWS, delimiter=";"),
    ".Csv": csv_of(ROWS, delimiter="\t", lineterminator="\r"),
    ".jsonl": "".join(json.dumps(row) + "\r\n" for row in ROWS),
    ".JSON": json.dumps(ROWS),
    ".json": "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", FILES)
def test_every_kind_of_file_is_read_with_its_ids(tmp_path, suffix, mark):
    read = rows_of(tmp_path / f"a{suffix}", mark + FILES[suffix])
    assert [{name: row[name] for name in ("prompt_id", "prompt")} for _, row in read] == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_dataset_folder_is_read_as_its_files_are(tmp_path, suffix):
    (tmp_path / f"train{suffix}").write_text("\ufeff" + FILES[suffix])
    loaded = load_prompts(tmp_path)
    assert loaded["prompt_id"] == ["000", "001", "002", "003"] and loaded["prompt"] == PROMPTS


def test_the_options_of_a_dataset_folder_s_card_are_obeyed(tmp_path):
    (tmp_path / "data.csv").write_text(csv_of(ROWS[:1], delimiter="|"))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: data.csv\n  sep: '|'\n---\n"
    )
    assert load_prompts(tmp_path)["prompt"] == PROMPTS[:1]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1, max_size=8)


@given(st.lists(st.tuples(cells, cells), max_size=5), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_a_csv_writer_wrote_is_read_back(rows, quoting):
    text = csv_of([{"a": "x", "b": "y"}, *({"a": a, "b": b} for a, b in rows)], quoting=quoting)
    read = [row for _, row in FILE_READERS[".csv"]("a.csv", text)]
    expected = [{"a": a, "b": b} for a, b in rows if a.strip() or b.strip()]
    assert read == [{"a": "x", "b": "y"}, *expected]


BAD_LINES = {
    "an unclosed quotation mark": '9,"{}',
    "an over-long cell": "9," + "x" * 200_000,
    "an over-long cell with a quotation mark": '9,"' + "x" * 200_000,
    "a comma without quotation marks": "9," + PROMPTS[0],
}


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_csv_row_is_its_own_problem(tmp_path, line, place):
    lines = csv_of(ROWS).splitlines()
    read = rows_of(tmp_path / "a.csv", "\n".join([*lines[: place + 1], line, *lines[place + 1 :]]) + "\n")
    assert [row for _, row in read if not isinstance(row, RowError)] == ROWS
    ((where, _),) = [(where, row) for where, row in read if isinstance(row, RowError)]
    assert where.endswith(f"a.csv, line {place + 2}")


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("line", ['{"prompt":', "[1]", "5", '{"prompt": "a", "prompt": "b"}', "[" * 100_000, "{" * 9])
def test_a_bad_jsonl_line_is_its_own_problem(tmp_path, line, place):
    lines = list(map(json.dumps, ROWS))
    read = rows_of(tmp_path / "a.jsonl", "\n".join([*lines[:place], line, *lines[place:]]))
    assert [row for _, row in read if not isinstance(row, RowError)] == ROWS
    assert [where.rpartition(", ")[2] for where, row in read if isinstance(row, RowError)] == [f"line {place + 1}"]


def test_thousands_of_rows_are_read_and_the_bad_ones_listed(tmp_path):
    rows = [{"prompt_id": f"{k:05}", "prompt": PROMPTS[0]} for k in range(3000)]
    lines = csv_of(rows).splitlines()
    for place in range(100, 3000, 100):
        lines[place] = lines[place].rstrip('"')
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    prompts, problems = load_readable_prompts(tmp_path / "a.csv")
    assert len(prompts) == 3000 - 29 and [problem.place for problem in problems] == [
        f"{tmp_path / 'a.csv'}, line {place + 1}" for place in range(100, 3000, 100)
    ]
    with pytest.raises(ValueError, match=r"a\.csv, line 101: a quotation mark"):
        load_prompts(tmp_path / "a.csv")


def test_quotation_marks_inside_of_a_text_spoil_nothing(tmp_path):
    read = rows_of(tmp_path / "a.csv", 'a,b\n1,"x" y\n2,5" wide\n"3" ,z\n')
    assert [row for _, row in read] == [{"a": "1", "b": "x y"}, {"a": "2", "b": '5" wide'}, {"a": "3 ", "b": "z"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,prompt\nx,y\n", r"line 1: the column 'prompt' appears twice"),
        ("a.csv", '"prompt\n', r"line 1: a quotation mark is not closed"),
        ("a.csv", "prompt\n\xf1\n".encode("latin-1"), r"a\.csv, line 2: byte 0xf1 is not UTF-8.*iconv -f LATIN1"),
        ("a.TXT", "a\n\x92\n".encode("latin-1"), r"a\.TXT, line 2: byte 0x92 .*iconv -f WINDOWS-1252"),
        ("a.jsonl", "{}".encode("utf-16"), r"a\.jsonl is encoded in UTF-16"),
        ("a.json", '{"prompt": {"0": "x"}}', r"a\.json: expected a list of rows"),
        ("a.json", "[{]", r"a\.json: not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused_by_name(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name, content)


def test_a_dataset_folder_in_another_encoding_names_file_and_line(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + '\n{"prompt": "ñ"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: byte 0xf1"):
        load_prompts(tmp_path)


def test_a_card_in_another_encoding_or_of_bad_yaml_is_named(tmp_path):
    (tmp_path / "train.csv").write_text(csv_of(ROWS))
    (tmp_path / "README.md").write_bytes("---\npretty_name: piñata\n---\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"README\.md, line 2: byte 0xf1"):
        load_prompts(tmp_path)
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(ValueError, match="does not load: "):
        load_prompts(tmp_path)


def test_the_line_that_excel_writes_for_itself_is_no_header(tmp_path):
    content = "sep=;\r\n" + csv_of(ROWS, delimiter=";")
    assert [row for _, row in rows_of(tmp_path / "a.csv", content)] == ROWS


# Cells --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, float("nan"), "NaN", "nan", "", " ", "None", "<NA>"])
@pytest.mark.parametrize("column", ["attribute", "prompt", "prompt_id", "initial_SR"])
def test_an_empty_cell_is_as_good_as_none(column, empty):
    assert prompt_from_row({**PARTS, column: empty}) == prompt_from_row(PARTS)


@pytest.mark.parametrize("column", ["scene", "animal", "object", "verb"])
def test_a_missing_part_is_not_the_word_for_it(column):
    with pytest.raises(ValueError, match=f"columns are missing: {column}"):
        prompt_from_row({**PARTS, column: float("nan")})


@pytest.mark.parametrize(
    "changes",
    [{"object": "a stump"}, {"object": "An a stump"}, {"animal": "the fox"}, {"scene": "in a meadow, "},
     {"animal": " fox "}, {"scene": "In  a\u00a0meadow"}],
)  # fmt: skip
def test_articles_spaces_and_a_small_first_letter_of_parts_change_nothing(changes):
    assert prompt_from_row({**PARTS, **changes}) == prompt_from_row(PARTS)
    prompt = prompt_from_row(PARTS).prompt
    assert prompt_from_row({**PARTS, **changes, "prompt": prompt}) == prompt_from_row(PARTS)


def test_an_attribute_with_an_article_keeps_one_article():
    assert "a red fox is" in prompt_from_row({**PARTS, "attribute": "a red"}).prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attribute": True}, "column 'attribute': True is neither"),
        ({"animal": ["fox"]}, r"column 'animal': \['fox'\] is neither"),
        ({"prompt": "x" * 20_000}, "column 'prompt' has 20_000 characters"),
    ],
)
def test_a_cell_that_is_no_text_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        prompt_from_row({**PARTS, **changes})
    assert len(str(raised.value)) < 300


def test_numbers_of_pandas_are_the_ids_that_they_were():
    assert prompt_from_row({**PARTS, "prompt_id": 7.0}).prompt_id == "7"


def test_composed_and_decomposed_ids_are_one_id(tmp_path):
    ids = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    rows = [{"prompt_id": name, "prompt": prompt} for name, prompt in zip(ids, PROMPTS, strict=False)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="row 1: prompt_id .* was already used at .*row 0"):
        load_prompts(tmp_path / "a.json")


def test_parts_agree_with_a_prompt_whatever_form_their_letters_have():
    prompt = "In a park, a fox is on the left of a piñata, then the fox jumps to the right of the piñata."
    forms = [unicodedata.normalize(form, "piñata") for form in ("NFC", "NFD")]
    for form in forms:
        assert prompt_from_row({"prompt": prompt, "object": form}).prompt == prompt


def test_read_rows_ends_at_the_first_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{\n')
    rows = read_rows(tmp_path / "a.jsonl", "")
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not valid JSON"):
        next(rows)
