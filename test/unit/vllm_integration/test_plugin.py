"""The entry points: which platform is chosen, and when this one stands aside."""

import logging
from importlib.metadata import EntryPoint

import pytest

import vllm_integration

OURS = EntryPoint("qwen36_neuron", "vllm_integration:platform_plugin", "vllm.platform_plugins")
AWS = EntryPoint("neuron", "vllm_neuron:register", "vllm.platform_plugins")
PLATFORM = "vllm_integration.platform.QwenPlatform"


@pytest.fixture
def installed(monkeypatch):
    def set_to(points, selected):
        monkeypatch.setattr(vllm_integration, "entry_points", lambda group: points)
        if selected is None:
            monkeypatch.delenv("VLLM_PLUGINS", raising=False)
        else:
            monkeypatch.setenv("VLLM_PLUGINS", selected)

    return set_to


@pytest.mark.parametrize(
    ("points", "selected", "chosen"),
    [
        ([OURS], None, True),
        ([OURS], "qwen36_neuron", True),
        ([OURS, AWS], None, False),
        ([OURS, AWS], "neuron", False),
        ([OURS, AWS], "qwen36_neuron,neuron", False),
        ([OURS, AWS], "qwen36_neuron", True),
    ],
)
def test_stands_aside_for_aws_unless_chosen(installed, points, selected, chosen, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="vllm.vllm_integration")
    installed(points, selected)
    assert vllm_integration.platform_plugin() == (PLATFORM if chosen else None)
    assert ("VLLM_PLUGINS=qwen36_neuron" in caplog.text) is not chosen


def test_the_entry_points_of_this_package_are_installed():
    from importlib.metadata import entry_points

    groups = ("vllm.platform_plugins", "vllm.general_plugins", "vllm.stat_logger_plugins")
    for group in groups:
        assert callable(entry_points(group=group)["qwen36_neuron"].load())
