"""Figures of a front; needs the optional extra ``report``."""

from __future__ import annotations

from qsearch.report.figure import front_figure

__all__ = ["front_figure"]
