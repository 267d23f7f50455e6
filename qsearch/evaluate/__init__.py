"""Evaluators: fidelities that turn a bit configuration into a score."""

from qsearch.evaluate.base import Evaluator, evaluation_key, make_evaluator, resolve_device, settings_digest
from qsearch.evaluate.target import Target, build_target

__all__ = [
    "Evaluator",
    "Target",
    "build_target",
    "evaluation_key",
    "make_evaluator",
    "resolve_device",
    "settings_digest",
]
