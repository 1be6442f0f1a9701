"""``python -m benchmarks``: each workload through each pool, in turns, on one Redis.

``python -m benchmarks report`` renders the newest results.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from . import options, report
from .session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    args = options.parse(argv)
    if args.command == "report":
        print(report.write(args.results))
        return 0
    session = Session(args)
    session.run()
    print(f"\n{report.summary(session.data)}\n\nwritten to {session.path}")
    return 1 if session.has_errors else 0


if __name__ == "__main__":
    # A benchmark that is ended takes its workers and servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
