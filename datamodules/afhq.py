"""AFHQ: faces of cats, dogs and wild animals, 512 x 512 (Choi et al., StarGAN v2, CVPR 2020)."""

import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_warn

from cyclelight.errors import BadValue, MissingFile, one_of
from datamodules.domain_images import DomainImages
from datamodules.fetching import DamagedArchive, download, open_zip, sha256, unpack
from datamodules.listing import is_image_name

Version = Literal["v1", "v2"]
Animal = Literal["cat", "dog", "wild"]
HOME = "https://github.com/clovaai/stargan-v2"


@dataclass(frozen=True)
class Release:
    """One published archive: its name without suffix, address, test folder, images per folder."""

    name: str
    url: str
    test: str
    images: dict[str, int]


# The addresses are those of the authors' download script, which publishes no checksums.
RELEASES: dict[str, Release] = {
    "v1": Release(
        "afhq",
        "https://www.dropbox.com/s/t9l9o3vsx2jai3z/afhq.zip?dl=1",
        "val",
        {
            **{"train/cat": 5153, "train/dog": 4739, "train/wild": 4738},
            **{"val/cat": 500, "val/dog": 500, "val/wild": 500},
        },
    ),
    "v2": Release(
        "afhq_v2",
        "https://www.dropbox.com/s/vkzjokiwof5h8w6/afhq_v2.zip?dl=1",
        "test",
        {
            **{"train/cat": 5065, "train/dog": 4678, "train/wild": 4593},
            **{"test/cat": 493, "test/dog": 491, "test/wild": 483},
        },
    ),
}


class AFHQ(DomainImages):
    """One domain of AFHQ, downloaded and unpacked if it is not there; licence CC BY-NC 4.0.

    Trains on `train/DOMAIN` and validates and tests on the published test images, which are
    `val/DOMAIN` in v1 and `test/DOMAIN` in v2. Items and memory are as in `DomainImages`.

    `root` may be the unpacked folder, the zip, or a folder that has `afhq_v2/` or `afhq_v2.zip`
    (v1: `afhq`) in it or is to get them. An archive is unpacked once, beside itself, by one
    process: every file is checked against its CRC, and the number of images of each folder against
    the published one. No checksums are published, so the archive's sha256 is noted in
    `afhq_v2.zip.sha256`; a later archive must agree with it. A downloaded zip is deleted when it
    is unpacked; one that was there is kept.

    Args:
        root: where the data is, or is downloaded to.
        version: v1 (2020) or v2 (2021: better resampling, lossless). Figures of different versions
            are not comparable.
        domain: cat, dog or wild.
        loading: see `DomainData`.

    Raises:
        FileNotFoundError: `root` is a file that does not exist.
        ValueError: an argument is out of range, or what is there is not this version.
    """

    def __init__(
        self,
        root: str = "data",
        version: Version = "v2",
        domain: Animal = "cat",
        **loading: Any,
    ) -> None:
        one_of(get_args(Version), version=version)
        one_of(get_args(Animal), domain=domain)
        self.version, self.domain, self.release = version, domain, RELEASES[version]
        folder, self.archive = _places(Path(root), self.release)
        super().__init__(
            str(folder),
            f"train/{domain}",
            f"{self.release.test}/{domain}",
            val_fraction=0.05,  # Unused with `val`, and so no option here.
            **loading,
        )
        # Where nodes share a disk, one process per node would write to the same file.
        self.prepare_data_per_node = False

    def find(self) -> None:
        """List the images if they are there already; else `setup` does, after `prepare_data`."""
        if not self.root.exists():
            return
        self._check_version()
        super().find()
        for sub, files in ((self.train, self.train_files), (self.val, self.val_files)):
            published = self.release.images[str(sub)]
            if len(files) != published:
                rank_zero_warn(f"{self.root / str(sub)} has {len(files)} images, not {published}")

    def _check_version(self) -> None:
        for version, other in RELEASES.items():
            has = [(self.root / release.test).is_dir() for release in (self.release, other)]
            if has == [False, True]:
                raise BadValue(
                    "version",
                    f"version {self.version} has a folder {self.release.test}, but {self.root} has "
                    f"{other.test} as {version} does",
                )

    def prepare_data(self) -> None:
        """Download and unpack what is missing; called on one process.

        Raises:
            OSError: it cannot be downloaded or written; the message says what to put where.
            ValueError: the archive is damaged or not what was published; nothing is unpacked.
        """
        if self.root.exists():
            return
        given = self.archive.is_file()
        if not given:
            try:
                download(self.release.url, self.archive)
            except OSError as error:
                reason = str(error).removeprefix("<urlopen error ").removesuffix(">")
                name, test = self.release.name, self.release.test
                raise OSError(
                    f"AFHQ {self.version} is not at {self.root} and cannot be downloaded "
                    f"({reason}): run again to go on, or put {name}.zip, from {HOME}, "
                    f"at {self.archive}, or its unpacked train/ and {test}/ into {self.root}"
                ) from error
        try:
            self._unpack()
        except DamagedArchive:
            if not given:
                self.archive.unlink()  # So that the next call does not meet it again.
            raise
        if not given:
            self.archive.unlink()

    def _unpack(self) -> None:
        with open_zip(self.archive) as source:
            members = _members(source, self.release)
        counts = Counter(str(PurePosixPath(path).parent) for path in members.values())
        for sub, published in self.release.images.items():
            if counts[sub] != published:
                raise ValueError(
                    f"{self.archive} has {counts[sub]} images in {sub}, AFHQ {self.version} has "
                    f"{published}; to use it as it is, unpack it to {self.root}"
                )
        note = self.archive.with_name(f"{self.archive.name}.sha256")
        digest = sha256(self.archive)
        known = note.read_text().split()[:1] if note.is_file() else [digest]
        if known != [digest]:
            raise ValueError(
                f"{self.archive} is not the archive that was here before: its sha256 is {digest}, "
                f"not as noted in {note}; delete the note if the new one is to be trusted"
            )
        unpack(self.archive, self.root, members)
        note.write_text(f"{digest}  {self.archive.name}\n")  # As `sha256sum -c` reads it.

    def setup(self, stage: str) -> None:
        """Find what `prepare_data` made, and decode what `stage` needs."""
        if not self.train_files:
            self.find()
        super().setup(stage)

    def summary(self) -> dict[str, str | int]:
        """What a domain's card tells of its data: which AFHQ, and the numbers of images."""
        return {**super().summary(), "root": f"AFHQ {self.version} {self.domain}"}


def _places(root: Path, release: Release) -> tuple[Path, Path]:
    """(the unpacked folder, the zip), there already or not."""
    if root.suffix.lower() == ".zip":
        if not root.is_file():
            raise MissingFile("root", f"root: no such file {root}")
        open_zip(root).close()
        return root.with_suffix(""), root
    if root.is_file():
        raise BadValue("root", f"root: {root} is neither a folder nor a .zip")
    inside = root / release.name
    unpacked = (root / "train").is_dir() and not inside.exists()
    return root if unpacked else inside, root / f"{release.name}.zip"


def _members(source: zipfile.ZipFile, release: Release) -> dict[str, str]:
    """Name in the zip => path in the folder, of the images; v1 has all below `afhq/`."""
    found = {}
    for name in source.namelist():
        path = PurePosixPath(name)
        sub = "/".join(path.parts[-3:-1])
        nested = path.parts[:-3] in ((), (release.name,))
        if nested and sub in release.images and is_image_name(Path(path.name)):
            found[name] = f"{sub}/{path.name}"
    return found
