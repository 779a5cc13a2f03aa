"""The page and the curves of a comparison: what they hold, and what they do in a real browser."""

import json
import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from cyclelight.methods.sdedit import SDEdit
from cyclelight.metrics.figure_kinds import Score
from cyclelight.runs.comparison import Setting
from cyclelight.runs.comparison_cell import Result
from cyclelight.runs.comparison_curves import curves_of, draw_curves
from cyclelight.runs.comparison_page import Made, worst_first, write_report
from cyclelight.runs.comparison_table import Table
from cyclelight.runs.cost import Cost

HOSTILE = """</script><img src=http://x onerror="alert('1')">&amp;$title é 猫"""
KEYS = ["a", "b", "c", HOSTILE]
SSIM = {"low": [0.1, 0.4, 0.2, 0.3], "high": [0.9, 0.6, 0.7, 0.8]}
RATE = {"low": [1.0, 1.0, 1.0, 0.0], "high": [0.0, 1.0, 0.0, 0.0]}


def result(name: str, shift: float = 0.0) -> Result:
    images = {
        key: {"SSIM": ssim + shift, "dog rate": rate}
        for key, ssim, rate in zip(KEYS, SSIM[name], RATE[name], strict=True)
    }
    values = {f: sum(of[f] for of in images.values()) / 4 for f in ("dog rate", "SSIM")}
    scores = {
        "dog rate": Score(figure="dog rate", value=values["dog rate"], real=0.9, n=4, protocol=""),
        "KID": Score(
            figure="KID", value=0.02, real=0.01, untranslated=0.2, n=4, n_reference=7,
            scale=100, higher_is_better=False, protocol="",
        ),
        "SSIM": Score(figure="SSIM", value=values["SSIM"], n=4, protocol=""),
    }  # fmt: skip
    return Result(scores, images, Cost(4, 40, 2.0), ())


@pytest.fixture(scope="module")
def table() -> Table:
    results = [
        (Setting("SDEdit", {"strength": 0.7}, SDEdit()), [result("low"), result("low", 0.02)]),
        (Setting("SDEdit", {"strength": 0.3}, SDEdit()), [result("high")]),
        (Setting(HOSTILE, {}, SDEdit()), [result("high", -0.01)]),
    ]
    return Table.of(results, baseline="SDEdit, strength 0.7", title=HOSTILE, notes=[HOSTILE])


@pytest.fixture(scope="module")
def report(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (99, 99, 99)]
    squares = [Image.new("RGB", (8, 8), colour) for colour in colours]
    images = {name: result(name).images for name in ("low", "high")}

    def read(key: str) -> Made:
        figures = [images["low"][key], images["high"][key], images["high"][key]]
        return Made(key, squares[0], squares[1:], figures)

    keys = worst_first([images["low"], images["high"]], table.columns)
    write_report(path, table, keys, read)
    return path


def test_the_worst_are_those_that_most_methods_fail_at(table: Table) -> None:
    # Rates 1, 2, 1, 0 of two methods; of a and c, SSIM 1.0 and 0.9 together.
    images = [result(name).images for name in ("low", "high")]
    assert worst_first(images, table.columns) == [HOSTILE, "c", "a", "b"]


def test_a_curve_is_a_row_in_the_order_of_its_setting(table: Table) -> None:
    curves = curves_of(table)
    assert [(curve.name, curve.values) for curve in curves] == [
        ("SDEdit, by strength", ["0.7", "0.3"]),
        (HOSTILE, [""]),
    ]
    svg = ElementTree.fromstring(draw_curves(table))
    name = "{http://www.w3.org/2000/svg}"
    panels = [[*group] for group in svg.iter(f"{name}g")]
    assert len(panels) == 2  # The rate and KID.
    texts = {text.text for text in svg.iter(f"{name}text")}
    assert {"KID x 100 (lower is better)", "SSIM (higher is better)", HOSTILE, "0.7"} <= texts
    titles = [title.text for title in svg.iter(f"{name}title")]
    assert "SDEdit, strength 0.7: dog rate 0.750, SSIM 0.260" in titles
    assert "SDEdit, strength 0.3: KID x 100 2.000, SSIM 0.750" in titles
    # Real images have the best KID of all, and better is higher up.
    levels = {
        text.text: float(str(text.get("y"))) for text in panels[1] if text.tag == f"{name}text"
    }
    assert levels["real images"] < levels["untranslated"]


