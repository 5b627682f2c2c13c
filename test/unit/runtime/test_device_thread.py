"""Calls to a device that may fail or hang."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from qwen36_neuron.runtime import DeviceError, device_thread
from qwen36_neuron.runtime.device_thread import DeviceThread


def test_results_and_their_thread() -> None:
    device = DeviceThread()
    names = {device.call(lambda: threading.current_thread().name, timeout=60, what="a call") for _ in range(3)}
    assert names == {"neuron-device"}
    assert device.call(divmod, 7, 2, timeout=60, what="a call") == (3, 1)


def test_a_failure_is_told_and_remembered() -> None:
    device = DeviceThread()
    with pytest.raises(DeviceError, match="loading failed on the device: ") as failure:
        device.call(divmod, 1, 0, timeout=60, what="loading")
    assert isinstance(failure.value.__cause__, ZeroDivisionError)
    with pytest.raises(DeviceError, match="a step: the device is out of use since an earlier failure"):
        device.call(divmod, 1, 1, timeout=60, what="a step")


def test_a_call_that_does_not_end() -> None:
    device, release = DeviceThread(), threading.Event()
    with pytest.raises(DeviceError, match=r"a step did not end in 0\.05 s"):
        device.call(release.wait, timeout=0.05, what="a step")
    release.set()
    with pytest.raises(DeviceError, match="did not end"):
        device.call(divmod, 1, 1, timeout=60, what="a step")


def test_closed() -> None:
    device = DeviceThread()
    device.close()
    with pytest.raises(DeviceError, match="it was closed"):
        device.call(divmod, 1, 1, timeout=60, what="a step")


def test_a_long_call_that_moves_is_waited_for_and_one_that_stops_moving_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs of the device in one call, each within the time that one is given. The clock is the test's own."""
    now, looked = 0.0, threading.Event()

    def clock() -> float:
        if threading.current_thread() is threading.main_thread():
            looked.set()
        return now

    def advance(seconds: float) -> None:
        """Let time pass, and the one who waits see it."""
        nonlocal now
        now += seconds
        looked.clear()
        looked.wait()

    monkeypatch.setattr(device_thread, "time", SimpleNamespace(monotonic=clock))
    device, release = DeviceThread(), threading.Event()

    def many(count: int) -> int:
        for _ in range(count):
            advance(0.02)
            device.moved()
        return count

    def stuck() -> None:
        many(3)
        advance(0.04)
        release.wait()

    assert device.call(many, 30, timeout=0.03, what="a step") == 30
    assert now > 0.5
    with pytest.raises(DeviceError, match=r"a step did not end in 0\.03 s"):
        device.call(stuck, timeout=0.03, what="a step")
    release.set()
