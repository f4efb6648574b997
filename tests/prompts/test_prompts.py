"""Prompts are built from parts and read back, every file format gives the same rows, and errors name their place."""

import csv
import json
from itertools import pairwise

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialalign_trl.prompts import (
    DSR_TYPES,
    PROMPT_COLUMNS,
    RELATIONS,
    PromptGrammarError,
    build_prompt,
    check_dsr_type,
    check_one_thing,
    indefinite_article,
    load_prompts,
    parse_prompt,
    split_type,
)

FOX = "In a meadow, a red fox is on the left of a stump, then the fox jumps to the right of the stump."
DUCK = "By a pond, a duck is on the top of an oak log, then the duck waddles to the left of the oak log."

CROSSING = (
    "In a park, a cat is on the left of a bench, then the cat jumps to the top of the bench, "
    "then the cat walks to the right of the bench."
)
HIDING = (
    "By a wall, a cat is in front of a box, then the cat creeps behind the box, then the cat crawls under the box."
)

# Words that are refused within a noun: they make it mean several things (see their tests), or they are relations.
REFUSED = "and or plus two three four five six several many both some is under behind".split()

word = st.text("abcdefghijklmnopqrstuvwxyz-'", min_size=1, max_size=8).filter(lambda word: word not in REFUSED)
types = st.lists(st.sampled_from(list(RELATIONS)), min_size=2, max_size=5).filter(
    lambda codes: all(code != following for code, following in pairwise(codes))
)
noun = st.lists(word, min_size=1, max_size=3).map(" ".join)
scene = st.lists(st.lists(word, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=3).map(", ".join)


@given(
    scene=scene,
    animal=noun,
    object=noun,
    type=types.map("".join),
    verb=st.lists(word, min_size=4, max_size=4),
    attribute=st.one_of(st.just(""), word),
)
def test_parsing_gives_back_what_was_built(**parts):
    parts["verb"] = ", ".join(parts["verb"][: len(parts["type"]) - 1])
    try:
        built = build_prompt(**parts)
    except PromptGrammarError:
        # Only parts that cannot be distinguished in the text are refused: a word or a noun that comes twice.
        words = f"{parts['attribute']} {parts['animal']}".split()
        assert len(words) != len(set(words)) or parts["animal"] == parts["object"]
        return
    parsed = parse_prompt(built.prompt, built.prompt_id)
    assert parsed == built
    assert {part: getattr(parsed, part) for part in ("animal", "object", "type", "verb", "attribute")} == {
        part: parts[part] for part in ("animal", "object", "type", "verb", "attribute")
    }
    assert parsed.scene == parts["scene"][:1].upper() + parts["scene"][1:]
    rebuilt = build_prompt(**{part: getattr(parsed, part) for part in parts})
    assert rebuilt == built


@pytest.mark.parametrize("name, count", [("dsr_eval30.csv", 30), ("dsr_eval120.csv", 120)])
def test_the_authors_files_load_as_they_are(shared_data, name, count):
    path = shared_data / name
    loaded = load_prompts(path)
    with path.open(newline="") as file:
        originals = list(csv.DictReader(file))
    assert loaded.column_names == list(PROMPT_COLUMNS)
    assert len(loaded) == len(originals) == count
    for row, original in zip(loaded, originals, strict=True):
        assert row["scene"] == original["scene"].rstrip(",")
        for column in ("prompt_id", "prompt", "type", "initial_SR", "final_SR", "animal", "object"):
            assert row[column] == original[column]
        rebuilt = build_prompt(**{part: row[part] for part in ("scene", "animal", "object", "type", "verb")})
        assert rebuilt.prompt == original["prompt"]


def test_every_part_is_read():
    prompt = parse_prompt(FOX, "fox-1")
    assert prompt.to_row() == {
        "prompt_id": "fox-1",
        "prompt": FOX,
        "type": "LR",
        "scene": "In a meadow",
        "initial_SR": "on the left of",
        "final_SR": "to the right of",
        "animal": "fox",
        "object": "stump",
        "verb": "jumps",
        "attribute": "red",
    }
    assert list(prompt.to_row()) == list(PROMPT_COLUMNS)


def test_nouns_of_several_words_and_scenes_with_commas():
    prompt = build_prompt(
        scene="in a yard, with ivy, a gate and a cart on the left of it,",
        animal="guinea pig",
        object="fire hydrant",
        type="TR",
        verb="slowly crawls",
        attribute="tiny grey",
    )
    assert prompt.prompt == (
        "In a yard, with ivy, a gate and a cart on the left of it, a tiny grey guinea pig is on the top of a fire "
        "hydrant, then the guinea pig slowly crawls to the right of the fire hydrant."
    )
    parsed = parse_prompt(prompt.prompt)
    assert parsed == prompt
    assert (parsed.attribute, parsed.animal, parsed.verb) == ("tiny grey", "guinea pig", "slowly crawls")
    assert (parsed.object, parsed.type) == ("fire hydrant", "TR")


@pytest.mark.parametrize(
    "words, article",
    [("fox", "a"), ("owl", "an"), ("orange cat", "an"), ("hour glass", "an"), ("horse", "a"), ("unicorn", "a")]
    + [("umbrella", "an"), ("unpainted crate", "an"), ("used tyre", "a"), ("one-eyed cat", "a"), ("Urn", "an")]
    + [("MRI scanner", "an"), ("SUV", "an"), ("UFO", "a"), ("TV", "a"), ("X-ray machine", "an"), ("MacBook", "a")],
)
def test_articles_follow_the_sound(words, article):
    assert indefinite_article(words) == article
    built = build_prompt(scene="In a hall", animal="bird", object=words, type="LT", verb="hops")
    assert f"on the left of {article} {words}," in built.prompt


def test_either_article_is_read_and_the_text_is_kept():
    text = "In a barn, a owl is on the top of an crate, then the owl glides to the left of the crate."
    assert parse_prompt(text).prompt == text


@pytest.mark.parametrize(
    "text, part",
    [
        (FOX[:-1] + "!", "ending"),
        (FOX[:-1] + ",", "ending"),
        ("", "ending"),
        (FOX.replace("then the", "and the"), "text"),
        (FOX.replace("is on the left of", "is beside"), "initial_SR"),
        (FOX.replace("to the right of", "away from"), "final_SR"),
        (CROSSING.replace("to the top of", "into"), "final_SR"),
        (FOX.replace("In a meadow, a", ", a"), "scene"),
        (FOX.replace("a red fox", "red fox"), "scene"),
        (FOX.replace("the stump", "the rock"), "object"),
        (FOX.replace("stump", "fox"), "object"),
        (FOX.replace("the fox", "the dog"), "animal"),
        (FOX.replace("jumps ", ""), "verb"),
        (FOX.replace("to the right of", "to the left of"), "type"),
        (CROSSING.replace("to the right of", "to the top of"), "type"),
    ],
)
def test_the_error_names_the_wrong_part(text, part):
    with pytest.raises(PromptGrammarError, match=f"^{part}: ") as caught:
        parse_prompt(text)
    assert caught.value.part == part
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"animal": ""}, "animal"),
        ({"object": "stump,"}, "object"),
        ({"verb": "jumps  up"}, "verb"),
        ({"scene": " ,"}, "scene"),
        ({"object": "fox"}, "object"),
        ({"attribute": "fox", "verb": "fox"}, "verb"),
        ({"object": "stump is on the top of a rock"}, "object"),
        ({"object": "stump, then the fox runs"}, "object"),
    ],
)
def test_parts_that_could_not_be_read_back_are_refused(changes, part):
    parts = {"scene": "In a meadow", "animal": "fox", "object": "stump", "type": "LR", "verb": "jumps"} | changes
    with pytest.raises(PromptGrammarError, match=f"^{part}: "):
        build_prompt(**parts)


