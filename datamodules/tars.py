"""Shards: tar files of images, read from beginning to end."""

import glob
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Self

from cyclelight.errors import BadValue, MissingFile, printable
from datamodules.listing import SUFFIXES, is_image_name
from datamodules.reading import FileContent

MOST_BYTES = 2**28
"""Of an encoded image; small archives may hold much larger things."""
LONGEST_HEADER = 2**20
"""Bytes of a header that gives a member's name; paths end at some thousands."""
PLAIN = (*tarfile.REGULAR_TYPES, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE)
"""Members whose size is not that of a header."""
Sample = tuple[str, FileContent]
"""(key, content) of an image: the key is its name in the shard."""


def require_webdataset() -> None:
    """ValueError if the library is missing that names, fetches and groups what is in shards."""
    try:
        import webdataset  # noqa: F401 (only here: it takes a second)
    except ImportError as error:
        raise ValueError(
            "ShardImages needs webdataset, which is not installed: pip install cyclelight[shards]"
        ) from error


def is_url(shard: str) -> bool:
    """Whether webdataset fetches it: `https://...`, `pipe:COMMAND` and so on."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", shard) is not None


def runs_command(shard: str) -> bool:
    """Whether a shell runs it: `pipe:COMMAND`."""
    return shard.lower().startswith("pipe:")


def find_shards(argument: str, pattern: str, *, allow_commands: bool = False) -> list[str]:
    """The shards that a pattern means, in its order.

    Args:
        argument: what the pattern was given as, for the errors.
        pattern: braces make a list, `{000..099}` or `{a,b}`; `*` finds local files. What is a URL
            or a `pipe:` command is not looked for.
        allow_commands: whether there may be commands among them.

    Raises:
        FileNotFoundError: there is no such file, or none that fits.
        ValueError: the braces do not match, or a command is not allowed.
    """
    from braceexpand import braceexpand

    try:
        names = list(braceexpand(pattern))
    except ValueError:
        raise BadValue(argument, f"{argument}: the braces of {pattern!r} do not match") from None
    found: dict[str, None] = {}  # As a set that keeps the order.
    for name in names:
        if runs_command(name) and not allow_commands:
            raise BadValue(
                argument,
                f"{argument}: {printable(name, 80)} is a command for the shell; commands are run "
                f"only with allow_commands (--data.allow_commands true)",
            )
        if is_url(name) or Path(name).is_file():
            found[name] = None
        elif Path(name).is_dir():
            raise BadValue(
                argument, f"{argument}: {name} is a folder, not shards such as '{name}/*.tar'"
            )
        elif not glob.has_magic(name):
            raise MissingFile(argument, f"{argument}: no such shard {name}")
        elif not (files := sorted(path for path in glob.glob(name) if Path(path).is_file())):
            raise MissingFile(argument, f"{argument}: no shards found by {name}")
        else:
            found |= dict.fromkeys(files)
    return list(found)


def count_images(shard: str) -> int:
    """Images in a local shard; only headers are read, unless it is compressed.

    Raises:
        ValueError: as `read_shard`, but for what is in the images.
    """
    return sum(1 for _ in read_shard(shard, first=None))


def read_shard(shard: str, *, first: int | None = 0) -> Iterator[Sample]:
    """The images of a shard in its order, encoded as they are.

    As webdataset has it, files in succession that share their name up to its first dot are one
    sample. Each must have one image, by the suffix; what is with it is passed over.

    Args:
        shard: a local file, or a URL or command that webdataset knows.
        first: the contents before the image of this number are left out; of all if None.

    Raises:
        ValueError: the shard cannot be read or is cut off, or a sample has not one image.
    """
    from webdataset.tariterators import base_plus_ext

    try:
        with _open_tar(shard) as tar:
            members = _members(tar, seekable=not is_url(shard))
            files = ((*base_plus_ext(m.name.removeprefix("./")), m) for m in members)
            named = (file for file in files if file[0] is not None)
            for number, (name, group) in enumerate(groupby(named, key=lambda file: file[0])):
                suffixes, images = [], []
                for _, suffix, member in group:
                    suffixes.append(f".{suffix}")
                    if suffixes[-1].lower() in SUFFIXES:
                        wanted = first is not None and number >= first
                        if member.size > MOST_BYTES:
                            raise ValueError(
                                f"{member.name} unpacks to {member.size} bytes, more than an "
                                f"image has ({MOST_BYTES})"
                            )
                        content = tar.extractfile(member).read() if wanted else b""  # type: ignore[union-attr]
                        images.append((f"{name}.{suffix}", content))
                if len(images) != 1:
                    told = ", ".join(suffixes[:5]) + ", ..." * (len(suffixes) > 5)
                    raise _NotOneImage(
                        f"shard {shard}: sample {name} has {len(images)} images, not 1, in "
                        f"{told} (files in succession whose names agree up to the "
                        f"first dot are one sample)"
                    )
                ((key, content),) = images
                yield key, FileContent(f"{shard}/{key}", content)
    except _NotOneImage:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, LZMAError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        # webdataset's message is the command as Python writes it, and its status.
        reason = re.sub(
            r"^\(\(.*: (exit -?\d+) \(read\).*", r"what fetches it ended with \1", reason
        )
        raise ValueError(f"cannot read shard {shard}: {reason}") from error


class _NotOneImage(ValueError):
    """Of a sample, in a shard that can be read."""


class _Member(tarfile.TarInfo):
    """Refuses a damaged header, which tarfile takes for the archive's end, or an endless one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        # What comes next is a name or a table of such, which tarfile reads whole.
        if header.type not in PLAIN and header.size > LONGEST_HEADER:
            raise ValueError(f"it has a header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            if tar.offset == 0:  # No tar file at all, or a compressed one.
                raise
            raise ValueError(f"it is damaged after {tar.offset} bytes") from error


def _members(tar: tarfile.TarFile, *, seekable: bool) -> Iterator[tarfile.TarInfo]:
    """The regular files but for hidden ones.

    Raises:
        ValueError: the archive ends before its end, or an image is a link to another file.
    """
    for member in tar:
        if (member.issym() or member.islnk()) and is_image_name(Path(member.name)):
            raise ValueError(
                f"{member.name} is a link; make the shard with `tar --dereference "
                f"--hard-dereference`"
            )
        if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
            yield member
        tar.members = []  # type: ignore[attr-defined] # It would remember each.
    # A block of zeros ends an archive; tarfile takes the file's end, or damage, for the end too.
    stream = tar.fileobj
    assert stream is not None
    whole = stream.tell() >= tar.offset + tarfile.BLOCKSIZE
    if whole and seekable:
        stream.seek(tar.offset)
        whole = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    if not whole:
        raise ValueError(f"it is cut off or damaged after {tar.offset} bytes")


@contextmanager
def _open_tar(shard: str) -> Iterator[tarfile.TarFile]:
    """A tar file, compressed or not. Errors are those of the stream and of tarfile."""
    with ExitStack() as stack:
        if is_url(shard):
            stream, mode = stack.enter_context(_open_url(shard)), "r|*"
        else:  # What is not wanted of a file is passed over; a stream has to be read through.
            stream, mode = stack.enter_context(Path(shard).open("rb")), "r:*"
        try:
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode=mode, tarinfo=_Member))  # type: ignore[call-overload]
        except tarfile.ReadError:
            raise ValueError("it is no tar file, or empty") from None
        yield tar


@contextmanager
def _open_url(url: str) -> Iterator[IO[bytes]]:
    """What a URL or command gives; OSError if that failed, be it at its end."""
    from webdataset.gopen import gopen, set_options

    wanted = True
    with gopen(url) as stream:
        try:
            yield stream
        except BaseException as error:
            # When the reader is closed or the program ends, a broken pipe is no failure.
            wanted = isinstance(error, Exception)
            set_options(stream, ignore_errors=not wanted)
            raise
        finally:
            while wanted and stream.read(2**20):  # Else whoever writes would fail.
                pass
