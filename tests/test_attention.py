"""Control over attention: as recorded from Prompt-to-Prompt's program, and within a run."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import prompt_spellings
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

import cyclelight
from cyclelight.chains.engine import Engine
from cyclelight.methods.sdedit import renoised_chain
from cyclelight.modules.editing import EditingModule
from cyclelight.text.attention import AttentionControl, Controller, Plan, Seat
from cyclelight.text.control import plan_of

VECTORS = Path(__file__).parent / "vectors" / "p2p"
EMOJI = Path(__file__).parents[1] / "checkpoints" / "emoji_text"
CASES = json.loads((VECTORS / "controllers.json").read_text())
RUN = json.loads((VECTORS / "run_replace.json").read_text())
L = 77


def plan(case: dict[str, Any], steps: int) -> Plan:
    """A recorded case's settings, as ours."""
    given = case["cross_replace_steps"]
    words = dict(given) if isinstance(given, dict) else {}
    cross = words.pop("default_", 1.0) if isinstance(given, dict) else given
    source, *targets = prompt_spellings(case["prompts"], case["token_ids"])
    reweight = {}
    if case.get("equalizer_word"):
        reweight = {case["equalizer_word"]: case["equalizer_value"]}
    plans = []
    for target in targets:
        control = AttentionControl(
            cross=tuple(cross) if isinstance(cross, list) else cross,
            self_attention=case["self_replace_steps"],
            kind="refine" if "refine" in case.get("kind", "") else "replace",
            # The program passes over words that a prompt does not have.
            words={word: span for word, span in words.items() if word in target.words},
            reweight=reweight,
        )
        plans.append(plan_of(control, [(source, target)], tuple(range(steps))[::-1], L))
    return Plan(
        plans[0].timesteps,
        torch.cat([p.matrix for p in plans]),
        torch.cat([p.keep for p in plans]),
        torch.cat([p.factors for p in plans]),
        torch.cat([p.cross for p in plans], dim=1),
        plans[0].self_steps,
        plans[0].most_queries,
    )


