"""`lightning edit`: edit images by texts."""

from lightning.pytorch import LightningDataModule, LightningModule

from cyclelight.commands.guard import UsageError
from cyclelight.commands.predict import Predict, run
from cyclelight.modules.editing import EditingModule
from datamodules.edit_images import EditImages

WORDS = ("source", "source_text", "target_text")
"""What the words before the options are, below `--data.`."""
OUTPUT = "edited"


class Edit(Predict):
    """Translation between two texts of one model."""

    name = "edit"
    summary = (
        "Edit an image by two texts, what it shows and what it is to show; or many images, by a "
        f"table with a row for each edit. The images go to --output, `{OUTPUT}` if none is given."
    )
    words = "[IMAGE SOURCE_TEXT TARGET_TEXT | TABLE] --model.model DIR "
    default_model: type[LightningModule] = EditingModule
    default_data: type[LightningDataModule] = EditImages


def edit(args: list[str]) -> int:
    """`lightning edit`; the exit code."""
    return run(Edit, with_options(args))


def with_options(args: list[str]) -> list[str]:
    """The words before the first option as options, and an output folder if none is named.

    Raises:
        UsageError: there are two words, or more than three.
    """
    count = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    words, rest = args[:count], args[count:]
    if len(words) not in (0, 1, 3):
        raise UsageError(
            f"edit takes an image and two texts, or a table, before its options; got {len(words)} "
            f"words: put each text in quotes"
        )
    for name, word in zip(WORDS, words, strict=False):
        rest += [f"--data.{name}={word}"]
    if not any(word.partition("=")[0] in ("--output", "--config") for word in rest):
        rest += ["--output", OUTPUT]
    return rest
