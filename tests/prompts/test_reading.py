"""Prompts in other words than the grammar's are read if their meaning is clear, and refused if they have two."""

import csv
import time
import unicodedata
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialalign_trl.prompts import (
    RELATIONS,
    PromptGrammarError,
    build_prompt,
    load_prompts,
    parse_prompt,
)
from spatialalign_trl.prompts.relations import AMBIGUOUS, WORDINGS, ambiguous_phrases, phrases

# Twenty of VBench-2.0's 69 prompts of dynamic spatial relationships, as they are published.
VBENCH = [
    ("A dog is on the left of a table, then the dog runs to the front of the table.  ", "LF"),
    ("A dog is on the right of a sofa, then the dog runs to the front of the sofa.", "RF"),
    ("A cat is on the right of a box, then the cat runs to the left of the box.  ", "RL"),
    ("A cat is on the table, then the cat runs to the bottom of the table.", "TU"),
    ("A cat is under the table, then the cat runs onto the table.", "UT"),
    ("A cat is under the table, then the cat runs to the front of the table.", "UF"),
    ("A rabbit is in front of a flowerpot, then the rabbit jumps to the right of the flowerpot.  ", "FR"),
    ("A squirrel is on the left of a hut, then the squirrel jumps to the right of the hut.  ", "LR"),
    ("A fox is in front of a shoe, then the fox runs to the behind of the shoe.", "FB"),
    ("A fox is on the right of a shoe, then the fox runs to the behind of the shoe.", "RB"),
    ("A kangaroo is behind a rock, then the kangaroo jumps to the left of the rock.  ", "BL"),
    ("A bird is behind a apple, then the bird flies to the front of the apple. ", "BF"),
    ("A bird is in front of a table, then the bird flies to the right of the table.  ", "FR"),
    ("A bird is above a tree, then the bird flies to the right of the tree.", "TR"),
    ("A bird is on the right a tree, then the bird flies to the above of the tree.", "RT"),
    ("A monkey is behind a apple, then the monkey jumps to the right of the apple.  ", "BR"),
    ("A monkey is on the left of a apple, then the monkey jumps to the front of the apple.  ", "LF"),
    ("A monkey is on the right of a apple, then the monkey jumps to the front of the apple.  ", "RF"),
    ("An elephant is on the left of a car, then the elephant walks to the back of the car.  ", "LB"),
    ("An elephant is on the left of a car, then the elephant walks to the front of the car.  ", "LF"),
]
INITIAL, FINAL = sorted(phrases("initial").items()), sorted(phrases("final").items())


@pytest.mark.parametrize(("text", "dsr_type"), VBENCH)
def test_published_prompts_are_read(text, dsr_type):
    prompt = parse_prompt(text)
    first, _, rest = text.strip().partition(", then ")
    assert (prompt.type, prompt.scene, prompt.attribute) == (dsr_type, "", "")
    assert (prompt.animal, prompt.object) == (first.split()[1], rest.rstrip(".").split()[-1])
    assert prompt.verb == rest.split()[2]
    assert prompt.prompt == text.strip()
    assert prompt.prompt_id.startswith(f"{dsr_type}_")


@settings(max_examples=300)
@given(
    initial=st.sampled_from(INITIAL),
    final=st.sampled_from(FINAL),
    scene=st.sampled_from(["", "In a meadow, ", "in a yard, with ivy on the left of it, ", "On a hill , "]),
    articles=st.tuples(*[st.sampled_from(["a", "an", "the"])] * 2, st.sampled_from(["the", "a", "an"])),
    adjectives=st.sampled_from(
        [("", "", ""), ("small", "", ""), ("", "small", ""), ("", "", "old"), ("tiny", "", "")]
    ),
    stop=st.sampled_from([".", "", " .", ".  ", "\n"]),
    spaces=st.sampled_from([" ", "  ", "\u00a0", "\t"]),
    comma=st.sampled_from([", then ", " then ", " , then ", "; then ", ". Then ", ", and then "]),
    capital=st.booleans(),
)
def test_phrase_article_spacing_and_stop_do_not_change_what_is_read(
    initial, final, scene, articles, adjectives, stop, spaces, comma, capital
):
    (first_phrase, first), (last_phrase, last) = initial, final
    animal_adjective, object_adjective, later_adjective = adjectives
    subject = " ".join(filter(None, [scene + articles[0], animal_adjective, "fox", "is", *first_phrase]))
    motion = " ".join(["the fox jumps", *last_phrase, articles[2]])
    objects = [f"{adjective} stump".strip() for adjective in (object_adjective, later_adjective)]
    text = f"{subject} {articles[1]} {objects[0]}{comma}{motion} {objects[1]}".replace(" ", spaces) + stop
    text = text[:1].upper() + text[1:] if capital else text
    if first == last:
        with pytest.raises(PromptGrammarError, match="^type: "):
            parse_prompt(text)
        return
    prompt = parse_prompt(text)
    expected = (first + last, "fox", "stump", "jumps", animal_adjective)
    assert (prompt.type, prompt.animal, prompt.object, prompt.verb, prompt.attribute) == expected
    assert prompt.scene.casefold() == " ".join(scene.split()).rstrip(" ,").casefold()
    assert prompt.prompt == text.strip()


