"""What the Neuron runtime says it holds, by AWS's own tools; nothing where they are not."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

from .server import Check

TIMEOUT = 30
GIB = 2**30


def memory() -> Check:
    """Device and host memory of every Neuron process, from the first report of neuron-monitor."""
    tool = shutil.which("neuron-monitor")
    if tool is None:
        return Check("memory", None, {}, ["neuron-monitor is not installed here"])
    process = subprocess.Popen([tool], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        report = _first_report(process)
    except (TimeoutError, ValueError) as error:
        return Check("memory", None, {}, [f"neuron-monitor gave no report: {error}"])
    finally:
        process.kill()
        process.wait()
    used = [_used(runtime) for runtime in report.get("neuron_runtime_data", [])]
    if not used:
        return Check("memory", None, {"processes": []}, ["no process uses the device"])
    device = sum(entry["device_bytes"] for entry in used)
    return Check("memory", True, {"device_gib": device / GIB, "processes": used})


def _first_report(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The first line of the tool's output. Raises TimeoutError or ValueError."""
    import select

    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
    if not ready:
        raise TimeoutError(f"nothing in {TIMEOUT} s")
    found = json.loads(process.stdout.readline())
    if not isinstance(found, dict):
        raise ValueError("its report is no object")
    return found


def _used(runtime: dict[str, Any]) -> dict[str, Any]:
    used = runtime.get("report", {}).get("memory_used", {}).get("neuron_runtime_used_bytes", {})
    return {
        "command": runtime.get("neuron_runtime_tag"),
        "host_bytes": used.get("host", 0),
        "device_bytes": used.get("neuron_device", 0),
        "breakdown": used.get("usage_breakdown"),
    }
