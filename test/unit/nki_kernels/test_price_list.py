"""The price list as an object and as a file."""

import json

import nki.isa as nisa
import nki.language as nl
import pytest
from pricing_runs import F32, matmul, node, priced, sb
from typer.testing import CliRunner

from nki_kernels import profiling
from nki_kernels.interpreter import PriceList
from nki_kernels.interpreter.cost_table import TABLE, Costs, Price


def test_the_ends_of_the_list_enclose_its_centre():
    def body(x):
        t = sb(128, 256)
        nisa.activation(t, nl.exp, t)
        matmul(128, 128, 256, F32)
        nisa.tensor_scalar(t, t, nl.add, 1.0)

    report = priced(body, prices=PriceList())
    for what, (low, high) in report.range_us.items():
        assert low < getattr(report, what) < high
    assert "between" in report.table()


def test_the_dearest_costs_have_the_slowest_speeds():
    low, high = PriceList().costs("low"), PriceList().costs("high")
    assert low.hbm_bytes_ns > Costs().hbm_bytes_ns > high.hbm_bytes_ns
    assert low.tensor_throttle < Costs().tensor_throttle < high.tensor_throttle
    assert PriceList().costs() == Costs()


def test_every_price_says_where_it_comes_from_and_what_is_uncertain():
    assert all(p.source and p.unit for p in TABLE.values())
    assert all(bool(p.uncertain) == (p.low != p.high) for p in TABLE.values())
    inferred = {k for k, p in TABLE.items() if p.kind == "inferred"}
    assert inferred >= {"semaphore_ns", "vector_issue_ns", "loop_ns"}
    assert set(priced(lambda x: sb(1, 1)).estimates) == inferred


def entry(**changed):
    price = {"low": 1270, "centre": 1283, "high": 1300, "unit": "ns", "kind": "measured", "source": "probe"}
    return price | {"uncertain": "spread of 5 runs"} | changed


def listed(**prices):
    return {"format": "nki-price-list", "version": 1, "name": "here", "prices": prices}


def test_a_list_is_saved_and_loaded_whole(tmp_path):
    mine = PriceList.from_dict(listed(scalar_table_ns=entry()))
    assert mine.prices["scalar_table_ns"].high == 1300
    assert mine.prices["vector_ghz"] == TABLE["vector_ghz"]
    mine.save(tmp_path / "prices.json")
    assert PriceList.load(tmp_path / "prices.json") == mine
    assert set(mine.to_dict(changed=True)["prices"]) == {"scalar_table_ns"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([], "'format' must be 'nki-price-list'"),
        (listed() | {"version": 2}, "'version' is 2"),
        (listed() | {"name": ""}, "'name' is ''"),
        (listed() | {"price": {}}, "'price' is not a field"),
        (listed() | {"prices": []}, "'prices' must be an object"),
        (listed(vector_mhz=entry()), "'vector_mhz' is not a constant"),
        (listed(scalar_table_ns=3), "must be an object with low"),
        (listed(scalar_table_ns=entry(unit="us")), "scalar_table_ns: unit is 'us', must be 'ns'"),
        (listed(scalar_table_ns=entry(low=1290)), "scalar_table_ns: low 1290, centre 1283"),
        (listed(scalar_table_ns=entry(high="1300")), "scalar_table_ns: high is '1300'"),
        (listed(scalar_table_ns=entry(high=float("nan"))), "scalar_table_ns: high is nan"),
        (listed(scalar_table_ns=entry(low=-1)), "low is -1"),
        (listed(scalar_table_ns=entry(kind="guessed")), "kind is 'guessed'"),
        (listed(scalar_table_ns=entry(uncertain="")), "say in 'uncertain'"),
        (listed(scalar_table_ns=entry(uncertain=None)), "'uncertain' is None"),
        (listed(scalar_table_ns=entry(sigma=1)), "'sigma' is not a field of a price"),
        (listed(scalar_table_ns={"low": 1}), "'centre' is missing"),
        (listed(hbm_bytes_ns=entry(low=0, unit="bytes/ns")), "a speed is more than that"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(tmp_path, data, why):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"prices\.json: ") as caught:
        PriceList.load(path)
    assert why in str(caught.value)


def test_some_constants_may_be_known():
    def body(x):
        nisa.tensor_scalar(sb(128, 960), sb(128, 960), nl.add, 1.0)

    slow = priced(body, prices=PriceList().having("half the clock", vector_ghz=0.48))
    assert node(slow, "tensor_scalar").timing.hold == pytest.approx(1000 + TABLE["vector_issue_ns"].centre)
    assert slow.prices == "half the clock"
    with pytest.raises(ValueError, match="'clock' is not a constant"):
        PriceList().having(clock=1.0)


def test_a_price_is_a_range():
    with pytest.raises(ValueError, match="must not decrease"):
        Price(2, 1, 3, "ns", "measured", "here", "all")


def test_constants_are_printed_with_their_ranges_and_sources(tmp_path):
    shown = CliRunner().invoke(profiling.app, ["constants", "--save", str(tmp_path / "published.json")])
    assert shown.exit_code == 0
    for name, price in TABLE.items():
        assert name in shown.output
        assert price.source in shown.output
        assert price.uncertain in shown.output
    assert PriceList.load(tmp_path / "published.json") == PriceList()


def test_a_list_in_a_file_prices_a_kernel(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(listed(scalar_table_ns=entry())))
    shown = CliRunner().invoke(profiling.app, ["constants", "--prices", str(path)])
    assert "Prices: here" in shown.output
    path.write_text("{")
    shown = CliRunner().invoke(profiling.app, ["constants", "--prices", str(path)])
    assert shown.exit_code == 2
    assert "prices.json" in shown.output
