"""The page about the peers: what its script makes of stored rows. No peer is needed or run."""

from __future__ import annotations

import doctest
import json
from typing import Any

import pytest
from paths import ROOT
from studies import script

FOLDER = ROOT / "eval" / "coverage"


peers_page = script(FOLDER / "peers_page.py")


def row(architecture: str = "net_a", peer: str = "sinabs", **columns: Any) -> dict[str, Any]:
    """A row of peers.json: two ReLUs converted, unless ``columns`` say otherwise."""
    usual = {
        "architecture": architecture,
        "input_size": 64,
        "peer": peer,
        "family": architecture.removeprefix("net_"),
        "converted": True,
        "forward": True,
        "spiking_layers": 2,
        "shared_neurons": 0,
        "time_operators": 0,
        "activations": {"relu": 2},
        "modules_left": {},
        "operators_left": {},
        "stage": None,
        "error": None,
        "seconds": 0.1,
    }
    return usual | columns


def failed(architecture: str, error: str, peer: str = "sinabs") -> dict[str, Any]:
    """A row of a conversion that raised."""
    nothing = {"converted": False, "forward": None, "spiking_layers": 0, "operators_left": None}
    return row(architecture, peer, **nothing, stage="convert", error=error)


def page(*rows: dict[str, Any], ours: tuple[dict[str, Any], ...] = ()) -> str:
    """The page of these rows."""
    settings = {
        "versions": {"sinabs": "3.1.3"},
        "images": 2,
        "limits": {"seconds": 120.0, "gigabytes": 8.0},
    }
    return str(
        peers_page.page({"settings": settings, "calls": {"sinabs": "x\n"}, "rows": rows}, ours)
    )


def our_row(architecture: str, **columns: Any) -> dict[str, Any]:
    """A row of results.json."""
    usual = {
        "architecture": architecture,
        "family": architecture.removeprefix("net_"),
        "params": 10,
        "input_size": 64,
        "converted": True,
        "spiking_layers": 7,
        "spike_fed_mac_share": 0.985,
        "exact_t1": True,
        "error": None,
    }
    return usual | columns


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "fully"),
        ({"operators_left": {"gelu": 1}}, "partly, in silence"),
        ({"shared_neurons": 1}, "partly, in silence"),
        ({"spiking_layers": 0, "operators_left": {"gelu": 1}}, "nothing, in silence"),
        ({"spiking_layers": 0}, "nothing, in silence"),
        ({"forward": False, "operators_left": None, "error": "E: no"}, "cannot run"),
        ({"converted": False, "forward": None, "spiking_layers": 0}, "raises"),
    ],
)
def test_an_outcome_follows_from_the_columns(columns: dict[str, Any], expected: str) -> None:
    assert peers_page.outcome(row(**columns)) == expected


def test_a_recipe_without_neurons_is_judged_by_its_operators_over_time() -> None:
    columns = {"spiking_layers": 0, "time_operators": 5}
    assert peers_page.outcome(row(peer="spikingjelly_td", **columns)) == "fully"
    assert peers_page.outcome(row(peer="spikingjelly_sta", **columns)) == "nothing, in silence"


def test_the_table_of_counts_has_one_line_per_peer_that_sums_to_its_architectures() -> None:
    rows = [
        row("net_a"),
        row("net_b", operators_left={"sigmoid": 3}),
        row("net_c", spiking_layers=0, operators_left={"gelu": 1}, activations={"gelu": 1}),
        failed("net_a", "ValueError: no", "spikingjelly_ltb"),
    ]
    assert peers_page.counts(rows).splitlines()[2:] == [
        "| SpikingJelly LTB | 0 | 0 | 0 | 0 | 1 |",
        "| sinabs | 1 | 1 | 1 | 0 | 0 |",
    ]
    assert "3 architectures, the smallest of each of 3 of" in page(*rows)


def test_networks_with_relu_alone_are_counted_apart() -> None:
    rows = [row("net_a"), row("net_b", activations={"relu": 1, "sigmoid": 1})]
    text = peers_page.relu_only([*rows, row("net_c", activations=None)])
    assert "The 1 architectures" in text
    assert "| sinabs | 1 | 0 | 0 | 0 | 0 |" in text


