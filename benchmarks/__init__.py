"""How fast the pool is, next to Celery's own: ``python -m benchmarks``."""
