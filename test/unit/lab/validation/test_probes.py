"""Asking the probes: a process each, a time limit, a file that the next run goes on from."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from command import qwen36
from rich.console import Console

from nki_kernels.interpreter import PriceList
from nki_kernels.probes.results import Answer, Measure, Results, Where, key
from nki_kernels.probes.table import PROBES
from qwen36_lab.validation import probe_child, probe_report, probes
from qwen36_lab.validation.probe_report import FINISHED, GONE, LOOK, line, run_probes, sdk_of
from qwen36_lab.validation.probes import DeviceGone, Plan, ask_all, child_command
from qwen36_lab.validation.surround import around
from qwen36_neuron.errors import ConfigError

RIGHT = """
import json, sys
probe, where, file = sys.argv[1:]
json.dump({"probe": probe, "where": where, "status": "right", "timings": {}}, open(file, "w"))
"""
HANGS = "import time; time.sleep(600)"
CRASHES = "import os, sys; print('NRT_EXEC_HW_ERR', flush=True); os.abort()"
SAYS_NOTHING = "print('ended and left no answer')"


@pytest.fixture(autouse=True)
def hung(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A process that hangs is given up once it hangs; all others are waited for, however slow the machine is."""
    given_up: list[int] = []

    def wait(process: subprocess.Popen[bytes], timeout: float) -> int:
        if HANGS not in process.args:
            return process.wait(600)
        while HANGS.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # not the new program yet
        given_up.append(process.pid)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(probes, "_wait", wait)
    return given_up


class Asked:
    """Plays the processes: what each probe does, and in which order they were asked."""

    def __init__(self, **does: str) -> None:
        self.does, self.order = does, []

    def __call__(self, name: str, where: Where, answer: Path) -> list[str]:
        self.order.append(key(name, where))
        return [sys.executable, "-S", "-c", self.does.get(name, RIGHT), name, where, str(answer)]


def plan(folder: Path, **change: object) -> Plan:
    names = ("sanity", "gather", "odd_transpose")
    base = {"file": folder / "probes.json", "kind": "modelled", "device": "d", "cores": 2, "names": names}
    return Plan(**{**base, "wheres": ("alone",), **change})  # type: ignore[arg-type]


def statuses(folder: Path) -> dict[str, str]:
    return {name: answer.status for name, answer in Results.load(folder / "probes.json").answers.items()}


def test_every_probe_is_asked_once_and_the_next_run_asks_nothing(tmp_path: Path) -> None:
    asked = Asked()
    answers = list(ask_all(plan(tmp_path, wheres=("alone", "inside")), asked))
    assert [answer.key for answer in answers] == asked.order
    assert len(asked.order) == 6
    assert set(statuses(tmp_path).values()) == {"right"}
    again = Asked()
    assert list(ask_all(plan(tmp_path, wheres=("alone", "inside")), again)) == []
    assert again.order == []
    assert len(list(ask_all(plan(tmp_path, again=("gather",)), again))) == 1
    assert again.order == ["gather, alone"]


def test_a_hang_loses_one_probe_and_leaves_no_process(tmp_path: Path, hung: list[int]) -> None:
    answers = list(ask_all(plan(tmp_path, timeout=3), Asked(gather=HANGS)))
    assert [answer.status for answer in answers] == ["right", "hung", "right"]
    assert answers[1].message == "no answer in 3 s"
    assert len(hung) == 1
    assert not psutil.pid_exists(hung[0])
    asked = Asked()
    assert list(ask_all(plan(tmp_path), asked)) == []
    assert statuses(tmp_path)["gather, alone"] == "hung"


def test_a_run_that_the_machine_took_down_goes_on_behind_the_probe_that_did_it(tmp_path: Path) -> None:
    done = Results("modelled", "d", 2)
    done.answers["sanity, alone"] = Answer("sanity", "alone", "right")
    done.answers["gather, alone"] = Answer("gather", "alone", "started")
    done.save(tmp_path / "probes.json")
    asked = Asked()
    answers = list(ask_all(plan(tmp_path), asked))
    assert [(answer.key, answer.status) for answer in answers] == [
        ("gather, alone", "hung"),
        ("odd_transpose, alone", "right"),
    ]
    assert "the run ended, or the machine" in answers[0].message
    assert asked.order == ["odd_transpose, alone"]


