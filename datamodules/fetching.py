"""Archives from the network to folders: downloads that resume, unpacking that is all or none."""

import hashlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from datamodules.tars import MOST_BYTES

CHUNK = 2**20
TIMEOUT = 60  # seconds without a byte


class DamagedArchive(ValueError):
    """A file that is no zip, cut short, hostile, or whose contents do not match its CRCs."""


def download(url: str, file: Path) -> None:
    """`url` => `file`, which appears only when it is whole.

    What arrived of an interrupted download stays in `FILE.part`, and the next call goes on there.

    Raises:
        OSError: the server cannot be reached, refuses, answers with a web page, or the connection
            ended early.
    """
    part = file.with_name(f"{file.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    try:
        answer = _open(url, have)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing beyond what there is: it is whole, or of another file.
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            part.rename(file)
            return
        part.unlink()
        have, answer = 0, _open(url, 0)
    with answer:
        try:
            have = _receive(answer, part, have, file.name)
        except HTTPException as error:
            raise ConnectionError(f"the connection ended early: {error!r}") from error
    total = _length(answer)
    if total is not None and have != total:
        raise ConnectionError(f"the connection ended at {have} of {total} bytes")
    part.rename(file)


def _open(url: str, start: int) -> Any:
    headers = {"User-Agent": "cyclelight"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urlopen(Request(url, headers=headers), timeout=TIMEOUT)


def _length(answer: Any) -> int | None:
    """Bytes of the whole file, if the answer tells."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    total = total or answer.headers.get("Content-Length") or ""
    return int(total) if total.isdigit() else None


def _receive(answer: Any, part: Path, have: int, label: str) -> int:
    """Append the answer to `part`, or start it anew if the server sends everything; its size."""
    if answer.headers.get_content_type() == "text/html":
        raise ConnectionError("the server answered with a web page, not the archive")
    resumes = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if answer.status != 206 or not resumes:
        have = 0
    part.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(
        desc=label,
        initial=have,
        total=_length(answer),
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,
    )
    with part.open("ab" if have else "wb") as out, bar:
        while chunk := answer.read(CHUNK):
            out.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    return have


def sha256(file: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def unpack(archive: Path, folder: Path, members: Mapping[str, str]) -> None:
    """Write `members` (name in the zip => path in `folder`); `folder` appears whole or not at all.

    Every byte is checked against the zip's own CRCs.

    Raises:
        DamagedArchive: see there; or a member is larger than any image.
        OSError: there is not enough room, or it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_zip(archive) as source,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary,
    ):
        sizes = {name: source.getinfo(name).file_size for name in members}
        if large := [name for name, size in sizes.items() if size > MOST_BYTES]:
            raise DamagedArchive(
                f"{archive} is refused: {large[0]} unpacks to {sizes[large[0]]} bytes, more than "
                f"an image has ({MOST_BYTES})"
            )
        needed = sum(sizes.values())
        free = shutil.disk_usage(temporary).free
        if needed > free:
            raise OSError(
                f"unpacking {archive} needs {needed / 1e9:.1f} GB in {folder.parent}, "
                f"where {free / 1e9:.1f} GB are free"
            )
        made = Path(temporary) / "made"
        for name, path in tqdm(members.items(), f"unpacking {archive.name}", disable=None):
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            _extract(source, name, made / path)
        made.rename(folder)


def _extract(source: zipfile.ZipFile, name: str, path: Path) -> None:
    try:
        with source.open(name) as member, path.open("wb") as out:
            shutil.copyfileobj(member, out, CHUNK)
    # What the readers of compressed streams raise on damage; OSError is the disk's.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DamagedArchive(f"{source.filename} is damaged at {name}: {error}") from error


def open_zip(archive: Path) -> zipfile.ZipFile:
    """The zip, its directory read.

    Raises:
        DamagedArchive: it is no zip, cut short, or a name in it would lead out of a folder.
    """
    try:
        source = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise DamagedArchive(f"{archive} is no zip, or cut short") from error
    for member in source.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        link = stat.S_ISLNK(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0] or link:
            source.close()
            raise DamagedArchive(f"{archive} is refused: {member.filename!r} leads out of a folder")
    return source
