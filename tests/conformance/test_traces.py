"""Spans reach an OpenTelemetry collector, as parts of the trace that the client began."""

import json
import threading
import unittest
import urllib.request
from concurrent import futures

import grpc
import numpy
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from served import FASHION, Served, eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

PARENT = "00f067aa0ba902b7"
STAGES = {"decode", "preprocess", "queue", "compute", "encode"}
PIXELS = numpy.zeros((1, 1, 28, 28), numpy.float32)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it gets."""

    def __init__(self):
        self.spans, self.services, self.lock = [], set(), threading.Lock()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(self, request, context):
        with self.lock:
            for resource in request.resource_spans:
                for attribute in resource.resource.attributes:
                    if attribute.key == "service.name":
                        self.services.add(attribute.value.string_value)
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id, count):
        """Returns the spans of a trace by name once there are so many."""

        def found():
            with self.lock:
                spans = {s.name: s for s in self.spans if s.trace_id.hex() == trace_id}
            return spans if len(spans) >= count else None

        return eventually(found)


class Traces(unittest.TestCase):
    """A server that sends its spans."""

    @classmethod
    def setUpClass(cls):
        cls.collector = Collector()
        cls.server = Served(
            "--otlp-endpoint",
            f"http://127.0.0.1:{cls.collector.port}",
            families=FASHION,
            environment={"OTEL_BSP_SCHEDULE_DELAY": "200"},
        )

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.collector.server.stop(None)

    def check(self, trace_id, name):
        """Checks the spans of a trace and returns the attributes of the request's."""
        spans = self.collector.trace(trace_id, len(STAGES) + 1)
        self.assertEqual(set(spans), STAGES | {name})
        request = spans[name]
        self.assertEqual(request.parent_span_id.hex(), PARENT)
        self.assertEqual(request.kind, request.SPAN_KIND_SERVER)
        for stage in STAGES:
            self.assertEqual(spans[stage].parent_span_id, request.span_id)
            self.assertGreaterEqual(spans[stage].start_time_unix_nano, request.start_time_unix_nano)
            self.assertLessEqual(spans[stage].end_time_unix_nano, request.end_time_unix_nano)
        self.assertLess(spans["queue"].start_time_unix_nano, spans["compute"].end_time_unix_nano)
        self.assertIn("tessera", self.collector.services)
        return {a.key: a.value.string_value or a.value.int_value for a in request.attributes}

    def test_over_http(self):
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        tensor = {
            "name": "pixel_values",
            "shape": list(PIXELS.shape),
            "datatype": "FP32",
            "data": PIXELS.ravel().tolist(),
        }
        request = urllib.request.Request(
            f"http://{self.server.http_address}/v2/models/fashion/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            {"traceparent": f"00-{trace_id}-{PARENT}-01", "tracestate": "vendor=1"},
        )
        urllib.request.urlopen(request, timeout=30).read()
        attributes = self.check(trace_id, "POST /v2/models/{model}/infer")
        self.assertEqual(attributes["http.response.status_code"], 200)
        self.assertEqual(attributes["model"], "fashion")
        self.assertTrue(attributes["plan"])

    def test_over_grpc(self):
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="pixel_values", shape=PIXELS.shape, datatype="FP32"
        )
        request = service_pb2.ModelInferRequest(
            model_name="fashion", inputs=[tensor], raw_input_contents=[PIXELS.tobytes()]
        )
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stub.ModelInfer(request, metadata=[("traceparent", f"00-{trace_id}-{PARENT}-01")])
        attributes = self.check(trace_id, "inference.GRPCInferenceService/ModelInfer")
        self.assertEqual(attributes["rpc.method"], "ModelInfer")

    def test_what_is_no_trace_is_ignored(self):
        for header in ["", "00-xyz", "00-" + "0" * 32 + f"-{PARENT}-01", "é", "0" * 5000]:
            url = f"http://{self.server.http_address}/v2"
            request = urllib.request.Request(url, headers={"traceparent": header})
            self.assertEqual(urllib.request.urlopen(request, timeout=30).status, 200)


if __name__ == "__main__":
    unittest.main()
