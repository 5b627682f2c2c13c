"""The probes in the interpreter: their values, the rules that they break, the way from timings to prices and back."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nki_kernels import probes, profiling
from nki_kernels.interpreter import PriceList, Target
from nki_kernels.interpreter.cost_table import TABLE
from nki_kernels.interpreter.static_check import check_file, kernel_files
from nki_kernels.probes import results as found
from nki_kernels.probes.calibrate import Row, calibrate
from nki_kernels.probes.modelled import Traces, launched, refused_by, traces
from nki_kernels.probes.results import Answer, Measure, Results, key
from nki_kernels.probes.table import PROBES, TIMINGS

KERNELS = Path(probes.__file__).parent


LAUNCHES = [(name, cores) for name, probe in PROBES.items() for cores in (1, 2) if cores >= probe.cores]


@pytest.mark.parametrize(("name", "cores"), LAUNCHES)
def test_the_interpreter_gives_the_expected_values(name: str, cores: int) -> None:
    probe = PROBES[name]
    runs = [(run, run.repeats) for run in probe.checks] + [(timing.run, 8) for timing in probe.timings]
    assert runs
    for run, repeats in runs:
        result, _ = launched(run, cores, repeats)
        assert result.shape[0] == cores
        assert run.error(result, run.arguments(cores), repeats) <= run.tolerance


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_breaks_the_rules_that_it_says_and_no_other(name: str) -> None:
    probe = PROBES[name]
    assert (refused_by(probe, max(2, probe.cores)),) == (probe.rules or ("",))


def test_a_wrong_value_a_lost_core_and_another_shape_are_errors() -> None:
    run = PROBES["fp32_products"].checks[0]
    arguments = run.arguments(2)
    result, _ = launched(run, 2, 1)
    assert run.error(result, arguments, 1) <= run.tolerance
    off = result.copy()
    off[1, 0, 5, 7] += 1e-3 * np.abs(result).max()
    assert run.error(off, arguments, 1) == pytest.approx(1e-3, rel=0.01)
    off[1, 0, 5, 7] = np.nan
    assert run.error(off, arguments, 1) == float("inf")
    assert run.error(result[:, :, :64], arguments, 1) == float("inf")
    half = result.astype(np.float16).astype(np.float32)  # products in fewer bits do not pass for float32's
    assert run.error(half, arguments, 1) > run.tolerance


def test_the_kernels_are_what_the_parser_takes_but_for_what_is_asked() -> None:
    for sdk in ("2.29", "2.31", "2.32"):
        said = [
            str(f)
            for f in [
                f for p in kernel_files(KERNELS) for f in check_file(p, target=Target(sdk=sdk, checks="cautious"))
            ]
        ]
        assert all("accumulate=" in line for line in said)
        assert len(said) == 2  # `sums_in_turn` asks what happens without it


def test_every_probe_says_what_it_means_and_every_timing_has_a_price_of_the_model() -> None:
    for name, probe in PROBES.items():
        assert probe.name == name
        assert probe.asks.endswith("?")
        assert probe.means
        assert probe.off
        assert probe.checks or probe.timings
    assert len(TIMINGS) == sum(len(probe.timings) for probe in PROBES.values())
    constants = [timing.constant for timing in TIMINGS.values() if timing.constant]
    assert set(constants) <= TABLE.keys()
    assert len(constants) == len(set(constants))
    inferred = {name for name, price in TABLE.items() if price.kind == "inferred"}
    assert inferred <= set(constants)  # whatever nobody has measured is measured


# ---- from timings to prices -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traced() -> dict[str, Traces]:
    """Every timing's traces, made once."""
    return {timing.name: traces(timing, probe.cores) for probe in PROBES.values() for timing in probe.timings}


