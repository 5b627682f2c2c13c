"""A start from the command line to the exit status."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from . import machine
from .commands import chosen_environment, full_environment, proxy_command, vllm_command
from .errors import Refusal
from .launch import Launch, prepare
from .parse import PROGRAM, parse
from .supervision import become, supervise


def main(arguments: Sequence[str]) -> int:
    """Check, start and supervise; gives the exit status: 2 for a start that cannot be, else see `supervise`."""
    try:
        launch, notes = prepare(parse(arguments), os.environ)
        for text in notes:
            note(text)
        machine.check(launch)
        blocks = machine.audit(launch)
        vllm, proxy = vllm_command(launch, blocks), proxy_command(launch)
        if launch.engine.dry_run and launch.extra:  # a start leaves that to vLLM itself
            machine.check_flags(launch, vllm, full_environment(launch, os.environ))
    except Refusal as refusal:
        note(str(refusal))
        return 2
    if launch.engine.dry_run:
        show(launch, vllm, proxy, os.environ)
        return 0
    environment = full_environment(launch, os.environ)
    if not launch.engine.proxy:
        become(vllm, environment)
    front = launch.front
    host = f"[{front.host}]" if ":" in front.host else front.host
    url = f"http://{host}:{front.port}"
    return supervise(vllm, proxy, environment, url=url, drain_timeout=front.drain_timeout, note=note)


def show(launch: Launch, vllm: list[str], proxy: list[str], environment: Mapping[str, str]) -> None:
    """Print what would run, one command a line, fit for a shell."""
    print(shlex.join(vllm))
    if launch.engine.proxy:
        print(shlex.join(proxy))
    chosen = " ".join(f"{name}={value}" for name, value in chosen_environment(launch, environment).items())
    key = " and VLLM_API_KEY" if launch.front.api_key is not None else ""
    note(f"nothing was started; the commands need {chosen}{key} in their environment")


def note(text: str) -> None:
    """A message for the user, beside what the servers print."""
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
