"""The account of energy: each cost against a sum written here, the break-even, the ranking."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pages import energy_report, energy_rows

from mt_convert.errors import CheckpointError, SpecError
from mt_convert.evaluation.energy.account import (
    FLOAT,
    account,
    break_even,
    costs_over_time,
    costs_page,
    dense_cost,
    price_sweep,
    spiking_cost,
)
from mt_convert.evaluation.energy.prices import (
    FLOAT_STATE,
    FP16,
    FP32,
    INT8,
    INT32,
    PRICES,
    EnergySpec,
    MemoryModel,
    Weights,
    equal_prices,
)
from mt_convert.evaluation.energy.report import EnergyReport

NONE, ONCE, EVENT = (MemoryModel(weights, bit_pj=1.0, state_bits=10) for weights in Weights)


def test_the_prices_are_those_of_the_source() -> None:
    pairs = {name: (item.mac_pj, item.ac_pj) for name, item in PRICES.items()}
    assert pairs == {
        "fp32": (4.6, 0.9),
        "fp16": (1.5, 0.4),
        "int32": (3.2, 0.1),
        "int8": (0.23, 0.03),
    }


@pytest.mark.parametrize("prices", [FP32, FP16, INT32, INT8])
def test_compute_and_neurons_are_the_counts_times_the_prices(prices: object) -> None:
    cost = spiking_cost("", energy_rows(40.0), prices, NONE)  # type: ignore[arg-type]
    mac, ac = prices.mac_pj, prices.ac_pj  # type: ignore[attr-defined]
    assert cost.compute == pytest.approx(360 * ac + 100 * mac)
    assert cost.neurons == pytest.approx(300 * ac)
    assert cost.memory == 0
    dense = dense_cost("", energy_rows(), prices, NONE, None)  # type: ignore[arg-type]
    assert dense.compute == pytest.approx(1000 * mac)
    assert dense.neurons == pytest.approx(20 * mac)


def test_memory_is_weights_state_and_events_in_bits() -> None:
    state = 2 * 20 * 10  # read and written, 20 neurons, one step
    events = 2 * 40 * (5 + 1)  # an address of 20 neurons, a size of one threshold
    analog = 10 * 8
    once = spiking_cost("", energy_rows(40.0), INT8, ONCE).memory
    assert once == state + events + analog + 90 * 4
    for_each = spiking_cost("", energy_rows(40.0), INT8, EVENT).memory
    assert for_each == state + events + analog + 360 * 4
    quantized = dense_cost("", energy_rows(), INT8, ONCE, None).memory
    assert quantized == 10 * 8 + 90 * 4 + 2 * 20 * 4
    assert dense_cost("", energy_rows(), FP32, ONCE, 32).memory == 32 * (10 + 90 + 2 * 20)


def test_steps_cost_state_and_weights_again() -> None:
    later = [replace(row, time_steps=3) for row in energy_rows(40.0)]
    more = spiking_cost("", later, INT8, ONCE).memory
    less = spiking_cost("", energy_rows(40.0), INT8, ONCE).memory
    assert more - less == 2 * (2 * 20 * 10 + 90 * 4)


def test_at_the_break_even_rate_both_cost_the_same() -> None:
    rows, cheap = energy_rows(40.0), replace(ONCE, bit_pj=0.05)
    quantized = dense_cost("", rows, INT8, cheap, None)
    found = break_even(rows, quantized, INT8, cheap)
    assert found["here"] == 2.0
    assert found["rate"] is not None
    scale = found["rate"] / found["here"]
    there = [
        replace(
            row, synops=row.synops * scale, packets=row.packets * scale, events=row.events * scale
        )
        for row in rows
    ]
    at_rate = spiking_cost("", there, INT8, cheap)
    sizes = [row.events / row.packets for row in there if row.packets]
    assert sizes == [1.0], "packets keep their size"
    assert at_rate.total == pytest.approx(quantized.total)


def test_where_silence_itself_is_dearer_no_rate_pays() -> None:
    rows = [replace(row, comparisons=10**6 * bool(row.neurons)) for row in energy_rows()]
    quantized = dense_cost("", rows, INT8, ONCE, None)
    found = break_even(rows, quantized, INT8, ONCE)
    assert found["rate"] is None
    assert found["sentence"].startswith("No firing rate would pay")


def test_the_quantized_network_of_the_same_bits_stands_first_and_fp32_last() -> None:
    made = account({"n = 15, T = 1": (energy_report(), 1)})
    names = [item["name"] for item in made["networks"]]
    assert names[0] == "quantized network, the same bits"
    assert names[-1] == "float network, fp32"
    assert made["price"]["name"] == "int8, 45 nm"
    assert [(item["name"], item["synops"], item["macs"]) for item in made["layers"]] == [
        *(("conv", 0.0, 100), ("act", 0, 0), ("fc", 360.0, 0))
    ]


def test_a_network_from_scratch_stands_beside_the_float_network_of_its_architecture() -> None:
    rows = [replace(row, bits=(32, 32) if row.ann_macs else (0, 0)) for row in energy_rows()]
    rows[1] = replace(rows[1], leaks=20, level_bits=32)
    made = account({"T": (replace(energy_report(), rows=tuple(rows)), 1)}, FLOAT_STATE, FLOAT)
    beside, spiking = made["networks"]
    assert (beside["role"], spiking["role"]) == ("reference", "spiking")
    assert beside["name"] == "float network, the same architecture"
    assert beside["compute"] == pytest.approx(1000 * 4.6)
    assert beside["neurons"] == pytest.approx(20 * 0.9)
    assert beside["memory"] == pytest.approx(20 / 64 * 32 * (10 + 90 + 2 * 20))
    assert spiking["neurons"] == pytest.approx(300 * 0.9 + 20 * 4.6), (
        "a leak is a product and a sum"
    )
    assert spiking["memory"] == pytest.approx(20 / 64 * (32 * (10 + 90 + 2 * 20) + 2 * 40 * 6))
    assert "what the float network of the same architecture costs" in made["sentence"]
    assert "no quantized network" in made["reference"]["reason"]
    assert {item["prices"] for item in made["sweep"]} == {FP32.name, FP16.name}
    assert "float network does" in made["break_even"]["sentence"]
    dearer = account(
        {"T": (replace(energy_report(), rows=tuple(rows)), 1)}, EnergySpec("fp16"), FLOAT
    )
    assert [item["role"] for item in dearer["networks"]] == ["reference", "spiking", "float"]
    over = costs_over_time(replace(energy_report(), rows=tuple(rows)), FLOAT_STATE, FLOAT)
    assert over["rows"][0]["quantized"] is None
    assert over["rows"][0]["float"] == beside["total"]
    assert "no quantized network" in over["model"]


def test_prices_follow_from_the_bits() -> None:
    rows = energy_rows()
    assert equal_prices(rows) is INT8
    assert equal_prices([replace(rows[0], bits=(12, 8))]) is INT32
    assert equal_prices([replace(rows[0], bits=(32, 8))]) is FP32


@pytest.mark.parametrize(("events", "word"), [(1.0, "It pays"), (4000.0, "It does not pay")])
def test_one_sentence_says_whether_it_pays(events: float, word: str) -> None:
    made = account({"n = 15, T = 1": (energy_report(events), 1)})
    assert made["sentence"].startswith(word)
    assert made["pays"] == (word == "It pays")
    quantized, spiking, _ = made["networks"]
    assert made["pays"] == (spiking["total"] < quantized["total"])
    assert quantized["spiking_share"] == pytest.approx(spiking["total"] / quantized["total"])


def test_the_sweep_says_whether_the_ranking_hangs_on_prices() -> None:
    assert len(price_sweep(energy_rows(), ONCE)) == len(PRICES) * len(Weights)
    silent, loud, between = (
        account({"a": (energy_report(events), 1)}) for events in (0.001, 10.0**6, 60.0)
    )
    assert silent["stable"]
    assert loud["stable"]
    assert "dearer in all 12" in loud["sweep_sentence"]
    assert not between["stable"]
    assert between["sweep_sentence"].startswith("Yes")
    assert "prices and models of memory" in between["sentence"]


def test_an_account_is_at_the_prices_and_with_the_memory_that_are_asked_for() -> None:
    spec = EnergySpec(
        "fp16", ac_pj=0.2, float_prices="int32", weights=Weights.PER_EVENT, bit_pj=2.0, state_bits=8
    )
    made = account({"a": (energy_report(40.0), 1)}, spec)
    quantized, spiking, ann = made["networks"]
    assert made["price"] == {
        **{"mac_pj": 1.5, "ac_pj": 0.2, "name": "fp16, 45 nm, but 0.2 pJ an addition"}
    }
    assert spiking["compute"] == pytest.approx(360 * 0.2 + 100 * 1.5)
    assert spiking["memory"] == 2 * (2 * 20 * 8 + 2 * 40 * 6 + 10 * 8 + 360 * 4)
    assert quantized["compute"] == pytest.approx(1000 * 1.5)
    assert (ann["name"], ann["compute"]) == ("float network, int32", 1000 * 3.2)
    for words in ("0.2 pJ an addition", "2 pJ a bit", "for each event", "potential of 8 bits"):
        assert words in made["model"], words
    assert made["spec"] == spec.to_json()
    assert len(made["sweep"]) == (len(PRICES) + 1) * len(Weights), "its own prices are swept too"
    bare = account({"a": (energy_report(40.0), 1)}, EnergySpec(weights=Weights.NOT_COUNTED))
    assert "memory not counted" in bare["sentence"]
    assert bare["networks"][1]["memory"] == 0


def test_costs_over_time_are_those_of_the_account_after_each_step() -> None:
    later = tuple(replace(row, time_steps=2, synops=3 * row.synops) for row in energy_rows(40.0))
    report = replace(energy_report(40.0), rows=(*energy_rows(40.0), *later))
    spec = EnergySpec("int32", bit_pj=0.01)
    made = costs_over_time(report, spec)
    for row in made["rows"]:
        quantized, spiking, ann = account({"a": (report, row["T"])}, spec)["networks"]
        assert row["total"] == spiking["total"]
        assert (row["quantized"], row["float"]) == (quantized["total"], ann["total"])
    one, two = (row["total"] / row["quantized"] for row in made["rows"])
    assert made["sentence"] == (
        f"It pays: {one:.2f} times at T = 1, {two:.2f} times at T = 2 what the quantized network "
        "of the same bits costs."
    )
    dear = costs_over_time(report, EnergySpec("int8"))
    assert dear["sentence"].startswith("It does not pay: ")
    page = costs_page([{"title": "a, n = 3", **made}])
    assert made["sentence"] in page
    assert f"| 1 | {made['rows'][0]['compute'] / 1000:.4g} | " in page


def test_a_report_of_energy_is_read_as_it_was_written() -> None:
    report = energy_report()
    again = EnergyReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    with pytest.raises(CheckpointError, match="its schema must be"):
        EnergyReport.from_json({"schema": "mt_convert.energy/0"})
    with pytest.raises(CheckpointError, match="images"):
        EnergyReport.from_json({"schema": "mt_convert.energy/1"})


def test_own_prices_have_a_name_that_says_them() -> None:
    assert EnergySpec(mac_pj=2, ac_pj=0.5).table(energy_rows()).name == "2 and 0.5 pJ, own prices"
    assert EnergySpec(mac_pj=0.23, ac_pj=0.03).table(energy_rows()) is INT8
    assert EnergySpec("int32").table(energy_rows()) is INT32


WRONG = {
    "prices": ("int4", None),
    "float_prices": (None, "fp32"),
    "weights": ("sometimes", Weights.ONCE),
    "mac_pj": (-0.1, 0),
    "ac_pj": (float("nan"), 0.0),
    "bit_pj": (1e7, 1e6),
    "state_bits": (65, 64),
}


def test_what_is_not_allowed_is_told_all_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        EnergySpec(**{name: wrong for name, (wrong, _) in WRONG.items()})  # type: ignore[arg-type]
    assert [item.where for item in raised.value.faults] == [*WRONG]
    assert all(item.hint.startswith("allowed: ") for item in raised.value.faults)
    EnergySpec(**{name: right for name, (_, right) in WRONG.items()})  # type: ignore[arg-type]
