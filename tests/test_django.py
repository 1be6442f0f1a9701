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

#: Django's own test runner, where there is no pytest.
RUN = """
import sys

sys.modules["pytest"] = sys.modules["_pytest"] = None
from django.core.management import execute_from_command_line

execute_from_command_line()
"""

#: More than README.md has, in the same project.
MORE_TESTS = '''
import asyncio
import gc
import threading
import time
import unittest
import warnings
from contextlib import suppress

from asgiref.sync import sync_to_async
from celery import shared_task
from celery_asyncpool import AsyncTask, eager
from celery_asyncpool.testing import start_worker
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
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


@app.task(base=AsyncTask, bind=True)
async def write(self, price):
    await Order.objects.acreate(price=price)


@app.task(base=AsyncTask, bind=True)
async def order_and_write(self, price):
    """Publishes in a transaction, outside of one, and in one that is rolled back."""
    await sync_to_async(self.order_in_transaction)(price)
    await write.adelay_on_commit(price + 1)
    await write.aapply_async_on_commit([price + 2], countdown=0)
    with suppress(ZeroDivisionError):
        await sync_to_async(self.order_in_vain)(price + 3)


class Orders:
    @transaction.atomic
    def order_in_transaction(self, price):
        write.delay_on_commit(price)
        write.apply_async_on_commit([price])
        assert not Order.objects.filter(price=price).exists()

    @transaction.atomic
    def order_in_vain(self, price):
        write.delay_on_commit(price)
        1 / 0


order_and_write.order_in_transaction = Orders().order_in_transaction
order_and_write.order_in_vain = Orders().order_in_vain


class OnCommitTest(TestCase):
    """An AsyncTask publishes on commit, as DjangoTask does."""

    def setUp(self):
        self.addCleanup(setattr, app.conf, "task_always_eager", False)
        app.conf.task_always_eager = True

    def test_sync(self):
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            write.delay_on_commit(7)
            self.assertFalse(Order.objects.exists())
        self.assertEqual(len(callbacks), 1)
        self.assertEqual(Order.objects.get().price, 7)

    async def test_async_waits_for_the_surrounding_transaction(self):
        await write.adelay_on_commit(7)
        await write.aapply_async_on_commit([8])
        self.assertFalse(await Order.objects.aexists())

    async def test_sync_call_on_a_loop_names_the_async_one(self):
        with self.assertRaisesRegex(SynchronousOnlyOperation, "adelay_on_commit"):
            write.delay_on_commit(7)


class WorkerTest(TransactionTestCase):
    def test_on_commit(self):
        with start_worker(app):
            order_and_write.delay(10).get(timeout=60)
            deadline = time.monotonic() + 60
            while Order.objects.count() < 4 and time.monotonic() < deadline:
                time.sleep(0.02)
        prices = sorted(order.price for order in Order.objects.all())
        self.assertEqual(prices, [10, 10, 11, 12])

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
        [sys.executable, "-W", "error", "-c", RUN, "test", "-v2", "-p", "test*.py", "shop"],
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
    assert "Ran 14 tests" in done.stderr, done.stderr
    for word in ("ResourceWarning", "RuntimeWarning", "Exception ignored"):
        assert word not in done.stderr, done.stderr
