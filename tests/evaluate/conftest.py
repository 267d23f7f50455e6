"""The digits target, built once for the whole session."""

from __future__ import annotations

import pytest

from qsearch.evaluate import Target, build_target
from qsearch.spec import DataSpec, ModelSpec


@pytest.fixture(scope="session")
def digits_target() -> Target:
    model, data = ModelSpec(source="qsearch:digits_resnet"), DataSpec(source="qsearch:digits")
    return build_target(model, data)