def test_types_are_the_papers_six_or_any_sequence_whose_neighbours_differ():
    assert DSR_TYPES == ("LR", "LT", "RL", "RT", "TL", "TR")
    for dsr_type in (*DSR_TYPES, "LU", "FB", "LTR", "LRL", "UFBT"):
        assert check_dsr_type(dsr_type) == dsr_type
        assert split_type(dsr_type) == tuple(dsr_type)


@pytest.mark.parametrize(
    "unknown, problem",
    [
        ("LL", "L comes twice"),
        ("LTTR", "T comes twice"),
        ("lr", "'l' is not a relation"),
        ("LX", "'X' is not a relation"),
    ]
    + [("L", "a relation to start in and one to end in"), ("", "a relation to start in"), (None, "not a string")],
)
def test_unknown_types_are_named(unknown, problem):
    with pytest.raises(ValueError, match=f"unknown DSR type {unknown!r}: .*{problem}.*L = on the left of.*LR, LT"):
        check_dsr_type(unknown)


def test_sequences_name_a_verb_for_every_motion():
    prompt = parse_prompt(CROSSING)
    assert (prompt.type, prompt.verb, prompt.animal, prompt.object) == ("LTR", "jumps, walks", "cat", "bench")
    assert (prompt.initial_SR, prompt.final_SR) == ("on the left of", "to the right of")
    parts = {"scene": "In a park", "animal": "cat", "object": "bench", "type": "LTR"}
    assert build_prompt(**parts, verb="jumps, walks").prompt == CROSSING
    for verb in ("jumps", "jumps, walks, runs"):
        with pytest.raises(PromptGrammarError, match=f"verb: '{verb}' must name 2 motions"):
            build_prompt(**parts, verb=verb)
    with pytest.raises(PromptGrammarError, match="verb: "):
        build_prompt(**parts | {"type": "LT"}, verb="jumps, walks")


