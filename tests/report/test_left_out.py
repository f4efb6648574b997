"""A page is written without what cannot be read, and names it; a folder of another kind is refused in one line."""

import json
import warnings
from pathlib import Path

import pytest
from report_folders import evaluation_folder, grade, run_folder

from spatialalign_trl.cli import main
from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.report.write import write_report, write_run_notes


def page_of(folder: Path, **options) -> tuple[str, list[dict], list[str]]:
    """Write the page; return its text, its clips and what it is without."""
    problems: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = write_report(folder, grade, problems=problems, **options)
    text = file.read_text(encoding="utf-8")
    data = text.split('id="data">')[1].split("</script>")[0]
    return text, json.loads(data)["clips"], problems


@pytest.fixture
def run(tmp_path):
    return run_folder(tmp_path / "run", prompts=1, seeds=2)


@pytest.fixture
def evaluation(tmp_path):
    return evaluation_folder(tmp_path / "evaluation")


def test_a_whole_folder_has_no_problems(run, evaluation):
    assert page_of(run)[2] == page_of(evaluation)[2] == []


@pytest.mark.parametrize("content", [b"no video", None])
def test_one_unreadable_clip_costs_its_pair_and_nothing_else(run, content):
    file = run / "samples" / "aligned-0-1.mp4"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    text, clips, problems = page_of(run)
    assert len(clips) == 1 and len(problems) == 1
    assert "samples/aligned-0-1.mp4, which cannot be read: " in problems[0]
    assert "samples/aligned-0-1.mp4, which cannot be read: " in text


@pytest.mark.parametrize("content", [None, b"PAR1"])
def test_a_missing_or_damaged_table_of_samples_costs_the_videos(evaluation, content):
    (evaluation / "samples.parquet").unlink()
    if content is not None:
        (evaluation / "samples.parquet").write_bytes(content)
    text, clips, problems = page_of(evaluation)
    assert clips == [] and len(problems) == 1 and "samples.parquet" in problems[0]
    assert "samples.parquet" in text and "S@0.7" in text


def test_a_table_without_a_column_costs_the_videos(evaluation):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(evaluation / "samples.parquet")
    pyarrow.parquet.write_table(table.drop_columns(["seed"]), evaluation / "samples.parquet")
    _, clips, problems = page_of(evaluation)
    assert clips == [] and len(problems) == 1 and "'seed'" in problems[0]


NOTES = [
    {"clips": 3}, {"clips": [{"x": 1}]}, {"clips": [{"row": 3}]}, {"round_scores": [["x"]]}, {"command": 5},
    {"usage": 3},
]  # fmt: skip


@pytest.mark.parametrize("change", NOTES, ids=str)
def test_a_part_of_report_json_of_another_shape_is_left_out_and_kept_on_disk(run, change):
    write_json(run / "report.json", read_json(run / "report.json") | change)
    text, clips, problems = page_of(run)
    assert len(problems) == 1 and problems[0].startswith("The page is without ")
    assert (clips == []) == ("clips" in change) and "S@0.7" in text
    (name,) = change
    assert read_json(run / "report.json")[name] == change[name]


@pytest.mark.parametrize("value", [[1], {"base-0-0": {"frames": "x"}}], ids=str)
def test_curves_of_another_shape_are_computed_again(run, value):
    page_of(run)
    expected = page_of(run)[1]
    write_json(run / "report.json", read_json(run / "report.json") | {"grades": value})
    _, clips, problems = page_of(run)
    assert problems == [] and clips == expected


@pytest.mark.parametrize("content", ["[]", "{", "\udcff"])
def test_a_damaged_report_json_is_named_and_not_replaced(run, content):
    damaged = content.encode("utf-8", "surrogateescape")
    (run / "report.json").write_bytes(damaged)
    text, clips, problems = page_of(run)
    assert clips == [] and len(problems) == 1 and "report.json" in problems[0] and "S@0.7" in text
    assert (run / "report.json").read_bytes() == damaged


def test_a_run_itself_replaces_its_damaged_report_json(run):
    (run / "report.json").write_text("[]")
    write_run_notes(run, {}, [], None)
    assert page_of(run)[2] == []


RESULTS = [{"rounds": [5]}, {"settings": 5}, {"difference": 5}, {"base": {"a": 1}}, {"verdict": 5}]


@pytest.mark.parametrize("change", RESULTS, ids=str)
def test_a_part_of_results_json_of_another_shape_is_left_out(run, change):
    write_json(run / "results.json", read_json(run / "results.json") | change)
    text, clips, problems = page_of(run)
    assert problems and all(problem.startswith("The page is without ") for problem in problems)
    assert len(clips) == 2 and "The page is without " in text


@pytest.mark.parametrize("change", [{"policies": {"base": 5}}, {"differences": [1]}, {"rewards": 5}])
def test_a_part_of_an_evaluation_s_results_of_another_shape_is_left_out(evaluation, change):
    write_json(evaluation / "results.json", read_json(evaluation / "results.json") | change)
    _, _, problems = page_of(evaluation)
    assert problems and all(problem.startswith("The page is without ") for problem in problems)


@pytest.mark.parametrize("content", ["[]", "5", "null", "{}", '{"kind": "evaluation"}', '{"steps": 50}', "{", ""])
def test_a_results_json_of_something_else_is_refused_in_one_line(tmp_path, content, capsys):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and f"error: {tmp_path / 'results.json'} is not " in error
    assert "Traceback" not in error and not (tmp_path / "report.html").exists()


def test_the_command_lists_what_the_page_is_without_and_exits_with_1(evaluation, capsys):
    (evaluation / "samples.parquet").unlink()
    assert main(["report", str(evaluation)]) == 1
    output = capsys.readouterr()
    assert "samples.parquet" in output.err and "report.html" in output.out
