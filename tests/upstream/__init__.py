"""Celery's own integration tests, run with this pool: see `__main__.py`."""
