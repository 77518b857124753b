"""What is wrong gets its status and a message over both protocols, and harms nobody else."""

import errno
import hashlib
import http.client
import json
import socket
import struct
import tempfile
import unittest
from pathlib import Path

import grpc
import numpy
from served import FASHION, Served, eventually, served
from tritonclient.grpc import service_pb2, service_pb2_grpc

PIXELS = numpy.zeros((1, 1, 28, 28), numpy.float32).tobytes()
SHAPE = [1, 1, 28, 28]
HUGE = 2**62

# Name, shape, datatype and bytes of an input of `fashion`, and what the message must say.
WRONG_TENSORS = [
    ("pixel_values", SHAPE, "FP32", PIXELS[:-1], "has 3135 bytes, but 784 FP32 of 4 bytes each"),
    ("pixel_values", SHAPE, "FP32", PIXELS + b"\0", "has 3137 bytes"),
    ("pixel_values", SHAPE, "FP64", PIXELS, "784 FP64 of 8 bytes each"),
    ("pixel_values", [1, 1, 28, -28], "FP32", PIXELS, "extents must be 0 or more"),
    ("pixel_values", [HUGE, HUGE, 28, 28], "FP32", PIXELS, "more elements than can be counted"),
    ("pixel_values", [HUGE, 1, 1, 1], "FP32", PIXELS, "has 3136 bytes"),
    ("pixel_values", [1, 784], "FP32", PIXELS, "[batch, 1, 28, 28] is needed"),
    ("pixel_values", [0, 1, 28, 28], "FP32", b"", "nothing in it"),
    ("pixel_values", SHAPE, "FP32", b"\xff" * len(PIXELS), "infinite or not a number"),
    ("pixel_values", SHAPE, "INT32", PIXELS, "must be FP32, FP16, BF16 or FP64"),
    ("pixel_values", SHAPE, "FP31", PIXELS, "datatype is `FP31`"),
    ("pixels", SHAPE, "FP32", PIXELS, "no such input"),
    ("image", [1], "BYTES", b"\x03\0\0", "too few for 1 elements"),
    ("image", [1], "BYTES", b"\xff\xff\xff\xff", "ends within element 0 of 1"),
    ("image", [HUGE], "BYTES", b"\0\0\0\0", "too few"),
    ("image", [1], "BYTES", b"\4\0\0\0abcd" + b"more", "4 bytes after its 1 elements"),
    ("image", [1], "BYTES", b"\4\0\0\0\x89PNG", "image 0"),
]


