"""Images with captions, for text models and for CLIP."""

import csv
from pathlib import Path
from typing import Any

from cyclelight.errors import BadValue, MissingFile
from datamodules.domain_images import DomainImages
from datamodules.listing import Files
from datamodules.square_images import SquareImages


class CaptionedImages(DomainImages):
    """Images below a folder, each with a caption: a further field of items and batches, `caption`.

    The caption of an image stands in a table, or in a text file of its name beside it
    (`photo.png`, `photo.txt`). A table is a CSV file with a heading, whose first column names the
    images, by their path below `root` or by their name without folder and suffix, and whose column
    `caption` has the text; images that it does not name are left out.

    Args:
        root: folder of the images, searched recursively.
        captions: the table, below `root`; None for text files beside the images.
        held_out: a file below `root` with a name, as in the table, on each line: what these are of
            is kept from training, and judges.
        folder_words: add the name of each image's folder to its caption, as a word of style:
            `cat face, google`.
        images: see `DomainImages`.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an argument is out of range, or captions and images do not go together.
    """

    def __init__(
        self,
        root: str,
        captions: str | None = None,
        held_out: str | None = None,
        folder_words: bool = False,
        **images: Any,
    ) -> None:
        self.table, self.held_out, self.folder_words = captions, held_out, folder_words
        self.captions: dict[str, str] = {}
        super().__init__(root, **images)

    def find(self) -> None:
        super().find()
        files = self.train_files + self.val_files
        self.captions = self._of_table(files) if self.table else self._beside(files)
        if len(self.captions) < 2:
            where = self.table or "text files beside the images"
            raise BadValue("captions", f"captions: {where} has a caption for none of the images")
        out = self._held_out()
        train, val = (
            [file for file in group if file[0] in self.captions]
            for group in (self.train_files, self.val_files)
        )
        if out:
            both = train + val
            train = [file for file in both if not _names(file[0]) & out]
            val = [file for file in both if _names(file[0]) & out]
            if not val or not train:
                which = "every image" if val else "no image"
                raise BadValue("held_out", f"held_out: {self.held_out} names {which}")
        self.train_files, self.val_files = train, val

    def _of_table(self, files: Files) -> dict[str, str]:
        assert self.table is not None
        path = self._below("captions", self.table)
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not reader.fieldnames or "caption" not in reader.fieldnames:
                raise BadValue("captions", f"captions: {path} has no column caption")
            first = reader.fieldnames[0]
            known = {row[first]: row["caption"] for row in reader}
        found = {}
        for key, _ in files:
            name = next(iter(_names(key) & known.keys()), None)
            if name is not None:
                found[key] = self._worded(key, known[name])
        return found

    def _beside(self, files: Files) -> dict[str, str]:
        found = {}
        for key, path in files:
            text = path.with_suffix(".txt")
            if text.is_file():
                found[key] = self._worded(key, text.read_text(encoding="utf-8").strip())
        return found

    def _worded(self, key: str, caption: str) -> str:
        return f"{caption}, {Path(key).parent.name}" if self.folder_words else caption

    def _held_out(self) -> set[str]:
        if self.held_out is None:
            return set()
        lines = self._below("held_out", self.held_out).read_text(encoding="utf-8").splitlines()
        return {line.strip() for line in lines if line.strip()}

    def _below(self, argument: str, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise MissingFile(argument, f"{argument}: no such file {path}")
        return path

    def _squares(self, made: SquareImages | None, files: Files, resolution: int) -> SquareImages:
        images = super()._squares(made, files, resolution)
        images.fields = {key: {"caption": self.captions[key]} for key in images.keys}
        return images

    def summary(self) -> dict[str, str | int]:
        return {**super().summary(), "captions": len(set(self.captions.values()))}


def _names(key: str) -> set[str]:
    """What a table may call the image of that key."""
    return {key, Path(key).stem}
