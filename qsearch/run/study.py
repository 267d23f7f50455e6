"""The flow of a study in one readable file: spec -> target -> problem -> searcher <-> broker <-> workers -> front."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qsearch import __version__
from qsearch.errors import TooManyFailures
from qsearch.evaluate import Evaluator, Target, build_target, make_evaluator, resolve_device
from qsearch.evaluate.ptq import PTQEvaluator
from qsearch.run.directory import StudyDirectory
from qsearch.run.executor import Executor, SerialExecutor
from qsearch.run.jobs import KeyMaker
from qsearch.run.opening import open_broker
from qsearch.run.plan import Plan
from qsearch.run.problem import Problem, build_problem
from qsearch.run.results import Front, read_front
from qsearch.run.status import Phase, Status
from qsearch.run.worker import WorkerSettings
from qsearch.spec import StudySpec, load_spec
from qsearch.types import digest

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a command line may override of ``execution``; nothing of it changes results.

    Attributes:
        workers: Parallel workers.
        executor: ``tune`` or ``serial``.
        address: Of a running Ray cluster.
        takeover: Take a lock whose holder on another machine may be gone.
    """

    workers: int | None = None
    executor: str | None = None
    address: str | None = None
    takeover: bool = False


def launch(
    study_file: str | Path,
    directory: str | Path | None = None,
    options: RunOptions | None = None,
    listener: Callable[[Status], None] = lambda status: None,
    log: Log = lambda line: None,
) -> Front:
    """Runs a study to its end and returns its front; continues it when the directory already holds it.

    Args:
        study_file: The study file.
        directory: Where everything is kept; ``runs/NAME`` by default.
        options: Overrides of how it is executed.
        listener: Takes progress snapshots.
        log: Takes lines for people.

    Raises:
        QSearchError: Anything a user can mend; nothing that was finished is lost.
    """
    path = Path(study_file)
    spec = load_spec(path)
    home = StudyDirectory(Path(directory) if directory is not None else Path("runs") / spec.study.name)
    home.prepare(spec, path.read_text(encoding="utf-8"))
    return _run(spec, home, options or RunOptions(), listener, log)


def resume(
    directory: str | Path,
    options: RunOptions | None = None,
    listener: Callable[[Status], None] = lambda status: None,
    log: Log = lambda line: None,
) -> Front:
    """Continues a study from its directory, whatever ended it.

    Budget and execution are read from the study file in the directory, which may be edited; the rest must be as it
    was. For the arguments see :func:`launch`.

    Raises:
        StudyMismatchError: The study file, the network or the data changed.
        QSearchError: Anything else a user can mend.
    """
    home = StudyDirectory(Path(directory))
    return _run(home.load(), home, options or RunOptions(), listener, log)


def front(directory: str | Path) -> Front:
    """Reads the front of a study, also while it runs.

    Raises:
        StoreError: There is no study, or it has no results yet.
    """
    home = StudyDirectory(Path(directory))
    spec = home.load()
    with home.open_store(spec, read_only=True) as store:
        return read_front(store.study(spec.study.name))


