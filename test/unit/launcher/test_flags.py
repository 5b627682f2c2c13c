"""Fields of a settings dataclass as flags."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import pytest

from vllm_integration.chat_proxy.__main__ import parse as parse_proxy
from vllm_integration.chat_proxy.settings import ProxySettings
from vllm_integration.flags import FlagError, attribute_texts, flags, parse_number, parse_whole
from vllm_integration.settings import Settings


@dataclass(frozen=True)
class Sample:
    """A sample.

    Attributes:
        rows: how many rows; None for
            as many as fit.
        share: a share.
        origins: who may ask.
        how: the way.
        loud: whether it is loud.

    Raises:
        ConfigError: never.
    """

    rows: int | None = None
    share: float = 0.5
    origins: tuple[str, ...] = ()
    how: Literal["here", "there"] = "here"
    loud: bool = False


def test_names_types_defaults_and_help_come_from_the_class() -> None:
    made = {flag.field: flag for flag in flags(Sample)}
    assert [(flag.name, flag.kind, flag.default) for flag in made.values()] == [
        ("--rows", "int", None),
        ("--share", "float", 0.5),
        ("--origins", "list", ()),
        ("--how", "str", "here"),
        ("--loud", "bool", False),
    ]
    assert made["rows"].help == "how many rows; if not given: as many as fit"
    assert made["loud"].negative == "--no-loud"
    assert made["how"].choices == ("here", "there")


@pytest.mark.parametrize(
    ("name", "value"),
    [("rows", 7), ("share", 0.1), ("share", 1e-9), ("share", 600.0), ("origins", ("a", "b")), ("how", "there")],
)
def test_what_is_rendered_is_read_back(name: str, value: object) -> None:
    (flag,) = [flag for flag in flags(Sample) if flag.field == name]
    words = flag.render(value)
    text = words[1] if len(words) == 2 else words[0].split("=", 1)[1]
    assert flag.parse(text) == value


def test_a_value_that_begins_with_a_hyphen_stays_one_word() -> None:
    assert flags(Sample)[3].render("-x") == ["--how=-x"]


def test_a_field_without_help_or_without_a_form_is_a_defect() -> None:
    @dataclass
    class Silent:
        """Nothing is said."""

        rows: int = 1

    @dataclass
    class Strange:
        """
        Attributes:
            rows: a mapping.
        """

        rows: dict[str, int] = field(default_factory=dict)

    with pytest.raises(TypeError, match="rows has no entry"):
        flags(Silent)
    with pytest.raises(TypeError, match="has no form"):
        flags(Strange)


@pytest.mark.parametrize("settings", [Settings, ProxySettings])
def test_every_setting_says_what_it_means(settings: type) -> None:
    assert {made.name for made in fields(settings)} <= attribute_texts(settings).keys()
    assert all(len(flag.help) > 5 for flag in flags(settings))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("007", 7), ("16k", 16_000), ("16K", 16_384), ("1.5k", 1_500), ("2G", 2 << 30), ("1T", 1 << 40)],
)
def test_whole_numbers(text: str, value: int) -> None:
    assert parse_whole("--n", text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1.5K", "1.0001k", "k", "1e3", "high", "٣", " 1", "1 ", "1kk"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(FlagError, match="--n must be a whole number"):
        parse_whole("--n", text)


def test_a_number_below_its_minimum() -> None:
    assert parse_whole("--n", "1", 1) == 1
    with pytest.raises(FlagError, match="--n must be at least 1, not 0"):
        parse_whole("--n", "0", 1)


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "1,5"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(FlagError, match="--n must be a number"):
        parse_number("--n", text)


def test_the_proxy_reads_its_own_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    settings = parse_proxy(["--backend", "http://h:1", "--no-enable-thinking", "--max-body-bytes", "1M"])
    assert settings == ProxySettings(backend="http://h:1", enable_thinking=False, max_body_bytes=1 << 20)
    with pytest.raises(SystemExit):
        parse_proxy(["--backend", "http://h:1", "--drain-timeout", "soon"])
    assert "--drain-timeout must be a number, not 'soon'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_proxy(["--help"])
    assert "requests in flight at once" in " ".join(capsys.readouterr().out.split())
