"""Two prompts compared: their words' tokens, how these correspond, when and how much they count.

All positions are those of tokens, 0 being the one that begins a text. The rules are those of the
program published with Prompt-to-Prompt (Hertz et al. 2022).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cyclelight.errors import BadValue

Window = float | tuple[float, float]
"""When something is done: from one share of a run's steps to another, the noisiest first; a number
b stands for (0, b)."""


MARKS = ".,;:!?()[]\"'"
"""Punctuation, which a word has at its ends."""


@dataclass(frozen=True)
class Alignment:
    """Where attention to each target token comes from: map @ matrix + own map * keep.

    Args:
        matrix: (L, L); column n has the shares of the source's tokens in target token n.
        keep: (L,): the share of the target's own map.
    """

    matrix: Tensor
    keep: Tensor


def words_of(text: str) -> list[str]:
    """The parts between spaces; punctuation belongs to its word."""
    return text.split(" ")


def token_positions(tokens: Sequence[str], words: Sequence[str]) -> list[list[int]]:
    """The positions of each word's tokens, told by their lengths.

    Args:
        tokens: each token of the text as it reads, without those that begin and end it.
        words: of the text.

    Raises:
        ValueError: the tokens spell something else.
    """
    found: list[list[int]] = [[] for _ in words]
    word, letters = 0, 0
    for position, token in enumerate(tokens, 1):
        if word == len(words):
            raise ValueError(f"tokens follow the last word of {' '.join(words)!r}")
        found[word].append(position)
        letters += len(token)
        if letters >= len(words[word]):
            word, letters = word + 1, 0
    if word < len(words):
        raise ValueError(f"there are no tokens for {words[word]!r}")
    return found


def replacing(
    source_words: Sequence[str],
    target_words: Sequence[str],
    source_positions: Sequence[Sequence[int]],
    target_positions: Sequence[Sequence[int]],
    length: int,
) -> Alignment:
    """Each word takes the place of the source's word of the same number.

    Where both have as many tokens these correspond one by one; else each of the source's gives an
    equal share to each of the target's. Behind the last word that differs, each position
    corresponds to itself: as published, also where the numbers of tokens differ.

    Raises:
        ValueError: there are not as many words.
    """
    if len(source_words) != len(target_words):
        raise BadValue(
            "kind",
            f"kind: 'replace' takes texts of as many words, got {len(source_words)} in "
            f"{' '.join(source_words)!r} and {len(target_words)} in {' '.join(target_words)!r}; "
            f"'refine' takes any",
        )
    differ = [
        number
        for number, (one, other) in enumerate(zip(source_words, target_words, strict=True))
        if one != other
    ]
    matrix = torch.zeros(length, length)
    i = j = 0
    while i < length and j < length:
        if not differ:
            matrix[j, j] = 1
            i, j = i + 1, j + 1
        elif source_positions[differ[0]][0] == i:
            number = differ.pop(0)
            rows, columns = list(source_positions[number]), list(target_positions[number])
            if len(rows) == len(columns):
                matrix[rows, columns] = 1
            else:
                matrix[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1 / len(columns)
            i, j = i + len(rows), j + len(columns)
        else:
            matrix[i, j] = 1
            i, j = i + 1, j + 1
    return Alignment(matrix, torch.zeros(length))


def refining(source: Sequence[int], target: Sequence[int], length: int) -> Alignment:
    """Tokens that both have correspond, in order (Needleman and Wunsch 1970); others are new.

    A match counts 1, a mismatch -1, a gap 0; of equally good ways, one where a target token is new
    comes before one where a source token is dropped, and that before a correspondence.

    Args:
        source, target: the ids of all tokens, those that begin and end a text among them.
        length: of the maps; what follows a text corresponds to itself.
    """
    rows, columns = len(source) + 1, len(target) + 1
    score = [[0] * columns for _ in range(rows)]
    way = [["new"] * columns] + [["dropped"] + [""] * (columns - 1) for _ in range(rows - 1)]
    for i in range(1, rows):
        for j in range(1, columns):
            same = 1 if source[i - 1] == target[j - 1] else -1
            ways = {
                "new": score[i][j - 1],
                "dropped": score[i - 1][j],
                "both": score[i - 1][j - 1] + same,
            }
            way[i][j] = max(ways, key=lambda name: ways[name])  # The first of equal ones.
            score[i][j] = ways[way[i][j]]
    matrix, keep = torch.eye(length), torch.zeros(length)
    matrix[:, : len(target)] = 0
    i, j = rows - 1, columns - 1
    while j > 0:
        if way[i][j] == "both":
            i, j = i - 1, j - 1
            matrix[i, j] = 1
        elif way[i][j] == "new":
            j -= 1
            keep[j] = 1
        else:
            i -= 1
    return Alignment(matrix, keep)


def occurrences(
    word: str, words: Sequence[str], positions: Sequence[Sequence[int]], argument: str
) -> list[int]:
    """The positions of the tokens of a word, wherever it occurs.

    Raises:
        ValueError: it does not occur; the message begins with `argument`.
    """
    found = [p for one, own in zip(words, positions, strict=True) if one == word for p in own]
    if not found:
        text = " ".join(words)
        raise BadValue(argument, f"{argument}: {word!r} is not among the words of {text!r}")
    return found


def differing(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """The words that another text lacks, punctuation and capitals aside, in their order."""
    known = {word.strip(MARKS).lower() for word in others}
    return [word for word in words if word.strip(MARKS).lower() not in known]


def bounds(window: Window) -> tuple[float, float]:
    """(from, to) of a window."""
    return window if isinstance(window, tuple) else (0.0, window)


def cross_window(
    steps: int,
    window: Window,
    words: Mapping[str, Window],
    target_words: Sequence[str],
    positions: Sequence[Sequence[int]],
    length: int,
) -> Tensor:
    """Whether the map of each token is edited at each step: 0 or 1, (steps + 1, L).

    Args:
        steps: really run. As published, shares are those of one more.
        window: of all tokens.
        words: windows of single words of the target in its place.
        target_words, positions: of the target text.
        length: L.

    Raises:
        ValueError: one of the words is not in the text.
    """
    found = torch.zeros(steps + 1, length)
    everywhere = list(range(length))
    own = [(occurrences(w, target_words, positions, "words"), span) for w, span in words.items()]
    for columns, span in [(everywhere, window), *own]:
        start, end = (int(share * (steps + 1)) for share in bounds(span))
        found[:, columns] = 0
        found[start:end, columns] = 1
    return found


def self_window(steps: int, window: Window) -> tuple[int, int]:
    """The first step of a window, and the one behind its last."""
    start, end = bounds(window)
    return int(steps * start), int(steps * end)
