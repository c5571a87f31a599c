"""Traces of requests by OpenTelemetry: only where an endpoint is set and the extra `otel` is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from starlette import types
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Send

from service.api.inference.express import Gateway
from service.serving.answers import Observed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
SERVICE_NAME = "OTEL_SERVICE_NAME"

log = structlog.get_logger()


def install(app: Gateway, environ: Mapping[str, str]) -> TracerProvider | None:
    """Trace every request of `app`, before it is started. None where no endpoint is set or the extra is missing."""
    url = environ.get(TRACES_ENDPOINT) or environ.get(ENDPOINT, "")
    if not url:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(f"{ENDPOINT} is set, and nothing is traced: pip install 'winnow[otel]'")
        return None
    endpoint = environ.get(TRACES_ENDPOINT) or f"{url.rstrip('/')}/v1/traces"
    name = environ.get(SERVICE_NAME, "winnow-gateway")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    app.express = False  # past the layers there are no spans
    app.add_middleware(Traced, tracer=provider.get_tracer("winnow"))
    app.state.engine.watchers.append(note_inference)
    return provider


class Traced:
    """One span a request, a child of the caller's where it sends `traceparent`. No body, query or key is told."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: types.Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        attributes = {"http.request.method": scope["method"]}
        with self._tracer.start_as_current_span(
            scope["method"], parent, kind=SpanKind.SERVER, attributes=attributes
        ) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            try:
                await self._app(scope, receive, noted)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)
                span.set_attribute("winnow.request_id", scope.get("state", {}).get("request_id", ""))


def note_inference(observed: Observed) -> None:
    """A watcher of the engine: what the present span is about."""
    from opentelemetry.trace import get_current_span

    answers = observed.answers
    get_current_span().set_attributes(
        {
            "winnow.model": answers.model,
            "winnow.images": len(answers),
            "winnow.abstained": int(answers.abstained.sum()),
            "winnow.queued_seconds": answers.timing.queued_s,
            "winnow.computed_seconds": answers.timing.computed_s,
        }
    )
