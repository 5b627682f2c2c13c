"""The start script: what it runs for given options, and what it refuses before it runs anything."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "start_vllm_server.sh"


def script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        env={**clean, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes for a checkpoint as long as nothing is started."""
    folder = tmp_path / "some model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def commands(*arguments: object) -> tuple[list[str], list[str]]:
    """The commands for vLLM and for the proxy, as --dry-run shows them."""
    done = script("--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    return lines[0], lines[1] if len(lines) > 1 else []


def value(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


def test_defaults_reach_both_commands(model):
    vllm, proxy = commands("--model", model)
    assert value(vllm, "serve") == str(model)
    assert value(vllm, "--served-model-name") == "some model"
    assert (value(vllm, "--host"), value(vllm, "--port")) == ("127.0.0.1", "8001")
    assert value(vllm, "--dtype") == "float32"
    assert "--enable-prefix-caching" in vllm
    assert (value(vllm, "--tool-call-parser"), value(vllm, "--reasoning-parser")) == ("qwen36", "qwen36")
    assert json.loads(value(vllm, "--additional-config")) == {
        "device": "cpu",
        "tp_degree": 1,
        "cache_gib": 2,
    }
    assert value(proxy, "--backend") == "http://127.0.0.1:8001"
    assert (value(proxy, "--host"), value(proxy, "--port")) == ("127.0.0.1", "8000")


def test_how_the_device_samples(model):
    vllm, _ = commands("--model", model, "--sampling-candidates", 64, "--eager-logits")
    settings = json.loads(value(vllm, "--additional-config"))
    assert (settings["sampling_candidates"], settings["lazy_logits"]) == (64, False)
    assert script("--dry-run", "--model", model, "--sampling-candidates", "many").returncode == 2


def test_options_reach_the_command_they_belong_to(model):
    vllm, proxy = commands(
        *("--model", model, "--port", 9000, "--backend-port", 9100, "--host", "0.0.0.0", "--slots", 3),
        *("--max-model-len", 512, "--max-num-seqs", 2, "--max-num-batched-tokens", 64, "--dtype", "bfloat16"),
        *("--cache-gib", "0.5", "--drain-timeout", "1.5", "--max-concurrent", 9, "--no-thinking"),
        *("--no-sampling-defaults", "--", "--seed", 7),
    )
    assert vllm[-2:] == ["--seed", "7"]
    assert (value(vllm, "--port"), value(vllm, "--dtype")) == ("9100", "bfloat16")
    assert [value(vllm, f"--max-{name}") for name in ("model-len", "num-seqs", "num-batched-tokens")] == [
        "512",
        "2",
        "64",
    ]
    settings = json.loads(value(vllm, "--additional-config"))
    assert (settings["num_slots"], settings["cache_gib"]) == (3, 0.5)
    assert (value(proxy, "--drain-timeout"), value(proxy, "--max-concurrent")) == ("1.5", "9")
    assert {"--no-enable-thinking", "--no-sampling-defaults"} <= set(proxy)


def test_the_choice_of_kernels_reaches_the_plugin(model):
    from vllm_integration.settings import Settings

    vllm, _ = commands("--model", model, "--kernels", "interpreter")
    assert Settings.parse(json.loads(value(vllm, "--additional-config"))).kernels == "interpreter"


def test_the_settings_are_ones_that_the_plugin_knows(model):
    from vllm_integration.settings import Settings

    for more, slots in ((), None), (("--slots", 5), 5):
        vllm, _ = commands("--model", model, *more)
        assert Settings.parse(json.loads(value(vllm, "--additional-config"))).num_slots == slots


def test_the_front_door_is_one_that_the_proxy_knows(model, monkeypatch):
    from vllm_integration.chat_proxy.__main__ import parse

    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    _, proxy = commands("--model", model, "--no-thinking", "--no-sampling-defaults")
    settings = parse(proxy[proxy.index("--backend") :])
    assert (settings.enable_thinking, settings.sampling_defaults) == (False, False)


def test_without_prefix_caching_no_slot_is_kept(model):
    vllm, _ = commands("--model", model, "--no-prefix-caching")
    assert "--no-enable-prefix-caching" in vllm
    assert json.loads(value(vllm, "--additional-config"))["num_slots"] == 0


def test_without_the_proxy_vllm_listens_outside(model):
    vllm, proxy = commands("--model", model, "--no-proxy", "--host", "0.0.0.0", "--port", 9000)
    assert (value(vllm, "--host"), value(vllm, "--port")) == ("0.0.0.0", "9000")
    assert proxy == []


def test_the_key_is_in_no_command(model):
    assert not any(
        "secret" in word for command in commands("--model", model, "--api-key", "secret") for word in command
    )


def test_help_shows_every_option_with_its_default():
    done = script("--help")
    assert done.returncode == 0
    for text in (
        "--model DIR",
        "--kernels KIND",
        "(default: 8000)",
        "(default: cpu)",
        "16 to 256",
        "(default: 8192)",
    ):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nonsense"], "unknown argument '--nonsense'"),
        (["extra"], "unknown argument 'extra'"),
        (["--port"], "--port needs a value"),
        (["--kernels", "nki"], "--kernels must be fused, torch or interpreter on cpu, not 'nki'"),
        (["--port", "--no-proxy"], "--port needs a value"),
        (["--port", "high"], "--port must be a whole number"),
        (["--port", "0"], "--port must be at least 1"),
        (["--port", "65536"], "ports end at 65535"),
        (["--port", "65535"], "ports end at 65535"),
        (["--port", "9", "--backend-port", "9"], "both 9"),
        (["--device", "gpu"], "--device must be cpu or neuron"),
        (["--dtype", "float16"], "--dtype must be"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be at least 1"),
        (["--max-num-seqs", "-1"], "--max-num-seqs must be a whole number"),
        (["--max-model-len", "0"], "--max-model-len must be at least 1"),
        (["--max-num-seqs", "65", "--max-num-batched-tokens", "64"], "a step must have room"),
        (["--cache-gib", "0.0"], "--cache-gib must be a number above 0"),
        (["--drain-timeout", "soon"], "--drain-timeout must be a number"),
        (["--slots", "5", "--no-prefix-caching"], "--no-prefix-caching forbids"),
        (["--slots", "0"], "--slots 0 leaves prefix caching nothing"),
        (["--tp-degree", "4"], "--tp-degree must be 1 on cpu"),
        (["--artifact", "."], "--artifact is for --device neuron"),
        (["--kernels", "fused", "--dtype", "bfloat16"], "--kernels fused computes in float32, not bfloat16"),
        (["--", "--port", "1"], "--port after -- would contradict"),
        (["--", "--max-num-seqs=4"], "--max-num-seqs after -- would contradict"),
    ],
)
def test_a_bad_combination_is_refused_by_name(model, arguments, says):
    done = script("--model", model, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [[], ["--model", "/no/such/folder"], ["--model", os.path.dirname(__file__)]])
def test_a_missing_model_is_refused(arguments):
    done = script(*arguments)
    assert done.returncode == 2
    assert "--model" in done.stderr


def test_a_port_in_use_is_refused_before_anything_starts(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = script("--model", model, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "is in use" in done.stderr


def test_neuron_is_refused_without_its_devices_or_its_artifact(model):
    done = script("--model", model, "--device", "neuron")
    assert done.returncode == 2
    assert "/dev/neuron" in done.stderr or "--artifact" in done.stderr
