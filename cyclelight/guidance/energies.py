"""Energies of the images themselves: the distance to one, and functions of your own."""

from collections.abc import Mapping

from torch import Tensor

from cyclelight.diffusion.noise import Noise
from cyclelight.errors import BadValue
from cyclelight.guidance.energy import (
    Energy,
    check_image,
    file_digest,
    import_named,
    read_image_file,
)


class DistanceEnergy(Energy):
    """|x - y|^2 / 2 over all pixels, which are in [-1, 1], to a given image y.

    Args:
        image: file of the image.
        weight: by which it is multiplied in the sum.

    Raises:
        FileNotFoundError: there is no such image.
        ValueError: a setting is out of range.
    """

    def __init__(self, image: str, weight: float = 1.0) -> None:
        super().__init__(weight)
        check_image(image)
        self.image = image

    def load(self, resolution: int) -> None:
        self.register_buffer("wanted", read_image_file(self.image, resolution), persistent=False)

    def forward(self, images: Tensor, noise: Noise, step: int) -> Tensor:
        gap = images - self.wanted.to(images)  # type: ignore[operator]
        return gap.square().sum(dim=(1, 2, 3)) / 2

    def made_by(self) -> Mapping[str, str]:
        return {"image": file_digest(self.image, "image")}


class CustomEnergy(Energy):
    """A function of your own: images (B, 3, R, R) near [-1, 1] => (B,), differentiable.

    Args:
        function: `package.module:name` of the function, or of a class or module; a class is made
            without arguments.
        weight: by which it is multiplied in the sum.

    Raises:
        ValueError: there is no such function, or a setting is out of range.
    """

    def __init__(self, function: str, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.function = function
        found = import_named(function, "function")
        self.call = found() if isinstance(found, type) else found

    @property
    def name(self) -> str:
        return self.function.rpartition(":")[2]

    def forward(self, images: Tensor, noise: Noise, step: int) -> Tensor:
        values = self.call(images)
        if not isinstance(values, Tensor) or values.shape != (len(images),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise BadValue(
                "function",
                f"function: {self.function} must give a tensor ({len(images)},) for "
                f"{len(images)} images, got {got}",
            )
        return values
