"""Django's test runner, eager calls and the worker for tests: README.md's project as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"

#: The rest of the project.
FILES = {
    "proj/__init__.py": "",
    "proj/celery.py": """
from celery import Celery

app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "proj/settings.py": """
from pathlib import Path

SECRET_KEY = "test"
USE_TZ = True
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
FOLDER = Path(__file__).parent
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "db.sqlite3",
        "OPTIONS": {"timeout": 60},
        "TEST": {"NAME": FOLDER / "test.sqlite3"},
    }
}
CELERY_BROKER_URL = "redis://127.0.0.1:1"
CELERY_RESULT_BACKEND = "redis://127.0.0.1:1"
""",
    "shop/__init__.py": "",
    "shop/models.py": """
from django.db import models

class Order(models.Model):
    price = models.IntegerField()
    is_paid = models.BooleanField(default=False)
""",
}

#: More than README.md has, in the same project.
MORE_TESTS = '''
import asyncio
import gc
import threading
import unittest
import warnings

from asgiref.sync import sync_to_async
from celery import shared_task
from celery_asyncpool import eager
from celery_asyncpool.testing import start_worker
from django.db import connection
from django.test import TestCase, TransactionTestCase

from proj.celery import app
from shop.models import Order
from shop.tasks import pay, turnover

eager.install()


@shared_task(bind=True)
async def count(self):
    """Fails at first, on the ORM's connection; counts then."""
    found = await Order.objects.acount()
    if not self.request.retries:
        raise self.retry(countdown=0)
    return found


@shared_task
async def ident():
    return await sync_to_async(threading.get_ident)()


class EagerTest(TestCase):
    """In each, the body sees what the test's transaction has written."""

    @classmethod
    def setUpTestData(cls):
        Order.objects.create(price=3)

    def test_plain(self):
        self.assertEqual(count.apply().get(), 1)

    def test_always_eager(self):
        self.addCleanup(setattr, app.conf, "task_always_eager", False)
        app.conf.task_always_eager = True
        self.assertEqual(count.delay().get(), 1)

    async def test_called_on_a_loop(self):
        self.assertEqual(count.apply().get(), 0)  # on a connection of its own, which it closes

    async def test_awaited(self):
        self.assertEqual((await eager.call(count.apply)).get(), 1)

    def test_body_uses_the_thread_of_the_test(self):
        self.assertEqual(ident.apply().get(), threading.get_ident())

    def test_connection_of_the_test_stays_open(self):
        count.apply()
        self.assertIsNotNone(connection.connection)


class WorkerTest(TransactionTestCase):
    def test_many(self):
        Order.objects.bulk_create([Order(price=n) for n in range(20)])
        pks = [order.pk for order in Order.objects.all()]
        threads = set(threading.enumerate())
        with start_worker(app):
            results = [turnover.delay() for _ in range(50)]
            self.assertEqual(pay.delay(pks).get(timeout=60), 20)
            for result in results:
                self.assertIn(result.get(timeout=60), [0, 190])
            self.assertEqual(turnover.delay().get(timeout=60), 190)
        self.assertEqual(set(threading.enumerate()) - threads, set())
'''


def test_readme_as_it_is_written_and_more(tmp_path):
    """Eager bodies share the test's transaction; the worker has connections that it closes."""
    files = dict(FILES)
    for name in ("shop/tasks.py", "shop/tests.py"):
        [code] = re.findall(rf"```python\n(# {name}\n.*?)```", README.read_text(), re.DOTALL)
        files[name] = code
    files["shop/test_more.py"] = MORE_TESTS
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)

    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", "test", "-v2", "-p", "test*.py", "shop"],
        cwd=tmp_path,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("CELERY")},
            "DJANGO_SETTINGS_MODULE": "proj.settings",
            "PYTHONPATH": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 10 tests" in done.stderr, done.stderr
    for word in ("ResourceWarning", "RuntimeWarning", "Exception ignored"):
        assert word not in done.stderr, done.stderr
