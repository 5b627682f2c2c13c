#!/usr/bin/env bash
# Serves a Qwen3.6 checkpoint: vLLM with this project's plugin on an inner port, the chat proxy in front of it.
# Ctrl-C or SIGTERM lets running requests end and then stops both. If either dies, the other is stopped.
set -euo pipefail

readonly SELF=${0##*/}
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly STOP_TIMEOUT=30 # seconds that vLLM is given to end

device=cpu model='' served_model_name='' host=127.0.0.1 port=8000 backend_port=''
max_model_len=8192 max_num_seqs=8 max_num_batched_tokens=2048 dtype=''
slots='' cache_gib=2 tp_degree='' artifact='' kernels=''
sampling_candidates='' lazy_logits=yes
prefix_caching=yes proxy=yes thinking=yes sampling_defaults=yes
max_concurrent=256 drain_timeout=30 dry_run=no
api_key=${VLLM_API_KEY-}
slots_given=no
extra=()

usage() {
    cat <<HELP
Usage: $SELF --model DIR [options] [-- vLLM flags]

Model and device
  --model DIR                    checkpoint folder in Hugging Face layout (required)
  --served-model-name NAME       what clients call it (default: the folder's name)
  --device cpu|neuron            what runs the model (default: $device)
  --dtype TYPE                   float32 or bfloat16 (default: float32 on cpu, bfloat16 on neuron)
  --tp-degree N                  tensor-parallel ranks inside the device (default: 1 on cpu, 4 on neuron)
  --artifact DIR                 compiled model, required by neuron
  --kernels KIND                 cpu: fused (float32), torch, or interpreter, which runs the NKI kernels: slow, for
                                 proof; neuron: torch or nki (default: fused on cpu where Numba is installed and for
                                 float32, else torch; on neuron what the artifact was compiled with)
  --sampling-candidates N        most likely tokens that the device draws from, 0 to sample on the host
                                 (default: the artifact's on neuron, 0 on cpu)
  --eager-logits                 copy logits from the device after every step, wanted or not

Capacity
  --max-model-len N              tokens of a sequence (default: $max_model_len)
  --max-num-seqs N               sequences that run at once (default: $max_num_seqs)
  --max-num-batched-tokens N     tokens of one step (default: $max_num_batched_tokens)
  --cache-gib X                  memory for KV blocks in GiB (default: $cache_gib)
  --slots N                      checkpoint slots for prefix reuse (default: half of KV's bytes, 16 to 256; 64 on neuron)
  --no-prefix-caching            keep no prefixes

Front door
  --host ADDRESS                 address to listen on (default: $host)
  --port N                       port to listen on (default: $port)
  --backend-port N               inner port of vLLM, on 127.0.0.1 (default: PORT + 1)
  --api-key KEY                  ask clients for this bearer token (default: \$VLLM_API_KEY, or none)
  --no-thinking                  chat requests that do not choose a mode do not think (default: they think)
  --no-sampling-defaults         do not fill in the sampling parameters published for the model
  --max-concurrent N             requests in flight at once, more are answered 429 (default: $max_concurrent)
  --drain-timeout S              seconds that running requests are given after SIGTERM (default: $drain_timeout)
  --no-proxy                     vLLM alone, on HOST:PORT

Other
  --dry-run                      print the commands and start nothing
  --help                         this text
  -- FLAGS                       passed to 'vllm serve' as they are
HELP
}

refuse() {
    printf '%s: %s\n' "$SELF" "$1" >&2
    exit 2
}

note() {
    printf '%s: %s\n' "$SELF" "$1" >&2
}

require_whole() { # name value minimum
    [[ $2 =~ ^[0-9]{1,9}$ ]] || refuse "$1 must be a whole number, not '$2'"
    ((10#$2 >= $3)) || refuse "$1 must be at least $3, not $2"
}

require_positive() { # name value
    [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ && ! $2 =~ ^0+(\.0+)?$ ]] || refuse "$1 must be a number above 0, not '$2'"
}

parse_arguments() {
    while (($#)); do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --no-prefix-caching) prefix_caching=no ;;
            --no-proxy) proxy=no ;;
            --eager-logits) lazy_logits=no ;;
            --no-thinking) thinking=no ;;
            --no-sampling-defaults) sampling_defaults=no ;;
            --dry-run) dry_run=yes ;;
            --)
                shift
                extra=("$@")
                return
                ;;
            --model | --served-model-name | --device | --dtype | --tp-degree | --artifact | --kernels | \
                --sampling-candidates | \
                --max-model-len | --max-num-seqs | --max-num-batched-tokens | --cache-gib | --slots | \
                --host | --port | --backend-port | --api-key | --max-concurrent | --drain-timeout)
                (($# > 1)) || refuse "$1 needs a value"
                [[ $2 != --* ]] || refuse "$1 needs a value, not the flag $2"
                local name=${1#--}
                printf -v "${name//-/_}" '%s' "$2"
                [[ $1 == --slots ]] && slots_given=yes
                shift
                ;;
            *) refuse "unknown argument '$1'; see --help, and put vLLM's own flags after --" ;;
        esac
        shift
    done
}

check_arguments() {
    case $device in
        cpu)
            : "${dtype:=float32}" "${tp_degree:=1}"
            [[ -z $artifact ]] || refuse "--artifact is for --device neuron; cpu compiles nothing"
            [[ -z $kernels || $kernels == fused || $kernels == torch || $kernels == interpreter ]] ||
                refuse "--kernels must be fused, torch or interpreter on cpu, not '$kernels'"
            [[ $kernels != fused || $dtype == float32 ]] ||
                refuse "--kernels fused computes in float32, not $dtype; use --kernels torch"
            [[ $tp_degree == 1 ]] || refuse "--tp-degree must be 1 on cpu, not '$tp_degree'"
            ;;
        neuron)
            : "${dtype:=bfloat16}" "${tp_degree:=4}" "${slots:=64}"
            compgen -G '/dev/neuron*' >/dev/null ||
                refuse "--device neuron: this machine has no /dev/neuron*; use --device cpu"
            [[ -z $kernels || $kernels == torch || $kernels == nki ]] ||
                refuse "--kernels must be torch or nki on neuron, not '$kernels'"
            [[ -n $artifact ]] || refuse "--device neuron needs --artifact DIR, the compiled model"
            [[ -d $artifact ]] || refuse "--artifact: no such folder: $artifact"
            ;;
        *) refuse "--device must be cpu or neuron, not '$device'" ;;
    esac
    [[ $dtype == float32 || $dtype == bfloat16 ]] || refuse "--dtype must be float32 or bfloat16, not '$dtype'"

    [[ -n $model ]] || refuse "--model DIR is missing; see --help"
    [[ -d $model ]] || refuse "--model: no such folder: $model"
    [[ -f $model/config.json ]] || refuse "--model: $model has no config.json, so it is no checkpoint"
    [[ -n $served_model_name ]] || served_model_name=$(basename -- "$(cd -- "$model" && pwd)")

    require_whole --max-model-len "$max_model_len" 1
    require_whole --max-num-seqs "$max_num_seqs" 1
    require_whole --max-num-batched-tokens "$max_num_batched_tokens" 1
    ((max_num_batched_tokens >= max_num_seqs)) ||
        refuse "--max-num-batched-tokens $max_num_batched_tokens is less than --max-num-seqs $max_num_seqs: \
a step must have room for a token of each"
    require_whole --tp-degree "$tp_degree" 1
    require_whole --max-concurrent "$max_concurrent" 1
    [[ -z $sampling_candidates ]] || require_whole --sampling-candidates "$sampling_candidates" 0
    require_positive --cache-gib "$cache_gib"
    require_positive --drain-timeout "$drain_timeout"

    [[ -z $slots ]] || require_whole --slots "$slots" 0
    if [[ $prefix_caching == no ]]; then
        [[ $slots_given == no || $slots == 0 ]] ||
            refuse "--slots $slots keeps prefixes, which --no-prefix-caching forbids"
        slots=0
    elif [[ $slots == 0 ]]; then
        refuse "--slots 0 leaves prefix caching nothing to restore; use --no-prefix-caching"
    fi

    require_whole --port "$port" 1
    [[ -n $backend_port ]] || backend_port=$((port + 1))
    require_whole --backend-port "$backend_port" 1
    ((port <= 65535 && backend_port <= 65535)) ||
        refuse "ports end at 65535: --port $port, --backend-port $backend_port"
    [[ $proxy == no || $port != "$backend_port" ]] || refuse "--port and --backend-port are both $port"

    local flag own
    for flag in "${extra[@]}"; do
        for own in --host --port --model --served-model-name --dtype --max-model-len --max-num-seqs \
            --max-num-batched-tokens --api-key --additional-config --enable-prefix-caching --no-enable-prefix-caching; do
            [[ ${flag%%=*} != "$own" ]] || refuse "$own after -- would contradict this script's own; use its options"
        done
    done
}