def test_a_probe_is_on_record_before_it_runs_and_an_interrupted_one_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Asked):
        def __call__(self, name: str, where: Where, answer: Path) -> list[str]:
            assert statuses(tmp_path)[key(name, where)] == "started"
            if name == "gather":
                monkeypatch.setattr(probes, "_wait", interrupt)
            return super().__call__(name, where, answer)

    def interrupt(process: subprocess.Popen[bytes], timeout: float) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ask_all(plan(tmp_path), Interrupted(gather=HANGS)))
    assert statuses(tmp_path) == {"sanity, alone": "right"}
    monkeypatch.setattr(probes, "_wait", lambda process, timeout: process.wait(600))
    assert [answer.key for answer in ask_all(plan(tmp_path), Asked())] == ["gather, alone", "odd_transpose, alone"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (CRASHES, "ended with signal 6: NRT_EXEC_HW_ERR"),
        (SAYS_NOTHING, "ended with status 0: ended and left no answer"),
    ],
)
def test_a_process_that_dies_is_told_with_its_last_words(tmp_path: Path, code: str, says: str) -> None:
    answers = list(ask_all(plan(tmp_path), Asked(gather=code)))
    assert [answer.status for answer in answers] == ["right", "failed", "right"]
    assert answers[1].message == says


def test_after_a_hang_a_device_that_answers_nothing_ends_the_run(tmp_path: Path) -> None:
    class Gone(Asked):
        def __call__(self, name: str, where: Where, answer: Path) -> list[str]:
            self.does["sanity"] = CRASHES if "gather, alone" in self.order else RIGHT
            return super().__call__(name, where, answer)

    console = Console(record=True, width=200)
    measured = plan(tmp_path, kind="measured", timeout=3)
    assert run_probes(measured, console, Gone(gather=HANGS)) == GONE
    assert "Restart the instance" in console.export_text()
    assert statuses(tmp_path) == {"sanity, alone": "right", "gather, alone": "hung"}
    assert run_probes(measured, console, Asked()) == LOOK
    assert statuses(tmp_path)["odd_transpose, alone"] == "right"

    asked = Asked(gather=HANGS)  # a device that goes on answering after a hang is asked the rest
    other = tmp_path / "other"
    assert [a.status for a in ask_all(plan(other, kind="measured", timeout=3), asked)] == ["right", "hung", "right"]
    assert asked.order.count("sanity, alone") == 2
    with pytest.raises(DeviceGone):
        list(ask_all(plan(tmp_path / "third", kind="measured", timeout=3), Gone(gather=HANGS)))


def test_what_an_installation_cannot_be_asked_is_skipped(tmp_path: Path) -> None:
    measured = plan(tmp_path, kind="measured", cores=1, sdk="2.33", names=("two_cores", "hardware_loop", "sanity"))
    answers = {answer.probe: answer for answer in ask_all(measured, Asked())}
    assert [answers[name].status for name in measured.names] == ["skipped", "skipped", "right"]
    assert "2 physical ones" in answers["two_cores"].message
    assert "after SDK 2.32" in answers["hardware_loop"].message
    target = plan(tmp_path / "2.31", kind="measured", sdk="2.31", names=measured.names)
    assert {answer.status for answer in ask_all(target, Asked())} == {"right"}


@pytest.mark.parametrize("change", [{"kind": "measured"}, {"device": "e"}, {"cores": 1}])
def test_answers_of_another_device_are_not_mixed(tmp_path: Path, change: dict[str, object]) -> None:
    list(ask_all(plan(tmp_path, names=("sanity",)), Asked()))
    with pytest.raises(ConfigError, match="holds answers with"):
        list(ask_all(plan(tmp_path, **change), Asked()))


