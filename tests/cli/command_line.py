"""Running the command line in a test, and the study that it is run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from qsearch.cli.app import app

STUDY = """
study: {{name: {name}, seed: 1}}
model: {{source: "qsearch:digits_resnet", arguments: {{epochs: 8, width: 8}}}}
data: qsearch:digits
devices: [systolic_vta, bismo_edge]
searcher: {{name: genetic, population: 8}}
evaluation: {{fidelity: ptq, timeout_s: null}}
finalists: {{fidelity: brecq, max: 3}}
fidelities: {{brecq: {{iterations: 20}}}}
budget: {{evaluations: {evaluations}}}
execution: {{executor: serial}}
"""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ended:
    """Runs the command line in this process."""
    surroundings = {"COLUMNS": "200", "NO_COLOR": "1", "FORCE_COLOR": None, "TTY_COMPATIBLE": None}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=surroundings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def write_study(directory: Path, name: str = "tiny", evaluations: int = 12) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(STUDY.format(name=name, evaluations=evaluations), encoding="utf-8")
    return path
