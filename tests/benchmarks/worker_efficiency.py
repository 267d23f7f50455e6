"""Worker efficiency: share of the workers' time spent in evaluations, for evaluations of known duration.

    python tests/benchmarks/worker_efficiency.py --seconds 0.05 --workers 2 --evaluations 1200

Prints one line a run. The clock runs from the first lease to the last result (starting Ray and loading the network
are not counted); ``busy`` evaluations compute, the others sleep as a worker that waits for an accelerator does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from qsearch.run.status import Phase, Status
from qsearch.run.study import RunOptions, launch

STUDY = """
study: {{name: efficiency, seed: 0}}
model: qsearch:digits_resnet
data: qsearch:digits
objectives: [error, size]
searcher: random
evaluation: {{fidelity: "qsearch.testing.synthetic:SyntheticEvaluator"}}
fidelities: {{"qsearch.testing.synthetic:SyntheticEvaluator": {{seconds: {seconds}, busy: {busy}}}}}
finalists: {{max: 1}}
budget: {{evaluations: {evaluations}}}
execution: {{workers: {workers}}}
"""


def measure(seconds: float, workers: int, evaluations: int, busy: bool) -> Status:
    """Runs one study and returns the last status of its search phase."""
    last: list[Status] = []

    def listen(status: Status) -> None:
        if status.phase is Phase.SEARCH and status.evaluated:
            last.append(status)

    with tempfile.TemporaryDirectory() as directory:
        study = Path(directory, "study.yaml")
        study.write_text(
            STUDY.format(seconds=seconds, busy=str(busy).lower(), evaluations=evaluations, workers=workers)
        )
        launch(study, Path(directory, "run"), RunOptions(workers=workers), listen)
    return last[-1]


def main() -> None:
    """Parses arguments, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.evaluations} evaluations of {1000 * arguments.seconds:g} ms on {arguments.workers} workers")
    for busy in (False, True):
        for _ in range(arguments.repeats):
            started = time.time()
            status = measure(arguments.seconds, arguments.workers, arguments.evaluations, busy)
            print(
                f"{'busy ' if busy else 'sleep'}  efficiency {status.efficiency:.3f}  "
                f"lease {status.lease_size}  ask {status.ask_ms:.2f} ms  store {status.store_ms:.2f} ms  "
                f"all in {time.time() - started:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
