"""Domains on the Hugging Face Hub: `owner/name` or `owner/name@revision` to a folder of its cache.

The cache, the address and the token are the Hub's own: HF_HOME, HF_ENDPOINT, HF_TOKEN; with
HF_HUB_OFFLINE=1 only what is in the cache is used.
"""

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from cyclelight.errors import MissingFile, first_line

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<name>{_PART}/{_PART})(@(?P<revision>[\w./-]+))?")

LOGIN = "log in by `hf auth login`, or set HF_TOKEN"


def hub_name(path: str | Path) -> tuple[str, str | None] | None:
    """(`owner/name`, revision) if `path` names a model on the Hub; None if it is local.

    What exists is local, and so is what would lie in an existing folder: a mistyped
    `checkpoints/ct` is not looked for on the Hub. `owner/name@main` is, whatever is here.
    """
    text = str(path)
    match = _NAME.fullmatch(text)
    if match is None or os.path.lexists(text) or text.endswith(".ckpt"):
        return None
    if match["revision"] is None and Path(text).parent.is_dir():
        return None
    return match["name"], match["revision"]


def resolve(path: str | Path, files: Sequence[str], argument: str = "domain") -> Path:
    """A local path as it is; a name on the Hub as the folder in the cache, downloaded if need be.

    Of the model on the Hub only `files`, patterns of their names, are downloaded. A process asks
    the Hub once for each name, so what it checked is what it loads.

    Raises:
        FileNotFoundError: no such model or revision, or none that may be read; or it is not in the
            cache, and the Hub is switched off or out of reach. The message begins with `argument`.
    """
    named = hub_name(path)
    if named is None:
        return Path(path)
    try:
        return _download(*named, tuple(files))
    except FileNotFoundError as error:
        raise MissingFile(argument, f"{argument}: {path} is not a folder here; {error}") from error


@cache
def _download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    # Imported here, since it takes a second that local folders do not need.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the Hub's client, of HTTP, of the disk: a dozen kinds
        raise FileNotFoundError(hub_reason(error, name, revision)) from error


def hub_reason(error: Exception, name: str, revision: str | None = None) -> str:
    """What an error of the Hub's client means for the model `name`, called "it", in one line."""
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            return f"it is gated: ask for access at {constants.ENDPOINT}/{name}"
        case errors.RevisionNotFoundError():
            return f"it has no revision {revision or 'main'!r} at {constants.ENDPOINT}"
        # The Hub does not tell a stranger whether a private model exists.
        case errors.HfHubHTTPError() if status(error) == 401:
            return f"it is private, or not at {constants.ENDPOINT}; {LOGIN}"
        case errors.HfHubHTTPError() if status(error) == 403:
            return f"{constants.ENDPOINT} refuses it: the token has no right to it; {LOGIN}"
        case errors.RepositoryNotFoundError():
            return f"there is no such model at {constants.ENDPOINT}"
        case errors.LocalEntryNotFoundError() if constants.is_offline_mode():
            return "it is not in the cache, and HF_HUB_OFFLINE forbids to download it"
        case errors.LocalEntryNotFoundError():
            reason = first_line(error.__cause__ or error)
            return f"it is not in the cache, and {constants.ENDPOINT} gives no answer: {reason}"
    return f"the Hub's client says: {first_line(error)}"


def status(error: Exception) -> int | None:
    """The HTTP status that the Hub answered with, if it did."""
    return getattr(getattr(error, "response", None), "status_code", None)


def display_name(path: str | Path) -> str:
    """What to call a domain whose card gives no name: its folder, or its name on the Hub."""
    named = hub_name(path)
    return named[0].split("/")[1] if named else Path(path).resolve().name