@pytest.mark.parametrize("letters", [5, 30, 60, 150])
def test_the_key_has_room_for_its_names(letters: int) -> None:
    """Each ends before the next one begins, and before the edge."""
    names = [f"{index:W<{letters}}" for index in range(5)]
    results = [(Setting(name, {}, SDEdit()), [result("low")]) for name in names]
    svg = ElementTree.fromstring(draw_curves(Table.of(results, baseline=None, title="")))
    texts = [text for text in svg if text.tag.endswith("text")]
    assert [text.text for text in texts] == names
    rows: dict[str, list[float]] = {}
    for text in texts:
        rows.setdefault(str(text.get("y")), []).append(float(str(text.get("x"))))
    for starts in rows.values():
        for start, end in pairwise([*starts, float(str(svg.get("width")))]):
            assert start + 7 * letters <= end
    assert len(rows) < 5 or letters > 30  # Short ones stand side by side.


def test_no_curves_without_figures_of_realism() -> None:
    scores = {"SSIM": Score(figure="SSIM", value=0.5, n=4, protocol="")}
    results = [(Setting("a", {}, SDEdit()), [Result(scores, {}, Cost(), ())])]
    table = Table.of(results, baseline=None, title="")
    assert draw_curves(table) == "" and table.difference_rows()[1] == []


def test_the_tables_hold_names_as_text(table: Table) -> None:
    markdown, latex = table.as_markdown(), table.as_latex()
    assert r"\</script>\<img src=http://x" in markdown and "SDEdit, strength 0.3" in markdown
    assert latex.count(r"\toprule") == 2 and r"\&amp;\$title" in latex
    row = next(
        line for line in latex.splitlines() if line.strip().startswith("SDEdit, strength 0.7")
    )
    # Two seeds, 0.25 and 0.27: their standard deviation is 0.02 / sqrt(2).
    assert f"0.260 ± {0.02 / math.sqrt(2):.3f}" in row and row.split("&")[-2].strip() == "4"


