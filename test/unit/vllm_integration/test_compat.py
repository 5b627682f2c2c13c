"""The pin: another vLLM, or one whose internals changed, is refused by name."""

import pytest

from qwen36_neuron.errors import ConfigError
from vllm_integration.compat import check_signature, check_vllm


def test_the_installed_vllm_is_accepted():
    check_vllm()


@pytest.mark.parametrize("version", ["0.28.0", "0.30.0", "0.290.0", "1.0.0"])
def test_another_minor_is_refused(monkeypatch, version):
    monkeypatch.setattr("vllm.version.__version__", version)
    with pytest.raises(ConfigError, match=rf"vllm='{version}'.*Install vllm==0\.29\.0"):
        check_vllm()


def test_a_changed_signature_is_refused():
    def cache_blocks(self, request, num_tokens, replay_boundaries): ...

    with pytest.raises(ConfigError, match=r"M\.cache_blocks takes \(request, num_tokens, replay_boundaries\)"):
        check_signature("M.cache_blocks", cache_blocks, ("request", "num_tokens", "retention_interval"), "0.29.0")
