"""``qsearch evaluate``."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qsearch.cli.options import AsJson
from qsearch.cli.output import DIFFERENT, print_facts, print_json

if TYPE_CHECKING:
    from qsearch.models import QuantGraph
    from qsearch.spec import DataSpec, ModelSpec
    from qsearch.types import BitConfig

_UNIFORM = re.compile(r"w(\d+)a(\d+)")


class Split(StrEnum):
    """Where to score."""

    validation = "validation"
    test = "test"


def evaluate(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="An exported configuration, to be scored again.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="As in a study file; {source: ..., weights: ...} in quotes if need be."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="SPEC", help="As in a study file.")] = None,
    bits: Annotated[
        str | None, typer.Option(metavar="FILE|wXaY", help="Exported configuration, or one width for all layers.")
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin/--no-pin", help="With wXaY: keep the first and the last layer at 8 bits.")
    ] = True,
    fidelity: Annotated[str | None, typer.Option(help="With --model: the evaluator.", show_default="ptq")] = None,
    split: Annotated[
        list[Split] | None,
        typer.Option(help="With --model: where to score; may be repeated.", show_default="validation"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a bit configuration.

    With FILE, an exported configuration is scored exactly as it was in its study; the exit code is 1 if an accuracy
    differs from the recorded one. With --model, --data and --bits, any configuration is scored on any network.

    Examples: [cyan]qsearch evaluate front/configs/point-0007.json[/cyan];
    [cyan]qsearch evaluate --model qsearch:digits_resnet --data qsearch:digits --bits w4a8 --split test[/cyan]
    """
    others = {"--model": model, "--data": data, "--bits": bits}
    if file is not None:
        given = [name for name, value in {**others, "--fidelity": fidelity, "--split": split}.items() if value]
        if given or not pin:
            raise typer.BadParameter(
                f"{given[0] if given else '--no-pin'} cannot be given with FILE, which says it all"
            )
        _again(file, as_json)
        return
    missing = [name for name, value in others.items() if value is None]
    if missing:
        raise typer.BadParameter(f"give FILE, or --model, --data and --bits ({' and '.join(missing)} missing)")
    wanted = list(dict.fromkeys(one.value for one in split or [Split.validation]))
    _any(str(model), str(data), str(bits), pin, fidelity or "ptq", wanted, as_json)


def _again(file: Path, as_json: bool) -> None:
    from qsearch.export import load_configuration

    configuration = load_configuration(file)
    from qsearch.run.reproduce import reproduce

    accuracies = reproduce(configuration)
    same = all(recorded == measured for recorded, measured in accuracies.values())
    if as_json:
        print_json(
            {
                "file": str(file),
                "study": configuration.study.name,
                "point": configuration.point,
                "fidelity": configuration.evaluation.fidelity,
                "reproduced": same,
                "accuracy": {split: {"recorded": r, "measured": m} for split, (r, m) in accuracies.items()},
            }
        )
    else:
        record = configuration.evaluation
        facts = {
            "configuration": f"point {configuration.point} of study {configuration.study.name}: mean "
            f"{configuration.mean_weight_bits:.2f} bits weights, {configuration.mean_activation_bits:.2f} bits inputs",
            "scored by": f"{record.fidelity}, seed {record.seed}, {record.threads} threads on {record.device}",
        }
        for split, (recorded, measured) in accuracies.items():
            verdict = "reproduced exactly" if recorded == measured else f"differs by {measured - recorded:+.4f}"
            facts[split] = f"recorded {recorded:.4f} %, measured {measured:.4f} %: {verdict}"
        if not same:
            facts["note"] = f"recorded with torch {record.torch} on {record.machine}; another one may round otherwise"
        print_facts(facts)
    if not same:
        raise typer.Exit(DIFFERENT)


