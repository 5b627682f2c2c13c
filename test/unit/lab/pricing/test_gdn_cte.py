"""The comparison with nki-library's kernel, on a stand-in: what is loaded, passed on, and how ratios are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nki_kernels.examples import BF16
from nki_kernels.gated_rms_norm import qk_l2norm
from nki_kernels.interpreter import PriceList
from nki_kernels.interpreter.launch import run
from qwen36_lab.pricing import gdn_cte

KERNEL = '''
def gdn_cte_schur(query, key, value, g_log, beta, mask_pack, scale=1.0, recurrent_state=None):
    """{text}"""
    return {returns}, recurrent_state
'''
HELPERS = """
import numpy as np
def build_mask_pack():
    return np.zeros((1, 128, 128), dtype=np.float32)
"""


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "", returns: str = "value") -> gdn_cte.Schur:
    """Load a package of the folder's name with a kernel that returns arguments."""
    monkeypatch.setattr(gdn_cte, "PACKAGE", folder.name)
    folder.mkdir()
    (folder / "gdn_cte_schur.py").write_text(KERNEL.format(text=text, returns=returns), encoding="utf-8")
    (folder / "gdn_cte_utils.py").write_text(HELPERS, encoding="utf-8")
    return gdn_cte.load(folder.parent)


def inputs(dtype: type = np.float32) -> list[np.ndarray]:
    shapes = ((128, 2, 128), (128, 2, 128), (128, 6, 128), (128, 6), (128, 6), (6, 128, 128))
    random = np.random.default_rng(0)
    return [random.standard_normal(s).astype(dtype if at < 3 else np.float32) for at, s in enumerate(shapes)]


def test_a_library_of_an_earlier_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gdn_cte_schur\.py.*2\.33"):
        gdn_cte.load(tmp_path)


def test_the_hash_is_of_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = library(tmp_path / "gdn_one", monkeypatch, "One docstring.").code
    assert library(tmp_path / "gdn_two", monkeypatch, "Another.").code == one
    assert library(tmp_path / "gdn_three", monkeypatch, returns="query").code != one


def test_arguments_and_outputs_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schur, given = library(tmp_path / "gdn_places", monkeypatch), inputs(BF16)
    args, kwargs = gdn_cte.arguments(schur, *given)
    assert [a.shape for a in args[:5]] == [(1, 2, 128, 128)] * 2 + [(1, 6, 128, 128)] + [(1, 6, 128)] * 2
    assert all(a.dtype == BF16 for a in args[:3])
    for got, raw in zip(args[:2], given[:2], strict=True):
        wide = raw.astype(np.float64).swapaxes(0, 1)
        want = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
        assert np.abs(got[0].astype(np.float64) - want).max() <= 2**-9
    assert kwargs["scale"] == pytest.approx(128**-0.5)
    o, state = gdn_cte.outputs(schur, *given)
    assert np.array_equal(o, given[2])
    assert np.array_equal(state, given[5])
    assert not np.shares_memory(kwargs["recurrent_state"], given[5])


@pytest.mark.interpreter
def test_ratios_of_a_kernel_with_itself() -> None:
    _, launch = run(qk_l2norm, (inputs()[0],), {})
    prices = PriceList().having(**{
        k: p.centre for k, p in PriceList().prices.items() if k not in ("dma_issue_ns", "hbm_bytes_ns")
    })  # fmt: skip
    found = gdn_cte.compare(dict.fromkeys(("fused", "schur", "normalise"), launch.cores), prices)
    for order in gdn_cte.ORDERS:
        for name, want in (("kernel alone", 1.0), ("same work", 2.0)):
            ratio = found["ratios"][name][order]
            assert (ratio["low"], ratio["centre"], ratio["high"], *ratio["likely"]) == pytest.approx((want,) * 5)
            assert set(ratio["most_by"]) == {"dma_issue_ns", "hbm_bytes_ns"}
        times = [found["us"][level]["schur"][order] for level in ("low", "centre", "high")]
        assert times == sorted(times)
        assert times[0] < times[-1]


@pytest.mark.interpreter
def test_places_in_psum() -> None:
    _, launch = run(qk_l2norm, (inputs()[0],), {})
    assert gdn_cte.psum_places(launch.cores) == 8
