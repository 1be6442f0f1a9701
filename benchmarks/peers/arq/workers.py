"""``workers.py PROCESSES SLOTS``: so many arq workers, as a process manager would run them.

arq has one process; its documentation leaves it to the user to start several.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ARQ = Path(sys.executable).with_name("arq")


def main() -> int:
    """Start the workers, pass on what ends them, and wait for all."""
    processes, slots = map(int, sys.argv[1:])
    environment = {**os.environ, "BENCHMARK_SLOTS": str(-(-slots // processes))}
    command = [str(ARQ), "benchmarks.peers.arq.adapter.WorkerSettings"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(processes)]

    def end(signum: int, frame: Any) -> None:
        for worker in workers:
            worker.send_signal(signum)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return max(worker.wait() for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
