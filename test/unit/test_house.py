"""What is agreed on for the repository as a whole, where no other tool looks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = 400


@pytest.mark.parametrize("folder", ["src", "vllm_integration", "nki_kernels", "scripts"])
def test_no_file_is_longer_than_a_reader_takes_in(folder: str) -> None:
    lengths = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert lengths
    assert {file: length for file, length in lengths.items() if length > LINES} == {}


def test_the_readmes_table_names_every_folder() -> None:
    table = re.search(r"^\| Folder \|.*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert table is not None
    paths = re.findall(r"`([\w./]+)`", table[0])
    names = {part for path in paths for part in Path(path).parts}
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("what belongs to the repository is known where git is")
    files = [Path(line).parts for line in listed.stdout.splitlines()]
    top = {parts[0] for parts in files if len(parts) > 1 and not parts[0].startswith(".")} - {"src"}
    rooms = {parts[2] for parts in files if parts[:2] == ("src", "qwen36_neuron") and len(parts) > 3}
    packages = {parts[1] for parts in files if parts[0] == "src"}
    assert len(rooms) > 5
    assert (top | rooms | packages) - names == set()
