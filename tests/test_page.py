"""The page of a run: what it holds, and that its script sorts, in a real browser."""

import base64
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclelight.runs.page import Column, Pair, evenly, write_page
from cyclelight.runs.report import Summary

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
HOSTILE = """</script><img src=http://x onerror="alert('1')">&amp;$title é 猫.png"""


def square(colour: tuple[int, int, int], side: int = 32) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def plain(key: str) -> Pair:
    return Pair(square(RED), square(GREEN), key)


class Elements(HTMLParser):
    """(tag, attributes) of all elements, as a browser would decode them; the text by tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.found[-1][0], data.strip()))

    def of(self, name: str, value: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.found if attributes.get(name) == value]


def parse(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def test_the_page_holds_the_very_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    source, translated = (Image.fromarray(pixels) for pixels in noise)
    path = tmp_path / "new" / "gallery.html"
    write_page(path, "t", "", ["a"], lambda key: Pair(source, translated, key), references=[source])
    page = parse(path)
    for kind, pixels in (("source", noise[0]), ("translated", noise[1]), ("real", noise[0])):
        (image,) = page.of("class", kind)
        assert (image["width"], image["height"], image["loading"]) == ("30", "20", "lazy")
        data = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as read:
            np.testing.assert_array_equal(read, pixels)
    assert [p.name for p in path.parent.iterdir()] == ["gallery.html"]


@pytest.mark.parametrize("source", [square(RED), None])
def test_right_results_stand_beside(tmp_path: Path, source: Image.Image | None) -> None:
    """The very pixels, called what they are, in a wider card; elsewhere nothing of it."""
    noise = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    truth = Image.fromarray(noise)
    for name, right in (("with", truth), ("without", None)):
        pair = Pair(source, square(GREEN), "a", truth=right)
        write_page(tmp_path / name, "t", "", ["a"], lambda key, pair=pair: pair)  # type: ignore[misc]
    page = parse(tmp_path / "with")
    (image,) = page.of("class", "truth")
    data = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as read:
        np.testing.assert_array_equal(read, noise)
    assert ("figcaption", "right result") in page.text and page.of("class", "pairs wide")
    other = parse(tmp_path / "without")
    assert not other.of("class", "truth") and other.of("class", "pairs")


def test_nothing_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    write_page(tmp_path / "p", "t", "n", ["a", "b"], plain, references=[square(BLUE)])
    text = (tmp_path / "p").read_text(encoding="utf-8")
    assert "://" not in text
    for tag, attributes in parse(tmp_path / "p").found:
        assert tag not in ("link", "iframe", "object", "base")
        assert not attributes.keys() & {"href", "srcset", "action"}
        assert str(attributes.get("src", "data:")).startswith("data:")
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'; img-src data:" in text


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    figures = {HOSTILE: 1.5}
    write_page(
        *(tmp_path / "p", HOSTILE, HOSTILE, [HOSTILE, "\udcff.png"]),
        lambda key: Pair(square(RED), square(GREEN), key, figures, [HOSTILE]),
        columns=[Column(HOSTILE, HOSTILE, HOSTILE)],
        table=[Summary(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
    )
    page = parse(tmp_path / "p")
    assert sum(tag == "img" for tag, _ in page.found) == 4
    assert sum(tag == "script" for tag, _ in page.found) == 1
    assert page.of("data-key", HOSTILE) and page.of("data-key", "?.png")
    assert page.of("data-sort", HOSTILE) and page.of("title", HOSTILE)
    tags = [tag for tag, text in page.text if text == HOSTILE]
    assert tags == ["title", "h1", "p", "th", *["td"] * 5, "button", *["p", "dt", "small"] * 2]


def test_figures_are_data_to_sort_by(tmp_path: Path) -> None:
    figures = {
        "a": {"SSIM": 0.25, "PSNR": 23.456, "own": -12345.6},
        "b": {"PSNR": math.inf, "SSIM": math.nan, "own": 0.00012},
        "c": {"own": 0},
    }
    write_page(
        tmp_path / "p", "t", "", "abc", lambda k: Pair(square(RED), square(GREEN), k, figures[k])
    )
    page = parse(tmp_path / "p")
    cards = {str(c["data-key"]): c for c in page.of("class", "pair")}
    data = {k: {n: v for n, v in c.items() if n.startswith("data-f")} for k, c in cards.items()}
    assert data == {
        "a": {"data-f0": "23.456", "data-f1": "0.25", "data-f2": "-12345.6"},
        "b": {"data-f2": "0.00012"},
        "c": {"data-f2": "0.0"},
    }
    shown = [text for tag, text in page.text if tag == "dd"]
    assert shown == ["23.46", "0.2500", "-12346", "–", "–", "1.2e-04", "–", "–", "0.0000"]
    # In the order of what is known, then what is not; without those that nobody has.
    buttons = [a["data-sort"] for tag, a in page.found if tag == "button" and "data-sort" in a]
    assert buttons == ["name", "PSNR", "SSIM", "own"]
    (button,) = page.of("data-sort", "PSNR")
    assert (button["data-first"], button["title"]) == ("highest", "higher is closer to the source")


@pytest.mark.parametrize(
    ("images", "most", "count", "read"),
    [
        (1, 200, "1 image", 1),
        (7, 7, "7 images", 7),
        (1000, 10, "10 of 1000 images, evenly spread", 10),
    ],
)
def test_of_many_images_some_are_shown(
    tmp_path: Path, images: int, most: int, count: str, read: int
) -> None:
    keys, asked = [f"{i:04}.png" for i in range(images)], []

    def pair(key: str) -> Pair:
        asked.append(key)
        return plain(key)

    write_page(tmp_path / "p", "t", "", keys, pair, max_pairs=most)
    page = parse(tmp_path / "p")
    assert [card["data-key"] for card in page.of("class", "pair")] == asked == evenly(keys, most)
    assert len(asked) == read
    assert ("p", count) in page.text


def test_a_page_without_images_or_figures(tmp_path: Path) -> None:
    write_page(tmp_path / "p", "title", "", [], plain)
    page = parse(tmp_path / "p")
    assert ("p", "0 images") in page.text
    assert not page.of("class", "summary") and not page.of("class", "references")
    with pytest.raises(ValueError, match="max_pairs must be at least 1, got 0"):
        write_page(tmp_path / "p", "title", "", [], plain, max_pairs=0)


def test_the_figures_of_the_run_stand_above(tmp_path: Path) -> None:
    rows = [Summary("KID", "43", "-1", "243", "8", "all"), Summary("PSNR", "18 dB")]
    write_page(tmp_path / "p", "t", "", "a", plain, table=rows)
    cells = [text for tag, text in parse(tmp_path / "p").text if tag in ("th", "td")]
    names = ["figure", "value", "real", "untranslated", "n", "protocol"]
    assert cells == [*names, "KID", "43", "-1", "243", "8", "all", "PSNR", "18 dB"]


USE = """<script>
const said = [];
const click = (selector) => document.querySelector(selector).click();
const tell = (what) => said.push(what + "=" + [...document.querySelectorAll(".pair")]
  .filter((card) => !card.hidden).map((card) => card.dataset.key).join(" "));