def _any(model: str, data: str, bits: str, pin: bool, fidelity: str, splits: list[str], as_json: bool) -> None:
    model_spec, data_spec = _specs(model, data)
    chooser = _Chooser(bits, pin)
    from qsearch.export import engineering, significant
    from qsearch.run.reproduce import measure

    found = measure(model_spec, data_spec, chooser, splits, fidelity=fidelity)
    means = found.config.mean_weight_bits(found.layers), found.config.mean_activation_bits(found.layers)
    if as_json:
        print_json(
            {
                "model": model_spec.model_dump(mode="json"),
                "data": data_spec.model_dump(mode="json"),
                "fidelity": fidelity,
                "layers": [
                    {"name": layer.name, "weight_bits": w, "activation_bits": a}
                    for layer, w, a in zip(found.layers, found.config.weights, found.config.activations, strict=True)
                ],
                "mean_weight_bits": means[0],
                "mean_activation_bits": means[1],
                "size_bytes": found.size_bytes,
                "scores": {split: score.to_json() for split, score in found.scores.items()},
                "float_scores": {split: score.to_json() for split, score in found.float_scores.items()},
            }
        )
        return
    factor, unit = engineering([found.size_bytes], "B")
    facts = {
        "configuration": f"{bits}: mean {means[0]:.2f} bits weights, {means[1]:.2f} bits inputs, "
        f"{significant(found.size_bytes / factor)} {unit}",
        "scored by": fidelity,
    }
    for split, score in found.scores.items():
        exact = found.float_scores[split].accuracy
        facts[split] = f"{score.accuracy:.4f} % ({score.correct} of {score.samples}); float32 {exact:.4f} %"
    print_facts(facts)


def _specs(model: str, data: str) -> tuple[ModelSpec, DataSpec]:
    """Reads the two options as a study file would."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from qsearch.errors import SpecError
    from qsearch.spec import spec_from_mapping

    values: dict[str, Any] = {}
    for name, text in (("model", model), ("data", data)):
        try:
            values[name] = YAML(typ="safe", pure=True).load(text) if text.lstrip().startswith("{") else text
        except YAMLError as error:
            raise SpecError(
                f"--{name} {text!r} is not YAML", "write --model '{source: NAME, weights: FILE}'"
            ) from error
    spec = spec_from_mapping({"study": {"name": "evaluate"}, **values}, "command line")
    return spec.model, spec.data


class _Chooser:
    """Gives the widths that ``--bits`` asks for, once the network is known.

    Args:
        bits: ``wXaY``, or the path of an exported configuration or of ``{"w": [...], "a": [...]}``.
        pin: Keep the first and the last layer of ``wXaY`` at 8 bits.

    Raises:
        ExportError: Neither, or the file is wrong.
    """

    def __init__(self, bits: str, pin: bool) -> None:
        from qsearch.errors import ExportError
        from qsearch.export import parse_configuration

        self._pin = pin
        self._uniform = _UNIFORM.fullmatch(bits)
        if self._uniform is not None:
            return
        try:
            text = Path(bits).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(
                f"--bits {bits!r} is neither like w4a8 nor a file that can be read",
                "write w4a8 for 4-bit weights and 8-bit activations, or name an exported configuration",
            ) from error
        self._plain = _plain_bits(text)
        self._configuration = None if self._plain is not None else parse_configuration(text, bits)

    def __call__(self, graph: QuantGraph) -> BitConfig:
        from qsearch.run.reproduce import uniform_config
        from qsearch.spec import PinSpec

        if self._uniform is not None:
            weights, activations = map(int, self._uniform.groups())
            pins = PinSpec() if self._pin else PinSpec(first=None, last=None)
            return uniform_config(graph, weights, activations, pins)
        if self._configuration is not None:
            return self._configuration.to_bit_config(graph.layers)
        return self._plain  # type: ignore[return-value]  # one of the three is there


def _plain_bits(text: str) -> BitConfig | None:
    """Reads ``{"w": [...], "a": [...]}``; None if the text is something else."""
    from qsearch.errors import ExportError
    from qsearch.types import BitConfig

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"w", "a"}:
        return None
    try:
        return BitConfig.from_json(value)
    except (TypeError, ValueError) as error:
        raise ExportError(f"the widths cannot be read: {error}", "give two lists of integers of one length") from error
