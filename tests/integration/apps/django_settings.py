"""Django settings with this pool's, given by the environment."""

import os

from apps.base import batching

SECRET_KEY = "test"
INSTALLED_APPS = []
DATABASES = {}
USE_TZ = True
CELERY_BROKER_URL = os.environ["ASYNCPOOL_TEST_BROKER"]
CELERY_RESULT_BACKEND = os.environ["ASYNCPOOL_TEST_BACKEND"]
CELERY_ASYNCPOOL_REDIS_BATCHING = batching()
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("ASYNCPOOL_TEST_QUEUE", "celery")
for setting in filter(None, os.environ.get("DJANGO", "").split("; ")):
    name, _, value = setting.partition("=")
    globals()[name] = eval(value)
