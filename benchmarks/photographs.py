"""Write the photographs that docs/demo/photographs/edits.csv edits, from scikit-image, to a folder.

    python benchmarks/photographs.py photos
    lightning edit docs/demo/photographs/edits.csv --data.root photos --model.model DIR

What is known of their rights stands in docs/demo/photographs/README.md. Version 0.26 has all of
them in its wheel; where another has not, it downloads them.
"""

import argparse
import csv
from pathlib import Path

from PIL import Image
from skimage import data

TABLE = Path(__file__).parents[1] / "docs" / "demo" / "photographs" / "edits.csv"


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where they go; made if it is not there")
    folder = parser.parse_args().folder
    with TABLE.open(newline="", encoding="utf-8") as file:
        names = dict.fromkeys(row["image"] for row in csv.DictReader(file))
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = getattr(data, Path(name).stem)()
        Image.fromarray(pixels).save(folder / name)
    print(f"{len(names)} photographs in {folder}")


if __name__ == "__main__":
    main()
