"""contrastive-unpaired-translation's generators (Park et al. 2020), `latest_net_G.pth`.

The shape is read from the tensors, but for the image size. The filters of the resampling are
tensors there: they must be those that `CUTGenerator` has.
"""

from pathlib import Path

import torch
from torch import Tensor

from cyclelight.domains.adapters.adm import State, compare, read_state
from cyclelight.errors import at_least
from cyclelight.networks.cut import BODY, CUTGenerator


def is_cut(state: State) -> bool:
    """Whether these are the tensors of CUT's generator: its blur, where CycleGAN's has none."""
    return "model.7.filt" in state and f"model.{BODY}.conv_block.1.weight" in state


def load_cut(path: str | Path, *, image_size: int) -> CUTGenerator:
    """The generator of a checkpoint of contrastive-unpaired-translation, float32.

    Args:
        path: the `.pth` file: a plain dictionary of tensors.
        image_size: height and width of the images in pixels.

    Raises:
        ValueError: the file is no such checkpoint, or tensors are missing, unexpected or misshapen;
            they are listed by name.
    """
    at_least(1, image_size=image_size)
    state = read_state(path)
    try:
        if not is_cut(state):
            raise ValueError("these are not the tensors of CUT's generator with its blurs")
        blocks = sum(name.endswith(".conv_block.1.weight") for name in state)
        ngf, channels = state["model.1.weight"].shape[:2]
        filters = {f"model.{n}.filt": _filter((1, 2, 1), 1) for n in (BODY - 5, BODY - 1)}
        for n in (BODY + blocks, BODY + blocks + 4):
            filters[f"model.{n}.filt"] = _filter((1, 3, 3, 1), 4)
        for name, wanted in filters.items():
            found = state.pop(name, None)
            if found is None or found.shape[2:] != wanted.shape or not _same(found, wanted):
                raise ValueError(f"{name} is not the published filter of {len(wanted)} taps")
        with torch.device("meta"):
            compare(CUTGenerator(image_size, channels, ngf, blocks).state_dict(), state)
    except (KeyError, ValueError) as error:
        raise ValueError(f"import: {path}: {error}") from error
    network = CUTGenerator(image_size, channels, ngf, blocks)
    network.load_state_dict(state)
    return network


def _filter(taps: tuple[int, ...], gain: float) -> Tensor:
    row = torch.tensor(taps, dtype=torch.float32)
    return gain * torch.outer(row, row) / row.sum() ** 2


def _same(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted.expand_as(found), atol=1e-6)
