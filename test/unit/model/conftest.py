"""One oracle a shape, made once for the folder's tests."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from .oracle import SHAPES, Model, build


class Oracle(NamedTuple):
    """The transformers model and where it is saved."""

    model: Model
    folder: Path


@pytest.fixture(scope="session", params=SHAPES, ids=lambda shape: shape.name)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder = tmp_path_factory.mktemp(request.param.name)
    return Oracle(build(folder, request.param), folder)
