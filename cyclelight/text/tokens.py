"""Captions as numbers: a tokenizer of CLIP's kind, made from the captions of a data set."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTokenizer

from cyclelight.errors import printable

BEGIN, END = 0, 1
"""The ids of the tokens that begin and end a text in a tokenizer made here; END also fills up."""
LONGEST = 80
"""Letters of a text that an error tells; of longer ones beginning and end."""
LAST = "</w>"
"""What the last symbol of a word ends with."""


def train_tokenizer(captions: Iterable[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A byte-pair encoding that writes frequent words of `captions` as one token each.

    The same captions give the same tokenizer, in whatever order; transformers' own trainer breaks
    ties by chance. Every text can be written in it, at worst byte by byte.

    Args:
        captions: texts.
        vocabulary: tokens that there are at most, 514 or more.
        length: tokens of a text at most, BEGIN and END among them.
    """
    blank = CLIPTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for caption in captions:
        split = blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(caption))
        words.update(word for word, _ in split)
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}{LAST}" for x in letters)]
    merges = byte_pairs(words, vocabulary - len(tokens))
    tokens += [a + b for a, b in merges]
    ids = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(ids, merges, model_max_length=length)  # type: ignore[arg-type]


def byte_pairs(words: Mapping[str, int], count: int) -> list[tuple[str, str]]:
    """The merges of a byte-pair encoding, at most `count` (Sennrich et al. 2016, Algorithm 1).

    Of pairs that are equally frequent the first by the alphabet is merged.

    Args:
        words: how often each word occurs.
    """
    spelt = {word: [*word[:-1], word[-1] + LAST] for word in sorted(words)}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in spelt.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in spelt.values():
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def check_length(tokenizer: Any, captions: Sequence[str], length: int | None = None) -> None:
    """Raises ValueError, with the text, if one has more tokens than `length` allows.

    Args:
        tokenizer: one of transformers.
        length: tokens, those that begin and end a text among them; None for the tokenizer's own.
    """
    length = length or tokenizer.model_max_length
    around = len(tokenizer("", verbose=False)["input_ids"])
    # Its own warning of a text that is too long would tell the same.
    found = tokenizer(list(captions), verbose=False)["input_ids"]
    for caption, ids in zip(captions, found, strict=True):
        if len(ids) > length:
            raise ValueError(
                f"a text may have {length - around} tokens, this one has {len(ids) - around}: "
                f"{printable(repr(caption), LONGEST)}"
            )


def token_ids(tokenizer: Any, captions: Sequence[str], length: int | None = None) -> Tensor:
    """The ids (B, L) of B captions, int64, filled up to `length` L, see `check_length`.

    Raises:
        ValueError: a caption is longer than that.
    """
    check_length(tokenizer, captions, length)
    found: Tensor = tokenizer(
        list(captions),
        padding="max_length",
        max_length=length or tokenizer.model_max_length,
        return_tensors="pt",
    )["input_ids"]
    return found
