"""Traces: what a real collector receives over HTTP, and that nothing is sent unless an endpoint is set."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tiny_model import grey_images, npz_of, publish_version

from service.api import tracing
from service.app import create_app
from service.auth import ensure_admin_key
from service.settings import Settings
from tests.service.live import serving
from tests.service.migrated import migrated

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Any] = []
        self.services: set[str] = set()


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in sent.resource_spans:
            self.server.services |= {
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            }
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path, serving_threads=1).resolved()
    return migrated(settings)


def test_a_collector_receives_a_span_for_each_request(collector: Collector, settings: Settings) -> None:
    app = create_app(settings)
    publish_version(app.state.database, app.state.storage, "signs")
    environ = {tracing.ENDPOINT: f"http://127.0.0.1:{collector.server_address[1]}", tracing.SERVICE_NAME: "w"}
    provider = tracing.install(app, environ)
    assert provider is not None
    key = ensure_admin_key(settings)
    with serving(app, key=key) as client:
        parent = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        client.post("/v1/models/signs/predict?alpha=0.1", content=npz_of(grey_images(3)), headers=parent)
        client.get("/v1/jobs/none")
    provider.shutdown()
    assert collector.services == {"w"}
    spans = {span.name: {a.key: a.value for a in span.attributes} for span in collector.spans}
    predicted = spans["POST /v1/models/{reference}/predict"]
    assert predicted["winnow.model"].string_value == "signs@1"
    assert predicted["winnow.images"].int_value == predicted["winnow.abstained"].int_value == 3
    assert predicted["winnow.computed_seconds"].double_value > 0
    assert predicted["http.response.status_code"].int_value == 200
    assert spans["GET /v1/jobs/{job_id}"]["http.response.status_code"].int_value == 404
    assert {span.trace_id.hex() for span in collector.spans if span.name.startswith("POST")} == {TRACE}
    assert key not in str(collector.spans)


def test_without_an_endpoint_nothing_is_traced_nor_loaded(settings: Settings) -> None:
    assert tracing.install(create_app(settings), {}) is None
    script = "import sys, service.app; print('opentelemetry.exporter.otlp.proto.http' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
