"""celery_asyncpool/child/raising.py: a thread finds what was raised in it, and tracing goes on."""

import subprocess
import sys
import textwrap

import pytest

#: Each ends by itself; where tracing stands still, it never does.
SCRIPTS = {
    "taken back": """
        raise_in_thread(blocked.ident, KeyError)
        take_back(blocked.ident)
        traced()
        gate.set()
        blocked.join()
        assert found == [None], found
        """,
    "on its way": """
        raise_in_thread(blocked.ident, KeyError)
        traced()
        gate.set()
        blocked.join()
        assert found == [KeyError], found
        """,
    "found": """
        raise_in_thread(blocked.ident, KeyError)
        gate.set()
        blocked.join()
        traced()
        assert found == [KeyError], found
        """,
    "the second of two": """
        raise_in_thread(blocked.ident, KeyError)
        raise_in_thread(blocked.ident, IndexError)
        traced()
        gate.set()
        blocked.join()
        assert found == [IndexError], found
        """,
}

FRAME = """
    import sys, threading, cProfile
    from celery_asyncpool.child.raising import raise_in_thread, take_back

    gate, waiting, found = threading.Event(), threading.Event(), []

    def wait():
        try:
            waiting.set()
            gate.wait()
            for _ in range(1000):
                pass
            found.append(None)
        except BaseException as exc:
            found.append(type(exc))

    def call():
        return [str(n) for n in range(100)]

    def traced():
        lines = []
        def trace(frame, event, arg):
            lines.append(event)
            return trace
        sys.settrace(trace)
        call()
        sys.settrace(None)
        assert "line" in lines
        with cProfile.Profile() as profile:
            call()
        assert profile.getstats()

    blocked = threading.Thread(target=wait)
    blocked.start()
    waiting.wait()
    """


@pytest.mark.parametrize("case", SCRIPTS)
def test_tracing_beside_it(case):
    """The exception arrives, or does not, as it should; a traced thread runs on meanwhile."""
    script = textwrap.dedent(FRAME) + textwrap.dedent(SCRIPTS[case])

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
