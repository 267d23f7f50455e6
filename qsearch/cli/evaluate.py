"""``qsearch evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from qsearch.cli.options import AsJson
from qsearch.cli.output import DIFFERENT, print_facts, print_json
from qsearch.cli.specs import read_specs


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
        str | None,
        typer.Option(
            metavar="FILE|wXaY",
            help="Exported configuration, or one width for all weights and one for all activations; 32 leaves them "
            "float.",
        ),
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin/--no-pin", help="With wXaY: keep the first and the last layer at 8 bits.")
    ] = True,
    fidelity: Annotated[str | None, typer.Option(help="With --model: the evaluator.", show_default="ptq")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the evaluator; may be repeated."),
    ] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(metavar="MAPPING", help="With --model: as in a study file, such as '{weights: {grid: affine}}'."),
    ] = None,
    split: Annotated[
        list[Split] | None,
        typer.Option(help="With --model: where to score; may be repeated.", show_default="both"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --model: seed.", show_default="0")] = None,
    device: Annotated[
        str | None, typer.Option(help="With --model: cpu, cuda, cuda:N or auto.", show_default="cpu")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="With --model: CPU threads; part of what a score depends on.", show_default="1"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a bit configuration.

    With FILE, an exported configuration is scored exactly as it was in its study; the exit code is 1 if an accuracy
    differs from the recorded one. With --model, --data and --bits, any configuration is scored on any network; the
    result has the error of every layer, time, memory and all conventions in force.

    Examples: [cyan]qsearch evaluate front/configs/point-0007.json[/cyan];
    [cyan]qsearch evaluate --model qsearch:digits_resnet --data qsearch:digits --bits w4a8 --fidelity brecq -o
    preset=bank[/cyan]
    """
    others = {"--model": model, "--data": data, "--bits": bits}
    if file is not None:
        optional: dict[str, Any] = {"--fidelity": fidelity, "--option": option or None, "--quantizer": quantizer}
        optional |= {"--split": split or None, "--seed": seed, "--device": device, "--threads": threads}
        given = [name for name, value in {**others, **optional}.items() if value is not None]
        if given or not pin:
            raise typer.BadParameter(
                f"{given[0] if given else '--no-pin'} cannot be given with FILE, which says it all"
            )
        _again(file, as_json)
        return
    missing = [name for name, value in others.items() if value is None]
    if missing:
        raise typer.BadParameter(f"give FILE, or --model, --data and --bits ({' and '.join(missing)} missing)")
    report = _measure(
        *(str(value) for value in others.values()),
        pin=pin,
        fidelity=fidelity or "ptq",
        options=option or [],
        quantizer=quantizer,
        splits=list(dict.fromkeys(one.value for one in split or list(Split))),
        settings={"seed": seed or 0, "device": device or "cpu", "threads": threads or 1},
    )
    if as_json:
        print_json(report)
        return
    from qsearch.cli.evaluation import print_report

    print_report(report, str(bits))


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


def _measure(
    model: str,
    data: str,
    bits: str,
    *,
    pin: bool,
    fidelity: str,
    options: list[str],
    quantizer: str | None,
    splits: list[str],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Scores any configuration; everything that can be wrong on the command line is found before torch is loaded."""
    from qsearch.cli.bits import BitsChooser
    from qsearch.cli.quantizer_options import read_quantizer

    model_spec, data_spec = read_specs(model, data)
    quantizer_spec, values = read_quantizer(quantizer, fidelity, options)
    chooser = BitsChooser(bits, pin)
    from qsearch.run.reproduce import measure

    return measure(
        model_spec, data_spec, chooser, splits, quantizer=quantizer_spec, fidelity=fidelity, options=values, **settings
    )
