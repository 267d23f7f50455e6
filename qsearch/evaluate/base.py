"""The contract of an evaluator: it runs in a worker and turns a bit configuration into a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol, TypeVar, get_args, get_type_hints, runtime_checkable

import torch

from qsearch import plugins
from qsearch.errors import EvaluationError, SpecError, nearest
from qsearch.evaluate.target import Target
from qsearch.types import BitConfig, EvaluationKey, Score, digest

Options = TypeVar("Options")


@runtime_checkable
class Evaluator(Protocol):
    """One fidelity.

    Implementations are classes ``Evaluator(target, options, device, seed)``, registered under the entry-point group
    ``qsearch.evaluators``. They must be deterministic: equal configurations give equal scores, in any order, in any
    process of one machine. One that has a method ``warm_up()`` is warmed up once by every worker, before the first
    evaluation and outside of its time limit.

    Attributes:
        name: The fidelity.
        version: Raised whenever the numerics change, so that old results are not mistaken for new ones.
    """

    name: str
    version: int

    def settings(self) -> Mapping[str, Any]:
        """Every convention and hyper-parameter that decides the score; JSON-ready."""
        ...

    def evaluate(self, config: BitConfig, split: str) -> Score:
        """Scores one configuration on one split.

        Raises:
            EvaluationError: It cannot be scored, or the logits are not finite.
        """
        ...


def make_evaluator(
    fidelity: str, target: Target, options: Mapping[str, Any], device: str = "cpu", seed: int = 0
) -> Evaluator:
    """Builds the evaluator of a fidelity.

    Args:
        fidelity: Its registered name.
        target: Network and data.
        options: Its options in the study file.
        device: torch device; ``auto`` is the first GPU, or the CPU where there is none.
        seed: Seed of everything random in it.

    Raises:
        PluginError: No such fidelity.
        SpecError: An option does not exist or has the wrong type.
    """
    evaluator: Evaluator = plugins.load("evaluators", fidelity)(target, options, resolve_device(device), seed)
    return evaluator


def resolve_device(name: str) -> torch.device:
    """Turns ``cpu``, ``cuda``, ``cuda:1`` or ``auto`` into a device that exists.

    Raises:
        EvaluationError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EvaluationError(f"execution.device is {name!r}: {error}", "known: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise EvaluationError(
                f"execution.device is {name!r}, but torch sees no GPU here",
                "use device: auto, or install a CUDA build",
            )
        if (device.index or 0) >= count:
            raise EvaluationError(
                f"execution.device is {name!r}, but there are only {count} GPUs", f"use cuda:0 to cuda:{count - 1}"
            )
    return device


def make_exact(device: torch.device) -> None:
    """Makes a GPU repeat itself and compute in full float32; does nothing for the CPU."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def settings_digest(evaluator: Evaluator, target: Target) -> str:
    """Digest of everything in force beside network, data, bits and seed that decides a score."""
    return digest({**evaluator.settings(), "forward_batch": target.batch_size})


def evaluation_key(evaluator: Evaluator, target: Target, config: BitConfig, split: str, seed: int) -> EvaluationKey:
    """Identity of one evaluation."""
    return EvaluationKey(
        model=target.graph.digest,
        data=target.data_digest(split),
        split=split,
        quantizer=settings_digest(evaluator, target),
        config=config,
        fidelity=evaluator.name,
        seed=seed,
        version=evaluator.version,
    )


def read_options(kind: type[Options], options: Mapping[str, Any], where: str) -> Options:
    """Builds an options dataclass, refusing unknown names and wrong types.

    Args:
        kind: A frozen dataclass whose fields are ints, floats, strings or booleans with defaults; a default of None
            needs an annotation such as ``int | None``.
        options: What the study file says.
        where: Key path in the study file, for messages.

    Raises:
        SpecError: An option does not exist, or has the wrong type.
    """
    known = {f.name: f.default for f in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    for name, value in options.items():
        if name not in known:
            raise SpecError(f"{where} has no option {name!r}", nearest(name, known))
        kinds = set(get_args(hints[name])) or {hints[name]}
        if float in kinds:
            kinds.add(int)
        if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
            like = f"a value like {known[name]!r}" if known[name] is not None else f"{hints[name]}"
            raise SpecError(f"{where}.{name} is {value!r}; {like} is expected", "correct the option")
    try:
        return kind(**options)
    except ValueError as error:
        raise SpecError(f"{where}: {error}", "correct the option") from error
