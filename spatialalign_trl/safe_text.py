"""Make values safe to write, show and publish: mask secrets in settings, and keep text from becoming markup."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from spatialalign_trl.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

MASK = "***"
"""What stands in the place of a secret."""

_DIGEST_LENGTH = 12
_SALT = b"spatialalign-trl settings"
_MIN_REMEMBERED = 8
"""Shorter secrets are not looked for in texts: they could be ordinary words."""

# The last word, or the last two words, of the name of a secret: `api_key`, `openaiApiKey`, `X-Auth-Token`.
_SECRET_WORDS = {
    "token", "secret", "password", "passwd", "passphrase", "pwd", "authorization", "auth", "credential", "credentials",
    "cookie", "cookies", "bearer", "apikey", "headers",
}  # fmt: skip
_KEY_KINDS = {
    "api", "access", "secret", "private", "auth", "account", "subscription", "signing", "encryption", "license",
    "client", "service", "session", "master", "shared",
}  # fmt: skip
_NUMBERS_TOO = {"password", "passwd", "passphrase", "pwd", "secret"}
# Parts of names under which a long random string is a secret.
_SUSPICIOUS = re.compile(r"key|token|secret|passw|pwd|auth|cred|cookie|bearer|header|signature", re.IGNORECASE)
_POINTERS = {"env", "file", "path", "dir", "name", "url", "id", "variable"}
"""A name such as `token_env` says where a secret is, and is none."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PLACEHOLDER = re.compile(r"\$\{?\w+\}?|<[A-Z_]+>|\.\.\.|")
_RANDOM = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[\w+/=.~-]{20,}")

