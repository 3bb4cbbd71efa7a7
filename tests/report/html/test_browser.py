"""The page in a browser: no errors, nothing cut; sorting, pointing and choosing work.

Needs playwright and a chromium: ``pip install playwright axe-playwright-python`` and the system's
package.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import CONTENT, SCRATCH

from mt_convert.report.html.page import render
from mt_convert.report.html.pareto import Point, pareto_chart
from mt_convert.report.html.parts import Answer, Cell, Part, PartsContent, Verdict, render_parts

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
WIDTHS = (360, 768, 1440)
FILES = ("file", "scratch_file", "parts_file")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def parts() -> str:
    """A page of parts with everything that one can have."""
    points = [Point(3.0 * k + 1, 90.0 + k, k, "spiking", f"run {k}", True) for k in range(4)]
    chart = pareto_chart(points, ["a", "b", "a name that is too long", "d"], "energy, nJ")
    heads = [f"column {k}" for k in range(14)]
    rows = [[Cell(f"{k}.{j}", j, dark=0.9, classes="heat") for j in heads_of(heads)] for k in "ab"]
    part = Part("pareto", "Accuracy", figures=[("energy", chart)], heads=heads, rows=rows)
    more = Part("list", "What failed", items=["one"], keys=[("of-float", "float network")])
    glance = [Answer("best", "The most accurate", "a"), Answer("pays", "Does it pay?", "no")]
    return render_parts(
        PartsContent(
            *("Comparison", "a, b", [part, more], Verdict("no", "✗ Not exact", ["why"], "a note")),
            *(["a warning"], glance, "mt-convert show a b"),
        )
    )


def heads_of(heads: list[str]) -> range:
    return range(len(heads))


@pytest.fixture(scope="module")
def parts_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("parts") / "report.html"
    path.write_text(parts(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(CONTENT), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def scratch_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("scratch") / "report.html"
    path.write_text(render(SCRATCH), encoding="utf-8")
    return path.as_uri()


def opened(browser: Any, file: str, width: int = 1440, **more: Any) -> tuple[Any, list[str]]:
    """The page, what it complains of, and every address that it asks for beside its own."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **more)
    said: list[str] = []
    page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda item: None if item.url == file else said.append(item.url[:80]))
    page.goto(file)
    return page, [item for item in said if not item.startswith("data:")]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_and_nothing_is_asked_for(
    browser: Any, name: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    page, said = opened(browser, request.getfixturevalue(name), width, color_scheme=scheme)
    assert said == []
    sizes = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(sizes) == 0
    cut = """() => [...document.querySelectorAll("svg.chart text")].filter(text => {
        const own = text.getBoundingClientRect();
        const all = text.ownerSVGElement.getBoundingClientRect();
        return own.width && (own.left < all.left - 1 || own.right > all.right + 1
            || own.top < all.top - 1 || own.bottom > all.bottom + 1);
    }).map(text => text.textContent)"""
    assert page.evaluate(cut) == []


def test_it_prints(browser: Any, file: str) -> None:
    page, said = opened(browser, file)
    page.emulate_media(media="print")
    assert page.pdf().startswith(b"%PDF")
    assert not page.is_visible("nav")
    assert said == []


def test_a_table_is_sorted_by_pressing_a_heading(browser: Any, file: str) -> None:
    page, _ = opened(browser, file)
    page.click("#energy summary:has-text('All prices')")
    column = "#energy-sweep tbody tr td:nth-child(7)"
    page.click("#energy-sweep th:nth-child(7) button")
    values = [float(text) for text in page.locator(column).all_text_contents()]
    assert values == sorted(values)
    assert len(set(values)) > 3
    page.keyboard.press("Enter")  # it has the focus: the other way
    values = [float(text) for text in page.locator(column).all_text_contents()]
    assert values == sorted(values, reverse=True)


def test_pointing_at_a_layer_or_moving_by_keys_tells_why_it_is_analog(
    browser: Any, file: str
) -> None:
    page, _ = opened(browser, file)
    page.hover("#network-list li:nth-child(2)")
    assert "direct coding" in page.text_content("#told")
    page.focus("#network-list li:nth-child(1)")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.text_content("#told").startswith("act ")


def test_clicking_or_choosing_a_neuron_shows_its_potential(browser: Any, file: str) -> None:
    page, _ = opened(browser, file)
    shown = "svg.potentials g.trace:not(.off)"
    assert page.get_attribute(shown, "data-neuron") == "0"
    page.click('.pick[data-layer="0"][data-neuron="1"]')
    assert page.get_attribute(shown, "data-neuron") == "1"
    assert page.input_value("select") == "1"
    page.select_option("select", "0")
    assert page.get_attribute(shown, "data-neuron") == "0"
    assert page.locator(shown).count() == 1


QUESTIONS = (
    *(
        "exact",
        "compared",
        "backends",
        "glance-accuracy",
        "settles",
        "spike-share",
        "analog",
        "rate",
        "pays",
    ),
    *("subject", "glance-again"),
)


@pytest.mark.parametrize("width", [768, 1440])
def test_what_a_reader_asks_is_answered_within_two_screens(
    browser: Any, file: str, width: int
) -> None:
    page, _ = opened(browser, file, width)
    for name in QUESTIONS:
        place = page.locator(f"#{name}").bounding_box()
        assert place["y"] + place["height"] <= 2 * 900, name
        assert page.is_visible(f"#{name}"), name


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("width", [360, 1440])
def test_axe_finds_no_violation(
    browser: Any, name: str, width: int, request: pytest.FixtureRequest
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is missing"
    ).Axe()
    page, _ = opened(browser, request.getfixturevalue(name), width)
    assert [item["id"] for item in axe.run(page).response["violations"]] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(
    browser: Any, name: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    """The contrast of 4.5 that WCAG asks for, of every text that is seen."""
    page, _ = opened(browser, request.getfixturevalue(name), color_scheme=scheme)
    faint = """() => {
        const parts = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
        const behind = element => {
            const layers = [];
            for (let item = element; item; item = item.parentElement) {
                const [r, g, b, a = 1] = parts(getComputedStyle(item).backgroundColor);
                layers.push([r, g, b, a]);
                if (a === 1) break;
            }
            return layers.reverse().reduce((under, [r, g, b, a]) =>
                [r, g, b].map((v, k) => v * a + under[k] * (1 - a)), [255, 255, 255]);
        };
        const bad = [];
        for (const element of document.querySelectorAll("body *")) {
            const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
            if (!own || !element.getClientRects().length) continue;
            if (element.closest("option, title")) continue;
            const style = getComputedStyle(element);
            const svg = element.namespaceURI.includes("svg");
            const ink = parts(svg ? style.fill : style.color);
            const [a, b] = [light(ink), light(behind(svg ? element.ownerSVGElement : element))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < 4.5) bad.push(element.textContent.slice(0, 30) + " " + ratio.toFixed(2));
        }
        return bad;
    }"""
    assert page.evaluate(faint) == []
