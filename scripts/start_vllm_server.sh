#!/usr/bin/env bash
# Serves a Qwen3.6 checkpoint: finds a Python that has what is run, and calls `qwen36 serve` with it. See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# Makefiles and shells set PYTHON for other ends, so the first that has the packages is taken.
for python in "${PYTHON-}" python3 "$ROOT/.venv/bin/python"; do
    if [[ -n $python ]] && command -v -- "$python" >/dev/null && "$python" - <<'PY'; then
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("vllm", "vllm_integration"))))
PY
        exec "$python" -m vllm_integration.launcher --python "$python" "$@"
    fi
done
printf '%s: no Python with vllm and vllm_integration; run "make install", or set PYTHON to one that has them\n' "${0##*/}" >&2
exit 2
