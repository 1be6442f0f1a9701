"""Random tasks under random faults, for minutes: python -m tests.soak --minutes 10

Exits with 1 and a list of what is wrong if a task was lost or doubled, or
anything was leaked. All tasks have acks_late and reject_on_worker_lost, and
asyncpool_max_crashes is out of reach: with the default, tasks fail for good that
happened to be in three processes that the faults killed. The seed makes tasks
and faults the same again, though not what they meet. The connection to Redis as
a broker is not cut while there is something to do, since kombu loses the
messages that are on their way then.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from .report import report
from .run import Outcome, Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--broker", choices=("rabbitmq", "redis"), default="rabbitmq")
    parser.add_argument("--keep", action="store_true", help="keep the log if all is well, too")
    arguments = parser.parse_args()

    # So that it is stopped in good order, with all that it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix=f"soak-{arguments.seed}-"))
    print(
        f"soak: seed {arguments.seed}, {arguments.minutes:g} minutes, {arguments.broker}",
        flush=True,
    )
    try:
        outcome = Soak(
            arguments.seed,
            arguments.minutes,
            arguments.broker,
            folder,
            lambda line: print(f"  {line}", flush=True),
        ).run()
    except BaseException:
        print(f"the worker's log and its record are in {folder}", flush=True)
        raise
    return conclude(outcome, arguments.seed, arguments.keep)


def conclude(outcome: Outcome, seed: int, keep: bool) -> int:
    """Print what has come of it, with all that is wrong; return the exit code.

    The folder goes if nothing is wrong, unless it is to be kept.
    """
    print(report(outcome, seed), flush=True)
    if findings := outcome.verdict.findings:
        (outcome.folder / "findings.txt").write_text("\n".join(map(str, findings)) + "\n")
        print(f"the worker's log, its record and findings.txt are in {outcome.folder}", flush=True)
        return 1
    if not keep:
        shutil.rmtree(outcome.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