const type = (field, text) => {
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
tell("start");
click("[data-sort=PSNR]"); tell("PSNR");
click("[data-sort=PSNR]"); tell("PSNR again");
said.push("address=" + location.hash);
click("[data-sort=L2]"); tell("L2");
click("[data-sort=name]"); tell("name");
click("[data-sort=name]"); tell("name again");
type(document.querySelector("[type=search]"), "CAT"); tell("filter");
type(document.querySelector("[type=search]"), "zebra"); tell("filter nothing");
said.push("told=" + !document.querySelector(".nothing").hidden);
type(document.querySelector("[type=search]"), "");
const first = document.querySelector(".pair"), cut = first.querySelector("input");
const seam = (card) => getComputedStyle(card.querySelector(".translated")).clipPath;
type(cut, 20);
said.push("one=" + seam(first) + seam(first.nextElementSibling));
type(document.querySelector(".whole"), 75);
said.push("all=" + seam(first) + cut.value);
click("[data-view=beside]");
said.push("beside=" + seam(first) + getComputedStyle(cut).display);
const result = document.createElement("pre");
result.textContent = said.join("\\n");
document.body.append(result);
</script></body>"""


def test_the_script_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    figures = {
        "cat10": {"PSNR": 20.0, "L2": 3.0},
        "cat2": {"PSNR": 9.5, "L2": 1.0},
        "dog1": {"PSNR": math.nan, "L2": 2.0},
        "dog3": {"PSNR": 30.0},
    }
    path = tmp_path / "gallery.html"
    keys = list(figures)
    write_page(path, "t", "", keys, lambda k: Pair(square(RED), square(GREEN), k, figures[k]))
    page = path.read_text(encoding="utf-8")
    path.write_text(page.replace("</body>", USE), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/u"]
    address = f"{path.as_uri()}#sort=L2&reversed"
    done = subprocess.run(
        [chromium, *options, "--dump-dom", address], capture_output=True, timeout=120, check=True
    )
    text = re.findall(r"<pre>(.*?)</pre>", done.stdout.decode(), re.DOTALL)
    assert text, "the script failed"
    said = dict(line.split("=", 1) for line in text[0].replace("&amp;", "&").splitlines())
    assert said == {
        "start": "cat10 dog1 cat2 dog3",  # As the address says: L2, highest first.
        "PSNR": "dog3 cat10 cat2 dog1",
        "PSNR again": "cat2 cat10 dog3 dog1",  # What is missing stays last.
        "address": "#sort=PSNR&reversed=",
        "L2": "cat2 dog1 cat10 dog3",
        "name": "cat2 cat10 dog1 dog3",
        "name again": "dog3 dog1 cat10 cat2",
        "filter": "cat10 cat2",
        "filter nothing": "",
        "told": "true",
        "one": "inset(0px 0px 0px 20%)inset(0px 0px 0px 50%)",
        "all": "inset(0px 0px 0px 75%)75",
        "beside": "nonenone",
    }