check_machine() {
    port_is_free "$host" "$port" || refuse "--port $port on $host is in use"
    [[ $proxy == no ]] || port_is_free 127.0.0.1 "$backend_port" || refuse "--backend-port $backend_port is in use"
}

port_is_free() { # host port
    "$python" - "$1" "$2" <<'PY'
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket(family) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1)
PY
}

# Compares the artifact with this start, and gives vLLM the number of KV blocks that it was compiled with.
audit_artifact() {
    [[ $device == neuron ]] || return 0
    local blocks flag chosen=()
    [[ -z $kernels ]] || chosen+=(--kernels "$kernels")
    [[ -z $sampling_candidates ]] || chosen+=(--sampling-candidates "$sampling_candidates")
    for flag in "${extra[@]}"; do
        [[ ${flag%%=*} != --num-gpu-blocks-override ]] || refuse "$flag: the artifact decides how many KV blocks there are"
    done
    blocks=$("$python" -m qwen36_neuron.artifact.audit --artifact "$artifact" --model "$model" \
        --max-model-len "$max_model_len" --max-num-seqs "$max_num_seqs" --slots "$slots" \
        --tp-degree "$tp_degree" --dtype "$dtype" "${chosen[@]}") || refuse "--artifact $artifact was not compiled for this start"
    vllm+=(--num-gpu-blocks-override "$blocks")
}