def test_every_phrase_is_read_with_phrases_of_every_other_relation():
    """Some pairs share words: "on the left side of the stump" and "on back side of the stump" mean no "side of"."""
    later = [
        (phrase, code)
        for phrase, code in FINAL
        if phrase in {("above", "of"), ("on",), ("to", "left", "side"), ("on", "back", "side", "of")}
    ]
    later += [(tuple(relation.final.split()), code) for code, relation in RELATIONS.items()]
    for (first_phrase, first), (last_phrase, last) in [*product(INITIAL, later), *product(INITIAL[::10], FINAL)]:
        if first != last:
            text = f"A fox is {' '.join(first_phrase)} the stump, then the fox jumps {' '.join(last_phrase)} the stump"
            prompt = parse_prompt(text)
            assert (prompt.type, prompt.animal, prompt.object, prompt.verb) == (first + last, "fox", "stump", "jumps")


@pytest.mark.parametrize(("place", "known"), [("initial", INITIAL), ("final", FINAL)])
def test_the_table_of_phrases_has_no_phrase_twice_and_contains_what_is_written(place, known):
    assert dict(known).items() >= {(tuple(getattr(r, place).split()), code) for code, r in RELATIONS.items()}
    assert not set(dict(known)) & set(ambiguous_phrases(place))
    assert list(WORDINGS) == list(RELATIONS) and len(AMBIGUOUS) == 2


@pytest.mark.parametrize(("initial", "final"), list(permutations(RELATIONS, 2)))
def test_a_prompt_without_scene_is_described_in_the_words_of_the_grammar(initial, final):
    built = build_prompt(scene="In a hall", animal="owl", object="urn", type=initial + final, verb="hops")
    without = parse_prompt(built.prompt.replace("In a hall, an", "An"))
    assert built.describe() == f"{built.type}: {built.prompt}"
    assert without.describe() == f"{built.type}: {without.prompt}"
    assert (without.initial_SR, without.final_SR) == (built.initial_SR, built.final_SR)


def test_the_original_text_is_kept_and_described():
    text = "A bird is  on the right a tree,\nthen the bird flies to the above of the tree  "
    prompt = parse_prompt(text)
    assert prompt.prompt == "A bird is  on the right a tree, then the bird flies to the above of the tree"
    assert prompt.describe() == "RT: A bird is on the right of a tree, then the bird flies to the top of the tree."
    assert prompt.prompt_id == parse_prompt(" ".join(text.split())).prompt_id