@pytest.fixture(autouse=True)
def _traced_once(traced: dict[str, Traces], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nki_kernels.probes.calibrate.traces", lambda timing, cores: traced[timing.name])


def answers(timings: dict[str, Measure], kind: found.Kind = "measured", status: found.Status = "right") -> Results:
    """As a run of the probes leaves them."""
    made = Results(kind, "a device", 1)
    for name, probe in PROBES.items():
        own = {timing.name: timings[timing.name] for timing in probe.timings if timing.name in timings}
        made.answers[key(name, "alone")] = Answer(name, "alone", status, timings=own)
    return made


def said(traced: dict[str, Traces], prices: PriceList, spread: float = 0.0) -> dict[str, Measure]:
    """What a device with these prices would measure."""
    times = {name: each.ns(prices.costs()) for name, each in traced.items()}
    return {name: Measure(ns, ns * (1 - spread), ns * (1 + spread), 15) for name, ns in times.items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_prices_that_made_the_timings_are_found_again(traced: dict[str, Traces], seed: int) -> None:
    rng = random.Random(seed)
    true = {
        timing.constant: TABLE[timing.constant].centre * rng.uniform(0.8, 1.4)
        + 3 * (timing.constant.endswith("cycles"))
        for timing in TIMINGS.values()
        if timing.constant
    }
    measured = said(traced, PriceList().having("true", **true), spread=0.02)
    prices, rows = calibrate(answers(measured))
    assert {row.constant for row in rows if row.after} == set(true)
    for name, value in true.items():
        price = prices.prices[name]
        assert price.centre == pytest.approx(value, rel=0.01), name
        assert price.low <= price.centre <= price.high
        assert (price.kind, price.unit) == ("measured", TABLE[name].unit)
        assert "ns a repeat, measured, a device" in price.source
    assert all(row.modelled_ns == pytest.approx(row.measured.ns, rel=1e-3) for row in rows)
    assert prices.prices["tensor_throttle"].high >= TABLE["tensor_throttle"].high  # the device was idle otherwise
    assert prices.prices["scalar_table_ns"].high > prices.prices["scalar_table_ns"].low
    untouched = [name for name in TABLE if name not in true]
    assert all(prices.prices[name] == TABLE[name] for name in untouched)


def test_one_timing_moves_its_own_price_alone(traced: dict[str, Traces]) -> None:
    base = PriceList().having("base", semaphore_ns=77.0)
    prices, rows = calibrate(answers({"exp_and_sigmoid": Measure(1600.0, 1590.0, 1620.0, 15)}), base, "mine")
    assert prices.name == "mine"
    assert [row.constant for row in rows] == ["scalar_table_ns"]
    assert prices.prices["scalar_table_ns"].centre == pytest.approx(1283 + 1600 - 1481.7, abs=0.5)
    assert prices.prices["semaphore_ns"].centre == 77.0
    assert {n for n, p in prices.prices.items() if p != base.prices[n]} == {"scalar_table_ns"}


def test_a_timing_that_no_price_explains_changes_nothing_and_is_told(traced: dict[str, Traces]) -> None:
    row: Row
    prices, (row,) = calibrate(answers({"exp_and_sigmoid": Measure(20.0, 19.0, 21.0, 15)}))
    assert prices.prices["scalar_table_ns"] == TABLE["scalar_table_ns"]
    assert row.note == "no value of scalar_table_ns gives it: the model is wrong there"
    assert row.after is None


def test_a_timing_without_a_price_is_compared(traced: dict[str, Traces]) -> None:
    _, (row,) = calibrate(answers({"broadcast_load": Measure(4000.0, 4000.0, 4000.0, 15)}))
    assert row.constant is None
    assert row.modelled_ns == pytest.approx(3438, rel=0.01)


def test_timings_of_probes_whose_values_were_wrong_are_not_taken(traced: dict[str, Traces]) -> None:
    with pytest.raises(ValueError, match="nothing to calibrate by"):
        calibrate(answers(said(traced, PriceList()), status="wrong"))


def test_what_was_measured_alone_goes_before_what_was_measured_inside_a_graph() -> None:
    made = Results("measured", "a device", 1)
    for where, ns in (("alone", 1500.0), ("inside", 1700.0)):
        timings = {"exp_and_sigmoid": Measure(ns, ns, ns)}
        made.answers[key("table_switch", where)] = Answer("table_switch", where, "right", timings=timings)  # type: ignore[arg-type]
    assert made.timings()["exp_and_sigmoid"].ns == 1500.0
    del made.answers[key("table_switch", "alone")]
    assert made.timings()["exp_and_sigmoid"].ns == 1700.0


# ---- files ------------------------------------------------------------------------------------------------------


def test_results_are_read_as_they_were_written(tmp_path: Path, traced: dict[str, Traces]) -> None:
    made = answers(said(traced, PriceList(), 0.1))
    made.answers[key("gather", "inside")] = Answer("gather", "inside", "hung", message="no answer in 3 s", seconds=3.0)
    made.save(tmp_path / "probes.json")
    assert Results.load(tmp_path / "probes.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["probes.json"]


def spoiled(**change: object) -> dict[str, object]:
    timings = {"exp_and_sigmoid": {"ns": 1500.0, "low": 1490.0, "high": 1510.0, "samples": 15}}
    answer = {"probe": "table_switch", "where": "alone", "status": "right", "timings": timings}
    for path in ("ns", "low", "high", "samples"):
        if path in change:
            timings["exp_and_sigmoid"][path] = change.pop(path)  # type: ignore[assignment]
    for path in ("probe", "where", "status", "more"):
        if path in change:
            answer[path] = change.pop(path)
    if "timing" in change:
        answer["timings"] = {str(change.pop("timing")): timings["exp_and_sigmoid"]}
    base = {"format": "trn2-probes", "version": 1, "kind": "measured", "device": "d", "logical_cores": 1}
    return {**base, "provenance": {}, "answers": {"table_switch, alone": answer}, **change}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "nki-price-list"}, "'format' must be 'trn2-probes'"),
        ({"version": 2}, "'version' is 2"),
        ({"kind": "guessed"}, "'kind' is 'guessed'"),
        ({"logical_cores": 3}, "'logical_cores' is 3"),
        ({"answers": []}, "'answers' must be an object"),
        ({"extra": 1}, "'extra' is not known"),
        ({"probe": "no_probe"}, "probe is 'no_probe'"),
        ({"where": "beside"}, "where is 'beside'"),
        ({"where": "inside"}, "'table_switch, alone' holds 'table_switch, inside'"),
        ({"status": "fine"}, "status is 'fine'"),
        ({"more": 1}, "more"),
        ({"timing": "no_timing"}, "'no_timing' is no timing"),
        ({"ns": "fast"}, "ns is 'fast'"),
        ({"ns": float("nan")}, "ns is nan"),
        ({"ns": 1600.0}, "must not decrease"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_a_bad_file_is_refused_by_its_field(tmp_path: Path, change: dict[str, object], says: str) -> None:
    file = tmp_path / "probes.json"
    file.write_text(json.dumps(spoiled(**change)))
    done = CliRunner().invoke(profiling.app, ["calibrate", str(file), "--out", str(tmp_path / "prices.json")])
    assert done.exit_code == 2
    assert says in done.stderr
    assert str(file) in done.stderr
    assert not (tmp_path / "prices.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", "null", ""])
def test_what_is_no_such_json_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "probes.json"
    file.write_text(content)
    assert CliRunner().invoke(profiling.app, ["calibrate", str(file)]).exit_code == 2
    assert CliRunner().invoke(profiling.app, ["calibrate", str(tmp_path / "none.json")]).exit_code == 2


def test_the_command_writes_a_list_that_the_interpreter_loads(tmp_path: Path) -> None:
    file, out = tmp_path / "probes.json", tmp_path / "prices.json"
    file.write_text(json.dumps(spoiled()))
    done = CliRunner().invoke(profiling.app, ["calibrate", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "scalar_table_ns: 1283 to 1283, 1283 -> " in done.stdout
    prices = PriceList.load(out)
    assert prices.name == "measured by probes: d"
    assert prices.costs().scalar_table_ns == pytest.approx(1301.3, abs=0.5)
    shown = CliRunner().invoke(profiling.app, ["constants", "--prices", str(out)])
    assert "probe timing exp_and_sigmoid: 1500.0 ns a repeat, measured, d" in shown.stdout


def test_modelled_timings_make_no_prices_unless_asked_to(tmp_path: Path) -> None:
    file = tmp_path / "probes.json"
    file.write_text(json.dumps(spoiled(kind="modelled")))
    out = ["--out", str(tmp_path / "prices.json")]
    done = CliRunner().invoke(profiling.app, ["calibrate", str(file), *out])
    assert done.exit_code == 2
    assert "'kind' is 'modelled'" in done.stderr
    assert CliRunner().invoke(profiling.app, ["calibrate", str(file), "--modelled", *out]).exit_code == 0
    assert PriceList.load(tmp_path / "prices.json").prices["scalar_table_ns"].kind == "inferred"


def test_a_run_that_takes_no_repeats_is_given_none() -> None:
    run = PROBES["sanity"].checks[0]
    assert run.keywords(5) == {}
    assert replace(run, repeats=2).keywords(5) == {"repeats": 5}