def http_body(name, shape, datatype, raw):
    """Returns a binary request and the length of its JSON."""
    tensor = {
        "name": name,
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + raw, len(head)


def post(address, path, body, headers):
    """Posts and returns status, headers and the answer."""
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, response.headers, answer


class WrongTensors(unittest.TestCase):
    """Tensors that are not what they say."""

    def test_over_http(self):
        for name, shape, datatype, raw, reason in WRONG_TENSORS:
            with self.subTest(reason):
                body, length = http_body(name, shape, datatype, raw)
                status, _, answer = post(
                    served().http_address,
                    "/v2/models/fashion/infer",
                    body,
                    {"Inference-Header-Content-Length": str(length)},
                )
                self.assertEqual(status, 400, answer)
                self.assertIn(reason, json.loads(answer)["error"])

    def test_over_grpc(self):
        with grpc.insecure_channel(served().grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for name, shape, datatype, raw, reason in WRONG_TENSORS:
                with self.subTest(reason):
                    tensor = service_pb2.ModelInferRequest.InferInputTensor(
                        name=name, shape=shape, datatype=datatype
                    )
                    request = service_pb2.ModelInferRequest(
                        model_name="fashion", inputs=[tensor], raw_input_contents=[raw]
                    )
                    with self.assertRaises(grpc.RpcError) as caught:
                        stub.ModelInfer(request)
                    self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
                    self.assertIn(reason, caught.exception.details())


class WrongFrames(unittest.TestCase):
    """Bytes that are no message at all."""

    def test_json_lengths(self):
        body, length = http_body("pixel_values", SHAPE, "FP32", PIXELS)
        for header, reason in [
            (str(len(body) + 1), "must lie in 0..="),
            ("-1", "must lie in"),
            ("x", "must lie in"),
            ("99999999999999999999", "must lie in"),
            (str(length - 1), "not a valid request"),
            (str(length + 1), "not a valid request"),
            ("0", "not a valid request"),
        ]:
            with self.subTest(header):
                status, _, answer = post(
                    served().http_address,
                    "/v2/models/fashion/infer",
                    body,
                    {"Inference-Header-Content-Length": header},
                )
                self.assertEqual(status, 400, answer)
                self.assertIn(reason, json.loads(answer)["error"])

    def test_what_is_no_gzip(self):
        for encoding, expected in [("gzip", 400), ("zstd", 415)]:
            status, _, _ = post(
                served().http_address,
                "/v2/models/fashion/infer",
                b"no gzip",
                {"Content-Encoding": encoding},
            )
            self.assertEqual(status, expected, encoding)

    def test_a_bomb_is_no_larger_than_a_body_may_be(self):
        import gzip

        bomb = gzip.compress(b" " * (64 << 20))
        status, _, answer = post(
            served().http_address, "/v2/models/fashion/infer", bomb, {"Content-Encoding": "gzip"}
        )
        self.assertEqual(status, 413, answer)

    def test_grpc_frames(self):
        with grpc.insecure_channel(served().grpc_address) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for message in [b"\xff\xff\xff\xff", b"\x3a\x7fshort", b"\x0a\xff\xff\xff\xff\x0f"]:
                with self.assertRaises(grpc.RpcError) as caught:
                    call(message)
                self.assertIn(
                    caught.exception.code(),
                    [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT],
                )
            with self.assertRaises(grpc.RpcError) as caught:
                call(b"\x0a\x07fashion" + b"\x1a\x80\x80\x80\x10" + b"x" * (32 << 20))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
            with self.assertRaises(grpc.RpcError) as caught:
                channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"")
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_garbage_on_either_port(self):
        for port in [served().http_port, served().grpc_port]:
            for garbage in [
                b"\0" * 4096,
                b"GET / HTTP/9.9\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 2**31),
            ]:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    connection.sendall(garbage)
                    try:
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(4096):
                            pass
                    except OSError as error:
                        # The server has gone before the garbage was read to its end.
                        self.assertIn(error.errno, [errno.ENOTCONN, errno.ECONNRESET])
        status, _, _ = post(served().http_address, "/v2/repository/index", b"", {})
        self.assertEqual(status, 200)


class Tokens(unittest.TestCase):
    """A server that knows its clients."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.file = Path(cls.folder.name) / "clients.toml"
        cls.write("website")
        cls.server = Served("--clients", str(cls.file), families=FASHION)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        cls.folder.cleanup()

    @classmethod
    def write(cls, token):
        """Writes the clients; `token` is the website's."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        cls.file.write_text(f"""
            [clients.website]
            token_sha256 = "{digest}"
            max_latency_budget_ms = 0.0001
            [clients.slow]
            token = "slow and steady wins"
            requests_per_second = 1
            [clients.operator]
            token = "the operator's token"
            admin = true
        """)

    def http(self, token, path="/v2/models/fashion/infer"):
        """Posts a good request with a token."""
        body, length = http_body("pixel_values", SHAPE, "FP32", PIXELS)
        body = body if path.endswith("infer") else b""
        headers = {"Inference-Header-Content-Length": str(length)} if body else {}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        return post(self.server.http_address, path, body, headers)

    def grpc(self, token, name="ModelInfer"):
        """Calls with a token and returns the status."""
        tensor = service_pb2.ModelInferRequest.InferInputTensor(
            name="pixel_values", shape=SHAPE, datatype="FP32"
        )
        request = {
            "ModelInfer": service_pb2.ModelInferRequest(
                model_name="fashion", inputs=[tensor], raw_input_contents=[PIXELS]
            ),
            "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="fashion"),
        }[name]
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                getattr(stub, name)(request, metadata=metadata)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    def test_tokens(self):
        operator = "the operator's token"
        for token, status, code in [
            (None, 401, grpc.StatusCode.UNAUTHENTICATED),
            ("wrong", 401, grpc.StatusCode.UNAUTHENTICATED),
            ("website", 422, grpc.StatusCode.FAILED_PRECONDITION),
            (operator, 200, grpc.StatusCode.OK),
        ]:
            with self.subTest(token):
                found, headers, answer = self.http(token)
                self.assertEqual(found, status, answer)
                self.assertEqual(
                    headers.get("www-authenticate"), "Bearer" if status == 401 else None
                )
                self.assertEqual(self.grpc(token), code)
        for token, status, code in [
            ("website", 403, grpc.StatusCode.PERMISSION_DENIED),
            (operator, 200, grpc.StatusCode.OK),
        ]:
            with self.subTest(f"load {token}"):
                load = "/v2/repository/models/fashion/load"
                self.assertEqual(self.http(token, load)[0], status)
                self.assertEqual(self.grpc(token, "RepositoryModelLoad"), code)

    def test_rates(self):
        token = "slow and steady wins"

        def limited():
            found = self.http(token)
            return found if found[0] == 429 else None

        # Where two requests are more than a second apart, none is limited.
        self.assertEqual(eventually(limited)[1]["retry-after"], "1")
        eventually(lambda: self.grpc(token) == grpc.StatusCode.RESOURCE_EXHAUSTED)

    def test_clients_are_read_again(self):
        self.assertEqual(self.http("another")[0], 401)
        self.write("another")
        self.server.reload()
        self.assertEqual(self.http("another")[0], 422)
        self.assertEqual(self.http("website")[0], 401)
        self.file.write_text("[clients.broken]")
        self.server.reload()
        self.assertEqual(self.http("another")[0], 422)
        self.assertIn("client `broken`: give token or token_sha256", self.server.messages())
        self.write("website")
        self.server.reload()
        self.assertEqual(self.http("website")[0], 422)

    def test_health_needs_none(self):
        for path in ["/v2/health/live", "/v2/health/ready", "/"]:
            connection = http.client.HTTPConnection(self.server.http_address, timeout=30)
            connection.request("GET", path)
            self.assertEqual(connection.getresponse().status, 200)
            connection.close()


if __name__ == "__main__":
    unittest.main()
