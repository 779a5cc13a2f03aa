"""Translated images to files."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from cyclelight.diffusion.pixels import digest, to_uint8
from cyclelight.runs.folder import RunFolder
from datamodules import TranslationImages


def translation_data(trainer: Trainer) -> TranslationImages:
    """The datamodule of a `predict` run.

    Raises:
        ValueError: it is of another kind.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, TranslationImages):
        raise ValueError(f"predict takes the data of TranslationImages, got {type(data).__name__}")
    return data


def run_folder(trainer: Trainer) -> RunFolder:
    """The folder of a `predict` run: the trainer's `default_root_dir`, the datamodule's `keys`."""
    return RunFolder(trainer.default_root_dir, translation_data(trainer).keys)


class ImageWriter(Callback):
    """Writes each predicted image to the run folder as soon as it is finished.

    Predictions are (B, 3, R, R), float [-1, 1], of batches with `key` and `path`; the module has a
    `seed`. With several processes each writes its own images. What an earlier run has finished in
    the same folder is left out of the data.

    Args:
        overwrite: begin anew: remove what an earlier run left, and leave nothing out.
    """

    def __init__(self, overwrite: bool = False) -> None:
        self.overwrite = overwrite

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Here rather than later, so that a bad output folder stops the run before models load."""
        if stage != "predict":
            return
        self.folder = run_folder(trainer)
        data = translation_data(trainer)
        assert data.images is not None, "the data's setup comes first"
        if self.overwrite:
            data.done = frozenset()
            return
        if trainer.is_global_zero:
            others = self.folder.open_manifest()
            if others:
                rank_zero_warn(
                    f"{self.folder.root} holds {others} images of an earlier run that this one "
                    f"does not make; they stay there and in its manifest"
                )
        trainer.strategy.barrier()
        # No process begins before all are past the next barrier, when the loaders are made. That
        # the images are there was seen to already, by one process for all.
        known = {entry["key"]: entry["digest"] for entry in self.folder.entries()}
        changed = data.images.changed(known)
        if changed:
            rank_zero_warn(
                f"{len(changed)} images, such as {min(changed)}, are other ones than those that "
                f"{self.folder.root} has translations of: they are translated again"
            )
        if changed and trainer.is_global_zero:  # The others have read it: `changed` is of them all.
            self.folder.forget(changed)
        data.done = known.keys() - changed

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is to be overwritten only now, when all that may fail is loaded."""
        if self.overwrite:
            if trainer.is_global_zero:
                self.folder.clear()
            trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, Tensor) and len(outputs) == len(batch["key"])
        seed = pl_module.seed
        assert isinstance(seed, int)
        for key, image in zip(batch["key"], outputs, strict=True):
            if not image.isfinite().all():
                raise RuntimeError(
                    f"the translation of {key} has values that are not finite: the weights of the "
                    f"domains are damaged, or trainer.precision is too low for them"
                )
        names = zip(batch["key"], batch["path"], strict=True)
        images = zip(to_uint8(batch["image"]).cpu(), to_uint8(outputs).cpu(), strict=True)
        for (key, path), (source, image) in zip(names, images, strict=True):
            self.folder.write_image(key, image)
            # After the image, so that what the manifest lists is there.
            self.folder.add_to_manifest(key, path, digest(source), seed)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self.folder.close_manifest()
            lost = self.folder.unlisted()
            if lost:
                raise RuntimeError(
                    f"the manifest lacks {len(lost)} images that were written, such as {lost[0]}: "
                    f"the file system loses lines of several machines; run again"
                )