def test_a_file_that_cannot_be_read_and_a_name_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "probes.json").write_text("{")
    with pytest.raises(ConfigError, match="Give another folder"):
        list(ask_all(plan(tmp_path), Asked()))
    with pytest.raises(ConfigError, match="names='gahter': is no probe"):
        plan(tmp_path, names=("gahter",))
    with pytest.raises(ConfigError, match="timeout"):
        plan(tmp_path, timeout=0.0)


def test_what_has_to_be_looked_at_is_shown_with_what_it_means(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    wrong = RIGHT.replace('"right"', '"wrong"')
    assert run_probes(plan(tmp_path / "a"), console, Asked()) == FINISHED
    assert run_probes(plan(tmp_path / "b"), console, Asked(odd_transpose=wrong)) == FINISHED  # no kernel relies on it
    assert run_probes(plan(tmp_path / "c"), console, Asked(gather=wrong)) == LOOK
    shown = console.export_text()
    assert PROBES["gather"].means in shown
    assert "known as rule odd-transpose" in shown


# ---- one probe --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["alone", "inside"])
@pytest.mark.parametrize("name", ["index_in_slice", "fp8_codes", "gpsimd", "same_stationary", "two_cores"])
@pytest.mark.interpreter
def test_a_probe_is_right_alone_and_inside_a_graph(name: str, where: Where) -> None:
    answer = probe_child.ask(PROBES[name], where, 2, None)
    assert (answer.status, answer.message) == ("right", "")
    assert answer.error == 0.0


@pytest.mark.interpreter
def test_a_kernel_that_is_wrong_inside_a_graph_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = probe_child.launcher

    def launcher(run: probe_child.Run, cores: int, repeats: int) -> Callable[..., torch.Tensor]:
        call = right(run, cores, repeats)
        return lambda *tensors: call(*tensors) + (0 if run is probe_child.DOUBLE else inside)

    probe, inside = PROBES["sanity"], 0
    monkeypatch.setattr(probe_child, "launcher", launcher)
    assert probe_child.ask(probe, "inside", 1, None).status == "right"
    inside = 1
    answer = probe_child.ask(probe, "inside", 1, None)
    assert answer.status == "wrong"
    assert answer.message.startswith("double: error ")


@pytest.mark.interpreter
def test_a_graph_that_changes_what_the_kernel_sees_is_no_answer_about_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(around.__globals__, "DOUBLINGS", 200)  # overflows
    answer = probe_child.ask(PROBES["sanity"], "inside", 1, None)
    assert answer.status == "wrong"
    assert "changed argument 0: nothing is known of it" in answer.message


def test_the_graph_around_a_kernel_changes_no_bit() -> None:
    tensors = [torch.randn(3, 64), torch.randn(128, 1024).bfloat16(), torch.arange(8, dtype=torch.int32)[None]]
    _, beside, *seen = around(lambda *args: args[0], lambda x: x, tensors, None)
    assert all(torch.equal(a, b) for a, b in zip(tensors, seen, strict=True))
    assert torch.equal(beside, torch.ones(128, 64))


@pytest.mark.parametrize(
    ("raises", "status"),
    [(RuntimeError("[NCC_INLA001] Invalid access"), "refused"), (RuntimeError("NRT_TIMEOUT"), "failed")],
)
def test_what_a_kernel_raises_is_told(monkeypatch: pytest.MonkeyPatch, raises: Exception, status: str) -> None:
    def launcher(*_: object) -> Callable[..., torch.Tensor]:
        raise raises

    monkeypatch.setattr(probe_child, "launcher", launcher)
    answer = probe_child.ask(PROBES["sanity"], "alone", 1, None)
    assert answer.status == status
    assert str(raises) in answer.message


@pytest.mark.interpreter
def test_a_process_of_its_own_answers_with_values_and_timings(tmp_path: Path) -> None:
    (hand_over,) = ask_all(plan(tmp_path, names=("hand_over",)))
    assert hand_over.status == "right", hand_over.message
    assert hand_over.timings["vector_and_scalar"].ns == pytest.approx(638, rel=0.05)  # modelled
    assert hand_over.timings["vector_and_scalar"].low < hand_over.timings["vector_and_scalar"].ns
    assert hand_over.seconds > 0
    assert "hand_over, alone" in line(hand_over)


@pytest.mark.interpreter
def test_the_rule_that_refuses_a_probe_here_is_said_beside_its_values() -> None:
    probe = PROBES["activation_bias"]
    answer = probe_child.modelled(probe_child.ask(probe, "alone", 2, None), probe, 2, PriceList())
    assert (answer.status, answer.rule) == ("right", "activation-bias")
    assert "refused here by rule activation-bias, which was lifted" in line(answer)


def test_the_command_line_of_a_process(tmp_path: Path) -> None:
    asked = plan(tmp_path, kind="measured", prices=tmp_path / "p.json")
    words = child_command(asked)("gather", "inside", tmp_path / "a")
    assert words[3:] == ["gather", "inside", "--answer", str(tmp_path / "a"), "--cores", "2", "--neuron", "--prices",
                         str(tmp_path / "p.json")]  # fmt: skip


def test_differences_become_a_median_and_its_middle_half() -> None:
    measure = probe_child.summary([5.0, 1.0, 2.0, 3.0, 4.0, 100.0, 3.0])
    assert (measure.low, measure.ns, measure.high, measure.samples) == (2.0, 3.0, 5.0, 7)


def test_the_sdk_of_a_version_of_nki() -> None:
    asked = (None, "0.3.0", "0.5.0+g1", "0.6.1", "0.7.0", "1.0", "0.2.0")
    assert [sdk_of(version) for version in asked] == ["2.31", "2.29", "2.31", "2.32", "2.33", "2.33", "2.29"]


DOCS = Path(__file__).parents[4] / "docs" / "trn2.md"


@pytest.mark.parametrize("name", PROBES)
def test_the_documentation_says_what_each_answer_means(name: str) -> None:
    probe = PROBES[name]
    rows = [row for row in DOCS.read_text().splitlines() if row.startswith(f"| `{name}` |")]
    assert rows == [f"| `{name}` | {probe.asks} | {probe.means} | {probe.off} |"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "interpreter", "--only", "sanity"], "--only is for --probes"),
        (["--device", "interpreter", "--where", "alone"], "--where is for --probes"),
        (["--device", "interpreter", "--probes", "--server-only"], "--probes asks no server"),
        (["--device", "interpreter", "--probes", "--only", "nothing"], "is no probe"),
        (["--device", "interpreter", "--probes", "--timeout", "0"], "must be more than 0 seconds"),
        (["--device", "neuron", "--probes"], "--device neuron cannot run"),
    ],
)
@pytest.mark.interpreter
def test_nothing_of_another_option_is_taken(tmp_path: Path, words: list[str], says: str) -> None:
    done = qwen36("validate", *words, "--out", tmp_path)
    assert done.exit_code == 2
    assert says in " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert not (tmp_path / "probes.json").exists()


