"""Chromium for the tests with a browser: where it is, and how it is to be started."""

from __future__ import annotations

import os
import shlex
import shutil

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

#: No display, no sandbox where there is none for root, and nothing but this machine:
#: no update, no sync, no name but those of the loopback.
ARGUMENTS = (
    *(("--no-sandbox",) if os.geteuid() == 0 else ()),
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-client-side-phishing-detection",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def find() -> str | None:
    """Return the path of the browser, None where there is none."""
    found = (shutil.which(program) for program in PROGRAMS)
    return next((path for path in found if path is not None), None)


def environment(path: str) -> dict[str, str]:
    """What the apps of the tests, and the README's, read to find it and to start it.

    Playwright never downloads browsers by itself; this says so to its installer, too.
    """
    return {
        "CHROMIUM": path,
        "CHROMIUM_ARGS": shlex.join(ARGUMENTS),
        "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1",
    }