def test_under_in_front_of_and_behind_are_read():
    prompt = parse_prompt(HIDING)
    assert (prompt.type, prompt.initial_SR, prompt.final_SR) == ("FBU", "in front of", "under")
    parts = {"scene": "By a wall", "animal": "cat", "object": "box", "type": "FBU", "verb": "creeps, crawls"}
    assert build_prompt(**parts).prompt == HIDING
    motionless = parse_prompt("By a wall, a cat is under a box, then the cat is behind the box.")
    assert (motionless.type, motionless.verb) == ("UB", "is")


@pytest.mark.parametrize(
    "text, part",
    [
        (FOX.replace("the stump", "the table"), "object"),
        (FOX.replace("a stump", "a stump and a rock"), "object"),
        (FOX.replace("a stump", "a stump and rock").replace("the stump", "the stump and rock"), "object"),
        (CROSSING.replace("right of the bench", "right of the table"), "object"),
        (FOX.replace("a stump", "a stump behind a wall"), "object"),
        (FOX.replace("a red fox is", "a red fox and a dog are"), "animal"),
        (FOX.replace("a red fox", "a red fox and a dog"), "animal"),
        (FOX.replace("a red fox", "a fox and dog").replace("the fox", "the fox and dog"), "animal"),
        (CROSSING.replace("then the cat walks", "then the dog walks"), "animal"),
        (FOX.replace("stump.", "stump, while a dog sleeps."), "object"),
    ],
)
def test_a_second_object_or_a_second_moving_thing_is_refused(text, part):
    with pytest.raises(PromptGrammarError, match=f"^{part}: .*one animal and one static object is what can be scored"):
        parse_prompt(text)


@pytest.mark.parametrize("words", ["cat and dog", "cat, dog", "cat & dog", "two cats", "3 cats", "both cats"])
def test_nouns_of_several_things_are_refused(words):
    for part in ("animal", "object"):
        with pytest.raises(PromptGrammarError, match=f"^{part}: '{words}' is more than one {part}, but one animal"):
            check_one_thing(part, words)


