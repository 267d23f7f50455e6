"""Pareto fronts: dominance with constraints, an order-free archive, indicators, the knee; everything is minimised."""

from __future__ import annotations

from qsearch.pareto.archive import Archive, Entry
from qsearch.pareto.dominance import constrained_dominates, non_dominated_mask, non_dominated_sort
from qsearch.pareto.indicators import additive_epsilon, attainment, hypervolume, igd_plus, normalise
from qsearch.pareto.knee import knee

__all__ = [
    "Archive",
    "Entry",
    "additive_epsilon",
    "attainment",
    "constrained_dominates",
    "hypervolume",
    "igd_plus",
    "knee",
    "non_dominated_mask",
    "non_dominated_sort",
    "normalise",
]
