"""What a command line becomes, without starting anything: commands, refusals by flag, notes."""

from __future__ import annotations

import json
from dataclasses import fields, make_dataclass
from pathlib import Path

import pytest

from vllm_integration.chat_proxy import settings as proxy_settings
from vllm_integration.chat_proxy.settings import ProxySettings
from vllm_integration.launcher import commands
from vllm_integration.launcher.errors import Refusal
from vllm_integration.launcher.launch import prepare
from vllm_integration.launcher.main import main
from vllm_integration.launcher.options import options
from vllm_integration.launcher.parse import parse
from vllm_integration.settings import Settings

from .conftest import Start


def refused(start: Start, *words: object, **environment: str) -> str:
    with pytest.raises(Refusal) as caught:
        start(*words, **environment)
    return str(caught.value)


# ---- every setting is a flag -------------------------------------------------------------------------------------


def test_every_field_of_the_proxy_and_of_the_plugin_is_a_flag() -> None:
    known = {option.flag.field for option in options()}
    assert {field.name for field in fields(ProxySettings)} - known == {"backend"}
    assert {field.name for field in fields(Settings)} - known == {"mtp_drafts", "lookup_match"}


SPECULATION = '{"method":"mtp","num_speculative_tokens":3}'


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("-sc", SPECULATION), ["--speculative-config", SPECULATION]),
        (("--speculative-config", SPECULATION), ["--speculative-config", SPECULATION]),
    ],
)
def test_speculation_reaches_vllm(start: Start, words: tuple[str, ...], wanted: list[str]) -> None:
    command = commands.vllm_command(start(*words))
    at = command.index(wanted[0])
    assert command[at : at + len(wanted)] == wanted


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("-sc", "{mtp"), ("-sc {mtp", "not JSON")),
        (("-sc", "3"), ("-sc 3", "JSON object")),
        (("-sc", '{"method":"eagle3","num_speculative_tokens":3}'), ("method eagle3", "Use mtp, or ngram")),
        (("-sc", SPECULATION.replace("3", "40")), ("num_speculative_tokens 40", "1 to 16")),
        (("--lookup-drafts", "4"), ("--lookup-drafts", "--speculative-config")),
        (("--no-adaptive-drafts",), ("--no-adaptive-drafts", "--speculative-config")),
        (("--", "--speculative-config", SPECULATION), ("--speculative-config", "use its options")),
        (("--", "-sc", SPECULATION), ("--speculative-config", "use its options")),
        (("--", "--spec-tokens", "3"), ("--spec-tokens", "use its options")),
    ],
)
def test_speculation_that_cannot_be_is_refused(start: Start, words: tuple[str, ...], names: tuple[str, ...]) -> None:
    message = refused(start, *words)
    for name in names:
        assert name in message


VALUES: dict[str, str] = {"int": "3", "float": "2.5", "str": "x", "list": "https://a.example,https://b.example"}
TEXTS = {"long_context_backend": "http://far.example:8000"}
BESIDE = {"long_context_backend": ["--max-prompt-tokens", "5"]}
"""What a flag says nothing without."""