def test_a_family_stands_in_one_line_with_every_peer_and_ours() -> None:
    rows = [row(operators_left={"gelu": 4}), failed("net_a", "E: no", "spikingjelly_rate")]
    text = page(*rows, ours=(our_row("net_a"),))
    assert "| a | net_a | 64 | **exact**, 7, 98.5 % of MACs | raises | partly: 2, 4 left |" in text
    assert "1 convert, 1 of them exactly at T = 1, 0 without a spiking layer; 0 raise" in text


def test_ours_that_failed_is_shown_with_its_error() -> None:
    ours = our_row("net_a", converted=False, exact_t1=None, error="UnsupportedLayerError: a | b")
    text = page(row(), ours=(ours,))
    assert "raises: UnsupportedLayerError: a \\| b |" in text
    assert "0 convert" in text


def test_without_a_coverage_run_the_page_says_so_and_has_no_column_of_ours() -> None:
    text = page(row())
    assert "No coverage run of ours is stored" in text
    assert "| family | architecture | px | sinabs |" in text


def test_controls_stay_out_of_the_counts() -> None:
    text = page(row("net_a"), row("torchvision/resnet18", family="torchvision"))
    assert "| sinabs | 1 | 0 | 0 | 0 | 0 |" in text
    assert text.index("## Control") < text.index("torchvision/resnet18")


def test_an_architecture_that_timm_itself_cannot_run_is_named_and_not_counted() -> None:
    text = page(row("net_a"), failed("net_b", "E: no") | {"stage": "build"})
    assert "| sinabs | 1 | 0 | 0 | 0 | 0 |" in text
    assert "left out: net_b." in text
    assert "left out" not in page(row("net_a"))


def test_errors_that_differ_in_a_layer_name_are_counted_together() -> None:
    errors = ["E: no 'a.b' [timm/x.py:1]", "E: no 'c' [timm/y.py:2]", "E: other"]
    text = peers_page.causes([failed(f"net_{i}", error) for i, error in enumerate(errors)])
    assert "| sinabs | E: no '…' | 2 |" in text
    assert "| sinabs | E: other | 1 |" in text


def test_rare_errors_are_summed_up() -> None:
    errors = [f"E{i}: no" for i in range(peers_page.CAUSES + 2)]
    text = peers_page.causes([failed(f"net_{i}", error) for i, error in enumerate(errors)])
    assert "| sinabs | other errors | 2 |" in text


def test_the_smallest_architecture_of_a_family_is_taken_with_its_size() -> None:
    rows = [
        our_row("net_big", family="f", params=20),
        our_row("net_small", family="f", params=5, input_size=96),
        our_row("net_sizeless", family="f", params=1, input_size=None),
        our_row("net_other", family="g"),
    ]
    assert peers_page.smallest(rows) == {"net_small": 96, "net_other": 64}


def test_the_examples_in_the_docstrings_hold() -> None:
    found = doctest.testmod(peers_page)
    assert found.attempted
    assert found.failed == 0


def test_the_stored_page_is_that_of_the_stored_rows() -> None:
    stored = json.loads((FOLDER / "peers.json").read_text())
    results = FOLDER / "results.json"
    ours = json.loads(results.read_text())["rows"] if results.exists() else ()
    assert (FOLDER / "PEERS.md").read_text() == peers_page.page(stored, ours), (
        "write it again: python eval/coverage/peers.py --page"
    )


def test_the_stored_rows_hold_every_architecture_once_with_every_peer() -> None:
    rows = json.loads((FOLDER / "peers.json").read_text())["rows"]
    names = {row["architecture"] for row in rows}
    assert len(names) >= 98
    assert len(rows) == len(names) * len(peers_page.TITLES)
    assert len({(row["architecture"], row["peer"]) for row in rows}) == len(rows)


def test_the_calls_on_the_page_are_those_of_the_script() -> None:
    script = (FOLDER / "peers_trial.py").read_text()
    calls = json.loads((FOLDER / "peers.json").read_text())["calls"]
    assert set(calls) == set(peers_page.TITLES)
    for code in calls.values():
        for function in code.split("\n\n"):
            assert function.strip() in script
