"""Settings that nobody reads: named when the worker starts.

A misspelt setting is as good as none, and Celery keeps it without a word. It is
no reason not to start: the same configuration may serve a release that knows
the setting and one, rolled back to, that does not yet.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from celery.utils.log import get_logger

from .settings import NAMES

__all__ = ["tell_of_unknown_settings"]

logger = get_logger(__name__)

PREFIX = "asyncpool_"

#: Prefixes in front of ours that people write, whether Celery looks for them or not.
NAMESPACES = ("", "celery_")


def tell_of_unknown_settings(conf: Any) -> None:
    """Name in the log, as errors, the settings of *conf* that look like ours and are not."""
    conf.finalize()  # the app may have put off reading its configuration
    namespace = (conf.prefix or "").lower()
    known = _spellings(conf)
    for key in sorted(set(_keys_like_ours(conf, namespace)) - known.keys()):
        logger.error(
            "%s is no setting of celery_asyncpool and has no effect; did you mean %s?",
            key,
            _nearest(key, namespace, known),
        )


def _spellings(conf: Any) -> dict[str, str]:
    """Each key under which Celery finds one of our settings, and the setting's name."""
    spellings = {name: name for name in NAMES}
    if conf.prefix:
        for name in NAMES:
            key = conf.prefix + name
            spellings[key.upper() if conf.prefix.isupper() else key.lower()] = name
    return spellings


def _keys_like_ours(conf: Any, namespace: str) -> Iterator[str]:
    for settings in conf.maps[:-1]:  # the last ones are Celery's defaults
        for key in settings:
            if isinstance(key, str) and _own_name(key, namespace) and _is_value(settings, key):
                yield key


def _own_name(key: str, namespace: str) -> str | None:
    """Return what *key* calls a setting of ours, in small letters; None: it is another's."""
    lower = key.lower()
    for prefix in {namespace, *NAMESPACES}:
        if lower.startswith(prefix + PREFIX):
            return lower.removeprefix(prefix)
    return None


def _is_value(settings: Mapping[str, Any], key: str) -> bool:
    """Whether it is a setting: a module of settings also has what it has imported."""
    value = settings[key]
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, Mapping))


def _nearest(key: str, namespace: str, known: dict[str, str]) -> str:
    """Return the known setting that *key* resembles most, as one would write it there."""
    own = _own_name(key, namespace) or key
    [name] = difflib.get_close_matches(own, NAMES, n=1, cutoff=0.0)
    if not namespace or not (key.isupper() or key.lower().startswith(namespace)):
        return name
    return next(spelling for spelling, its in known.items() if its == name != spelling)
