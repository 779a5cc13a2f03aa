"""The folder of a fit: whether there is one in it already, and how another one starts over.

checkpoints/*.ckpt      its states
domain/ (or another)    what it has made, at the end
samples/  logs/         pictures, and curves for TensorBoard
loss.csv  loss.png      the curves of the losses
"""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from cyclelight.errors import printable

CHECKPOINTS, SAMPLES, LOGS, CURVE, CURVE_PICTURE = (
    "checkpoints",
    "samples",
    "logs",
    "loss.csv",
    "loss.png",
)
GO_ON = "--ckpt_path last goes on, --overwrite starts over"


def check_unused(root: Path, product: Path | None, *, resumes: bool = False) -> None:
    """ValueError if a new fit would destroy an earlier one.

    Args:
        root: the output folder.
        product: the file by which that is known which the new fit would write at its end, below
            `root`; None if it is not known.
        resumes: whether it was asked to go on, and found no checkpoint that it could go on from.
    """
    left = sorted((root / CHECKPOINTS).glob("*.ckpt"))[-1:]
    if product is not None and (root / product).is_file():
        left.append(root / product.parts[0])
    if not left:
        return
    told = " and ".join(printable(path.relative_to(root)) for path in left)
    if resumes:
        raise ValueError(
            f"the output folder {root} holds {told} of an earlier fit, but no whole checkpoint to "
            f"go on from; --overwrite without --ckpt_path starts over"
        )
    raise ValueError(f"the output folder {root} holds {told} of an earlier fit; {GO_ON}")


def is_within(path: Path, root: Path) -> bool:
    """Whether a checkpoint is one of the fit in the folder `root`."""
    return path.resolve().is_relative_to((root / CHECKPOINTS).resolve())


class StartOver(Callback):
    """Removes what an earlier fit left, when all is loaded and the training begins.

    What it has made at its end stays until the new one takes its place, whole.

    Args:
        root: the output folder, as the earlier fit left it.
    """

    def __init__(self, root: Path) -> None:
        # Known now: when the training begins there are new logs, too.
        patterns = (f"{CHECKPOINTS}/*.ckpt", f"{SAMPLES}/step_*.png", f"{LOGS}/events.out.*")
        self.old = [path for pattern in patterns for path in root.glob(pattern)]
        self.old += [root / CURVE, root / CURVE_PICTURE]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On the first process."""
        if trainer.is_global_zero:
            for path in self.old:
                path.unlink(missing_ok=True)
