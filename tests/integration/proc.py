"""What /proc tells of processes that the tests have not started themselves."""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One process, dead ones that nobody has waited for included."""

    pid: int
    name: str
    state: str
    parent: int

    @property
    def is_zombie(self):
        return self.state == "Z"

    @property
    def program(self):
        """The name of the program that it runs; empty when it has died."""
        try:
            return os.path.basename(os.readlink(PROC / str(self.pid) / "exe"))
        except OSError:
            return ""

    @property
    def command(self):
        """Its command line; empty when it has gone."""
        try:
            return (PROC / str(self.pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            return ""


def look(pid):
    """The process *pid*, None when it has gone."""
    try:
        before, _, after = (PROC / str(pid) / "stat").read_text().rpartition(")")
    except OSError:
        return None
    state, parent = after.split()[:2]
    return Process(int(pid), before.partition("(")[2], state, int(parent))


def processes():
    """All processes of the machine."""
    found = (look(name) for name in os.listdir(PROC) if name.isdecimal())
    return [process for process in found if process is not None]


def zombies_of(parents):
    """Dead children of *parents* that these have not waited for."""
    return [process for process in processes() if process.is_zombie and process.parent in parents]
