"""What clients send stands in their answers only: not in logs, traces, metrics or errors.

Every request has marks in the place of texts, tokens, pixels and secrets. Good requests and those
that are refused for any reason are sent over each protocol, while all that can be logged is.
"""

import base64
import concurrent.futures
import gzip
import json
import re
import struct
import tempfile
import threading
import unittest
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from served import Served, eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

SECRET = "a secret of the website, xqmarksecretx"
MARK = "xqmarktextx"
TOKENS = [24681, 24683, 24687]
PIXEL = 0.7236184
# Forms in which the marks might appear.
TRACES = [
    MARK,
    base64.b64encode(MARK.encode()).decode()[:12],
    str(list(MARK.encode()))[1:-1],
    "xqmarksecretx",
    str(TOKENS)[1:10],
    "24681,24683",
    str(PIXEL)[:7],
    "xqmarkpicturex",
]
# Numbers that might be parts of times in a log.
IN_ERRORS = [*map(str, TOKENS), "1099511874586"]


def chunk(kind, content):
    """Returns a chunk of PNG."""
    whole = kind + content
    return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))


def picture(pixels=None):
    """Returns a PNG of 28 × 28 greys, with a mark in its text."""
    pixels = zlib.compress((b"\0" + b"\x80" * 28) * 28) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    mark = chunk(b"tEXt", b"Comment\0xqmarkpicturex")
    return b"\x89PNG\r\n\x1a\n" + head + mark + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tensor(name, shape, datatype, data, **more):
    """Returns an input of JSON."""
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def text(value=MARK, **more):
    """Returns an input of a text."""
    return tensor("text", [1], "BYTES", [value], **more)


def tokens(values=None, **more):
    """Returns an input of token ids."""
    values = values or TOKENS
    return tensor("input_ids", [1, len(values)], "INT64", values, **more)


def pixels(value=PIXEL, **more):
    """Returns an input of pixels."""
    return tensor("pixel_values", [1, 1, 28, 28], "FP32", [value] * 784, **more)


def image(content):
    """Returns an input of an image."""
    return tensor("image", [1], "BYTES", [base64.b64encode(content).decode()])


# Model and body of requests of the Open Inference Protocol, good ones and others.
REQUESTS = [
    ("text", {"inputs": [text()]}),
    ("text", {"inputs": [tokens()]}),
    ("text", {"inputs": [text("word " * 400 + MARK)], "parameters": {"explain": True}}),
    ("fashion", {"inputs": [pixels()]}),
    ("fashion", {"inputs": [image(picture())]}),
    ("fashion", {"inputs": [image(picture(b"xqmarkpicturex"))]}),
    ("fashion", {"inputs": [image(b"xqmarkpicturex")]}),
    ("fashion", {"inputs": [tensor("image", [1], "BYTES", [MARK + "!"])]}),
    ("fashion", {"inputs": [tensor("image", [1], "BYTES", [PIXEL])]}),
    ("fashion", {"inputs": [pixels(1e300)]}),
    ("fashion", {"inputs": [pixels(MARK)]}),
    ("fashion", {"inputs": [tensor("pixel_values", [1, 1, 28, 27], "FP32", [PIXEL] * 756)]}),
    ("text", {"inputs": [text(), text()]}),
    ("text", {"inputs": [text(), tokens()]}),
    ("text", {"inputs": [text(unknown=MARK)]}),
    ("text", {"inputs": [text(parameters={"binary_data_size": 5})]}),
    ("text", {"inputs": [tensor("other", [1], "BYTES", [MARK])]}),
    ("text", {"inputs": [tensor("text", [2], "BYTES", [MARK])]}),
    ("text", {"inputs": [tensor("text", [1, 1, 1], "BYTES", [MARK])]}),
    ("text", {"inputs": [tensor("text", [1], "INT64", [MARK])]}),
    ("text", {"inputs": [tensor("text", [1], "BYTES", TOKENS[:1])]}),
    ("text", {"inputs": [tensor("text", [2], "BYTES", [MARK, TOKENS[0]])]}),
    ("text", {"inputs": [tensor("text", [1], "BYTES", MARK)]}),
    ("text", {"inputs": [tensor("text", [1], "BYTES", [{MARK: MARK}])]}),
    ("text", {"inputs": [tensor("text", MARK, "BYTES", [MARK])]}),
    ("text", {"inputs": [tokens([2**40 + 246810])]}),
    ("text", {"inputs": [tensor("input_ids", [1, 1], "INT8", TOKENS[:1])]}),
    ("text", {"inputs": [tensor("input_ids", [1, 1], "INT64", [MARK])]}),
    ("text", {"inputs": [tensor("input_ids", [1, 1], "INT64", [PIXEL])]}),
    ("text", {"inputs": [tokens(TOKENS * 1000)]}),
    ("text", {"inputs": [tokens(), tensor("attention_mask", [1, 3], "INT64", TOKENS)]}),
    ("text", {"inputs": [text(MARK * 200000)]}),
    ("text", {"inputs": [text()] * 100}),
    ("text", {"inputs": MARK}),
    ("text", {"inputs": [MARK]}),
    ("text", {"inputs": TOKENS}),
    ("text", MARK),
    ("text", [MARK]),
    ("text", {"inputs": [text()], "outputs": MARK}),
    ("text", {"inputs": [text()], "outputs": [MARK]}),
    ("text", {"inputs": [text()], "outputs": [{"name": "none"}]}),
    ("text", {"inputs": [text()], "parameters": MARK}),
    ("text", {"inputs": [text()], "id": [MARK]}),
    ("text", {"inputs": [text()], "parameters": {"latency_budget_ms": 1e-6}}),
    ("text", {"inputs": [text()], "parameters": {"plan": "none"}}),
    ("text", {"inputs": [text()], "parameters": {"unknown": 1}}),
    ("none", {"inputs": [text()]}),
]
# Bodies of requests for embeddings.
QUESTIONS = [
    {"model": "text", "input": MARK},
    {"model": "text", "input": [MARK, MARK], "encoding_format": "base64", "user": MARK},
    {"model": "text", "input": TOKENS},
    {"model": "text", "input": [TOKENS, TOKENS]},
    {"model": "text", "input": {MARK: MARK}},
    {"model": "text", "input": [MARK, 1]},
    {"model": "text", "input": [[MARK]]},
    {"model": "text", "input": [PIXEL]},
    {"model": "text", "input": [2**40 + 246810]},
    {"model": "text", "input": MARK, "dimensions": MARK},
    {"model": "text", "input": MARK, "user": [MARK]},
    {"model": "text", "input": MARK, "dimensions": 10**6},
    {"model": "text", "input": [MARK] * 1000},
    {"model": "text", "input": MARK, "unknown": 1},
    {"model": "fashion", "input": MARK},
    {"model": "none", "input": MARK},
    {"input": MARK},
    MARK,
]