_SHAPES = re.compile(
    r"""
    \bhf_(?:(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{6,}|[A-Za-z0-9]{16,})     # Hugging Face
    | \bsk-[\w-]{10,} | \b[rsp]k_(?:live|test)_\w{10,}              # OpenAI, Anthropic, OpenRouter; Stripe
    | \b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b                       # AWS
    | \bgh[pousr]_[A-Za-z0-9]{16,} | \bgithub_pat_\w{16,} | \bglpat-[\w-]{16,}
    | \bxox[abeoprs]-[\w-]{10,} | \bAIza[\w-]{30,} | \bnpm_[A-Za-z0-9]{30,} | \bpypi-[\w-]{40,} | \br8_[A-Za-z0-9]{30,}
    | \beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*                             # JSON Web Token
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----.*?(?:-----END[ A-Z]*PRIVATE\ KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_NAMES_IN_TEXT = r"[\w.-]{0,40}(?:(?:api|access|secret|private)[_-]?key|token|secret|passwd|password|passphrase|pwd)"
# Patterns with the groups (what stays, the secret, what stays).
_IN_CONTEXT = (
    re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/\s@\"'<>]+)(@)"),  # scheme://user:password@host
    re.compile(
        r"([?&](?:[\w.-]*(?:key|token|secret|passw\w*|pwd|auth\w*|credential|signature)|sig|code)=)([^&\s\"'<>#]+)()",
        re.IGNORECASE,
    ),
    re.compile(r"(\bBearer\s+)((?=\S*\d)[\w.~+/=-]{6,}|[\w.~+/=-]{16,})()", re.IGNORECASE),
    re.compile(r"(\bBasic\s+)((?=\S*[\d=])[A-Za-z0-9+/]{8,}=*)()"),
    # name=value, "name": "value", and YAML's `name: value`, as error messages quote settings
    re.compile(rf"(\b{_NAMES_IN_TEXT}[\"']?\s*(?:=|:\s*[\"'])\s*[\"']?)([^\s\"',;&}}\])]{{4,}})()", re.IGNORECASE),
    re.compile(rf"(\b{_NAMES_IN_TEXT}:\s+)((?=\S*\d)[^\s\"',;}}\])]{{6,}})()", re.IGNORECASE),
)
_DIGESTS = re.compile(rf"(?<={re.escape(MASK)})[0-9a-f]{{{_DIGEST_LENGTH}}}\b")

_remembered: set[str] = set()
"""Secrets that were seen under their names: texts that quote them, such as error messages, are masked as well."""


def mask_secrets(value: Any, name: str = "", *, digest: bool = False) -> Any:
    """
    Return settings in which every secret is replaced by `***`.

    A secret is a value whose name says so (`api_key`, `token`, `password`, `headers`, ...), or a text of a known shape
    (`hf_...`, `sk-...`, `Bearer ...`, a URL with a password). A variable's name (`token_env`, `$NAME`) is none.

    Args:
        value (`Any`):
            Settings: mappings and lists of plain values. They are not changed.
        name (`str`, *optional*):
            The name of the value.
        digest (`bool`, *optional*, defaults to `False`):
            Whether a short hash of the secret follows the `***`, so that settings with different secrets compare as
            different. For files of this machine only: [`without_digests`] removes it.

    Returns:
        The settings, with new mappings and lists.
    """
    return _masked(value, name, digest, is_secret=False)


def mask_text(text: str, *, digest: bool = False) -> str:
    """
    Replace every secret in a text by `***`: those of a known shape or after a name such as `api_key=`, and those that
    [`mask_secrets`] met in this process.

    Args:
        text (`str`):
            The text.
        digest (`bool`, *optional*, defaults to `False`):
            As in [`mask_secrets`].
    """
    for secret in sorted(_remembered, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, _mask_of(secret, digest))
    for pattern in _IN_CONTEXT:
        text = pattern.sub(lambda found: _in_context(found, digest), text)
    return _SHAPES.sub(lambda found: _mask_of(found[0], digest), text)


def mask_arguments(words: Sequence[str]) -> list[str]:
    """
    Return a command line in which every secret is replaced by `***`, by the names of the flags and inside JSON.

    Args:
        words (sequence of `str`):
            The words of the command line.
    """
    masked, name = [], ""
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        name = flag.lstrip("-").replace("-", "_") or name
        masked.append(flag + equals + (_masked_word(value, name) if value else ""))
    return masked


def without_digests(text: str) -> str:
    """Remove the hashes that `digest=True` puts behind the `***` of masked secrets."""
    return _DIGESTS.sub("", text)


def is_masked(value: Any) -> bool:
    """Return whether settings contain a masked secret, so that nothing can be done with them."""
    if isinstance(value, Mapping):
        return any(map(is_masked, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_masked, value))
    return isinstance(value, str) and MASK in value


def is_secret_name(name: str) -> bool:
    """Return whether a value with this name is a secret, whatever it looks like."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    is_key = words[-1] == "key" and (len(words) == 1 or words[-2] in _KEY_KINDS)
    return is_key or words[-1] in _SECRET_WORDS


def table_cell(text: Any, keep: str = "") -> str:
    """
    Escape a text for a cell of a Markdown table, so that it is shown as it is and cannot become markup.

    Args:
        text (`Any`):
            The content of the cell; line breaks become spaces.
        keep (`str`, *optional*):
            Characters that are not escaped, such as a backtick in text that is Markdown.
    """
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    replacements = entities | {letter: f"\\{letter}" for letter in "\\`*_[]~|"}
    return "".join(
        letter if letter in keep else replacements.get(letter, letter) for letter in " ".join(str(text).split())
    )


def printable_lines(text: object) -> str:
    """Return a text for `print` as [`~spatialalign_trl.errors.printable`] does, but keep its line breaks."""
    return "\n".join(map(printable, str(text).split("\n")))


def terminal_text(text: object, style: str = "") -> Text:
    """
    Return a text for rich's consoles and tables that is shown as it is: rich would read `[...]` and `:smile:` in a
    `str` as markup, and a terminal obeys escape codes.

    Args:
        text (`object`):
            The text, such as a name from data or an error about it. It is shown on one line.
        style (`str`, *optional*):
            How rich shows it, such as `"bold"`.
    """
    from rich.text import Text

    return Text(printable(text), style)


def _masked(value: Any, name: str, digest: bool, is_secret: bool) -> Any:
    is_secret = is_secret or is_secret_name(name)
    if isinstance(value, Mapping):
        return {
            mask_text(key, digest=digest) if isinstance(key, str) else key: _masked(
                item, str(key), digest, is_secret
            )
            for key, item in value.items()
        }  # fmt: skip
    if isinstance(value, (list, tuple)):
        return [_masked(item, name, digest, is_secret) for item in value]
    if isinstance(value, str):
        if not _PLACEHOLDER.fullmatch(value) and (is_secret or _is_suspicious(name, value)):
            return _remember_and_mask(value, name, digest)
        return mask_text(value, digest=digest)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and is_secret and _NUMBERS_TOO & {word.lower() for word in _WORD.findall(name)}:
        return _mask_of(str(value), digest)
    return value


def _masked_word(word: str, name: str) -> str:
    """Mask a value on the command line, which may be JSON."""
    try:
        value = json.loads(word) if word[0] in "{[" else word
    except ValueError:
        value = word
    masked = mask_secrets(value, name)
    if masked == value:
        return word
    return masked if isinstance(masked, str) else json.dumps(masked)


def _is_suspicious(name: str, text: str) -> bool:
    """Return whether a text is long and random, under a name that speaks of secrets."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _POINTERS or not _SUSPICIOUS.search(name) or not _RANDOM.fullmatch(text):
        return False
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares) > 3.0


def _remember_and_mask(secret: str, name: str, digest: bool) -> str:
    if secret.startswith(MASK):
        return secret
    # Under a vague name, such as one of a header, ordinary words would disappear from all texts.
    is_vague = name.lower() == "key" or not is_secret_name(name)
    if len(secret) >= _MIN_REMEMBERED and not (is_vague and re.fullmatch(r"[a-z/ -]+", secret)):
        _remembered.add(secret)
    return _mask_of(secret, digest)


def _in_context(found: re.Match[str], digest: bool) -> str:
    before, secret, after = found.groups()
    if secret.startswith(MASK) or _PLACEHOLDER.fullmatch(secret):
        return found[0]
    return before + _mask_of(secret, digest) + after


def _mask_of(secret: str, digest: bool) -> str:
    return MASK + (_digest(secret) if digest else "")


@cache
def _digest(secret: str) -> str:
    """Return a hash that takes a while to compute, so that a weak password cannot be found by trying many."""
    return hashlib.scrypt(secret.encode("utf-8", "replace"), salt=_SALT, n=2**14, r=8, p=1, dklen=6).hex()
