"""What importing qsearch loads, and what it offers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import qsearch


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh interpreter after a statement."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_qsearch_loads_nothing_heavy() -> None:
    assert not loaded_by("import qsearch") & {"torch", "torchvision", "ray", "numpy", "pandas", "pydantic", "pymoo"}


@pytest.mark.parametrize(
    "module",
    ["qsearch.run.broker", "qsearch.run.opening", "qsearch.run.results", "qsearch.spec", "qsearch.hardware",
     "qsearch.space", "qsearch.search", "qsearch.store", "qsearch.export"],
)  # fmt: skip
def test_light_modules_load_neither_torch_nor_ray(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", "ray"}


def test_every_public_name_exists() -> None:
    assert all(hasattr(qsearch, name) for name in qsearch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lunch'"):
        qsearch.lunch  # noqa: B018
