"""A small search problem without a network, and a broker over it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsearch.run.broker import Broker
from qsearch.run.jobs import Job, KeyMaker, Outcome
from qsearch.run.plan import Plan
from qsearch.run.problem import Problem, build_problem
from qsearch.search import make_searcher
from qsearch.spec import StudySpec, spec_from_mapping
from qsearch.store import Store
from qsearch.types import BitConfig, LayerShape, Score

LAYERS = tuple(
    LayerShape(f"layer{i}", "conv", 8, 8, (3, 3), (1, 1), 1, (8, 8), (8, 8), True, tensor=i) for i in range(6)
)


def make_spec(**changes: Any) -> StudySpec:
    """A study over the small problem; ``changes`` replace whole sections."""
    sections: dict[str, Any] = {
        "study": {"name": "small", "seed": 3},
        "model": "qsearch:digits_resnet",
        "data": "qsearch:digits",
        "devices": ["bismo_edge"],
        "objectives": ["error", "latency@bismo_edge", "size"],
        "searcher": {"name": "genetic", "population": 8},
        "budget": {"evaluations": 40},
        "execution": {"scheduling": "generational"},
        "finalists": {"max": 5},
    }
    return spec_from_mapping({**sections, **changes})


def make_problem(spec: StudySpec) -> Problem:
    """The search problem of :func:`make_spec`."""
    return build_problem(spec, LAYERS, {i: i for i in range(len(LAYERS))}, classes=10, float_parameters=0)


KEYS = KeyMaker(
    "model",
    {"validation": "v", "test": "t"},
    {"ptq": "q", "brecq": "b"},
    {"ptq": 1, "brecq": 1},
    seed=0,
)


def true_score(config: BitConfig, split: str = "validation") -> Score:
    """A deterministic stand-in for a network's accuracy."""
    loss = sum(
        (1 + i) * (4.0**-w + 0.3 * 4.0**-a)
        for i, (w, a) in enumerate(zip(config.weights, config.activations, strict=True))
    )
    correct = round(1000 * math.exp(-loss) * (0.99 if split == "test" else 1.0))
    return Score(correct / 10, loss, correct, 1000)


def done(job: Job, seconds: float = 0.05) -> Outcome:
    """A successful outcome."""
    return Outcome(job.key, true_score(job.config, job.split), seconds, "worker")


def failed(job: Job, kind: str = "error") -> Outcome:
    """A failed outcome."""
    return Outcome(job.key, None, 0.01, "worker", kind, f"{kind} happened", "Traceback ...")


OpenBroker = Callable[..., Broker]


@pytest.fixture
def open_broker(tmp_path: Path) -> OpenBroker:
    """Opens a broker over ``tmp_path/study.db``; call it again to resume."""
    opened: list[Store] = []

    def open_(spec: StudySpec | None = None, workers: int = 2, path: Path | None = None, **plan: Any) -> Broker:
        spec = spec or make_spec()
        for store in opened:
            store.close()
        opened.clear()
        store = Store.open(path or tmp_path / "study.db")
        opened.append(store)
        if store.find_study(spec.study.name) is None:
            store.create_study(spec.study.name, spec.resolved(), spec.digest)
        problem = make_problem(spec)
        searcher = make_searcher(
            spec.searcher.name,
            space=problem.space,
            constraints=problem.constraints,
            n_objectives=len(problem.objectives),
            seed=spec.study.seed,
            options=spec.searcher.options,
            scheduling=spec.execution.scheduling,
        )
        settings = Plan.from_spec(spec, workers)
        for name, value in plan.items():
            object.__setattr__(settings, name, value)
        return Broker.open(problem, searcher, store.study(spec.study.name), KEYS, settings)

    yield open_
    for store in opened:
        store.close()


def work_off(broker: Broker, steps: int | None = None) -> int:
    """Evaluates leases one after the other; returns how many jobs were done."""
    count = 0
    while not broker.done and (steps is None or count < steps):
        lease = broker.lease()
        if lease is None:
            break
        for job in lease.jobs:
            broker.report(lease.id, [done(job)])
            count += 1
        broker.close(lease.id)
    return count


def log_of(broker: Broker) -> list[tuple[str, Any]]:
    """Asks and tells of a study, in order: what decides a search."""
    return [(e.kind, dict(e.payload)) for e in broker.store.events() if e.kind in ("ask", "tell")]
