"""A `celery` program beside a worker: beat, flower."""

import signal
import subprocess
import sys
import uuid

from worker import HERE, PATIENCE, wait_for


class Program:
    """``celery -A <the worker's app> <command>``, with the worker's environment.

    Use it as a context manager, within the worker's: at the end it is stopped with
    SIGTERM, and must exit with one of *exit_codes*.
    """

    def __init__(self, worker, *command, env=None, exit_codes=(0,)):
        self.command = [sys.executable, "-m", "celery", "-A", worker.module, *map(str, command)]
        self.environment = {**worker.environment, **(env or {})}
        self.log_path = worker.log_path.with_name(f"{command[0]}-{uuid.uuid4().hex[:6]}.log")
        self.process = None
        self._exit_codes = exit_codes

    def __enter__(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, exc_type, exc, traceback):
        try:
            if exc is not None:
                exc.add_note(f"the end of the log of {self.log_path.stem}:\n{self.tail()}")
            elif self.process.poll() is None:
                self.stop()
        finally:
            self.kill()

    def stop(self):
        """Stop it with SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        assert code in self._exit_codes, f"exit code {code}:\n{self.tail()}"

    def kill(self):
        """End it at once."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def wait_log(self, text):
        wait_for(lambda: text in self.log(), lambda: f"{text!r} in the log:\n{self.tail()}")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def tail(self):
        return "\n".join(self.log().splitlines()[-60:])
