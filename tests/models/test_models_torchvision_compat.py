"""torchvision is imported whole where it can be, and by declaring its operators where its extension cannot load.

Every case runs in a process of its own, because an import happens only once.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEALTHY = "fake = True"

#: What a CUDA wheel beside a CPU build of torch does while it registers shape functions.
BROKEN = """
import torch
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        raise RuntimeError(f"operator torchvision::{name} does not exist")
fake = True
"""

OTHER = "raise RuntimeError('the disk is on fire')"


def run(tmp_path: Path, package: str | None, code: str) -> subprocess.CompletedProcess[str]:
    if package is not None:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(package)
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" if package else ""
    start += "import qsearch.models.torchvision_compat as compat\n"
    command = [sys.executable, "-W", "error", "-c", start + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "declared"), [(HEALTHY, False), (BROKEN, True)], ids=["healthy", "extension cannot load"]
)
def test_operators_are_declared_only_where_they_are_missing(tmp_path: Path, package: str, declared: bool) -> None:
    done = run(
        tmp_path,
        package,
        f"""
        import torch
        assert compat.import_torchvision().fake
        assert compat.import_torchvision().fake
        assert (compat._library is not None) is {declared}
        assert hasattr(torch.ops.torchvision, "nms") is {declared}
        """,
    )
    assert done.returncode == 0, done.stderr


def test_other_failures_are_not_hidden(tmp_path: Path) -> None:
    done = run(tmp_path, OTHER, "compat.import_torchvision()")
    assert done.returncode == 1
    assert "the disk is on fire" in done.stderr.splitlines()[-1]


def test_the_installed_torchvision_works(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        None,
        """
        import torch
        models = compat.import_torchvision().models
        with torch.no_grad():
            assert models.get_model("squeezenet1_1", num_classes=7).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
        """,
    )
    assert done.returncode == 0, done.stderr
