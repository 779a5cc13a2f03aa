"""What is kept of images and gathered, against plain dicts and lists."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from cyclelight.metrics import columns as columns_file
from cyclelight.metrics import gather as gather_file
from cyclelight.metrics import realism
from cyclelight.metrics.columns import Columns
from cyclelight.metrics.faithfulness import ssim
from cyclelight.metrics.judge import Judge, PerImage, score
from cyclelight.metrics.protocol import protocol_of

DIM = 6


def images(count: int, *, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """By key, in no order: features, of the source too, a class, and a figure."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).tolist()
    return {
        f"{place:03d}.png": {
            "row": torch.randn(DIM, generator=generator),
            "label": torch.tensor(150 + place % 3),
            "source row": torch.randn(DIM, generator=generator) + 1,
            "source label": torch.tensor(281),
            "PSNR": torch.rand((), generator=generator, dtype=torch.float64),
        }
        for place in order
    }


def keep(some: dict[str, dict[str, Tensor]], batch: int = 3) -> Columns:
    kept, keys = Columns(), list(some)
    for start in range(0, len(keys), batch):
        few = keys[start : start + batch]
        names = some[few[0]]
        kept.add(few, {name: torch.stack([some[key][name] for key in few]) for name in names})
    return kept


@pytest.mark.parametrize("block", [1, 50, 2**24])
def test_columns_come_in_the_order_of_keys(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(columns_file, "BLOCK", block)
    some = images(20)
    kept = keep(some)
    again = {key: {name: 2 * v for name, v in some[key].items()} for key in list(some)[4:9]}
    for key, values in again.items():  # What comes twice counts once.
        kept.add([key], {name: value[None] for name, value in values.items()})
    expected = some | again
    assert len(kept) == 20 and kept.value("007.png", "PSNR") == expected["007.png"]["PSNR"].item()
    for _ in range(2):
        kept.sort()
        assert list(kept) == sorted(expected)
        for name in kept.names:
            column = torch.stack([expected[key][name] for key in sorted(expected)])
            found = kept.column(name)
            assert found is not None and found.dtype == column.dtype and found.equal(column)
            del found
    kept.add(["x"], {name: column[:1] for name, column in next(kept.pieces(1))[1].items()})
    assert kept.value("x", "PSNR") == expected["000.png"]["PSNR"].item()
    assert Columns().column("row") is None


@pytest.mark.parametrize(
    ("counts", "expected"), [([20, 0, 0], 0), ([0, 20], 5), ([1, 12, 2, 5], 6)]
)
def test_gathered_figures_are_those_of_one_process(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], expected: int
) -> None:
    """In rounds of 8 images of all processes, as `torch.distributed` hands them to the first."""
    some, reference = images(20), images(11, seed=1)
    keys, starts = list(some), [sum(counts[:rank]) for rank in range(len(counts))]
    shards = [
        keep({key: some[key] for key in keys[start : start + count]})
        for start, count in zip(starts, counts, strict=True)
    ]
    pieces = [shard.pieces(max(1, 8 // len(counts))) for shard in shards]
    rounds = 0

    def all_gather_object(them: list[int], mine: int) -> None:
        assert mine == counts[0]
        them[:] = counts

    def gather_object(mine: None, parts: list[Any]) -> None:
        nonlocal rounds
        rounds += 1
        for rank in range(1, len(counts)):
            parts[rank] = pickle.loads(pickle.dumps(next(pieces[rank], None)))

    distributed = {
        "is_initialized": lambda: True,
        "get_rank": lambda: 0,
        "get_world_size": lambda: len(counts),
        "all_gather_object": all_gather_object,
        "gather_object": gather_object,
    }
    whole = score(keep(some, 20), keep(reference), protocol_of("default"), "dog")
    for name, function in distributed.items():
        monkeypatch.setattr(torch.distributed, name, function)
    monkeypatch.setattr(gather_file, "PIECE", 8)
    everything = gather_file.gather(shards[0])
    assert rounds == expected
    assert score(everything, keep(reference), protocol_of("default"), "dog") == whole
    per_image = PerImage(everything, "dog")
    assert list(per_image) == sorted(keys) and len(per_image) == 20
    for key in keys:
        of_class = float(some[key]["label"].item() > 150)
        assert per_image[key] == {"dog": of_class, "PSNR": some[key]["PSNR"].item()}
    assert "elsewhere.png" not in per_image


def test_lpips_is_left_out_if_a_process_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather_object(them: list[list[str]], mine: list[str]) -> None:
        them[:] = [mine, [*mine, "other"], ["SSIM"]]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    judge = Judge(None, resolution=64)
    judge.measures, judge.notes = {"SSIM": ssim, "LPIPS": ssim}, []
    gather_file.agree(judge)
    assert judge.measures == {"SSIM": ssim}
    assert judge.notes == ["no LPIPS: process 2 lacks its weights"]


def test_figures_in_blocks_are_those_of_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realism, "BLOCK", 7 * DIM)
    some, reference = images(50), images(50, seed=1)  # Its KID takes sets of one size for granted.
    figures = {s.figure: s for s in score(keep(some), keep(reference), protocol_of("default"))}

    def rows(of: dict[str, dict[str, Tensor]], name: str) -> Tensor:
        return torch.stack([of[key][name] for key in sorted(of)]).double()

    y = rows(reference, "row")
    for x, figure in ((rows(some, "row"), "value"), (rows(some, "source row"), "untranslated")):
        moments = [m for z in (x, y) for m in (z.mean(0), torch.cov(z.T))]
        theirs = {"KID": poly_mmd(x, y).item(), "FID": _compute_fid(*moments).item()}
        for name, value in theirs.items():
            assert getattr(figures[name], figure) == pytest.approx(value, rel=1e-9), name
    floor = poly_mmd(y[::2], y[1::2]).item()
    assert figures["KID"].real == pytest.approx(floor, rel=1e-9)
