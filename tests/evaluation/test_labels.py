import json

import pytest

from spatialalign_trl.evaluation.labels import consensus, questions_of, read_labels


def row(clip="c1", start=2, end=2, looks=2, **more):
    return {
        "id": clip, "file": f"{clip}.mp4", "prompt_id": "p1", "type": "LR", "absent": False, "skipped": False,
        "answers": {"start": start, "end": end, "looks": looks}, "seconds": 3.0, **more,
    }  # fmt: skip


def write(path, *rows, **more):
    data = {"format": "spatialalign-labels", "version": 1, "labeller": "Ada", "labels": list(rows), **more}
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "labels.json"


@pytest.mark.parametrize(
    ("start", "end", "obedience", "obeys"),
    [(0, 0, 0, False), (2, 0, 0.5, False), (2, 1, 0.75, False), (1, 1, 0.5, False), (2, 2, 1, True)],
)
def test_half_of_obedience_is_the_start_and_half_the_end_and_looks_are_none_of_it(file, start, end, obedience, obeys):
    for looks in (0, 2):
        label = read_labels(write(file, row(start=start, end=end, looks=looks))).labels["c1"]
        assert (label.obedience, label.obeys) == (obedience, obeys)


def test_an_absent_animal_is_a_failure_and_a_skipped_clip_is_nothing(file):
    found = read_labels(write(file, row("a", absent=True, answers={}), row("b", skipped=True, answers={})))
    assert list(found.labels) == ["a"] and found.skipped == 1
    assert found.labels["a"].obedience == 0 and not found.labels["a"].obeys


def test_longer_types_ask_for_what_is_between(file):
    assert questions_of("LTR") == {"start": "L", "visit_1": "T", "end": "R"}
    answers = {"start": 2, "visit_1": 0, "end": 2, "looks": 2}
    label = read_labels(write(file, row(type="LTR", answers=answers))).labels["c1"]
    assert label.obedience == pytest.approx(2 / 3) and not label.obeys


def test_several_labellers_make_means_and_majorities(tmp_path):
    rows = {"a": row(end=2), "b": row(end=0), "c": row(absent=True, answers={})}
    files = [read_labels(write(tmp_path / f"{name}.json", label, labeller=name)) for name, label in rows.items()]
    (two,) = consensus(files[:2])
    assert two.obeys is None and two.obedience == 0.75 and two.answers["end"] == 0.5
    (three,) = consensus(files)
    assert three.obeys is False and three.absent == pytest.approx(1 / 3) and three.answers["start"] == 1


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([row()], {"format": "else"}, "no label file"),
        ([row()], {"version": 2}, "version 2"),
        ([], {}, "holds no label"),
        ([row(), row()], {}, "label 1.*already labelled"),
        ([row(end=3)], {}, "label 0.*'end' is 3"),
        ([row(end=True)], {}, "label 0.*'end' is True"),
        ([row(type="LTR")], {}, "asks for start, visit_1, end, looks"),
        ([row(type="XY")], {}, "no DSR type 'XY'"),
        ([{"id": "c"}], {}, "label 0"),
        (["c"], {}, "label 0"),
    ],
)
def test_what_is_no_label_is_refused_with_its_place(file, rows, more, message):
    with pytest.raises(ValueError, match=message):
        read_labels(write(file, *rows, **more))


def test_an_error_names_the_clip(file):
    with pytest.raises(ValueError, match=r"label 1 \(c2.mp4\): .*'end' is 3"):
        read_labels(write(file, row("c1"), row("c2", end=3), row("c3")))


def test_answers_to_other_questions_are_not_combined(tmp_path):
    files = [
        read_labels(write(tmp_path / f"{dsr_type}.json", row(type=dsr_type), labeller=dsr_type))
        for dsr_type in ("LR", "TR")
    ]
    with pytest.raises(ValueError, match=r"TR.json: c1.mp4 was labelled as TR by TR, but as LR by others"):
        consensus(files)


def test_the_consensus_has_a_prompt_if_any_label_has(tmp_path):
    files = [
        read_labels(write(tmp_path / f"{name}.json", row(prompt_id=prompt), labeller=name))
        for name, prompt in (("a", ""), ("b", "p7"))
    ]
    assert consensus(files)[0].prompt_id == "p7"
