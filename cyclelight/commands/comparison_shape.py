"""What the rows of a comparison make, found out before any network is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import Namespace

from cyclelight.commands.comparison_files import theirs_of
from cyclelight.commands.evaluate_files import common_shape
from cyclelight.domains.domain import Domain
from cyclelight.domains.folder import check_domain_path, load_domain
from cyclelight.errors import BadValue, first_line
from cyclelight.methods.base import Role
from cyclelight.modules.editing import EditingModule
from cyclelight.runs.comparison import Setting
from cyclelight.text.attention import AttentionControl
from datamodules.edit_rows import Edit, fields_of
from datamodules.items import Items
from datamodules.listing import Files

Ends = Callable[[Setting], tuple[int, int, str | None]]
"""(side in pixels, channels, name) of the images that a row makes.

Raises:
    ValueError: it cannot make them.
"""


def translation_ends(options: Namespace) -> Ends:
    """Tells what a translation makes, of domains without weights."""
    paths: dict[Role, str | None] = {"source": options.source, "target": options.target}
    domains: dict[Role, Domain | None] = {
        role: None if path is None else load_domain(check_domain_path(path, role), device="meta")
        for role, path in paths.items()
    }

    def ends(setting: Setting) -> tuple[int, int, str | None]:
        assert setting.method is not None
        first, *_, last = setting.method.ends(setting.method.choose(domains))
        return first.resolution, first.channels, last.name

    return ends


def edit_ends(options: Namespace, edits: Mapping[str, Edit]) -> Ends:
    """Tells what an edit makes, and whether all texts are such that it can be made."""
    items = Items(list(edits), fields_of(edits))

    def ends(setting: Setting) -> tuple[int, int, str | None]:
        assert setting.method is not None
        module = EditingModule(options.model, setting.method, **_settings(setting))
        module.check_texts(items)
        return module.resolution, module.channels, module.kind

    return ends


def _settings(setting: Setting) -> dict[str, Any]:
    """What a row says of `EditingModule`.

    Raises:
        ValueError: its control is none.
    """
    control = setting.edit.get("control")
    if control is None:
        return dict(setting.edit)
    known = [field.name for field in fields(AttentionControl)]
    if not isinstance(control, Mapping) or not set(control) <= set(known):
        told = f"control must have settings among {', '.join(known)}, got {control!r}"
        raise BadValue("control", told)
    return {**setting.edit, "control": AttentionControl(**control)}


def shape_of(
    settings: list[Setting], ends: Ends, found: Files, keys: Sequence[str]
) -> tuple[tuple[int, int], set[str]]:
    """((the side of all images in pixels, their channels), the names of what methods make).

    Those of other programs are judged in the channels of the methods, if there are any.

    Raises:
        ValueError: rows are of different sizes, or one does not fit the domains or sources.
    """
    sides, names = dict[str, int](), set[str]()
    ours, theirs = dict[str, int](), set[int]()
    for setting in settings:
        try:
            if setting.method is not None:
                sides[setting.label], ours[setting.label], name = ends(setting)
                names |= set() if name is None else {name}
            else:
                pairs = theirs_of(setting, found, keys)
                sides[setting.label], channels = common_shape([path for _, path in pairs])
                theirs.add(channels)
        except ValueError as error:
            reason = first_line(error).removeprefix("--translated: ")
            raise BadValue("rows", f"rows.{setting.row}: {reason}") from error
    first = settings[0].label
    for label, side in sides.items():
        if side != sides[first]:
            raise BadValue(
                "rows",
                f"rows: the images of {first} have {sides[first]} pixels a side, those of {label} "
                f"{side}: rows are compared at one size",
            )
    if len(set(ours.values())) > 1:
        told = ", ".join(f"{label} {channels}" for label, channels in ours.items())
        raise BadValue("rows", f"rows: they are of different channels: {told}")
    return (sides[first], max(ours.values() or theirs)), names