def test_nothing_is_fetched_from_elsewhere(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    outside = set(re.findall(r"\w+://[^\s\"'<>]+", page)) - {"http://www.w3.org/2000/svg"}
    assert outside == {"http://x"}  # Of the name, as text.
    assert "<img src=http" not in page and page.count("<script>") == 1
    assert "url(" not in page and "@import" not in page and "$" not in page.replace("$title é", "")


USE = """<script>
const said = [];
const one = (selector) => document.querySelector(selector);
const cards = () => [...document.querySelectorAll(".card")];
const tell = (what) => said.push([what, cards().map((c) => c.dataset.key)]);
const choose = (field, value) => {
  field.value = value;
  field.dispatchEvent(new Event("change", { bubbles: true }));
};
const slide = (field, value) => {
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
const layers = (card) => [...card.querySelectorAll("figure")].map(
  (f) => f.hidden ? "-" : getComputedStyle(f).clipPath);
const card = cards().find((c) => c.dataset.key === "b");
const told = () => card.querySelector(".told").textContent;
tell("start");
one("[data-first=best]").click(); tell("best");
choose(one("select.line"), 1); tell("of the second");
choose(one("select.column"), 0); tell("by rate");
said.push(["half", layers(card), told()]);
slide(card.querySelector("input"), 125);
said.push(["next", layers(card), told()]);
slide(one(".all"), 100);
said.push(["whole", layers(card), told(), card.querySelector("input").value]);
one("[data-line='1']").click();
said.push(["three", card.querySelector("input").max, one(".last").textContent]);
one("[data-view=beside]").click();
said.push(["beside", layers(card), getComputedStyle(card.querySelector("input")).display]);
const result = document.createElement("pre");
result.textContent = JSON.stringify(said);
document.body.append(result);
</script></body>"""


def in_a_browser(report: Path, folder: Path, script: str) -> dict[str, list[Any]]:
    """What a script says of the page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    path = folder / "report.html"
    page = report.read_text(encoding="utf-8")
    path.write_text(page.replace("</body>", script), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/u"]
    done = subprocess.run(
        [chromium, *options, "--dump-dom", path.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    text = re.findall(r"<pre>(.*?)</pre>", done.stdout.decode(), re.DOTALL)
    assert text, "the script failed"
    unescaped = text[0].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return {what: rest for what, *rest in json.loads(unescaped)}


def test_the_script_in_a_browser(report: Path, tmp_path: Path) -> None:
    said = in_a_browser(report, tmp_path, USE)
    assert said["start"] == [["a", "c", HOSTILE, "b"]]  # By SSIM of the baseline, lowest first.
    assert said["best"] == [["b", HOSTILE, "c", "a"]]
    assert said["of the second"] == [["a", HOSTILE, "c", "b"]]
    assert said["by rate"][0][0] == "b"
    # The baseline is chosen of its row, and the only one of the other.
    named = "SDEdit, strength 0.7 | source · dog rate 1.00 · SSIM 0.400"
    assert said["half"] == [["none", "inset(0px 50% 0px 0px)", "-", "-"], named]
    assert said["next"][0] == ["-", "none", "-", "inset(0px 75% 0px 0px)"]
    assert said["next"][1].startswith(
        f"{HOSTILE} | SDEdit, strength 0.7 · dog rate 1.00 · SSIM 0.6"
    )
    assert said["whole"][0][1] == "none" and said["whole"][2] == "100"
    assert said["whole"][1].startswith("SDEdit, strength 0.7 · dog rate")
    assert said["three"] == ["300", HOSTILE]
    assert said["beside"] == [["none", "none", "none", "none"], "none"]


WITH_TRUTH = """<script>
const one = (selector) => document.querySelector(selector);
const said = [["last", one(".last").textContent, one(".card input").max]];
const told = () => one(".told").textContent;
one(".all").value = 250;
one(".all").dispatchEvent(new Event("input", { bubbles: true }));
said.push(["end", told(), one(".card figure:last-of-type").hidden]);
document.querySelectorAll("[data-line]").forEach((box) => { if (box.checked) box.click(); });
said.push(["none chosen", one(".card input").max, told()]);
one("[data-view=beside]").click();
const tops = [...document.querySelectorAll(".card:first-of-type figure")].filter((f) => !f.hidden)
  .map((f) => f.querySelector("figcaption").textContent);
said.push(["beside", tops]);
const result = document.createElement("pre");
result.textContent = JSON.stringify(said);
document.body.append(result);
</script></body>"""


def test_right_results_are_at_the_end(table: Table, tmp_path: Path) -> None:
    """Of each slider, and of the images side by side, whichever methods are chosen."""
    squares = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 20, 30, 40, 50)]
    figures = [result("low").images, result("high").images, result("high").images]

    def read(key: str) -> Made:
        return Made(key, squares[0], squares[1:4], [of[key] for of in figures], squares[4])

    (tmp_path / "page").mkdir()
    write_report(tmp_path / "truth.html", table, KEYS, read)
    said = in_a_browser(tmp_path / "truth.html", tmp_path / "page", WITH_TRUTH)
    assert said["last"] == ["right result", "300"]  # Two methods of three are chosen.
    assert said["end"] == [f"right result | {HOSTILE}", False]
    assert said["none chosen"] == ["100", "right result"]
    assert said["beside"] == [["source", "right result"]]