@pytest.mark.parametrize("words", ["cat", "fire hydrant", "two", "sandbox", "andiron", "cat bed"])
def test_nouns_of_one_thing_pass(words):
    check_one_thing("object", words)


def _write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(row["prompt"] + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".txt"])
def test_all_file_kinds_give_the_same_rows(tmp_path, suffix):
    path = _write(tmp_path / f"prompts{suffix}", [{"prompt": FOX}, {"prompt": DUCK}])
    loaded = load_prompts(str(path))
    assert loaded.to_list() == [parse_prompt(FOX).to_row(), parse_prompt(DUCK).to_row()]
    assert loaded.features == datasets.Features({column: datasets.Value("string") for column in PROMPT_COLUMNS})


def test_a_dataset_and_a_folder_load(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [parse_prompt(FOX).to_row() | {"note": "dropped"}, parse_prompt(DUCK).to_row() | {"note": ""}]
    from_dataset = load_prompts(datasets.Dataset.from_list(rows))
    assert from_dataset.column_names == list(PROMPT_COLUMNS)
    folder = tmp_path / "prompts"
    folder.mkdir()
    _write(folder / "train.jsonl", rows[:1])
    _write(folder / "test.jsonl", rows[1:])
    assert load_prompts(folder).to_list() == from_dataset.to_list()[:1]
    assert load_prompts(str(folder), split="test").to_list() == from_dataset.to_list()[1:]


def test_a_folder_that_was_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "prompts"
    folder.mkdir()
    configs = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n"
    (folder / "README.md").write_text(f"---\n{configs}---\n")
    for prompt in (FOX, DUCK):
        _write(folder / "train.jsonl", [{"prompt": prompt}])
        assert load_prompts(folder)["prompt"][0] == prompt


def test_a_prompt_is_built_from_its_parts(tmp_path):
    row = {
        "scene": "In a meadow,",
        "animal": "fox",
        "object": "stump",
        "type": "LR",
        "verb": "jumps",
        "attribute": "red",
    }
    assert load_prompts(_write(tmp_path / "parts.jsonl", [row]))[0]["prompt"] == FOX
    del row["verb"]
    with pytest.raises(ValueError, match="parts.jsonl, line 1: .*missing: verb"):
        load_prompts(_write(tmp_path / "parts.jsonl", [row]))


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [{"prompt": FOX, "prompt_id": "a"}, {"prompt": DUCK, "prompt_id": "a"}],
            r"line 3: prompt_id 'a' .* line 2, but",
        ),
        ([{"prompt": FOX}, {"prompt": FOX}], r"line 3: prompt_id .* already used"),
        ([{"prompt": FOX, "type": "LL"}], r"line 2: unknown DSR type 'LL'"),
        ([{"prompt": FOX, "type": "LT"}], r"line 2: column 'type' is 'LT' but the prompt says 'LR'"),
        ([{"prompt": FOX, "animal": "dog"}], r"line 2: column 'animal' is 'dog' but the prompt says 'fox'"),
        ([{"prompt": FOX.replace("stump", "fox")}], r"line 2: object: animal and object are both 'fox'"),
        ([{"prompt": "A fox jumps."}], r"line 2: text: "),
    ],
)
def test_errors_name_file_and_row(tmp_path, rows, message):
    path = _write(tmp_path / "bad.csv", rows)
    with pytest.raises(ValueError, match=rf"bad\.csv, {message}"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("empty.txt", "\n", ValueError, r"empty\.txt contains no prompts"),
        ("absent.csv", None, FileNotFoundError, r"no prompt file .*absent\.csv"),
        ("absent", None, FileNotFoundError, "no prompt folder .*absent"),
        ("prompts.xml", "", ValueError, r"prompt files end in \.csv, \.jsonl, \.json, \.txt"),
        ("broken.jsonl", '{"prompt":\n', ValueError, r"broken\.jsonl, line 1: not valid JSON"),
        ("object.json", "{}", ValueError, r"object\.json: expected a list of rows"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        load_prompts(tmp_path / name)
