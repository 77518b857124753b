"""Spans reach an OpenTelemetry collector, as parts of the trace that the client began."""

import json
import threading
import unittest
import urllib.request
from concurrent import futures

import grpc
import numpy
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from served import FASHION, ROOT, Served, eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

PARENT = "00f067aa0ba902b7"
STAGES = {"decode", "preprocess", "queue", "compute", "encode"}
CHAT = {"chat": ROOT / "models" / "chat"}
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

    def span(self, trace_id, name):
        """Returns the span of a trace by its name once it is there."""

        def found():
            with self.lock:
                spans = [s for s in self.spans if s.trace_id.hex() == trace_id and s.name == name]
            return spans[0] if spans else None

        return eventually(found)


class Traced(unittest.TestCase):
    """A server that sends its spans."""

    families = FASHION

    @classmethod
    def setUpClass(cls):
        cls.collector = Collector()
        cls.server = Served(
            "--otlp-endpoint",
            f"http://127.0.0.1:{cls.collector.port}",
            families=cls.families,
            environment={"OTEL_BSP_SCHEDULE_DELAY": "200"},
        )

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.collector.server.stop(None)


class Traces(Traced):
    """Requests of tensors."""

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


def attributes_of(span):
    """Returns the attributes of a span by name."""

    def value(found):
        if found.HasField("array_value"):
            return [value(one) for one in found.array_value.values]
        return getattr(found, found.WhichOneof("value"))

    return {attribute.key: value(attribute.value) for attribute in span.attributes}


class Generation(Traced):
    """Requests for text: spans have the attributes of OpenTelemetry's `gen_ai`, and no text."""

    families = CHAT

    def ask(self, trace_id, path, body):
        """Sends a request as a part of a trace, and reads the answer."""
        url = f"http://{self.server.http_address}{path}"
        headers = {"traceparent": f"00-{trace_id}-{PARENT}-01"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def check(self, span, expected):
        """Checks the attributes of a span, and that no attribute has a text of the request."""
        attributes = attributes_of(span)
        told = {name: value for name, value in attributes.items() if name.startswith("gen_ai.")}
        told.pop("gen_ai.usage.cache_read.input_tokens")
        always = {
            "gen_ai.provider.name": "tessera",
            "gen_ai.request.model": "chat",
            "gen_ai.response.model": "chat",
        }
        self.assertEqual(told, always | expected)
        self.assertTrue(attributes["plan"])
        for value in attributes.values():
            self.assertNotIn("France", str(value))
            self.assertNotIn("Paris", str(value))

    def test_a_chat(self):
        trace_id = "5bf92f3577b34da6a3ce929d0e0e4736"
        body = {
            "model": "chat",
            "messages": [{"role": "user", "content": "Name the capital of France in a sentence."}],
            "temperature": 0,
            "top_p": 0.7,
            "top_k": 40,
            "seed": 7,
            "max_tokens": 24,
            "stream": True,
        }
        self.ask(trace_id, "/v1/chat/completions", body)
        span = self.collector.span(trace_id, "POST /v1/chat/completions")
        expected = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.max_tokens": 24,
            "gen_ai.request.temperature": 0.0,
            "gen_ai.request.top_p": 0.7,
            "gen_ai.request.top_k": 40.0,
            "gen_ai.request.seed": 7,
            "gen_ai.usage.input_tokens": 39,
            "gen_ai.usage.output_tokens": 7,
            "gen_ai.response.finish_reasons": ["stop"],
        }
        self.check(span, expected)

    def test_triton(self):
        trace_id = "6bf92f3577b34da6a3ce929d0e0e4736"
        options = {"max_tokens": 4, "n": 2, "ignore_eos": True}
        body = {"text_input": "The capital of France is", **options}
        self.ask(trace_id, "/v2/models/chat/generate", body)
        span = self.collector.span(trace_id, "POST /v2/models/{model}/generate")
        expected = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.choice.count": 2,
            "gen_ai.request.max_tokens": 4,
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 8,
            "gen_ai.response.finish_reasons": ["length", "length"],
        }
        self.check(span, expected)

    def test_a_message_of_a_stream(self):
        trace_id = "7bf92f3577b34da6a3ce929d0e0e4736"
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="text_input", shape=[1], datatype="BYTES"
        )
        tensor.contents.bytes_contents.append(b"The capital of France is")
        request = service_pb2.ModelInferRequest(model_name="chat", inputs=[tensor])
        request.parameters["max_tokens"].int64_param = 4
        request.parameters["stream"].bool_param = True
        request.parameters["ignore_eos"].bool_param = True
        metadata = [("traceparent", f"00-{trace_id}-{PARENT}-01")]
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answers = list(stub.ModelStreamInfer(iter([request]), metadata=metadata))
        self.assertEqual([answer.error_message for answer in answers], [""] * len(answers))
        span = self.collector.span(trace_id, "message")
        expected = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.max_tokens": 4,
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 4,
            "gen_ai.response.finish_reasons": ["length"],
        }
        self.check(span, expected)


if __name__ == "__main__":
    unittest.main()
