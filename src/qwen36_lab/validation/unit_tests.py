"""The unit tests of the checkout that this runs from. Which of them this machine can run, they know themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .server import Check

TESTS = Path(__file__).resolve().parents[3] / "test" / "unit"


def unit_tests(folder: Path = TESTS) -> Check:
    """Run pytest over a folder; not made where there is none, as in an installed wheel."""
    if not folder.is_dir():
        return Check("tests", None, {}, ["there are no tests beside this installation: run it from a checkout"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = done.stdout.strip().splitlines() or ["pytest said nothing"]
    problems = [line for line in lines if line.startswith(("FAILED ", "ERROR "))] or lines[-1:]
    return Check("tests", done.returncode == 0, {"summary": lines[-1]}, problems if done.returncode else [])
