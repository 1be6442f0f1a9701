"""Redis as result backend, with a record of what is stored."""

from celery.backends.redis import RedisBackend

from .recording import record


class RecordingBackend(RedisBackend):
    """Records each state that is stored."""

    def store_result(self, task_id, result, state, *args, **kwargs):
        record("stored", id=task_id, state=state)
        return super().store_result(task_id, result, state, *args, **kwargs)
