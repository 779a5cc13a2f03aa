"""Images that are made of nothing but noise."""

from pathlib import Path

from cyclelight.diffusion.pixels import FitMode
from cyclelight.errors import BadValue, MissingFile, at_least
from datamodules.items import Items
from datamodules.listing import list_images
from datamodules.predict_data import PredictData
from datamodules.reading import OnError, check_loading
from datamodules.square_images import SquareImages


class NewImages(PredictData):
    """Images without sources, such as `guide` makes: sample_00000.png and so on.

    Args:
        count: how many.
        reference: folder of real images which the results are measured against and shown beside.
        batch_size: images at a time in each process.
        fit_mode: of the reference: `crop` to the largest centred square, or `letterbox` on white.
        on_error: what an unreadable file of the reference does: `raise` an error, or `skip` it.

    Raises:
        FileNotFoundError: `reference` does not exist.
        ValueError: an argument is out of range.
    """

    num_workers = 0

    def __init__(
        self,
        count: int = 16,
        reference: str | None = None,
        batch_size: int = 8,
        fit_mode: FitMode = "crop",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        at_least(1, count=count)
        check_loading(batch_size, 0, fit_mode, on_error)
        if reference is not None and not Path(reference).is_dir():
            raise MissingFile("reference", f"reference: no such folder {reference}")
        self.reference_files = list_images(reference) if reference is not None else []
        if reference is not None and not self.reference_files:
            raise BadValue("reference", f"reference: no images in {reference}")
        self.count, self.reference, self.batch_size = count, reference, batch_size
        self.fit_mode: FitMode = fit_mode
        self.on_error: OnError = on_error

    @property
    def keys(self) -> list[str]:
        return [f"sample_{index:05d}.png" for index in range(self.count)]

    def load(self, resolution: int) -> None:
        """Look at the reference, if there is one."""
        if self.items is not None:
            return
        self.items = Items(self.keys)
        if self.reference_files:
            self.reference_images = SquareImages(
                self.reference_files,
                resolution,
                self.fit_mode,
                self.on_error,
                keep=False,
                channels=self.channels,
            )
