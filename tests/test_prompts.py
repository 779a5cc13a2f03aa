"""Words, alignments and windows of two prompts: as recorded from Prompt-to-Prompt's program."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from cyclelight.text.prompts import (
    cross_window,
    occurrences,
    refining,
    replacing,
    self_window,
    token_positions,
)

VECTORS = Path(__file__).parent / "vectors" / "p2p"
PAIRS = json.loads((VECTORS / "pairs.json").read_text())
MAPPERS = load_file(VECTORS / "mappers.safetensors")
SCHEDULES = load_file(VECTORS / "schedules.safetensors")
L = 77


def positions(pair: dict[str, Any], role: str) -> list[list[int]]:
    return token_positions(pair[f"{role}_tokens"][1:-1], pair[f"{role}_words"])


@pytest.mark.parametrize("number", range(len(PAIRS["pairs"])))
def test_pairs(number: int) -> None:
    pair = PAIRS["pairs"][number]
    for role in ("source", "target"):
        assert positions(pair, role) == pair[f"{role}_word_inds"]
    words = pair["source_words"], pair["target_words"]
    both = positions(pair, "source"), positions(pair, "target")
    if pair["replace"] == "ok":
        alignment = replacing(*words, *both, L)
        assert_close(alignment.matrix, MAPPERS[f"pair{number:02}.replace_mapper"], rtol=0, atol=0)
        assert not alignment.keep.any()
    else:
        with pytest.raises(ValueError, match="kind: 'replace' takes texts of as many words, got"):
            replacing(*words, *both, L)
    refined = refining(pair["source_ids"], pair["target_ids"], L)
    mapper, alphas = (MAPPERS[f"pair{number:02}.refine_{n}"] for n in ("mapper", "alphas"))
    assert torch.equal(refined.keep, 1 - alphas)
    # As the program takes a map's columns by the mapper, and scales them.
    base = torch.rand(3, L, generator=torch.Generator().manual_seed(0))
    assert_close(base @ refined.matrix, base[:, mapper] * alphas, rtol=0, atol=0)


def test_words_by_name() -> None:
    """All occurrences, case-sensitively."""
    spelt: dict[str, list[str]] = {}  # The tokens of each word, wherever one was recorded.
    for pair in PAIRS["pairs"]:
        for role in ("source", "target"):
            for word, own in zip(pair[f"{role}_words"], pair[f"{role}_word_inds"], strict=True):
                spelt[word] = [pair[f"{role}_tokens"][i] for i in own]
    for entry in PAIRS["word_inds_by_string"]:
        words = entry["prompt"].split(" ")
        # The last word of one of them has lost its comma.
        tokens = [token for word in words for token in spelt.get(word, spelt.get(f"{word},"))]  # type: ignore[union-attr]
        given = (entry["word"], words, token_positions(tokens, words), "words")
        if entry["inds"]:
            assert occurrences(*given) == entry["inds"]
        else:
            with pytest.raises(ValueError, match=r"words: .* is not among the words of"):
                occurrences(*given)


@pytest.mark.parametrize("case", json.loads((VECTORS / "schedules.json").read_text()))
def test_windows(case: dict[str, Any]) -> None:
    there = SCHEDULES[f"{case['case']}.cross_replace_alpha"]
    steps, given = case["num_steps"], case["cross_replace_steps"]
    windows = dict(given) if isinstance(given, dict) else {"default_": given}

    def span(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    default = span(windows.pop("default_", 1.0))
    for index, prompt in enumerate(case["prompts"][1:]):
        words = prompt.split(" ")
        pair = next(p for p in PAIRS["pairs"] if prompt in (p["source"], p["target"]))
        own = positions(pair, "source" if pair["source"] == prompt else "target")
        # The program passes over words that a prompt does not have.
        here = {word: span(value) for word, value in windows.items() if word in words}
        found = cross_window(steps, default, here, words, own, L)
        assert torch.equal(found.to(torch.uint8), there[:, index])
    self_span = span(case["self_replace_steps"])
    assert list(self_window(steps, self_span)) == case["num_self_replace"]


def test_tokens_that_spell_something_else() -> None:
    assert token_positions(["ice", "-", "cream", ",", "x"], ["ice-cream,", "x"]) == [
        [1, 2, 3, 4],
        [5],
    ]
    with pytest.raises(ValueError, match="there are no tokens for 'b'"):
        token_positions(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="tokens follow the last word of 'a'"):
        token_positions(["a", "b"], ["a"])
