"""The settings; the environment says which database, and more."""

import json
import os

from apps.base import batching

SECRET_KEY = "test"
USE_TZ = True
INSTALLED_APPS = ["apps.django_project", "django_celery_results"]
if os.environ.get("DJANGO_STRUCTLOG"):
    INSTALLED_APPS += ["django_structlog", "apps.structlog_tasks"]
    DJANGO_STRUCTLOG_CELERY_ENABLED = True
    MIDDLEWARE = ["django_structlog.middlewares.RequestMiddleware"]
if os.environ.get("DJANGO_BEAT"):
    INSTALLED_APPS += ["django_celery_beat", "apps.periodic_tasks"]
    CELERY_BEAT_MAX_LOOP_INTERVAL = 0.5
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": json.loads(os.environ["DJANGO_DATABASE"])}
CELERY_BROKER_URL = os.environ["ASYNCPOOL_TEST_BROKER"]
CELERY_RESULT_BACKEND = os.environ.get("DJANGO_RESULTS", os.environ["ASYNCPOOL_TEST_BACKEND"])
CELERY_ASYNCPOOL_REDIS_BATCHING = batching()
CELERY_TASK_DEFAULT_QUEUE = os.environ["ASYNCPOOL_TEST_QUEUE"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_PROC_ALIVE_TIMEOUT = 60