def _run(
    spec: StudySpec, home: StudyDirectory, options: RunOptions, listener: Callable[[Status], None], log: Log
) -> Front:
    threads = max(1, int(spec.execution.cpus_per_worker))
    executor_name = options.executor or spec.execution.executor
    workers = options.workers or spec.execution.workers or max(1, int(_cores() // spec.execution.cpus_per_worker))
    workers = 1 if executor_name == "serial" else workers
    if executor_name == "serial":
        workers = 1

    started = time.perf_counter()
    target = build_target(spec.model, spec.data, spec.quantizer.add_policy)
    graph = target.graph
    groups = {tensor.index: tensor.group for tensor in graph.tensors}
    problem = build_problem(spec, graph.layers, groups, graph.classes, graph.float_parameters)
    record = describe_target(spec, target, problem, threads)
    keys = make_keys(spec, target)
    log(
        f"{spec.model.source}: {len(graph.layers)} layers, {problem.space.n_genes} free genes, "
        f"{problem.space.cardinality:.3g} configurations; float accuracy {record['float']['validation']:.2f} % "
        f"(validation); ready after {time.perf_counter() - started:.1f} s"
    )
    for note in graph.notes:
        log(f"note: {note}")

    plan = Plan.from_spec(spec, workers)
    make_broker = partial(open_broker, spec, home, problem, keys, plan, record, os.getpid(), options.takeover)
    settings = WorkerSettings(
        options={name: dict(values) for name, values in spec.fidelities.items()},
        device=spec.execution.device,
        threads=threads,
        seed=spec.evaluation.seed,
        timeout_s=spec.evaluation.timeout_s,
    )
    with _executor(executor_name, workers, spec, options, home) as executor:
        status = executor.run(make_broker, target, settings, listener)
    if status.phase is Phase.STOPPED:
        raise TooManyFailures(
            f"{status.counts['abandoned']} of {status.evaluated} candidates failed {plan.max_attempts} times; "
            f"the last failure: {status.last_failure}",
            "run with --executor serial to see the error; `execution.max_failed_fraction` sets this limit",
        )
    with home.open_store(spec) as store, store.study(spec.study.name).transaction():
        study = store.study(spec.study.name)
        summary = {"efficiency": status.efficiency, "evaluations": status.new_evaluations, "workers": workers}
        study.add_event("finished", {k: round(v, 6) if isinstance(v, float) else v for k, v in summary.items()})
    return front(home.path)


def _executor(
    name: str, workers: int, spec: StudySpec, options: RunOptions, home: StudyDirectory
) -> AbstractContextManager[Executor]:
    if name == "serial":
        return nullcontext(SerialExecutor())
    from qsearch.run.tune_session import tune_executor

    execution = spec.execution
    gpus = execution.gpus_per_worker
    return tune_executor(options.address, workers, execution.cpus_per_worker, gpus, home.scratch)


def make_keys(spec: StudySpec, target: Target) -> KeyMaker:
    """Makes the key maker of a study; checks the options of its fidelities on the way.

    Raises:
        PluginError: A fidelity is unknown.
        SpecError: An option of a fidelity is wrong, or options name a fidelity that does not exist.
    """
    evaluators = _evaluators(spec, target)
    splits = ("validation", "test")
    return KeyMaker(
        model=target.graph.digest,
        data={split: target.data_digest(split) for split in splits},
        quantizer={
            name: digest({**evaluator.settings(), "batch_size": target.batch_size})
            for name, evaluator in evaluators.items()
        },
        versions={name: evaluator.version for name, evaluator in evaluators.items()},
        seed=spec.evaluation.seed,
    )


def _evaluators(spec: StudySpec, target: Target) -> dict[str, Evaluator]:
    """Evaluators of all fidelities that the study names."""
    used = {spec.evaluation.fidelity, spec.finalists.fidelity or spec.evaluation.fidelity, *spec.fidelities}
    return {
        fidelity: make_evaluator(fidelity, target, spec.fidelities.get(fidelity, {}), "cpu", spec.evaluation.seed)
        for fidelity in sorted(used)
    }


def describe_target(spec: StudySpec, target: Target, problem: Problem, threads: int) -> dict[str, Any]:
    """What is searched, for the log and the exports: JSON-ready."""
    import torch

    torch.set_num_threads(threads)
    graph = target.graph
    evaluator = PTQEvaluator(target, {}, resolve_device(spec.execution.device), spec.evaluation.seed)
    ideal, reference = problem.corners
    keys = make_keys(spec, target)
    return {
        "layers": [layer.to_json() for layer in graph.layers],
        "tensors": [dataclasses.asdict(tensor) for tensor in graph.tensors],
        "units": [[unit.name, list(unit.layers)] for unit in graph.units],
        "notes": list(graph.notes),
        "classes": graph.classes,
        "float_parameters": graph.float_parameters,
        "model_digest": graph.digest,
        "data_digest": {name: split.digest for name, split in target.splits.items()},
        "samples": {name: len(split) for name, split in target.splits.items()},
        "quantizer": keys.quantizer,
        "evaluators": {
            name: {"version": used.version, "settings": dict(used.settings())}
            for name, used in _evaluators(spec, target).items()
        },
        "float": {split: evaluator.evaluate_float(split).accuracy for split in ("validation", "test")},
        "devices": {name: dict(table.provenance) for name, table in problem.tables.items()},
        "corners": {"ideal": list(ideal), "reference": list(reference)},
        "cardinality": str(problem.space.cardinality),
        "environment": {
            "qsearch": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": threads,
            "device": str(evaluator.device),
        },
    }


def _cores() -> float:
    return float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