@pytest.mark.parametrize("field", [field.name for field in fields(ProxySettings) if field.name != "backend"])
def test_a_flag_of_the_proxy_reaches_the_proxy(start: Start, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    from vllm_integration.chat_proxy.__main__ import parse as parse_proxy

    (option,) = [option for option in options() if option.flag.field == field]
    flag = option.flag
    if flag.kind == "bool":
        words, wanted = [option.negatives[0] if flag.default else option.names[0]], not flag.default
    else:
        text = flag.choices[-1] if flag.choices else TEXTS.get(field, VALUES[flag.kind])
        words, wanted = [option.names[0], text], flag.parse(text)
    launch = start(*words, *BESIDE.get(field, ()))
    environment = commands.full_environment(launch, {})
    monkeypatch.setenv("VLLM_API_KEY", environment.get("VLLM_API_KEY", ""))
    if not environment.get("VLLM_API_KEY"):
        monkeypatch.delenv("VLLM_API_KEY")
    command = commands.proxy_command(launch)
    assert getattr(parse_proxy(command[command.index("--backend") :]), field) == wanted


ACCEPTED = {"accepted": True, "envelope": {"prompt_tokens": 10000, "completion_tokens": 6144}}


def test_an_envelope_bounds_what_the_proxy_answers(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_text(json.dumps(ACCEPTED))
    front = start("--envelope", file).front
    assert (front.max_prompt_tokens, front.max_completion_tokens) == (10000, 6144)
    tighter = start("--envelope", file, "--max-prompt-tokens", 9999, "--long-context-backend", "http://far:1").front
    assert (tighter.max_prompt_tokens, tighter.max_completion_tokens) == (9999, 6144)
    assert tighter.long_context_backend == "http://far:1"
    assert "10001" in refused(start, "--envelope", file, "--max-prompt-tokens", 10001)
    assert "--envelope is the proxy's" in refused(start, "--envelope", file, "--no-proxy")


def test_an_artifacts_own_envelope_is_kept_to(start: Start, tmp_path: Path) -> None:
    words = ("--device", "neuron", "--artifact", tmp_path)
    assert start(*words).front.max_prompt_tokens is None
    (tmp_path / "gate.json").write_text(json.dumps(ACCEPTED))
    assert start(*words).front.max_prompt_tokens == 10000
    assert start(*words, "--no-proxy").front.max_prompt_tokens is None
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**ACCEPTED, "envelope": {"prompt_tokens": 7, "completion_tokens": 7}}))
    assert start(*words, "--envelope", other).front.max_prompt_tokens == 7
    (tmp_path / "gate.json").write_text(json.dumps({**ACCEPTED, "accepted": False}))
    assert "was not accepted" in refused(start, *words)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "no result of qwen36 gate"),
        (json.dumps({**ACCEPTED, "envelope": {"prompt_tokens": 10}}), "no result of qwen36 gate"),
        (
            json.dumps({**ACCEPTED, "envelope": {"prompt_tokens": 0, "completion_tokens": 1}}),
            "no result of qwen36 gate",
        ),
        (json.dumps({**ACCEPTED, "accepted": False}), "was not accepted"),
    ],
)
def test_a_file_that_is_no_accepted_result_is_refused(
    start: Start, tmp_path: Path, content: str | None, says: str
) -> None:
    file = tmp_path / "gate.json"
    if content is not None:
        file.write_text(content)
    message = refused(start, "--envelope", file)
    assert says in message
    assert "--envelope" in message


def test_a_field_that_is_added_is_a_flag_at_once(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    from vllm_integration.launcher import launch as launching
    from vllm_integration.launcher import options as optioning

    more = make_dataclass("More", [("strict_messages", bool, False)], bases=(ProxySettings,), frozen=True)
    more.__doc__ = (ProxySettings.__doc__ or "").replace(
        "Attributes:\n", "Attributes:\n        strict_messages: refuse what the template refuses.\n"
    )
    for module in (launching, optioning, commands, proxy_settings):
        monkeypatch.setattr(module, "ProxySettings", more)
    groups = {**optioning._GROUP_OF, more: optioning.GUARDS}
    monkeypatch.setattr(optioning, "_GROUP_OF", groups)
    options.cache_clear()
    try:
        assert "--strict-messages" in commands.proxy_command(start("--strict-messages"))
        assert "--strict-messages" not in commands.proxy_command(start())
    finally:
        options.cache_clear()


def test_a_flag_of_the_plugin_reaches_the_plugin(start: Start) -> None:
    launch = start(
        "--threads", 3, "--no-share-cores", "--slots-per-prompt", 5, "--no-lazy-logits", "--sampling-candidates", 0
    )
    assert commands.additional_config(launch) == {
        "device": "cpu",
        "tp_degree": 1,
        "cache_gib": 2.0,
        "threads": 3,
        "share_cores": False,
        "slots_per_prompt": 5,
        "lazy_logits": False,
        "sampling_candidates": 0,
    }


def test_both_processes_are_told_how_to_wait_unless_the_user_said_so(start: Start) -> None:
    """libgomp reads it when torch is imported, so a process must be started with it."""
    assert int(commands.full_environment(start(), {})["GOMP_SPINCOUNT"]) > 0
    assert commands.full_environment(start(), {"GOMP_SPINCOUNT": "3"})["GOMP_SPINCOUNT"] == "3"
    assert "GOMP_SPINCOUNT" not in commands.full_environment(start(), {"OMP_WAIT_POLICY": "active"})


# ---- vLLM's names, and ours of before ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (["--tensor-parallel-size", "1"], ["--tp-degree", "1"]),
        (["-tp", "1"], ["--tp-degree=1"]),
        (["--kv-cache-memory-bytes", "512M"], ["--cache-gib", "0.5"]),
        (["--kv-cache-memory-bytes", "1610612736"], ["--cache-gib", "1.5"]),
        (["--no-enable-prefix-caching"], ["--no-prefix-caching"]),
        (["--no-enable-thinking"], ["--no-thinking"]),
        (["--no-lazy-logits"], ["--eager-logits"]),
        (["--slots", "5"], ["--num-slots", "5"]),
    ],
)
def test_a_flag_by_vllms_name_does_what_ours_did(model: Path, new: list[str], old: list[str]) -> None:
    (now, said), (then, noted) = (prepare(parse(["--model", str(model), *words]), {}) for words in (new, old))
    assert commands.vllm_command(now) == commands.vllm_command(then)
    assert commands.proxy_command(now) == commands.proxy_command(then)
    assert said == []
    assert old[0].startswith("--num-slots") or "goes with the next release" in noted[0]


