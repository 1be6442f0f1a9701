"""Where SIGCHLD is ignored, the system keeps no exit codes: the worker takes that back."""

import pytest
from billiard.exceptions import WorkerLostError


def test_process_that_dies(transport, start_worker):
    """It is replaced, and its job is settled, with the signal that has killed it."""
    with start_worker(transport, "ignoring", "-c", 2, "--processes", 1) as worker:
        before = worker.client.send("pid").get(timeout=60)

        with pytest.raises(WorkerLostError, match="SIGKILL"):
            worker.client.send("die").get(timeout=60)

        assert worker.client.send("pid").get(timeout=60) != before
