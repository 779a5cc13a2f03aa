"""Local blend: as recorded from Prompt-to-Prompt's program, and within a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import prompt_spellings
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight import AttentionControl, LocalBlend
from cyclelight.chains.lockstep import lockstep
from cyclelight.chains.source import source_chain
from cyclelight.text import blend as blends
from cyclelight.text.blend import Blender, Places, Text

VECTORS = Path(__file__).parent / "vectors" / "p2p"
ROOT = Path(__file__).parents[1]
EMOJI, PILOT = ROOT / "checkpoints" / "emoji_text", ROOT / "docs/demo/edits/man_pilot.png"
CASES = json.loads((VECTORS / "localblend.json").read_text())
SOURCE, TARGET = "red heart, google", "blue heart, google"
METHOD = cyclelight.CycleDiffusion(steps=5, strength=0.8, cleanup=0)
SCHEDULE = cyclelight.NoiseSchedule()
L = 77


def listed(words: str | list[str]) -> list[str]:
    return [words] if isinstance(words, str) else words


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_states_are_blended_as_recorded(case: dict[str, Any]) -> None:
    there = load_file(VECTORS / f"localblend_{case['case']}.safetensors")
    given, calls = case["kwargs"], case["calls"]
    kept = given.get("substruct_words", [[] for _ in case["prompts"]])
    threshold, kept_threshold = given.get("th", (given.get("threshold"), 0.3))
    texts = [
        Text(each.words, each.positions)
        for each in prompt_spellings(case["prompts"], case["token_ids"])
    ]
    layers = [there[f"down_cross_{i}"] for i in (2, 3)] + [there[f"up_cross_{i}"] for i in range(3)]
    maps = torch.nn.functional.pad(torch.stack(layers).float(), (0, L - case["tokens_stored"]))
    for row in range(1, len(texts)):
        settings = LocalBlend(
            source_words=listed(case["words"][0]),
            target_words=listed(case["words"][row]),
            source_kept=kept[0],
            target_kept=kept[row],
            threshold=threshold,
            kept_threshold=kept_threshold,
            start=given.get("start_blend", 0.0),
        )
        places = Places.of(settings, [(texts[0], texts[row])], 10, L)
        for role, prompt in enumerate((0, row)):
            alpha = torch.stack([there["alpha_layers"][prompt], places.counted[role, 0, 1]])
            if "substruct_layers" in there:
                alpha[1] = there["substruct_layers"][prompt]
            assert torch.equal(places.counted[role, 0], alpha)
        blender = Blender(places)
        blender.begin(64)  # Whose quarter the recorded maps have; its states are smaller.
        x, y = there["x_t"][:1], there["x_t"][row : row + 1]
        for call in range(calls):
            for layer in maps:
                for target, prompt in ((False, 0), (True, row)):
                    assert blender.wants(layer.shape[1])
                    blender.see(layer[None, prompt : prompt + 1], target=target)
            out = blender.blend(y, x, call)
            assert_close(out, there[f"out_call{call + 1}"][row : row + 1], rtol=0, atol=1e-5)
        mask = there["mask_last_call"][row - 1].bool()
        assert torch.equal(out, torch.where(mask, y, x)) and 0 < mask.float().mean() < 1


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def edit(
    control: AttentionControl,
    sources: list[str],
    targets: list[str],
    x: Tensor,
    method: Any = METHOD,
    keys: str = "ab",
) -> Tensor:
    model, grid = cyclelight.load_text_model(EMOJI), method.grid(SCHEDULE).timesteps
    pair = model.controlled(sources, targets, control, grid, source_scale=2.0, scale=2.0)
    return cyclelight.translate(*pair, x, method=method, keys=list(keys[: len(x)]))


@pytest.mark.parametrize("start", [0.0, 0.6])
def test_what_is_not_looked_at_stays_bit_for_bit(start: float) -> None:
    """By all maps of 8 x 8 so far, put together by another library."""
    model, grid = cyclelight.load_text_model(EMOJI), METHOD.grid(SCHEDULE)
    settings = LocalBlend(threshold=0.5, start=start)
    control = AttentionControl(cross=0.5, self_attention=0.0, blend=settings)
    source, target = model.controlled(
        *([f"{who} pilot, light skin tone, google"] for who in ("man", "woman")),
        control,
        grid.timesteps,
        source_scale=2.0,
        scale=2.0,
    )
    controller: Any = source.denoiser._controller  # type: ignore[attr-defined]
    see, seen = controller.see, {False: 0.0, True: 0.0}

    def look(layer: str, maps: Tensor, *, cross: bool) -> Tensor:
        out: Tensor = see(layer, maps, cross=cross)
        if cross:  # "man" and "woman" are the first words.
            seen[controller._target] = seen[controller._target] + out[0, :, :, 1].mean(0).numpy()
        return out

    controller.see = look
    x, noise = cyclelight.load_images(PILOT, source), cyclelight.KeyedNoise(0, ["a"])
    changed = []
    with torch.no_grad():
        chain = source_chain(source.denoiser, x, grid=grid, eta=1.0, noise=noise)
        encoded_steps = list[Any]()

        def kept() -> Any:
            for each in chain:
                encoded_steps.append(each)
                yield each

        for step, y in enumerate(lockstep(target.denoiser, kept())):
            x_s = encoded_steps[-1].x_s
            changed.append((y != x_s).any(1)[0].numpy())
            if step < int(start * len(grid)):
                assert changed[-1].mean() > 0.9
                continue
            mask = np.zeros((32, 32), bool)
            for attention in seen.values():
                around = ndimage.maximum_filter(attention.reshape(8, 8), 3, mode="nearest")
                mask |= np.kron(around / around.max(), np.ones((4, 4))) > 0.5
            assert not changed[-1][~mask].any() and changed[-1][mask].mean() > 0.9
            assert 0.05 < mask.mean() < 0.95
    assert torch.equal(y[:, :, ~mask], x[:, :, ~mask])


def test_a_batch_is_its_images() -> None:
    x = images(2)
    texts = [SOURCE, "man astronaut, google"], [TARGET, "woman astronaut, dark skin tone, google"]
    control = AttentionControl(blend=LocalBlend(threshold=0.5))
    together = edit(control, *texts, x)
    for i in range(2):
        alone = edit(control, *([t[i]] for t in texts), x[i : i + 1], keys="ab"[i])  # type: ignore[arg-type]
        assert_close(together[i : i + 1], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "texts", "message"),
    [
        ({}, (SOURCE, SOURCE), "blend: nothing differs between the words of 'red heart, google'"),
        ({}, ("Red heart", "red heart,"), "blend: nothing differs"),
        ({"source_words": ["blue"]}, (SOURCE, TARGET), "source_words: 'blue' is not among the wo"),
        ({"target_kept": ["red"]}, (SOURCE, TARGET), "target_kept: 'red' is not among the words"),
    ],
)
def test_what_texts_do_not_admit_is_refused(
    settings: dict[str, Any], texts: tuple[str, str], message: str
) -> None:
    control = AttentionControl(blend=LocalBlend(**settings))
    with pytest.raises(ValueError, match=message):
        edit(control, *([text] for text in texts), images(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1, got 1.0"),
        ({"start": -0.1}, "start must be at least 0 and below 1"),
        ({"kept_threshold": "much"}, "kept_threshold must be a number"),
        ({"source_words": "red"}, "source_words must be a list of words, got 'red'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalBlend(**settings)


def test_what_cannot_be_blended_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    control = AttentionControl(blend=LocalBlend())
    cleaned = cyclelight.CycleDiffusion(steps=5, cleanup=300)
    with pytest.raises(ValueError, match="cleanup must be 0 with a blend"):
        edit(control, [SOURCE], [TARGET], images(1), cleaned)
    monkeypatch.setattr(blends, "SHRUNK", 2)
    with pytest.raises(ValueError, match="this network has no attention from 16 x 16 pixels to wo"):
        edit(control, [SOURCE], [TARGET], images(1))