def test_the_answers_file_is_json_for_others_too(tmp_path: Path) -> None:
    list(ask_all(plan(tmp_path, names=("sanity",)), Asked()))
    content = json.loads((tmp_path / "probes.json").read_text())
    assert (content["format"], content["kind"], content["answers"]["sanity, alone"]["status"]) == (
        "trn2-probes",
        "modelled",
        "right",
    )
    assert content["provenance"]["commit"]
    assert probes.SANITY in PROBES


def test_a_measured_timing_stands_beside_the_modelled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, ns, file in (("modelled", 1481.7, tmp_path / "modelled.json"), ("measured", 1600.0, tmp_path / "p.json")):
        made = Results(kind, "d", 2)  # type: ignore[arg-type]
        timings = {"exp_and_sigmoid": Measure(ns, ns, ns)}
        made.answers["table_switch, alone"] = Answer("table_switch", "alone", "right", timings=timings)
        made.save(file)
    monkeypatch.setattr(probe_report, "MODELLED", tmp_path / "modelled.json")
    console = Console(record=True, width=200)
    probe_report.show(Results.load(tmp_path / "p.json"), console)
    (row,) = [row for row in console.export_text().splitlines() if "exp_and_sigmoid" in row]
    assert "1,600.0" in row
    assert "1,481.7 (1,481.7 to 1,481.7)" in row