find_python() { # the first that has what is run; Makefiles and shells set PYTHON for other ends, so it may not
    local candidate
    for candidate in "${PYTHON-}" python3 "$ROOT/.venv/bin/python"; do
        if [[ -n $candidate ]] && command -v -- "$candidate" >/dev/null && "$candidate" - <<'PY'; then
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("vllm", "vllm_integration"))))
PY
            python=$candidate
            return
        fi
    done
    refuse "no Python with vllm and vllm_integration; run 'make install', or set PYTHON to one that has them"
}

build_commands() {
    local settings
    printf -v settings '{"device": "%s", "tp_degree": %d, "cache_gib": %s%s%s}' \
        "$device" "$tp_degree" "$cache_gib" "${slots:+, \"num_slots\": $slots}" "${kernels:+, \"kernels\": \"$kernels\"}"
    [[ -z $sampling_candidates ]] || settings="${settings%\}}, \"sampling_candidates\": $sampling_candidates}"
    [[ $lazy_logits == yes ]] || settings="${settings%\}}, \"lazy_logits\": false}"
    if [[ -n $artifact ]]; then
        settings=$("$python" -c 'import json, sys; print(json.dumps(json.loads(sys.argv[1]) | {"artifact": sys.argv[2]}))' \
            "$settings" "$artifact")
    fi

    local vllm_host=127.0.0.1 vllm_port=$backend_port caching=--enable-prefix-caching
    [[ $proxy == yes ]] || vllm_host=$host vllm_port=$port
    [[ $prefix_caching == yes ]] || caching=--no-enable-prefix-caching
    vllm=("$python" -m vllm.entrypoints.cli.main serve "$model"
        --served-model-name "$served_model_name"
        --host "$vllm_host" --port "$vllm_port"
        --dtype "$dtype"
        --max-model-len "$max_model_len"
        --max-num-seqs "$max_num_seqs"
        --max-num-batched-tokens "$max_num_batched_tokens"
        "$caching" --enable-prompt-tokens-details
        --enable-auto-tool-choice --tool-call-parser qwen3_coder --reasoning-parser qwen3
        --disable-access-log-for-endpoints "/health,/metrics"
        --additional-config "$settings"
        "${extra[@]}")

    front=("$python" -m vllm_integration.chat_proxy
        --backend "http://127.0.0.1:$backend_port" --host "$host" --port "$port"
        --max-concurrent "$max_concurrent" --drain-timeout "$drain_timeout")
    [[ $thinking == yes ]] || front+=(--no-enable-thinking)
    [[ $sampling_defaults == yes ]] || front+=(--no-sampling-defaults)
}