def cut(body):
    """Returns bodies that are not JSON to their end, or not UTF-8, or not as packed as they say."""
    whole = json.dumps(body).encode()
    half = len(whole) - whole[::-1].index(MARK.encode()[::-1])
    return [
        (whole[:half], {}),
        (whole + whole, {}),
        (whole[:half] + b"\xff" + whole[half:], {}),
        (whole, {"Content-Encoding": "gzip"}),
        (gzip.compress(whole)[:-4], {"Content-Encoding": "gzip"}),
        (gzip.compress(whole), {"Content-Encoding": "gzip"}),
        (whole, {"Inference-Header-Content-Length": str(half)}),
        (whole, {"Inference-Header-Content-Length": MARK[:4]}),
    ]


def message(model, body):
    """Returns the request as a message of gRPC, or None if it has no such form."""
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, list):
        return None
    asked = service_pb2.ModelInferRequest(model_name=model, id=MARK)
    try:
        for given in inputs:
            name, shape, datatype = given["name"], given["shape"], given["datatype"]
            own = asked.inputs.add(name=name, shape=shape, datatype=datatype)
            field = {"INT64": "int64_contents", "INT8": "int_contents", "FP32": "fp32_contents"}
            values = given["data"]
            if datatype == "BYTES":
                own.contents.bytes_contents.extend(value.encode() for value in values)
            else:
                getattr(own.contents, field[datatype]).extend(values)
        for name, value in body.get("parameters", {}).items():
            kind = {str: "string_param", float: "double_param", bool: "bool_param"}
            setattr(asked.parameters[name], kind.get(type(value), "int64_param"), value)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return asked


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it gets, as text."""

    def __init__(self):
        self.texts, self.lock = [], threading.Lock()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(self, request, context):
        with self.lock:
            self.texts.append(str(request))
        return trace_service_pb2.ExportTraceServiceResponse()

    def text(self):
        """Returns all of it."""
        with self.lock:
            return "\n".join(self.texts)


class Secrecy(unittest.TestCase):
    """A server that logs and sends whatever it can."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        clients = Path(cls.folder.name) / "clients.toml"
        clients.write_text(f'[clients.website]\ntoken = "{SECRET}"\n')
        cls.collector = Collector()
        cls.server = Served(
            *("--clients", clients, "--log", "trace"),
            *("--otlp-endpoint", f"http://127.0.0.1:{cls.collector.port}"),
            environment={"OTEL_BSP_SCHEDULE_DELAY": "200", "RUST_BACKTRACE": "1"},
        )

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.collector.server.stop(None)
        cls.folder.cleanup()

    def post(self, path, body, secret=SECRET, **headers):
        """Posts a body; returns the status and the answer's text."""
        url = f"http://{self.server.http_address}{path}"
        headers = {"Authorization": f"Bearer {secret}"} | headers
        request = urllib.request.Request(url, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def check(self, place, written, asked=""):
        """Checks that no mark stands in what was written."""
        for mark in TRACES:
            at = written.find(mark)
            around = written[max(at - 200, 0) : at + 200]
            self.assertEqual(at, -1, f"`{mark}` stands in {place} of {str(asked)[:200]}: {around}")

    def check_answer(self, status, answer, asked):
        """Checks an answer, which may hold what the model was asked for if it is good."""
        if status != 200:
            self.check_error(re.sub(r'"request_id":"[^"]*"', "", answer), asked)

    def check_error(self, written, asked):
        """Checks an error, in which single tokens can be told from other numbers."""
        self.check("the error", written, asked)
        for mark in IN_ERRORS:
            self.assertNotIn(mark, written, str(asked)[:200])

    def send_over_http(self):
        """Sends everything over HTTP; returns how many were answered well."""
        num_good = 0
        bodies = [(f"/v2/models/{m}/infer", json.dumps(body).encode(), {}) for m, body in REQUESTS]
        bodies += [("/v1/embeddings", json.dumps(body).encode(), {}) for body in QUESTIONS]
        bodies += [("/v2/models/text/infer", *wrong) for wrong in cut({"inputs": [text()]})]
        bodies += [("/v1/embeddings", *wrong) for wrong in cut(QUESTIONS[0])]
        bodies += [(path, json.dumps({MARK: MARK}).encode(), {}) for path in ["/v1", "/none"]]
        for path, body, headers in bodies:
            status, answer = self.post(path, body, **headers)
            self.check_answer(status, answer, body)
            num_good += status == 200
        wrong = SECRET + "xqmarksecretx"
        status, answer = self.post("/v2/models/text/infer", b"{}", secret=wrong)
        self.assertEqual(status, 401)
        self.check_answer(status, answer, "a wrong token")
        return num_good

    def send_over_grpc(self):
        """Sends what can be said over gRPC; returns how many were answered well."""
        num_good, metadata = 0, [("authorization", f"Bearer {SECRET}")]
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            messages = [message(model, body) for model, body in REQUESTS]
            calls = [(stub.ModelInfer, asked) for asked in messages if asked is not None]
            wrong = [b"\x0a\x04text\x2a\x7f" + MARK.encode(), b"\x0a\x0c" + MARK.encode() + b"\xff"]
            calls += [(raw, asked) for asked in wrong]
            for call, asked in calls:
                try:
                    call(asked, metadata=metadata, timeout=60)
                    num_good += 1
                except grpc.RpcError as error:
                    self.check_error(error.details(), asked)
            good = [asked for asked in messages if asked is not None][:3]
            for answer in stub.ModelStreamInfer(iter(good), metadata=metadata, timeout=60):
                num_good += not answer.error_message
            with self.assertRaises(grpc.RpcError) as caught:
                wrong_secret = [("authorization", f"Bearer {SECRET}xqmarksecretx")]
                stub.ModelInfer(good[0], metadata=wrong_secret, timeout=60)
            self.check_error(caught.exception.details(), "a wrong token")
        return num_good

    def test_no_mark_stands_in_logs_traces_metrics_and_errors(self):
        self.assertGreaterEqual(self.send_over_http(), 9)
        self.assertGreaterEqual(self.send_over_grpc(), 7)
        self.check("the metrics", self.post("/metrics", None)[1])
        eventually(lambda: "ModelInfer" in self.collector.text())
        eventually(lambda: "/v1/embeddings" in self.collector.text())
        self.check("the traces", self.collector.text())
        log = self.server.messages()
        for proof in ["TRACE", "refused", "h2"]:
            self.assertIn(proof, log)
        for line in log.splitlines():
            # A time may have the digits of a mark.
            told = re.sub(r"^[0-9T:.-]+Z ", "", line)
            self.check("a line of the log", told, told)


if __name__ == "__main__":
    unittest.main()
