"""The page of a run: its sections, answers to a reader's questions, and that it stands alone."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from pages import CONTENT, INSPECTION, SCRATCH, VOID
from results import ROW

from mt_convert.report.html import charts
from mt_convert.report.html.page import PageContent, render

LARGEST = 2_000_000


class Parsed(HTMLParser):
    """Elements of a page: attributes, the text inside, and what was not closed as it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, int]] = []
        self.texts: dict[int, str] = {}
        self.wrong: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts[len(self.elements) - 1] = ""
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1][0] != tag:
            self.wrong.append(tag)
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, place in self.open:
            self.texts[place] += data

    def text(self, name: str) -> str:
        """The text of the element of this id."""
        (place,) = [k for k, (_, item) in enumerate(self.elements) if item.get("id") == name]
        return " ".join(self.texts[place].split())

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of each element of this kind."""
        return [
            (item, self.texts[k]) for k, (name, item) in enumerate(self.elements) if name == tag
        ]


@pytest.fixture(scope="module")
def page() -> str:
    return render(CONTENT)


@pytest.fixture(scope="module")
def parsed(page: str) -> Parsed:
    return Parsed(page)


def test_every_element_is_closed_and_every_id_is_there_once(parsed: Parsed) -> None:
    assert parsed.wrong == []
    assert parsed.open == []
    ids = [item["id"] for _, item in parsed.elements if "id" in item]
    assert len(ids) == len(set(ids)) > 20


def test_the_sections_stand_in_the_order_in_which_a_reader_asks(parsed: Parsed) -> None:
    assert [item["id"] for item, _ in parsed.all("section")] == [
        *("verdict", "accuracies", "over-time", "spikes", "errors", "energy", "layers"),
        *("training", "again", "downloads"),
    ]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("exact", "Exact at T = 1"),
        ("compared", "on 32 images: 4,096 activations"),
        ("backends", "whole numbers: 0 of 4,096 activations differ on 4 images; another: not this"),
        ("glance-accuracy", "91.23 / 90.87 / 90.87 % of 10,000 test images"),
        ("settles", "T = 1 (n = 15)"),
        ("spike-share", "90.0 % of 1000 (1 of 2 weighted layers)"),
        ("analog", "1: conv (fed by the encoded image (direct coding), not by spikes)"),
        ("rate", "0.5 events per neuron and step (n = 3, T = 2)"),
        ("pays", "no: 1.50 times the quantized network"),
        ("subject", "resnet20_cifar, cifar10_jpeg, 10,000 test images, W4A4 (L = 15), seed 0"),
        ("glance-again", "mt-convert run recipe.yaml"),
        ("energy-layers", "fcspikes360–900"),
        ("neurobench", "n = 15, T = 112012.50 %75.00 %1003601,000"),
    ],
)
def test_a_question_of_a_reader_is_answered_by_one_element(
    parsed: Parsed, name: str, answer: str
) -> None:
    assert answer in parsed.text(name).replace("\xa0", " ")


def test_the_answers_stand_before_the_second_section(page: str) -> None:
    end = page.index('<section id="accuracies"')
    for name in (
        "exact",
        "compared",
        "backends",
        "glance-accuracy",
        "settles",
        "spike-share",
        "analog",
        "pays",
    ):
        assert page.index(f'id="{name}"') < end


def test_it_asks_no_other_machine_for_anything_and_is_small(page: str, parsed: Parsed) -> None:
    for _, item in parsed.elements:
        for key in ("src", "href", "srcset", "action", "data"):
            value = item.get(key) or ""
            assert "//" not in value.removeprefix("data:image/png;base64,").split(",")[0], value
    assert "@import" not in page
    assert "url(" not in page
    assert "fetch(" not in page
    assert len(page.encode()) < LARGEST


def test_whatever_is_drawn_pressed_or_chosen_has_a_name(parsed: Parsed) -> None:
    drawings = parsed.all("svg")
    assert len(drawings) == 7
    assert all(item["role"] == "img" and item["aria-label"] for item, _ in drawings)
    assert all(item.get("alt") for item, _ in parsed.all("img"))
    assert all(text.strip() for _, text in parsed.all("button"))
    labels = " ".join(text for _, text in parsed.all("label"))
    assert labels.count("Potential of neuron") == len(parsed.all("select")) == 1
    regions = [item for _, item in parsed.elements if item.get("role") == "region"]
    assert regions
    assert all(item["aria-label"] and item["tabindex"] == "0" for item in regions)
    assert all(item.get("scope") for item, _ in parsed.all("th"))


def test_light_dark_and_print_have_styles_of_their_own(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert "prefers-reduced-motion" in page


def test_signed_spikes_are_drawn_in_two_colours_and_every_neuron_has_its_potential(
    page: str, parsed: Parsed
) -> None:
    rects = [str(item.get("class")) for item, _ in parsed.all("rect")]
    assert rects.count("up") == 2
    assert rects.count("down") == 1
    traces = [str(item.get("class")) for item, _ in parsed.all("g")]
    assert traces.count("trace") == 1, "one is shown"
    assert traces.count("trace off") == 1


def test_a_layer_with_saturated_or_dead_channels_is_marked(parsed: Parsed) -> None:
    alerts = [text for item, text in parsed.all("span") if item.get("class") == "alert"]
    assert alerts == ["25.0 % of activations at the quantizer's end", "2 of 8 channels never fire"]


@pytest.mark.parametrize(
    ("more", "alert"),
    [
        ({"levels": [0, 11]}, "11 of 15 levels: the function it replaces ends there"),
        ({"step": 1e-12}, "its step is at the smallest that is allowed"),
        ({"typical": 3}, "99.9 % of what fires lies at level 3 of 15 or below"),
        ({"typical": 4}, ""),
        ({"levels": [-7, 15], "typical": 9}, ""),
    ],
)
def test_a_layer_whose_step_is_not_what_it_should_be_is_marked(
    more: dict[str, Any], alert: str
) -> None:
    inspection: Any = copy.deepcopy(CONTENT.inspection)
    inspection["layers"][0] |= {"saturated": 0.0, "dead": 0} | more
    parsed = Parsed(render(replace(CONTENT, inspection=inspection)))
    alerts = [text for item, text in parsed.all("span") if item.get("class") == "alert"]
    assert len(alerts) == bool(alert)
    assert all(text.startswith(alert) for text in alerts)


def test_iso_level_and_radix_points_are_ringed_and_told() -> None:
    even = replace(ROW, presentation="every_step", signed=False, n=3)
    digits = replace(ROW, ladder="radix", n=1, method="mt_radix")
    rows = [replace(row, T=T) for row in (even, digits) for T in (1, 4, 5)]
    page = render(replace(CONTENT, rows=rows))
    assert page.count('class="ring"') == 2
    assert "iso-level: 3 · 5 = L" in page
    assert "radix: 2^4 = L + 1" in page


def test_the_reason_for_what_is_analog_is_told_by_its_layer(parsed: Parsed) -> None:
    told = [str(item["data-told"]) for item, _ in parsed.all("li") if "data-told" in item]
    (conv,) = [text for text in told if text.startswith("conv ")]
    assert "direct coding" in conv
    assert "fed by images" in conv
    assert "10.0 %" in conv


def test_a_network_that_is_not_exact_is_said_so_with_the_layers() -> None:
    report: Any = copy.deepcopy(CONTENT.report)
    report["verdict"] |= {"exact_t1": False, "differs": ["layer1.act"]}
    parsed = Parsed(render(replace(CONTENT, report=report)))
    assert parsed.text("exact") == "✗ Not exact at T = 1: it differs in layer1.act"
    assert any(item.get("class") == "verdict no" for item, _ in parsed.all("div"))


def test_what_was_not_stored_is_left_out_and_nothing_else() -> None:
    parsed = Parsed(render(PageContent(CONTENT.rows, "digits")))
    assert parsed.wrong == []
    assert [item["id"] for item, _ in parsed.all("section")] == [
        *("verdict", "accuracies", "over-time", "again"),
    ]


def test_one_epoch_has_no_curve_and_no_section() -> None:
    log = {"quantized network": [{"epoch": 1, "train_loss": 0.5}]}
    parsed = Parsed(render(replace(CONTENT, training=log)))
    assert "training" not in [item["id"] for item, _ in parsed.all("section")]


def test_names_and_warnings_cannot_write_into_the_page() -> None:
    evil = '<script>alert("x")</script>'
    report: Any = {**CONTENT.report, "warnings": [evil]}  # type: ignore[dict-item]
    inspection: Any = copy.deepcopy(CONTENT.inspection)
    inspection["nodes"][1]["name"] = inspection["layers"][0]["name"] = evil
    inspection["example"]["layers"][0]["name"] = evil
    page = render(
        replace(CONTENT, name=evil, recipe=evil, command=evil, report=report, inspection=inspection)
    )
    assert evil not in page
    assert len(Parsed(page).all("script")) == 1


def test_the_page_of_a_table_says_for_each_network_whether_it_pays() -> None:
    row = {"compute": 10.0, "neurons": 20.0, "memory": 30.0, "total": 60.0, "T": 2}
    item = {"sentence": "It does not pay: 3.00 times at T = 2.", "model": "int8, 45 nm"}
    accounts = [
        item | {"title": f"n = {n}", "rows": [row | {"quantized": 20.0, "float": 0.0}]}
        for n in (1, 3)
    ]
    parsed = Parsed(render(PageContent(CONTENT.rows, "eval", accounts=accounts)))
    assert parsed.wrong == []
    assert "energy" in [item["id"] for item, _ in parsed.all("section")]
    cells = [text for _, text in parsed.all("td")][-7:]
    assert cells == ["2", "0.01", "0.02", "0.03", "0.06", "3.00 times", "–"]
    assert sum(text == "It does not pay: 3.00 times at T = 2." for _, text in parsed.all("p")) == 2
    assert sum(text == "int8, 45 nm" for _, text in parsed.all("p")) == 1, "said once"


def test_the_page_of_a_network_from_scratch_says_what_it_is_compared_with_and_why() -> None:
    page, said = SCRATCH, SCRATCH.sentence
    parsed = Parsed(render(page))
    assert parsed.wrong == []
    assert [item["id"] for item, _ in parsed.all("section")] == [
        *("verdict", "accuracies", "over-time", "spikes", "energy", "layers", "again"),
    ]
    assert parsed.text("exact") == said
    assert parsed.text("analog") == "1: conv (fed by the image (direct coding), not by spikes)"
    assert "no quantized network of the same bits" in parsed.text("reference")
    assert "the float network of the same architecture" in parsed.text("energy-sentence")
    assert "times the float network" in parsed.text("pays")
    heads = parsed.text("layer-table")
    assert "leak" in heads
    assert "saturated" not in heads
    assert "negative spikes" not in render(page)


def test_energy_that_was_not_counted_is_said_with_the_reason() -> None:
    inspection: Any = {**INSPECTION, "not_counted": "an operator without a count"}
    parsed = Parsed(render(replace(CONTENT, inspection=inspection)))
    assert parsed.text("energy-sentence") == "Not counted: an operator without a count"


def test_energies_are_written_with_thousands_apart() -> None:
    inspection: Any = copy.deepcopy(CONTENT.inspection)
    inspection["account"]["networks"][0]["compute"] = 12345678.0
    page = render(replace(CONTENT, inspection=inspection))
    assert "<td>12,350</td>" in page
    assert "e+0" not in page


def test_a_potential_far_from_all_others_is_drawn_where_it_is() -> None:
    trace = [0.5] * 98 + [8.0, 9.0]
    layer = {"name": "a", "chosen": [0], "spikes": [[0] * 100], "potentials": [trace]}
    drawn = charts.potentials(layer, 0)
    heights = [float(item) for item in re.findall(r'<circle[^>]* cy="([0-9.]+)"', drawn)]
    assert heights[-1] < heights[-2] < heights[0]
