"""OpenTelemetry as its pages show it; the exporters send rarely, and record what they send."""

import asyncio
import logging

from celery.signals import worker_process_init
from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, ConsoleLogExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from .base import configure, make_app
from .recording import record

app = make_app("otel")
configure(app, "OTEL_CONF")

#: Milliseconds: longer than any test.
RARELY = 3_600_000


class SpanRecorder(SpanExporter):
    def export(self, spans):
        for span in spans:
            parent = span.parent.span_id if span.parent is not None else None
            own = span.context
            record("span", name=span.name, trace=own.trace_id, span=own.span_id, parent=parent)
        return SpanExportResult.SUCCESS


class MetricRecorder(ConsoleMetricExporter):
    def export(self, metrics_data, **kwargs):
        for resource in metrics_data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    [point] = metric.data.data_points
                    record("metric", name=metric.name, value=point.value)
        return MetricExportResult.SUCCESS


class LogRecorder(ConsoleLogExporter):
    def export(self, batch):
        for data in batch:
            record("log", body=data.log_record.body)


@worker_process_init.connect(weak=False)
def init_tracing(**kwargs):
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(
        BatchSpanProcessor(SpanRecorder(), schedule_delay_millis=RARELY)
    )
    reader = PeriodicExportingMetricReader(MetricRecorder(), export_interval_millis=RARELY)
    metrics.set_meter_provider(MeterProvider([reader]))
    logs = LoggerProvider()
    logs.add_log_record_processor(
        BatchLogRecordProcessor(LogRecorder(), schedule_delay_millis=RARELY)
    )
    set_logger_provider(logs)
    logging.getLogger("told").addHandler(LoggingHandler(logger_provider=logs))
    CeleryInstrumentor().instrument()


async def _work(number):
    tracer = trace.get_tracer("apps.otel")
    with tracer.start_as_current_span(f"inner {number}"):
        await asyncio.sleep(0.01)
    metrics.get_meter("apps.otel").create_counter("done").add(1)
    logging.getLogger("told").warning("told %s", number)
    return number


@app.task
async def async_work(number):
    return await _work(number)


@app.task
def def_work(number):
    tracer = trace.get_tracer("apps.otel")
    with tracer.start_as_current_span(f"inner {number}"):
        return number


@app.task(bind=True)
async def waits(self):
    record("started", id=self.request.id)
    await asyncio.sleep(600)


@app.task(bind=True, max_retries=None)
async def async_again(self, times):
    await asyncio.sleep(0)
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return times


@app.task(bind=True, max_retries=None)
def def_again(self, times):
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return times


@app.task(max_retries=None, autoretry_for=(KeyError,), default_retry_delay=0, bind=True)
async def auto_again(self, times):
    if self.request.retries < times:
        raise KeyError("again")
    return times
