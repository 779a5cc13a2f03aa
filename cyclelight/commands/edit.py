"""`lightning edit`: edit images by texts."""

from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule

from cyclelight.commands.guard import UsageError
from cyclelight.commands.predict import Predict, run
from cyclelight.errors import printable
from cyclelight.modules.editing import EditingModule
from cyclelight.runs.group_figures import group_table
from cyclelight.runs.task import task_of
from datamodules.edit_images import EditImages
from datamodules.edit_rows import groups_of

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

    def tell(self) -> None:
        """Print the figures, and those by group, which also go to the tables of a comparison."""
        super().tell()
        [scores] = self.scores
        if scores.report is None or not isinstance(self.datamodule, EditImages):
            return
        table = group_table(
            scores.report,
            groups_of(self.datamodule.edits),
            row=OUTPUT,
            title=task_of(self.model).describe(),
            rate=scores.classes,
        )
        if table is not None:
            table.write(Path(self.trainer.default_root_dir))
            print(printable(f"\n{table.group_text()}"))


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
