"""What a start needs of this machine: a device, free ports, an interpreter with the packages, a fitting artifact."""

from __future__ import annotations

import errno
import glob
import importlib.util
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from .errors import Refusal
from .launch import Launch

DEVICES = "/dev/neuron*"

_NEEDED = ("vllm", "vllm_integration")

_PROBE = "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))"

_READ_FLAGS = """
import sys
from vllm import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
serve, parser = ServeSubcommand(), FlexibleArgumentParser(prog="vllm")
serve.subparser_init(parser.add_subparsers(dest="subparser"))
asked = parser.parse_args(sys.argv[1:])
asked.model = asked.model_tag
serve.validate(asked)
"""
"""What `vllm serve` does with its command line first."""

_MAKE_CONFIG = """
try:
    AsyncEngineArgs.from_cli_args(asked).create_engine_config()
except Exception as error:
    kind, wrapped = type(error).__name__, getattr(error, "errors", None)
    told = str(error) if kind == "ConfigError" else f"{kind}: {error}"
    if callable(wrapped):  # pydantic's own last line is an address
        told = wrapped()[0]["msg"].removeprefix("Value error, ")
    sys.exit("error: " + " ".join(told.split()))
"""
"""What it does next, before it loads anything: for a model whose config.json says what it is."""


def check(launch: Launch) -> None:
    """Raises Refusal where the machine lacks a device, a package or a port."""
    _check_python(launch)
    if launch.settings.device == "neuron" and not glob.glob(DEVICES):
        raise Refusal(f"--device neuron: this machine has no {DEVICES}; use --device cpu")
    names, front = launch.names, launch.front
    _check_port(names.get("port", "--port"), front.host, front.port)
    if launch.engine.proxy:
        _check_port(names.get("backend_port", "--backend-port"), "127.0.0.1", launch.backend_port)
    for port in (launch.engine.kv_events, launch.engine.kv_events + 1) if launch.engine.kv_events else ():
        _check_port(names.get("kv_events", "--kv-events"), "0.0.0.0", port)


def _check_python(launch: Launch) -> None:
    given = launch.engine.python
    if given is None or given == sys.executable:
        if all(map(importlib.util.find_spec, _NEEDED)):
            return
    elif shutil.which(given) is None:
        raise Refusal(f"--python: no such program: {given}")
    elif subprocess.run([given, "-c", _PROBE, *_NEEDED], check=False, capture_output=True).returncode == 0:
        return
    raise Refusal(f"{launch.python} has no vllm; install 'qwen36-neuron[serve]' there, or give --python one that has")


def _check_port(named: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Refusal(f"{named} {port} on {host} is in use") from error
            which = f"{named} {port}" if error.errno == errno.EACCES else f"--host {host}"
            raise Refusal(f"{which} cannot be listened on: {error.strerror}") from error


def audit(launch: Launch) -> int | None:
    """Compare the artifact with this start, in a process of its own, since that takes torch.

    Returns:
        The number of KV blocks that it was compiled with; None where there is no artifact.
    Raises:
        Refusal: it was compiled for something else; the process has named every difference on stderr.
    """
    settings, engine = launch.settings, launch.engine
    if settings.artifact is None:
        return None
    command = [
        *(launch.python, "-m", "qwen36_neuron.artifact.audit"),
        *("--artifact", settings.artifact, "--model", str(launch.model.folder)),
        *("--max-model-len", str(engine.max_model_len), "--max-num-seqs", str(engine.max_num_seqs)),
        *("--slots", str(settings.num_slots), "--tp-degree", str(settings.tp_degree), "--dtype", launch.dtype),
        *("--max-drafts", str(launch.drafts.most), "--max-proposals", str(launch.drafts.mtp)),
    ]
    command += ["--kv-cache-dtype", engine.kv_cache_dtype]
    for flag, value in (
        ("--kv-scales", settings.kv_scales),
        ("--kernels", settings.kernels),
        ("--sampling-candidates", settings.sampling_candidates),
    ):
        if value is not None:
            command += [flag, str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip().isdigit():
        raise Refusal(f"--artifact {settings.artifact} was not compiled for this start")
    return int(done.stdout)


def check_flags(launch: Launch, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Let vLLM read the flags after `--` and make its configuration of them, in a process of its own.

    Args:
        command: `vllm serve` as it would be run.
    Raises:
        Refusal: in the words of vLLM, or of the plugin.
    """
    words = command[command.index("serve") :]
    script = _READ_FLAGS + _MAKE_CONFIG if launch.model.described else _READ_FLAGS
    probe = [launch.python, "-c", script, *words]
    done = subprocess.run(probe, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        _, error, reason = said[-1].rpartition("error: ")
        raise Refusal(f"vllm serve refuses {' '.join(launch.extra)}: {reason if error else said[-1]}")
