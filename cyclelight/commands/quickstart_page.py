"""The page of `lightning quickstart`, which fills while it runs."""

from html import escape
from pathlib import Path

from cyclelight.files import write_text

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">{refresh}
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1.5rem }}
img {{ max-width: 100%; image-rendering: pixelated }}
pre {{ overflow-x: auto }}
</style>
<h1>{title}</h1>
<p><strong>{state}</strong>. Each picture has sources of the images that were held out on the left
and their translations beside them; the newest comes first.</p>
<pre>{table}</pre>
{pictures}
</html>
"""


def write_page(output: Path, names: list[str], table: str, state: str, *, running: bool) -> None:
    """Write `index.html` of what is there by now.

    Args:
        output: folder with `A_to_B_1.png` of the first turn, and so on.
        names: of the two domains.
        table: the survey, as text.
        state: what is being done.
        running: whether the page should load itself anew every half minute.
    """
    output.mkdir(parents=True, exist_ok=True)
    a, b = names
    pictures = []
    for turn in range(_turns(output, a, b), 0, -1):
        pictures.append(f"<h2>After turn {turn}</h2>")
        for one, other in ((a, b), (b, a)):
            name = f"{one}_to_{other}_{turn}.png"
            if (output / name).is_file():
                alt = escape(f"{one} to {other}", quote=True)
                pictures.append(f"<h3>{escape(one)} to {escape(other)}</h3>")
                pictures.append(f'<img src="{escape(name, quote=True)}" alt="{alt}">')
    page = _PAGE.format(
        title=escape(f"{a} and {b}"),
        refresh='<meta http-equiv="refresh" content="30">' if running else "",
        state=escape(state),
        table=escape(table),
        pictures="\n".join(pictures) or "<p>No translations yet.</p>",
    )
    write_text(output / "index.html", page)


def _turns(output: Path, a: str, b: str) -> int:
    turn = 0
    while (output / f"{a}_to_{b}_{turn + 1}.png").is_file():
        turn += 1
    return turn
