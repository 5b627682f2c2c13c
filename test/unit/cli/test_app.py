"""The `qwen36` command as a user meets it: what there is, errors in one line, names of earlier releases."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from command import qwen36
from huggingface_hub import constants

from qwen36_cli import app as command
from qwen36_cli import app as entry_point
from qwen36_cli.app import BENCHMARKS, COMMANDS
from qwen36_neuron.config import ModelConfig
from qwen36_neuron.graph.profile import Profile, shipped

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config(tmp_path: Path, published_27b: dict[str, Any]) -> Path:
    """The 27B's config.json."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(published_27b))
    return file


def test_the_script_of_the_package_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"qwen36": "qwen36_cli:app"}
    assert callable(entry_point)
    assert command is entry_point


def test_help_names_the_commands() -> None:
    shown = qwen36("--help")
    assert shown.exit_code == 0
    for name in ("serve", "bench", "kernels", *COMMANDS):
        assert f" {name} " in shown.stdout
    shown = qwen36("bench", "--help")
    for name in BENCHMARKS:
        assert f" {name} " in shown.stdout


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["bench", name] for name in BENCHMARKS])
def test_every_command_has_help(words: list[str]) -> None:
    shown = qwen36(*words, "--help")
    assert shown.exit_code == 0
    assert f"Usage: qwen36 {' '.join(words)} " in shown.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["unknown"],
        ["bench", "unknown"],
        ["plan"],
        ["plan", "--model", "x", "--max-model-len", "many"],
        ["generate"],
        ["compile"],
        ["validate"],
        ["estimate", "--model", "x"],
        ["compare", "--reference", "x"],
        ["bench", "apc"],
        ["bench", "sampling", "--vocab", "1"],
        ["bench", "serving", "--rounds", "0"],
        ["bench", "kernels", "--unknown"],
        ["validate", "--device", "interpreter", "--server-only"],
    ],
)
def test_bad_usage_has_code_2(words: list[str]) -> None:
    ended = qwen36(*words)
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert "Usage: qwen36" in ended.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["make-checkpoint", "TMP"], "folder='TMP': is not empty. Give a new folder, or remove this one first."),
        (["generate", "--prompt", "x", "--model", "TMP/none"], "model='TMP/none': no such folder."),
        (["generate", "--prompt", "x", "--model", "TMP"], "model='TMP': has no config.json, so it is no checkpoint."),
        (["compare", "--reference", "TMP", "--candidate", "TMP", "--text", "x"], "has no config.json"),
        (["plan", "--model", "Qwen/None", "--max-model-len", "64"], "Download it first: `hf download Qwen/None`."),
        (["estimate", "--model", "Qwen/None", "--profile", "4k"], "Download it first: `hf download Qwen/None`."),
        (
            ["estimate", "--model", "TMP", "--profile", "64k"],
            "profile='64k': no such file. Give a YAML file, or one of",
        ),
        (["compile", "--model", "TMP", "--profile", "TMP/64k.yaml"], "profile='TMP/64k.yaml': no such file."),
        (["bench", "apc", "--trace", "none", "--out", "TMP/out"], "trace='none': is not known. Known: all, "),
        (["bench", "serving", "--model", "TMP/none", "--out", "TMP/out"], "model='TMP/none': no such folder."),
        (["bench", "kernels", "--prices", "TMP/none.json"], "prices='TMP/none.json': no such file."),
    ],
)
def test_an_error_is_one_line_and_code_2(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "mine").write_text("")
    ended = qwen36(*(word.replace("TMP", str(tmp_path)) for word in words))
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert says.replace("TMP", str(tmp_path)) in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(("words", "module"), [(["validate", "--help"], "httpx"), (["bench", "sampling"], "vllm")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(words: list[str], module: str) -> None:
    """In a process of its own: modules imported a second time would stay in their packages for other tests."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        script = f"import sys; sys.modules[{module!r}] = None; from qwen36_cli import app; app({[*words]})"
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)

    ended = run(*words)
    assert ended.returncode == 2
    needed = f"needs {module}, which is not installed. Run pip install 'qwen36-neuron[serve]'.\n"
    assert ended.stderr.endswith(needed)
    shown = run("--help")
    assert shown.returncode == 0
    assert "generate" in shown.stdout


def test_make_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    made = qwen36("make-checkpoint", folder, "--preset", "tiny", "--mtp", "--seed", "3")
    assert made.exit_code == 0
    assert "6.3 M parameters" in made.stdout
    assert ModelConfig.from_pretrained(folder).num_mtp_layers == 1


def test_plan_takes_vllms_names_and_for_a_release_its_own(config: Path) -> None:
    common = ("plan", "--model", config, "--max-model-len", "4096", "--weights", "fp8", "--json")
    new = qwen36(
        *(*common, "--tensor-parallel-size", "2", "--kv-cache-dtype=float32"),
        *("--num-gpu-blocks-override", "100", "--num-slots", "3"),
    )
    old = qwen36(*common, "--tp=2", "--kv-dtype", "fp32", "--num-blocks", "100", "--slots", "3")
    assert new.exit_code == old.exit_code == 0
    assert new.stdout == old.stdout
    made = json.loads(new.stdout)
    assert (made["tp"], made["num_blocks"], made["slots"]) == (2, 100, 3)
    assert new.stderr == ""
    assert "--tp is --tensor-parallel-size now; this name goes with the next release" in old.stderr
    assert old.stderr.count("next release") == 3


def test_a_value_that_looks_like_an_earlier_flag_is_left_alone(tmp_path: Path) -> None:
    ended = qwen36("generate", "--prompt", "--tp", "--model", tmp_path / "none")
    assert "no such folder" in ended.stderr
    assert "next release" not in ended.stderr


@pytest.mark.interpreter
def test_a_profile_is_found_by_name_and_a_file_of_that_name_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Path
) -> None:
    assert shipped() == ["4k", "32k", "128k", "256k", "1m", "35b-2k", "35b-32k", "35b-128k", "35b-256k"]
    assert Profile.load("32k") == Profile.load(ROOT / "profiles" / "32k.yaml")
    fields = yaml.safe_load((ROOT / "profiles" / "32k.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    Path("32k").write_text(yaml.safe_dump(fields | {"description": "mine"}))
    assert Profile.load("32k").description == "mine"
    made = qwen36("estimate", "--model", config, "--profile", "4k", "--json")
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["profile"] == "4k"


def test_an_id_is_taken_from_the_cache(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes alone need no weights; what runs the model names what is missing."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--Qwen--Mine"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(config.read_text())
    planned = qwen36("plan", "--model", "Qwen/Mine", "--max-model-len", "4096", "--weights", "fp8", "--json")
    assert planned.exit_code == 0, planned.stderr
    assert (
        planned.stdout
        == qwen36("plan", "--model", config, "--max-model-len", "4096", "--weights", "fp8", "--json").stdout
    )
    ended = qwen36("generate", "--prompt", "x", "--model", "Qwen/Mine")
    assert ended.exit_code == 2
    assert "is in the cache without model.safetensors, tokenizer.json" in ended.stderr
    assert ended.stderr.endswith("Download the rest: `hf download Qwen/Mine`.\n")


@pytest.mark.parametrize("name", ["bench_serving", "bench_apc", "bench_kernels", "bench_sampling", "bench_scenarios"])
def test_a_script_is_the_command(name: str) -> None:
    source = (ROOT / "scripts" / f"{name}.py").read_text()
    assert f'app(["bench", "{name.removeprefix("bench_")}", *sys.argv[1:]])' in source
    assert len(source.splitlines()) < 10


@pytest.mark.parametrize(("name", "word"), [("compile_fp8", "compile"), ("validate_trn2", "validate")])
def test_the_documented_entries_call_the_command(name: str, word: str) -> None:
    script = ROOT / "scripts" / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Usage: qwen36 {word} " in done.stdout
