"""Admission control: the limit and the drain."""

from __future__ import annotations

import asyncio

import pytest

from vllm_integration.chat_proxy.admission import AdmissionControl
from vllm_integration.chat_proxy.errors import ProxyError


class Guest:
    def __init__(self) -> None:
        self.told: ProxyError | None = None
        self.leave = asyncio.Event()

    def abort(self, error: ProxyError) -> None:
        self.told = error
        self.leave.set()


async def visit(admission: AdmissionControl, guest: Guest) -> None:
    with admission.admit(guest):
        await guest.leave.wait()


async def enter(admission: AdmissionControl) -> tuple[Guest, asyncio.Task[None]]:
    guest = Guest()
    task = asyncio.create_task(visit(admission, guest))
    await asyncio.sleep(0)
    return guest, task


async def test_the_limit_is_exact_and_a_place_is_given_back():
    admission = AdmissionControl(2)
    (first, first_task), (second, second_task) = await enter(admission), await enter(admission)
    with pytest.raises(ProxyError) as caught, admission.admit(Guest()):
        pass
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    first.leave.set()
    await first_task
    with admission.admit(Guest()):
        assert len(admission) == 2
    second.leave.set()
    await second_task
    assert len(admission) == 0


async def test_a_place_is_given_back_after_an_error():
    admission = AdmissionControl(1)
    with pytest.raises(ZeroDivisionError), admission.admit(Guest()):
        raise ZeroDivisionError
    assert len(admission) == 0


async def test_drain_waits_for_the_last_one_and_refuses_the_next():
    admission = AdmissionControl(4)
    guest, task = await enter(admission)
    drain = asyncio.create_task(admission.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(ProxyError) as caught, admission.admit(Guest()):
        pass
    assert caught.value.status == 503
    assert not drain.done()
    guest.leave.set()
    await task
    assert await drain == 0
    assert guest.told is None


async def test_drain_cuts_who_does_not_leave():
    admission = AdmissionControl(4)
    guest, task = await enter(admission)
    assert await admission.drain(0.01) == 1
    assert guest.told is not None
    assert guest.told.status == 503
    await task


async def test_an_empty_admission_drains_at_once():
    assert await AdmissionControl(1).drain(0.01) == 0
