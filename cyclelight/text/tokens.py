"""Captions as numbers: a tokenizer of CLIP's kind, made from the captions of a data set."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from transformers import CLIPTokenizer

BEGIN, END = 0, 1
"""The ids of the tokens that begin and end a text in a tokenizer made here; END also fills up."""


def train_tokenizer(captions: Iterable[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A byte-pair encoding that writes frequent words of `captions` as one token each.

    The same captions give the same tokenizer.

    Args:
        captions: texts.
        vocabulary: tokens that there are at most.
        length: tokens of a text at most, BEGIN and END among them.
    """
    blank = CLIPTokenizer(model_max_length=length)
    train: Any = blank.train_new_from_iterator
    made: CLIPTokenizer = train(sorted(captions), vocab_size=vocabulary, show_progress=False)
    assert (made.bos_token_id, made.eos_token_id) == (BEGIN, END)
    return made


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """The ids (B, L) of B captions, int64, filled up to the tokenizer's length L.

    Raises:
        ValueError: a caption is longer than that.
    """
    length = tokenizer.model_max_length
    for caption, ids in zip(captions, tokenizer(list(captions))["input_ids"], strict=True):
        if len(ids) > length:
            raise ValueError(
                f"a text may have {length - 2} tokens, this one has {len(ids) - 2}: {caption!r}"
            )
    found: Tensor = tokenizer(list(captions), padding="max_length", return_tensors="pt")[
        "input_ids"
    ]
    return found
