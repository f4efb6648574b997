"""Build tokenizers and text encoders for the tiny pipelines from a few letters, without any download."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import (
    CLIPTokenizer,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

T5_TOKENS = 16
T5_DIM = 16

_WORDS = ["in", "a", "the", "meadow", "fox", "stump", "is", "on", "left", "right", "of", "then", "jumps", "to"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Draw the same random numbers whatever was drawn before, and leave the caller's random state unchanged.

    Also a decorator: `@seeded(0)`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def t5_tokenizer() -> T5Tokenizer:
    """Build a unigram tokenizer that knows a few words and every letter."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in _WORDS)]
    pieces += [character for character in string.ascii_letters + string.digits + ".,"]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=T5_TOKENS)


def t5_encoder(vocabulary_size: int, *, multilingual: bool = False) -> PreTrainedModel:
    """Build an encoder like T5's, or like UMT5's, which Wan uses."""
    config, encoder = (UMT5Config, UMT5EncoderModel) if multilingual else (T5Config, T5EncoderModel)
    sizes = {"d_model": T5_DIM, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return encoder(config(vocab_size=vocabulary_size, **sizes)).eval()


def clip_tokenizer(letters: str = string.ascii_lowercase, max_length: int = 32) -> CLIPTokenizer:
    """Build a tokenizer that knows these letters, within words and at their ends."""
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=max_length)