def test_the_model_may_stand_alone_as_for_vllm_serve(model: Path) -> None:
    launch, _ = prepare(parse([str(model), "--max-num-seqs", "2"]), {})
    assert launch.served_model_names == ("Qwen3.6-27B",)
    with pytest.raises(Refusal, match="unknown argument 'more'"):
        parse([str(model), "more"])


def test_several_names_reach_vllm_in_their_order(start: Start) -> None:
    command = commands.vllm_command(start("--served-model-name", "chat, chat-large"))
    at = command.index("--served-model-name")
    assert command[at : at + 4] == ["--served-model-name", "chat", "chat-large", "--host"]
    assert refused(start, "--served-model-name", ",") == "--served-model-name has no name"


# ---- KV events ---------------------------------------------------------------------------------------------------


def published(start: Start, *words: object, **environment: str) -> dict[str, object]:
    command = commands.vllm_command(start(*words, **environment))
    config: dict[str, object] = json.loads(command[command.index("--kv-events-config") + 1])
    return config


def test_kv_events_are_published_as_routers_look_for_them(start: Start) -> None:
    assert "--kv-events-config" not in commands.vllm_command(start())
    assert published(start, "--kv-events", 5557) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:5557",
        "replay_endpoint": "tcp://127.0.0.1:5558",
        "topic": "kv@127.0.0.1:8000@Qwen3.6-27B",
    }


@pytest.mark.parametrize(
    ("words", "environment", "topic", "replay"),
    [
        (("--host", "0.0.0.0"), {"POD_IP": "10.0.0.7"}, "kv@10.0.0.7@Qwen3.6-27B", "tcp://*:5558"),
        (("--host", "::1", "--port", 9000), {}, "kv@[::1]:9000@Qwen3.6-27B", "tcp://[::1]:5558"),
        (("--served-model-name", "a,b"), {}, "kv@127.0.0.1:8000@a", "tcp://127.0.0.1:5558"),
        (("--kv-events-topic", ""), {"POD_IP": "10.0.0.7"}, "", "tcp://127.0.0.1:5558"),
        (("--no-proxy", "--kv-events-topic", "mine"), {}, "mine", "tcp://127.0.0.1:5558"),
    ],
)
def test_a_topic_names_the_replica_and_the_model(
    start: Start, words: tuple[object, ...], environment: dict[str, str], topic: str, replay: str
) -> None:
    config = published(start, "--kv-events", 5557, *words, **environment)
    assert (config["topic"], config["replay_endpoint"]) == (topic, replay)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kv-events", 0), "--kv-events 0 must be a port from 1 to 65534"),
        (("--kv-events", 65535), "the next one gives what was missed"),
        (("--kv-events", 8000), "needs its own port, which is --port"),
        (("--kv-events", 7999), "needs port 8000 for what was missed, which is --port"),
        (("--kv-events", 8001), "needs its own port, which is --backend-port"),
        (("--kv-events", 5556, "--backend-port", 5557), "port 5557 for what was missed, which is --backend-port"),
        (("--kv-events", 5557, "--no-enable-prefix-caching"), "--no-enable-prefix-caching has nothing cached"),
        (("--kv-events-topic", "a"), "--kv-events-topic says nothing without --kv-events"),
        (("--kv-events", 5557, "--", "--kv-events-config", "{}"), "would contradict --kv-events 5557"),
        (("--kv-events", 5557, "--", "--kv_events_config.topic=a"), "would contradict --kv-events 5557"),
        (("--kv-events", "x"), "--kv-events"),
    ],
)
def test_events_that_cannot_be_published_are_refused(start: Start, words: tuple[object, ...], told: str) -> None:
    assert told in refused(start, *words)


