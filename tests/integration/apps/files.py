"""Tasks that say that they ran, for the tests of files as broker."""

from .base import configure, make_app
from .recording import record

app = make_app("apps.files")
app.conf.worker_send_task_events = False
configure(app, "FILES_CONF")


@app.task(ignore_result=True)
async def note(key):
    record("note", key=key)


@app.task(bind=True, max_retries=50)
async def again(self, key, times):
    """Publish itself from the worker's process, so often."""
    if self.request.retries < times:
        raise self.retry(countdown=0)
    record("note", key=key)
    return key
