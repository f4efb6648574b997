"""Flags of every command may be written with underscores or hyphens, and the help shows underscores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module

import pytest

from spatialalign_trl.arguments.evaluation import EvaluationArguments
from spatialalign_trl.arguments.flags import underscored
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.cli import COMMANDS, main, score
from spatialalign_trl.cli.parsing import Parser

OWN_PARSER = sorted(set(COMMANDS) - {"evaluate"})  # `evaluate` has the parser of the recipes


def parser_of(command: str) -> Parser:
    return import_module(f"spatialalign_trl.cli.{command.replace('-', '_')}").build_parser()


def flags_of(parser: Parser) -> list[str]:
    return [name for name in parser._option_string_actions if name.startswith("--")]


@pytest.mark.parametrize("command", OWN_PARSER)
def test_every_flag_is_registered_and_shown_with_underscores_only(command):
    parser = parser_of(command)
    assert flags_of(parser) and not [name for name in flags_of(parser) if "-" in name[2:]]
    command_names = r"--(?:help|version)|push-|new-|serve-|export-"
    assert not re.search(r"--[a-z]+-[a-z]", re.sub(command_names, "", parser.format_help()))


def test_the_help_of_evaluate_shows_underscores_only(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    help_text = capsys.readouterr().out
    assert "--num_inference_steps" in help_text and "--num-inference-steps" not in help_text


@pytest.mark.parametrize("flag", ["--batch_size", "--batch-size"])
@pytest.mark.parametrize("joined", [True, False])
def test_both_spellings_set_the_option(flag, joined):
    words = [f"{flag}=3"] if joined else [flag, "3"]
    assert score.build_parser().read(["a.mp4", *words, "b.mp4"]).batch_size == 3
    assert parse_recipe((EvaluationArguments,), None, words)[0].batch_size == 3


@pytest.mark.parametrize("spelling", ["--tracker_option", "--tracker-option"])
def test_values_and_positional_words_keep_their_hyphens(spelling):
    words = [f"{spelling}=name=a-b", spelling, "other=--x-y", "--no-cache", "--", "--odd-name.mp4", "--batch-size"]
    args = score.build_parser().read(["a-b.mp4", *words])
    assert args.tracker_options == [("name", "a-b"), ("other", "--x-y")] and args.no_cache
    assert args.files == ["a-b.mp4", "--odd-name.mp4", "--batch-size"]


def test_flags_outside_of_groups_are_accepted_too():
    parser = parser_of("serve-reward")
    for flag in ("--token_env", "--token-env"):
        assert parser.read(["dsr_score", flag, "TOKEN"]).token_env == "TOKEN"


@dataclass
class Arguments:
    two_words: bool = True
    some_names: list[str] | None = None


@pytest.mark.parametrize("flag", ["--no_two_words", "--no-two-words", "--two-words=false", "--two_words=false"])
def test_a_recipe_s_switch_can_be_turned_off_in_both_spellings(flag):
    (arguments,) = parse_recipe((Arguments,), None, [flag])
    assert arguments.two_words is False


@pytest.mark.parametrize("word", ["--two-wurds", "--two_wurds=1"])
def test_a_misspelt_flag_of_a_recipe_is_named_as_typed_with_the_nearest_one(word, capsys):
    with pytest.raises(SystemExit):
        parse_recipe((Arguments,), None, [word])
    error = capsys.readouterr().err
    assert repr(word) in error and "Did you mean 'two_words'" in error


def test_a_misspelt_flag_of_a_command_is_named_as_typed_with_the_nearest_one(capsys):
    with pytest.raises(SystemExit):
        score.build_parser().read(["a.mp4", "--traker-option", "a=b"])
    assert "there is no option --traker-option. Did you mean '--tracker_option'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--a-b", "--a_b"), ("--a-b=c-d=--e-f", "--a_b=c-d=--e-f"), ("--", "--"), ("-o", "-o"), ("a-b", "a-b"),
        ("-x-y", "-x-y"), ("", ""),
    ],
)  # fmt: skip
def test_only_the_name_of_a_flag_is_respelt(word, expected):
    assert underscored(word) == expected
