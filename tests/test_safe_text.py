"""Test that secrets are found and masked, that nothing else is, and that text cannot become markup of a table."""

from __future__ import annotations

import json
import random
import string

import pytest

from spatialalign_trl import safe_text
from spatialalign_trl.safe_text import (
    is_masked,
    is_secret_name,
    mask_arguments,
    mask_secrets,
    mask_text,
    table_cell,
    without_digests,
)

SHAPES = {
    "hugging face": "hf_abcDEFghiJKL123",
    "lower case": "hf_abcdefghijklmnopqrst",
    "openai": "sk-abcdefghijklmnop",
    "anthropic": "sk-ant-api03-abc_DEF-123",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "github": "ghp_" + "a1B2" * 9,
    "github, fine-grained": "github_pat_" + "a1B2" * 9,
    "gitlab": "glpat-abcdefghijklmnop1234",
    "slack": "xoxb-123456789012-abcdef",
    "google": "AIza" + "Sy1_-" * 7,
    "stripe": "sk_live_abcdefgh1234",
    "jwt": "eyJhbGciOi.eyJzdWIiOiIx.SflKxwRJSM",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(safe_text, "_remembered", set())


@pytest.mark.parametrize("secret", SHAPES.values(), ids=SHAPES)
def test_a_secret_of_a_known_shape_is_masked_wherever_it_stands(secret):
    settings = {"note": f"use {secret} here", "list": [{"deep": (secret,)}], secret: 1}
    for digest in (False, True):
        masked = json.dumps(mask_secrets(settings, digest=digest))
        assert json.dumps(secret)[1:-1] not in masked and masked.count("***") == 3
    assert mask_text(f"error: {secret}!") == "error: ***!"


@pytest.mark.parametrize(
    "name",
    [
        "api_key", "apiKey", "OPENAI_API_KEY", "X-Api-Key", "access_key", "secret_key", "private-key", "token",
        "hub_token", "accessToken", "secret", "client_secret", "password", "db_password", "passwd", "authorization",
        "Authorization", "auth", "key", "credentials", "cookie",
    ],
)  # fmt: skip
def test_a_value_under_the_name_of_a_secret_is_masked_whatever_it_looks_like(name):
    assert is_secret_name(name)
    for value in ("word", "two words", "ünï", "x" * 500, "a:b@c"):
        assert mask_secrets({"a": [{name: value}]}) == {"a": [{name: "***"}]}
    assert mask_secrets({name: None}) == {name: None} and mask_secrets({name: True}) == {name: True}


def test_numbers_can_be_passwords_and_whole_headers_are_secret():
    assert mask_secrets({"password": 12345, "token": 5}) == {"password": "***", "token": 5}
    headers = {"headers": {"X-Team": "abc", "more": ["d"]}}
    assert mask_secrets(headers) == {"headers": {"X-Team": "***", "more": ["***"]}}


def test_what_is_no_secret_stays():
    settings = {
        "token_env": "MY_SECRET_TOKEN", "api_key": "$OPENAI_API_KEY", "hub_token": "<HUB_TOKEN>", "max_tokens": 512,
        "tokenizer": "google/umt5-xxl", "keyword": "left", "lora_target_modules": ["attn2.to_k", "to_q"],
        "prompts": "60 prompts, sha256 0123456789abcdef", "url": "https://host:8000/dsr_score?size=3",
        "revision": "tiny@d00dfeed0123456789abcdef0123456789abcdef", "learning_rate": 1e-4, "x": [1, None, True],
        "task": "ask-me-anything-about-this", "author": "me", "monkey": "Ab1" * 9, "hf_hub": "hf_hub_download",
        "prompt": "In a meadow, a key is on the left of a token, then the token: it jumps to the right of the key.",
    }  # fmt: skip
    assert mask_secrets(settings) == settings
    for text in ("the token is not valid", "needs a token: set HF_TOKEN", "Basic formulas", "a bearer of news came"):
        assert mask_text(text) == text


def test_long_random_text_under_a_name_that_speaks_of_secrets_is_masked():
    assert mask_secrets({"openai_key2": "9fQz71xLbV0aKd83TmWq"}) == {"openai_key2": "***"}
    assert mask_secrets({"note": "8fQz71xLbV0aKd83TmWq"}) == {"note": "8fQz71xLbV0aKd83TmWq"}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:pass@host/x", "https://***@host/x"),
        ("GET http://h/?size=3&token=abc&n=1", "GET http://h/?size=3&token=***&n=1"),
        ("Authorization: Bearer abcdef1234", "Authorization: Bearer ***"),
        ("Authorization: Basic dXNlcjpwYXNz=", "Authorization: Basic ***"),
        ("{'api_key': 'swordfish'}", "{'api_key': '***'}"),
        ('{"password": "swordfish", "n": 1}', '{"password": "***", "n": 1}'),
        ("api_key=swordfish, n=1", "api_key=***, n=1"),
    ],
)
def test_secrets_are_found_in_the_texts_of_errors(text, masked):
    assert mask_text(text) == masked and mask_text(masked) == masked


def test_an_error_that_quotes_a_secret_of_the_settings_is_masked_although_it_has_no_shape():
    assert "swordfish 9" in mask_text("rejected: swordfish 9 is wrong")
    mask_secrets({"password": "swordfish 9"})
    assert mask_text("rejected: swordfish 9 is wrong") == "rejected: *** is wrong"


def test_masking_twice_is_masking_once_and_digests_can_be_removed():
    random_text = random.Random(0)
    for _ in range(30):
        names = random_text.choices(["api_key", "token", "note", "url", "headers", "n"], k=3)
        texts = ["".join(random_text.choices(string.printable, k=12)) for _ in names]
        texts.append(random_text.choice(list(SHAPES.values())))
        settings = dict(zip([*names, "note2"], texts, strict=True))
        before = json.dumps(settings)
        masked, with_digest = mask_secrets(settings), mask_secrets(settings, digest=True)
        assert json.dumps(settings) == before, "the run must get the real values"
        assert mask_secrets(masked) == masked and mask_secrets(with_digest, digest=True) == with_digest
        assert json.loads(without_digests(json.dumps(with_digest))) == masked
        assert is_masked(masked) and is_masked(with_digest)


def test_digests_tell_secrets_apart_and_do_not_hold_them():
    one, same, other = (mask_secrets({"key": key}, digest=True) for key in ("abc", "abc", "abd"))
    assert one == same != other and "abc" not in one["key"]


def test_the_command_line_is_masked_by_flag_and_inside_json():
    line = [
        "--reward_options",
        '{"r": {"api_key": "q", "n": 1}}',
        "--hub-token=zzz",
        "--n",
        "3",
        "http://u:p@h/",
        "{x",
    ]
    assert mask_arguments(line) == [
        "--reward_options", '{"r": {"api_key": "***", "n": 1}}', "--hub-token=***", "--n", "3", "http://***@h/", "{x",
    ]  # fmt: skip
    plain = ["recipe.py", "--config", "a.yaml", "--reward_options", '{"r": {"n":1}}', "--use_cpu"]
    assert mask_arguments(plain) == plain


def test_a_cell_stays_one_cell_and_becomes_no_markup():
    evil = "a | b <img src=x> [c](http://d) `e` *f* \\| & \n g"
    assert table_cell(evil) == ("a \\| b &lt;img src=x&gt; \\[c\\](http://d) \\`e\\` \\*f\\* \\\\\\| &amp; g")
    assert table_cell("`a_b` | <c>", keep="`_") == "`a_b` \\| &lt;c&gt;"