def parts(maps: Tensor, prompts: int) -> tuple[Tensor, Tensor, Tensor]:
    """(of no text, of the source, of the targets), each (prompts, heads, queries, keys)."""
    empty, told = maps.unflatten(0, (2, prompts, -1))
    return empty, told[:1], told[1:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_maps_are_edited_as_recorded(case: dict[str, Any]) -> None:
    there = load_file(VECTORS / f"controller_{case['case']}.safetensors")
    ours, count = plan(case, case["num_steps"]), len(case["prompts"])
    assert torch.equal(ours.cross, there["cross_replace_alpha"].float())
    assert list(ours.self_steps) == case["num_self_replace"]
    if "equalizer" in there:
        assert torch.equal(ours.factors, there["equalizer"])
    for name in ("cross", "self", "self_q256", "self_q257"):
        for step in range(case["num_steps"] + 1):
            if f"attn_{name}_out_step{step}" not in there:
                continue
            _, base, own = parts(there[f"attn_{name}_in"], count)
            cross = name == "cross"
            edited = own
            if ours.wants(step, own.shape[-2], cross=cross):
                edited = ours.edit(step, base, own, cross=cross)
            _, _, expected = parts(there[f"attn_{name}_out_step{step}"], count)
            assert_close(edited, expected, rtol=0, atol=1e-6)


def test_a_run_is_edited_as_recorded() -> None:
    """A controller through 6 steps of three layers, one of them from pixels to pixels."""
    there = load_file(VECTORS / "run_replace.safetensors")
    ours = plan(RUN, RUN["num_steps"])
    controller = Controller(ours, Seat())
    for step, t in enumerate(ours.timesteps):
        for target in (False, True):
            with controller.asks(t, 16, target=target):
                for number, layer in enumerate(RUN["layers"]):
                    cross = layer["is_cross"]
                    given = parts(there[f"in_s{step}_l{number}"], 2)
                    expected = parts(there[f"out_s{step}_l{number}"], 2)
                    maps = torch.cat([given[1 + target], given[0][:1]])
                    if controller.wants(layer["queries"], cross=cross):
                        maps = controller.see(f"layer {number}", maps, cross=cross)
                    assert_close(maps[:1], expected[1 + target], rtol=0, atol=1e-6)
                    assert torch.equal(maps[1:], given[0][:1])


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


SOURCES = ["red heart, google", "man astronaut, google"]
TARGETS = ["blue heart, google", "woman astronaut, dark skin tone, google"]
METHOD = cyclelight.CycleDiffusion(steps=5, strength=0.8, cleanup=0)
SCHEDULE = cyclelight.NoiseSchedule()


def edit(
    control: AttentionControl | None,
    sources: list[str] = SOURCES,
    targets: list[str] = TARGETS,
    method: Any = METHOD,
    keys: str = "ab",
    x: Tensor | None = None,
) -> Tensor:
    model = cyclelight.load_text_model(EMOJI)
    x = images(len(sources)) if x is None else x
    if control is None:
        pair = model.prompted(sources, scale=2.0), model.prompted(targets, scale=2.0)
    else:
        timesteps = method.grid(SCHEDULE).timesteps
        pair = model.controlled(sources, targets, control, timesteps, source_scale=2.0, scale=2.0)
    return cyclelight.translate(*pair, x, method=method, keys=list(keys))


def test_no_control_is_none() -> None:
    """The layers are those of before, to the last bit, where no window is open."""
    never = AttentionControl(cross=0.0, self_attention=0.0)
    assert torch.equal(edit(never), edit(None))
    assert (edit(AttentionControl()) - edit(None)).abs().max() > 0.05


@pytest.mark.parametrize(
    "method", [METHOD, cyclelight.EditFriendly(steps=5), cyclelight.DDCM(steps=5)], ids=str
)
def test_equal_texts_give_the_image_back(method: Any) -> None:
    x = images(2)
    for kind in ("replace", "refine"):
        control = AttentionControl(cross=1.0, self_attention=1.0, kind=kind)  # type: ignore[arg-type]
        assert torch.equal(edit(control, SOURCES, SOURCES, method), x)


def deterministic(x: Tensor, eps: Tensor, before: float, after: float) -> Tensor:
    """DDIM's step from one abar to another (Song et al. 2021, Eq. 12 with sigma 0)."""
    x_0 = (x - (1 - before) ** 0.5 * eps) / before**0.5
    return after**0.5 * x_0 + (1 - after) ** 0.5 * eps


def test_ddib_comes_down_beside_its_source() -> None:
    """Up by the source's own attention, then both down: by a loop of its own."""
    model, method = cyclelight.load_text_model(EMOJI), cyclelight.DDIB(steps=4)
    control = AttentionControl(cross=0.8, self_attention=0.5)
    made = edit(control, method=method)
    grid = method.grid(model.denoiser.schedule).timesteps
    abar = [*(model.denoiser.schedule.alpha_bar(t) for t in grid), 1.0]
    plain = model.prompted(SOURCES, scale=2.0).denoiser
    source, target = (
        domain.denoiser
        for domain in model.controlled(SOURCES, TARGETS, control, grid, source_scale=2.0, scale=2.0)
    )
    x = images(2)
    with torch.no_grad():
        for i in reversed(range(4)):
            eps = plain(x, grid[min(i + 1, 3)]).eps
            x = deterministic(x, eps, abar[i + 1], abar[i])
        y = x
        for i, t in enumerate(grid):
            x_eps, y_eps = source(x, t).eps, target(y, t).eps
            x, y = (deterministic(z, e, abar[i], abar[i + 1]) for z, e in ((x, x_eps), (y, y_eps)))
    assert_close(made, y, rtol=0, atol=2e-4)
    uncontrolled = edit(None, method=method)
    assert (made - uncontrolled).abs().max() > 0.05
    never = AttentionControl(cross=0.0, self_attention=0.0)
    assert_close(edit(never, method=method), uncontrolled, rtol=0, atol=2e-4)
    # With equal texts the source is what it would be without control.
    same = edit(AttentionControl(1.0, 1.0), SOURCES, SOURCES, method)
    assert_close(same, edit(None, SOURCES, SOURCES, method), rtol=0, atol=2e-4)
    assert EditingModule(str(EMOJI), method, control=control).steps == 8


def test_memory_does_not_grow_with_steps() -> None:
    """Neither maps nor states of more than one step are kept."""

    def most(steps: int, method: Any) -> int:
        method = method(steps=steps)
        model = cyclelight.load_text_model(EMOJI)
        grid = method.grid(SCHEDULE).timesteps
        control = AttentionControl(cross=1.0, self_attention=1.0)
        pair = model.controlled(SOURCES, TARGETS, control, grid, source_scale=2.0, scale=2.0)
        found = list[int]()

        def count(state: Tensor) -> None:
            kept = [each for each in gc.get_objects() if type(each) is Tensor]
            found.append(sum(each.numel() for each in kept))

        cyclelight.translate(*pair, images(2), method=method, keys=["a", "b"], on_step=count)
        return max(found)

    map_of_a_layer = 2 * 4 * 64 * 64
    for method in (cyclelight.EditFriendly, cyclelight.DDIB):
        assert abs(most(12, method) - most(3, method)) < map_of_a_layer


def test_a_batch_is_its_images() -> None:
    control, x = AttentionControl(self_attention=0.6), images(2)
    together = edit(control)
    for i in range(2):
        alone = edit(control, SOURCES[i:][:1], TARGETS[i:][:1], keys="ab"[i], x=x[i : i + 1])
        assert_close(together[i : i + 1], alone, rtol=0, atol=2e-5)


def test_maps_of_the_target_are_the_sources() -> None:
    """In each layer, at the steps of the window, and its own at the others."""
    model = cyclelight.load_text_model(EMOJI)
    timesteps = (900, 600, 300)
    control = AttentionControl(cross=0.6, self_attention=0.4, kind="replace")
    source, target = model.controlled(
        SOURCES[:1], TARGETS[:1], control, timesteps, source_scale=2.0, scale=2.0
    )
    seen: list[tuple[bool, str, Tensor]] = []
    controller: Any = source.denoiser._controller  # type: ignore[attr-defined]
    see = controller.see

    def look(layer: str, maps: Tensor, *, cross: bool) -> Tensor:
        out: Tensor = see(layer, maps, cross=cross)
        seen.append((cross, layer, out[:1]))
        return out

    controller.see = look
    x, y = images(2).split(1)
    expected = {900: {True, False}, 600: {True}, 300: set()}
    with torch.no_grad():
        for t in timesteps:
            seen.clear()
            for domain, state in ((source, x), (target, y)):
                domain.denoiser(state, t)
            half = len(seen) // 2
            assert {cross for cross, _, _ in seen} == expected[t]
            assert half == {900: 8, 600: 4, 300: 0}[t]
            for (_, layer, one), (_, same, other) in zip(seen[:half], seen[half:], strict=True):
                assert layer == same and one.sum(-1).allclose(torch.ones(()), atol=1e-5)
                # All words correspond here, each of one token.
                assert torch.equal(one, other)


def test_a_cleanup_is_the_targets_alone() -> None:
    """It has no source, and the last maps of one are not taken for its own."""
    method = cyclelight.CycleDiffusion(steps=5, strength=0.8, cleanup=300)
    control = AttentionControl(cross=1.0, self_attention=1.0)
    model = cyclelight.load_text_model(EMOJI)
    grid = method.grid(SCHEDULE).timesteps
    source, target = model.controlled(SOURCES, TARGETS, control, grid, source_scale=2.0, scale=2.0)
    bare = cyclelight.CycleDiffusion(steps=5, strength=0.8, cleanup=0)
    noise = cyclelight.KeyedNoise(0, "ab")
    states: list[Tensor] = []
    with torch.no_grad():
        domains = {"source": source, "target": target}
        states += method.stream(domains, images(2), noise)  # type: ignore[arg-type]
    first = states[bare.length(SCHEDULE) - 1]
    plain = model.prompted(TARGETS, scale=2.0)
    with torch.no_grad():
        cleanup = cyclelight.TimeGrid.whole(SCHEDULE, 5).below(300)
        *_, last = renoised_chain(
            plain.denoiser, first, grid=cleanup, eta=1.0, noise=noise, purpose="cleanup"
        )
    assert torch.equal(states[-1], last)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"kind": "replace"}, "kind: 'replace' takes texts of as many words, got 3 in .* and 6 in"),
        ({"reweight": {"green": 2.0}}, "reweight: 'green' is not among the words of 'blue heart"),
        ({"words": {"green": 0.5}}, "words: 'green' is not among the words of"),
        ({"cross": 1.5}, r"cross must be in \[0, 1\], or from one such share to another, got 1.5"),
        ({"self_attention": (0.5, 0.2)}, "self_attention must be in"),
        ({"kind": "both"}, "kind must be one of auto, replace, refine, got 'both'"),
        ({"cross": float("nan")}, "cross must be a number"),
    ],
)
def test_what_texts_do_not_admit_is_refused(control: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit(AttentionControl(**control))


def test_what_cannot_be_controlled_is_refused() -> None:
    control = AttentionControl()
    ahead = cyclelight.CycleDiffusion(steps=5, cleanup=0, parallel=64)
    with pytest.raises(ValueError, match="parallel must be 0 where attention is controlled"):
        edit(control, method=ahead)
    model = cyclelight.load_text_model(EMOJI)
    _, target = model.controlled(SOURCES, TARGETS, control, (900, 400))
    with pytest.raises(ValueError, match=r"step by step, .*: the target was asked first"):
        target.denoiser(images(2), 900)
    Engine(compile=True).speed_up_network(model.denoiser)
    with pytest.raises(ValueError, match="engine: attention cannot be controlled in a network th"):
        model.controlled(SOURCES, TARGETS, control, (900, 400))
    plain = cyclelight.load_text_model(EMOJI)
    Engine().speed_up_network(plain.denoiser, "bf16-mixed")
    pair = plain.controlled(SOURCES, SOURCES, control, METHOD.grid(SCHEDULE).timesteps)
    source, target = plain.controlled(
        SOURCES, SOURCES, control, METHOD.grid(SCHEDULE).timesteps, source_scale=2.0, scale=2.0
    )
    assert len(pair) == 2
    x = images(2)
    assert torch.equal(cyclelight.translate(source, target, x, method=METHOD), x)
