"""Settings: validated once, by name, from the command line too."""

from __future__ import annotations

import pytest

from qwen36_neuron.errors import ConfigError
from vllm_integration.chat_proxy import ProxySettings
from vllm_integration.chat_proxy.__main__ import parse

BACKEND = "http://127.0.0.1:8001"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "127.0.0.1:8001"),
        ("backend", "ftp://host"),
        ("backend", "http://"),
        ("backend", "http://host/v1"),
        ("port", -1),
        ("port", 65536),
        ("api_key", ""),
        ("max_body_bytes", 0),
        ("max_json_depth", 0),
        ("max_concurrent", 0),
        ("body_timeout", 0.0),
        ("connect_timeout", -1.0),
        ("response_timeout", float("nan")),
        ("health_interval", 0.0),
        ("drain_timeout", 0.0),
    ],
)
def test_a_bad_value_names_its_field(field, value):
    with pytest.raises(ConfigError) as caught:
        ProxySettings(**{"backend": BACKEND, field: value})
    assert caught.value.field == field


def test_the_command_line_sets_what_it_says_and_leaves_the_rest(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    settings = parse(["--backend", BACKEND, "--max-concurrent", "3", "--no-enable-thinking", "--drain-timeout", "1.5"])
    assert settings == ProxySettings(BACKEND, max_concurrent=3, enable_thinking=False, drain_timeout=1.5)


def test_the_key_comes_from_the_environment_and_is_not_shown(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret-key")
    settings = parse(["--backend", BACKEND])
    assert settings.api_key == "secret-key"
    assert "secret-key" not in repr(settings)


@pytest.mark.parametrize("arguments", [[], ["--backend", "nonsense"], ["--backend", BACKEND, "--port", "high"]])
def test_a_bad_command_line_ends_with_status_2(arguments, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
