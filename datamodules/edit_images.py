"""The images to edit, and the texts that say how."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclelight.errors import BadValue
from datamodules.edit_rows import Edit, fields_of, find_table, keyed, read_edits
from datamodules.listing import Files, find_images
from datamodules.regions import Regions
from datamodules.translation_images import TranslationImages


class EditImages(TranslationImages):
    """Images with what each shows and what it is to show: `source_text` and `target_text`.

    Either images and one pair of texts for all of them, or a table with a row for each edit: a
    JSON list of objects, such as that published with CycleDiffusion (`img_path`, `encode_text`,
    `decode_text`), or a CSV file with columns `image`, `source_text`, `target_text`; both may have
    `scale` and `source_scale`, `truth` (an image, the right result), `group` (what kind of edit it
    is: figures are told by group, too) and `key`; in JSON also `mask`, where the image is to
    change, as PIE-Bench has it: it is judged by that. PIE-Bench is taken as the folder that its
    makers give out.

    The key of an edit is the name of its image; of an image's second edit `photo-2.png`; or what
    its row says. By these names `masks` has a mask for each edit, and `truth` a right result.

    Args:
        source: an image file, a folder, a pattern such as `photos/*.jpg`; or a table.
        source_text: what the images show; empty to say nothing of it. Not with a table.
        target_text: what they are to show. Not with a table.
        root: the folder that a table's names of images are relative to; None for its own.
        images: see `TranslationImages`.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an argument is out of range, there are no images, or a row is bad.
    """

    def __init__(
        self,
        source: str,
        source_text: str = "",
        target_text: str | None = None,
        root: str | None = None,
        **images: Any,
    ) -> None:
        self.source_text, self.target_text, self.root = source_text, target_text, root
        self.texts: dict[str, dict[str, Any]] = {}
        self.edits: dict[str, Edit] = {}
        """The rows of a table, by key."""
        super().__init__(source, **images)

    def find(self, source: str) -> Files:
        table = find_table(source)
        if table is not None:
            for name in ("source_text", "target_text"):
                if getattr(self, name):
                    raise BadValue(name, f"{name} stands in each row of {table}: do not give it")
            root = None if self.root is None else Path(self.root)
            self.edits = keyed(read_edits(table, root))
            self.texts = fields_of(self.edits)
            return [(key, edit.image) for key, edit in self.edits.items()]
        if self.root is not None:
            raise BadValue("root", f"root is for the images of a table, and {source} is none")
        if not self.target_text:
            raise BadValue("target_text", "target_text: say what the images are to show")
        files = find_images(source)
        texts = {"source_text": self.source_text, "target_text": self.target_text}
        self.texts = {key: texts for key, _ in files}
        return files

    def captions(self, key: str) -> Sequence[str]:
        told = {"from": self.texts[key]["source_text"], "to": self.texts[key]["target_text"]}
        return [f"{name}: {text}" for name, text in told.items() if text]

    def find_truths(self, truth: str | None) -> dict[str, Path]:
        known = {key: edit.truth for key, edit in self.edits.items() if edit.truth is not None}
        if known and truth is not None:
            told = f"truth stands in each row of {self.source}: do not give it"
            raise BadValue("truth", told)
        return known or super().find_truths(truth)

    @property
    def searched(self) -> Path | None:
        return None if find_table(self.source) else super().searched

    def load(self, resolution: int) -> None:
        super().load(resolution)
        self.regions = regions_of(self.edits, resolution)
        fields = self.loaded.fields
        self.loaded.fields = {k: {**fields.get(k, {}), **self.texts[k]} for k in self.loaded.keys}


def regions_of(edits: Mapping[str, Edit], resolution: int) -> Regions | None:
    """Where edits are to change their images, by key; None where nothing is said of it."""
    runs = {key: edit.region for key, edit in edits.items() if edit.region is not None}
    return Regions(runs, resolution) if runs else None