def test_events_in_a_file_of_vllms_flags_are_refused_beside_the_flag(start: Start, tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("kv-events-config: {publisher: zmq}\n")
    words = "--", "--config", tmp_path / "flags.yaml"
    assert start(*words).events is None
    told = refused(start, "--kv-events", 5557, *words)
    assert told == f"--kv-events-config after -- ({tmp_path / 'flags.yaml'}) would contradict --kv-events 5557"


def test_events_may_have_a_port_beside_those_of_vllm_alone(start: Start) -> None:
    assert published(start, "--kv-events", 8001, "--no-proxy")["endpoint"] == "tcp://*:8001"
    assert "--kv-events-config" in start("--", "--kv-events-config", "{}").extra, "vLLM's own flag is passed on"


def test_who_publishes_is_told_that_anyone_can_listen(model: Path) -> None:
    _, notes = prepare(parse(["--model", str(model), "--kv-events", "5557"]), {})
    assert "port 5557 on every address" in notes[-1]


def test_replicas_hash_blocks_alike_unless_the_environment_says_otherwise(start: Start) -> None:
    assert commands.full_environment(start(), {})["PYTHONHASHSEED"] == "0"
    assert commands.full_environment(start(), {"PYTHONHASHSEED": "17"})["PYTHONHASHSEED"] == "17"


def test_an_error_names_the_flag_as_it_was_written(start: Start) -> None:
    assert refused(start, "--tp-degree", 4).startswith("--tp-degree must be 1 on cpu")
    assert refused(start, "-tp", 4).startswith("-tp must be 1 on cpu")
    assert refused(start, "--cache-gib", "-1").startswith("--cache-gib must be a number above 0")
    assert refused(start, "--kv-cache-memory-bytes", "0").startswith("--kv-cache-memory-bytes must be at least 1")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--max-num-seq", "--max-num-seqs"),
        ("--max_num_seqs", "--max-num-seqs"),
        ("--drain-time=3", "--drain-timeout"),
        ("--tensor-paralel-size", "--tensor-parallel-size"),
        ("--no-prefix-cache", "--no-prefix-caching"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest(start: Start, word: str, near: str) -> None:
    said = refused(start, word)
    assert said.startswith(f"unknown argument '{word.split('=')[0]}' (did you mean {near}?)")


def test_a_flag_that_resembles_none_is_refused_without_a_guess(start: Start) -> None:
    assert refused(start, "--seed", 3).startswith("unknown argument '--seed'; see --help")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--drain-timeout", "0"], "--drain-timeout 0.0 must be more than 0 seconds"),
        (["--max-body-bytes", "0"], "--max-body-bytes 0 must be at least 1"),
        (["--slots-per-prompt", "0"], "--slots-per-prompt 0 must be an integer of at least 1"),
        (["--api-key", ""], "--api-key is empty, which would let everybody in"),
        (["--no-proxy", "--max-concurrent", "3"], "--max-concurrent is the proxy's, which --no-proxy leaves out"),
        (["--no-proxy", "--no-thinking"], "--no-thinking is the proxy's"),
        (["--no-proxy", "--backend-port", "9"], "--backend-port is the proxy's"),
        (["--revision", "main"], "--revision is for a Hugging Face id"),
        (["--dry-run=yes"], "ignored explicit argument 'yes'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flag(start: Start, words: list[str], says: str) -> None:
    assert says in refused(start, *words)


def test_a_key_that_is_refused_is_not_shown(start: Start) -> None:
    assert "secret" not in repr(start("--api-key", "secret"))
    assert start(VLLM_API_KEY="secret").front.api_key == "secret"
    assert start(VLLM_API_KEY="").front.api_key is None
    assert start("--api-key", "mine", VLLM_API_KEY="theirs").front.api_key == "mine"


# ---- what goes past us ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "own"),
    [
        (["--port", "1"], "--port"),
        (["--max-num-seqs=4"], "--max-num-seqs"),
        (["--max_num_seqs", "4"], "--max-num-seqs"),
        (["--max-num-se", "4"], "--max-num-seqs"),
        (["--additional-config.tp_degree", "2"], "--additional-config"),
        (["-tp", "4"], "--tensor-parallel-size"),
        (["--tensor-parallel-size=4"], "--tensor-parallel-size"),
        (["--kv-cache-memory-bytes", "1G"], "--kv-cache-memory-bytes"),
        (["--seed", "1", "--no-enable-prefix-caching"], "--no-enable-prefix-caching"),
        (["--revision", "x"], "--revision"),
    ],
)
def test_a_flag_for_vllm_that_contradicts_ours_is_refused(start: Start, rest: list[str], own: str) -> None:
    assert refused(start, "--", *rest).startswith(f"{own} after -- would contradict")


def test_other_flags_for_vllm_are_passed_as_they_are(start: Start, tmp_path: Path) -> None:
    rest = [
        "--seed",
        "-7",
        "--scheduling-policy=priority",
        "--hf-overrides",
        '{"port": 1}',
        "--num-gpu-blocks-override=99",
    ]
    assert commands.vllm_command(start("--", *rest))[-len(rest) :] == rest
    said = refused(start, "--cache-gib", 1, "--", "--num-gpu-blocks-override", 9)
    assert "--cache-gib has decided how many KV blocks there are" in said
    assert start("--", "--", "x").extra == ("--", "x")


def test_a_file_of_flags_is_read_for_contradictions(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("seed: 3\n")
    assert start("--", "--config", file).extra == ("--config", str(file))
    file.write_text("seed: 3\nmax_num_seqs: 4\n")
    assert "--max-num-seqs after -- would contradict" in refused(start, "--", f"--config={file}")
    assert "no/such" in refused(start, "--", "--config", "no/such.yaml")
    file.write_text("- seed\n")
    assert "holds no mapping" in refused(start, "--", "--config", file)


# ---- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"model_type": "llama"}', "is not a Qwen3.5/3.6 model"),
        ('{"model_type": "qwen3_5", "text_config": {"hidden_size": 3}}', "is missing"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(start: Start, model: Path, content: str, says: str) -> None:
    (model / "config.json").write_text(content)
    said = refused(start)
    assert says in said
    assert "--model" in said


# ---- help -----------------------------------------------------------------------------------------------------------


def test_help_is_grouped_and_keeps_its_defaults_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{group}:") for group in ("Model and device", "Capacity", "Front door", "Other")]
    assert places == sorted(places)
    assert "--tp-degree" not in shown
    assert max(map(len, shown.splitlines())) <= 116
    for text in ("--tensor-parallel-size N", "(default: 1 on cpu, 4 on neuron)", "--kv-cache-memory-bytes BYTES"):
        assert text in shown


def test_the_proxy_lets_a_prompt_of_a_million_tokens_through(start: Start) -> None:
    """Token ids of seven digits are 9 bytes each in JSON; and a prompt may run for hours before its first token."""
    plain, long = start().front, start("--max-model-len", 1048576).front
    assert (plain.max_body_bytes, plain.response_timeout) == (8 << 20, 600)
    assert long.max_body_bytes >= 9 * 1048576
    assert long.response_timeout >= 4 * 3600
    own = start("--max-model-len", 1048576, "--max-body-bytes", 1000, "--response-timeout", 5).front
    assert (own.max_body_bytes, own.response_timeout) == (1000, 5)
