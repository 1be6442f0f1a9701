"""An app that New Relic's agent watches, in its developer mode: it sends nothing anywhere."""

import asyncio

from newrelic import agent
from newrelic.core import agent as core
from newrelic.core.config import global_settings

settings = global_settings()
settings.developer_mode = True
settings.app_name = "celery_asyncpool"
agent.initialize()

from celery import signals  # noqa: E402 (after the agent, which hooks imports)

from .base import make_app  # noqa: E402
from .recording import record  # noqa: E402

app = make_app("watched")

record_transaction = core.Agent.record_transaction


def record_too(self, name, data):
    attributes = {attribute.name: attribute.value for attribute in data.user_attributes}
    record("transaction", path=data.path, guid=data.guid, attributes=attributes)
    return record_transaction(self, name, data)


core.Agent.record_transaction = record_too


@signals.worker_process_init.connect(weak=False)
def register(**kwargs):
    agent.register_application(timeout=30)


@app.task
async def async_body(number):
    guids = [agent.current_transaction().guid]
    agent.add_custom_attribute("number", number)
    for _ in range(3):
        await asyncio.sleep(0.02)
        guids.append(agent.current_transaction().guid)
    return guids


@app.task
def def_body(number):
    agent.add_custom_attribute("number", number)
    return [agent.current_transaction().guid]