@pytest.mark.parametrize(
    ("text", "part", "meanings"),
    [
        ("A dog is on the left table, then the dog runs behind the table.", "initial_SR", "LB .*, or TB "),
        (
            "A dog is on the left chair, then the dog runs behind the left chair.",
            "initial_SR",
            "'chair', or .*'left ch",
        ),
        ("A dog is in front table, then the dog runs behind the table.", "initial_SR", "another object"),
        ("A dog is on a box, then the dog runs to the left box.", "final_SR", "another object"),
        ("A dog is on the back of a sofa, then the dog runs under the sofa.", "initial_SR", "behind it, or on"),
        ("A dog is in the back of a car, then the dog runs under the car.", "initial_SR", "behind it, or on"),
        ("A dog is under a box, then the dog jumps over the box.", "final_SR", "above it, or across it"),
        ("A dog is under a box, then the dog runs on the back of the box.", "final_SR", "behind it, or on"),
        ("A dog is on a box, then the dog runs to the right behind the box.", "final_SR", "'to the right', or"),
        ("A dog is on a box, then the dog runs under the box to the left of the box.", "final_SR", "'under', or"),
        ("A dog is on a box, then the dog runs to the left or to the right of the box.", "final_SR", "does not say"),
        ("A dog is on a box, then the dog runs to the left or the right of the box.", "final_SR", "does not say"),
        ("A dog is on the left or right of a box, then the dog runs under the box.", "object", "one static object"),
        ("A dog is under a box, then the dog comes out from under the box.", "final_SR", "does not say"),
        ("A dog is under a box, then the dog does not run behind the box.", "final_SR", "does not say"),
        ("A dog is not under a box, then the dog runs behind the box.", "initial_SR", "expected 'is on the left"),
        ("A dog is under a box, then the dog runs towards the left of the box.", "final_SR", "does not say"),
        ("A dog is under a box, then another dog runs behind the box.", "animal", "one animal"),
        ("A dog is under a box, then a dog runs behind the box.", "animal", "'a dog' may be another one"),
        ("A dog is under a box, then the dog runs behind another box.", "object", "one static object"),
        ("A dog is under a box, then the dog runs to the left of the other box.", "object", "one static object"),
        ("A dog is under a red box, then the dog runs to the left of the blue box.", "object", "one static object"),
        ("A big dog is under a box, then the small dog runs behind the box.", "animal", "one animal"),
        ("A dog and cat is under a box, then the cat runs behind the box.", "animal", "one animal"),
        ("A dog is under two boxes, then the dog runs behind the boxes.", "object", "one static object"),
        ("In a park a dog is under a box, then the dog runs behind the box.", "animal", "'a' in 'In a park a dog'"),
        ("A dog is on the box on the table, then the dog runs under the table.", "object", "one static object"),
        ("A red dog is under a box, then it runs behind the box.", "animal", "one animal"),
        (
            "A cat is under a box, then the cat runs behind the box, then the cat runs to the left table.",
            "object",
            "box",
        ),
    ],
)
def test_a_text_with_two_meanings_is_refused(text, part, meanings):
    with pytest.raises(PromptGrammarError, match=meanings) as caught:
        parse_prompt(text)
    assert caught.value.part == part


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat is on the top shelf, then the cat jumps under the shelf.", "TU cat/shelf/jumps/"),
        ("Dog is left of table, then dog runs to right of table", "LR dog/table/runs/"),
        ("A fox is flying above a hut, then it lands behind the hut.", "TB fox/hut/lands/"),
        ("A dog is on a box, then the dog jumps over the box behind the box.", "TB dog/box/jumps over the box/"),
        ("A dog is on a box, then the wet dog jumps off behind the box.", "TB dog/box/jumps off/wet"),
        ("A dog is on a chest of tea, then the dog runs behind the chest of tea.", "TB dog/chest of tea/runs/"),
        (
            "A cat is on the jack in the box, then the cat runs below the jack in the box.",
            "TU cat/jack in the box/runs/",
        ),
        (
            "A cat is on a big box, then the cat runs behind the box, then the cat is under the box.",
            "TBU cat/box/runs, is/",
        ),
    ],
)
def test_texts_with_one_meaning_are_read(text, expected):
    prompt = parse_prompt(text)
    assert f"{prompt.type} {prompt.animal}/{prompt.object}/{prompt.verb}/{prompt.attribute}" == expected


def test_accents_are_composed_in_the_parts_and_kept_in_the_text():
    text = "A cat is behind a piñata, then the cat jumps onto the piñata."
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert composed != decomposed
    mixed = composed.partition(", ")[0] + ", " + decomposed.partition(", ")[2]
    prompts = [parse_prompt(version) for version in (composed, decomposed, mixed)]
    assert {prompt.object for prompt in prompts} == {unicodedata.normalize("NFC", "piñata")}
    assert len({prompt.prompt_id for prompt in prompts}) == 1
    assert [prompt.prompt for prompt in prompts] == [composed, decomposed, mixed]


def test_the_columns_of_a_row_may_use_other_words_and_characters(tmp_path):
    row = {"prompt": "A guinea pig is above a piñata, then the guinea pig runs to back of the piñata."}
    row |= {"initial_SR": "above", "final_SR": "to the behind of", "animal": "guinea\u00a0pig"}
    row |= {"object": unicodedata.normalize("NFD", "piñata"), "type": "TB"}
    path = tmp_path / "prompts.csv"

    def load(row):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            writer.writeheader()
            writer.writerow(row)
        return load_prompts(path)[0]

    assert load(row) == parse_prompt(row["prompt"]).to_row()
    for column, wrong in (("initial_SR", "under"), ("final_SR", "to the left of"), ("object", "pinata")):
        with pytest.raises(ValueError, match=f"line 2: column '{column}' is '{wrong}' but the prompt says"):
            load(row | {column: wrong})


@pytest.mark.parametrize(
    "text",
    [
        "is on " * 20_000,
        "A cat is on a box, then the cat " + "on " * 20_000 + "the box.",
        "a then is on " * 20_000,
        "A cat is " + "on the left of " * 8_000 + "a box, then the cat runs " + "to the left of " * 8_000 + "the box",
        "A " + "very " * 20_000 + "big cat is on a box, then the cat runs under the box",
        "A cat is on a box" + ", then the cat runs under the box, then the cat runs on the box" * 4_000,
        "a, " * 50_000,
        " " * 200_000,
    ],
)
def test_long_texts_take_no_long_time(text):
    start = time.process_time()
    try:
        parse_prompt(text)
    except PromptGrammarError:
        pass
    assert time.process_time() - start < 5  # measured: at most 0.3 s; a quadratic search took 100 to 300 s
