"""clean-fid's own program, for the protocol that names it (Parmar et al. 2022).

This project's formulas stand beside it: where the two differ, a warning says so.
"""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor, nn

from cyclelight.metrics.realism import Estimate, fid, kid

FILE = "inception-2015-12-05.pt"
"""The name that clean-fid asks its file of weights to have."""
AGREEMENT = 1e-3
"""Share of FID by which the two programs may differ; KID's draws may by five standard errors."""


def inception(file: Path) -> nn.Module:
    """Its Inception V3, for images (B, 3, 299, 299), float in [0, 255]: rows (B, 2048)."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # torch 2.15 wants TorchScript gone, but this file comes in nothing else.
        warnings.filterwarnings("ignore", ".torch.jit.load. is deprecated")
        (Path(folder) / FILE).symlink_to(file.resolve())
        network: nn.Module = InceptionV3W(folder, download=False)
    return network


def resize(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) => float32 (B, 3, 299, 299), [0, 255], unrounded, on the same device."""
    resizer = build_resizer("clean")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'mode' parameter is deprecated")  # Of Pillow 11.3.
        resized = np.stack([resizer(image) for image in images.cpu().numpy()])
    return torch.from_numpy(resized).movedim(-1, 1).to(images.device)


def frechet(features: Tensor, reference: Tensor) -> float:
    """FID by clean-fid's formula; see `realism.fid`, also for what is raised."""
    from cleanfid.fid import frechet_distance  # Seconds, which only this protocol needs.

    own = fid(features, reference)
    statistics = [_statistics(rows) for rows in (features, reference)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `disp` argument is deprecated")
        value = float(frechet_distance(*statistics[0], *statistics[1]))
    _compare("FID", value, own, AGREEMENT * max(1.0, abs(own)))
    return value


def kernel(
    features: Tensor, reference: Tensor, *, subset_size: int, subsets: int, seed: int = 0
) -> Estimate:
    """KID by clean-fid's formula; see `realism.kid`, also for the errors and what is raised."""
    from cleanfid.fid import kernel_distance  # As above.

    own = kid(features, reference, subset_size=subset_size, subsets=subsets, seed=seed)
    rows = [each.double().cpu().numpy() for each in (features, reference)]
    whole = len(rows[0]) == len(rows[1]) <= subset_size  # Each draw is both whole sets.
    # It draws from NumPy's common generator, which is given back as it was.
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        values = [
            kernel_distance(*rows, num_subsets=1, max_subset_size=subset_size)
            for _ in range(1 if whole else subsets)
        ]
    finally:
        np.random.set_state(state)
    value, spread = float(np.mean(values)), float(np.std(values))
    if whole:
        _compare("KID", value, own.value, 1e-6 * max(1.0, abs(own.value)))
        return Estimate(value, own.standard_error)
    _compare("KID", value, own.value, 5 * (spread + own.standard_error) / subsets**0.5 + 1e-6)
    return Estimate(value, spread)


def _statistics(rows: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    values = rows.double().cpu().numpy()
    return values.mean(axis=0), np.cov(values, rowvar=False)


def _compare(figure: str, theirs: float, own: float, most: float) -> None:
    if not abs(theirs - own) <= most:
        warnings.warn(
            f"clean-fid has {figure} {theirs:.6g}, this project's formula {own:.6g}: the features "
            f"are badly conditioned, or one of the two is wrong",
            stacklevel=3,
        )