set_environment() {
    export VLLM_USE_V2_MODEL_RUNNER=0 # the second runner's step protocol is not the one that the plugin speaks
    if [[ $device == neuron ]]; then
        export XLA_HANDLE_SPECIAL_SCALAR=1 UNSAFE_FP8FNCAST=1 # torch_xla reads them once, for weights in FP8
    fi
    export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
    if [[ -n $api_key ]]; then
        export VLLM_API_KEY=$api_key # in the environment, since a command line shows in every process list
    fi
}

# Waits for a child to end and sets `status`. A signal to this script interrupts `wait`, which then is asked again.
reap() { # pid
    while :; do
        status=0
        wait "$1" || status=$?
        kill -0 "$1" 2>/dev/null || return 0
    done
}

# Ends a child: SIGTERM, then SIGKILL for its whole group when the time given is over.
stop() { # pid seconds
    local watchdog
    stopping=$1
    kill -TERM "$1" 2>/dev/null || true
    # shellcheck disable=SC2016 # expanded by the inner shell, from its arguments
    setsid bash -c 'sleep "$2"; kill -KILL -- "-$1"' watchdog "$1" "$2" </dev/null &>/dev/null &
    watchdog=$!
    disown "$watchdog" # its end is no news
    reap "$1"
    stopping=''
    kill -KILL -- "-$watchdog" 2>/dev/null || true
    kill_group "$1"
}

kill_group() { # pid of a child that has ended: whatever it started and left behind goes too
    kill -KILL -- "-$1" 2>/dev/null || true
}

on_signal() {
    asked=yes
    # A second signal is passed on: the proxy then cuts what is still running.
    [[ -z $stopping ]] || kill -TERM "$stopping" 2>/dev/null || true
}

supervise() {
    local vllm_pid proxy_pid ended='' status=0
    asked='' stopping=''
    trap on_signal TERM INT
    # Each in a session of its own, so that Ctrl-C reaches this script alone and the order of the stop is kept.
    setsid "${vllm[@]}" &
    vllm_pid=$!
    setsid "${front[@]}" &
    proxy_pid=$!
    note "vLLM is process $vllm_pid, the proxy is process $proxy_pid; http://$host:$port/health says when it is ready"

    while [[ -z $asked && -z $ended ]]; do
        status=0
        wait -n -p ended "$vllm_pid" "$proxy_pid" || status=$?
        : "${ended:=}" # unset by a wait that a signal interrupted
    done

    local first=$status
    case $ended in
        "$vllm_pid")
            note "vLLM ended with status $first; stopping the proxy"
            kill_group "$vllm_pid"
            stop "$proxy_pid" 10
            exit "$((first == 0 ? 1 : first))"
            ;;
        "$proxy_pid")
            note "the proxy ended with status $first; stopping vLLM"
            stop "$vllm_pid" "$STOP_TIMEOUT"
            exit "$((first == 0 ? 1 : first))"
            ;;
    esac
    note "stopping: running requests have $drain_timeout s to end"
    stop "$proxy_pid" "$((${drain_timeout%.*} + 15))"
    first=$status
    stop "$vllm_pid" "$STOP_TIMEOUT"
    note "stopped: proxy status $first, vLLM status $status"
    # vLLM may end by the signal that it was sent, which is the stop asked for.
    [[ $first == 0 && ($status == 0 || $status == 143) ]] || exit 1
}

main() {
    parse_arguments "$@"
    check_arguments
    find_python
    build_commands
    if [[ $dry_run == yes ]]; then
        printf '%q ' "${vllm[@]}"
        printf '\n'
        [[ $proxy == no ]] || printf '%q ' "${front[@]}"
        printf '\n'
        exit 0
    fi
    check_machine
    audit_artifact
    set_environment
    [[ $proxy == yes ]] || exec "${vllm[@]}"
    supervise
}

main "$@"
