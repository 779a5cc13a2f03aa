"""The cells of a comparison, one after another."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from cyclelight.errors import printable
from cyclelight.runs.comparison_cell import Cell
from cyclelight.runs.comparison_table import Table


def run_cells(
    cells: Sequence[Cell],
    keys: list[str],
    make: Callable[[Cell], None],
    write: Callable[[set[Path]], Table],
    shown: Path,
) -> None:
    """Run what is not finished, and print the table.

    Args:
        cells: all runs, in their order.
        keys: of the images of each.
        make: runs a cell.
        write: writes the table of the finished cells, whose folders it is given.
        shown: the file that one would open then.
    """
    done = {cell.root for cell in cells if cell.is_finished(keys)}
    if done:
        print(f"{len(done)} of {len(cells)} runs are finished already")
    for number, cell in enumerate(cells, 1):
        if cell.root not in done:
            print(printable(f"{number}/{len(cells)} {cell.label}"), flush=True)
            cell.begin()
            make(cell)
            cell.end()
            done.add(cell.root)
            write(done)
    table = write(done)
    head, rows = table.figure_rows()
    print(printable(tabulate(rows, head, disable_numparse=True)))
    print(printable("\n".join([*table.legend(), f"Wrote {shown}"])))
