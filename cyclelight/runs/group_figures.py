"""The figures of one run by groups of its images, told as a comparison tells them."""

from collections.abc import Mapping, Set

from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_cell import Result
from cyclelight.runs.comparison_table import Table
from cyclelight.runs.report import Report


def group_table(
    report: Report, groups: Mapping[str, Set[str]], *, row: str, title: str, rate: str | None
) -> Table | None:
    """A comparison's table of one row, beside the sources as they are; None without groups.

    Args:
        report: of the run.
        groups: the keys of the images of each group, by its name; of those that were not made, too.
        row: what the run is called.
        title: what was done, in a line.
        rate: the domain whose share of the images is told, if any.
    """
    judged = set(report.images)
    made = {name: keys & judged for name, keys in groups.items() if keys & judged}
    if not made:
        return None
    return Table.of(
        [(Setting(row), [Result.of(report, rate)])],
        baseline=None,
        title=title,
        notes=[f"protocol {report.protocol}"] if report.protocol else [],
        groups=made,
        untouched=report.sources,
    )
