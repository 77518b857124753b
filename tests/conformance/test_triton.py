"""NVIDIA's `tritonclient` against the server: HTTP and gRPC, sync and asyncio, binary and JSON."""

import asyncio
import queue
import unittest

import ml_dtypes
import numpy
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio
from served import served
from tritonclient.utils import InferenceServerException

TEXTS = numpy.array([b"The cat sat on the mat.", "Grüße aus Köln".encode()], dtype=object)
PIXELS = numpy.linspace(-1, 1, 2 * 784, dtype=numpy.float32).reshape(2, 1, 28, 28)
IDS = numpy.array([[101, 7592, 2088, 102], [101, 7592, 102, 0]], dtype=numpy.int64)
MASK = numpy.array([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=numpy.int64)
INTEGERS = {
    "INT64": numpy.int64,
    "INT32": numpy.int32,
    "INT16": numpy.int16,
    "UINT64": numpy.uint64,
    "UINT32": numpy.uint32,
    "UINT16": numpy.uint16,
}


class Http:
    """The HTTP client's way of saying things."""

    name = "http"
    module = httpclient

    def __init__(self):
        self.client = httpclient.InferenceServerClient(served().http_address, concurrency=4)

    def tensor(self, name, values, datatype, binary=True):
        made = httpclient.InferInput(name, list(values.shape), datatype)
        made.set_data_from_numpy(values, binary_data=binary)
        return made

    def output(self, name, binary=True, classes=0):
        return httpclient.InferRequestedOutput(name, binary_data=binary, class_count=classes)


class Grpc(Http):
    """The gRPC client's way of saying things; its tensors are always raw."""

    name = "grpc"
    module = grpcclient

    def __init__(self):
        self.client = grpcclient.InferenceServerClient(served().grpc_address)

    def tensor(self, name, values, datatype, binary=True):
        made = grpcclient.InferInput(name, list(values.shape), datatype)
        made.set_data_from_numpy(values)
        return made

    def output(self, name, binary=True, classes=0):
        return grpcclient.InferRequestedOutput(name, class_count=classes)


class EachClient:
    """What the client of either protocol must do."""

    def logits(self, side, values, datatype="FP32", binary=True, **options):
        """Returns the scores of images."""
        inputs = [side.tensor("pixel_values", values, datatype, binary)]
        outputs = [side.output("logits", binary)]
        answer = side.client.infer("fashion", inputs, outputs=outputs, **options)
        return answer.as_numpy("logits")

    def test_health(self):
        side = self.side
        self.assertTrue(side.client.is_server_live())
        self.assertTrue(side.client.is_server_ready())
        self.assertTrue(side.client.is_model_ready("text"))
        self.assertTrue(side.client.is_model_ready("text", "1"))
        self.assertFalse(side.client.is_model_ready("nothing"))

    def test_versions(self):
        side = self.side
        metadata = Http().client.get_model_metadata("fashion")
        for version in metadata["versions"]:
            inputs = [side.tensor("pixel_values", PIXELS, "FP32")]
            answer = side.client.infer("fashion", inputs, model_version=version)
            self.assertEqual(answer.as_numpy("logits").shape, (2, 10))
        with self.assertRaisesRegex(InferenceServerException, "has no version `7`"):
            side.client.infer("fashion", inputs, model_version="7")

    def test_several_inputs_of_every_integer_type(self):
        plan = {"plan": "l6[0..6]"}
        side = self.side
        expected = None
        for datatype, kind in INTEGERS.items():
            for binary in [True, False]:
                inputs = [
                    side.tensor("input_ids", IDS.astype(kind), datatype, binary),
                    side.tensor("attention_mask", MASK.astype(bool), "BOOL", binary),
                ]
                answer = side.client.infer("text", inputs, parameters=plan)
                found = answer.as_numpy("embedding")
                expected = found if expected is None else expected
                numpy.testing.assert_array_equal(found, expected, f"{datatype} {binary}")
        for kind, datatype in [(numpy.int8, "INT8"), (numpy.uint8, "UINT8")]:
            inputs = [
                side.tensor("input_ids", IDS, "INT64"),
                side.tensor("attention_mask", MASK.astype(kind), datatype),
            ]
            found = side.client.infer("text", inputs, parameters=plan).as_numpy("embedding")
            numpy.testing.assert_array_equal(found, expected, datatype)

    def test_every_float_type(self):
        rounded = PIXELS.astype(numpy.float16).astype(numpy.float32)
        brain = PIXELS.astype(ml_dtypes.bfloat16)
        side = self.side
        expected = self.logits(side, rounded)
        for binary in [True, False]:
            found = self.logits(side, rounded.astype(numpy.float64), "FP64", binary)
            numpy.testing.assert_allclose(found, expected, atol=1e-6)
        numpy.testing.assert_allclose(self.logits(side, rounded, binary=False), expected, atol=1e-6)
        half = self.logits(side, rounded.astype(numpy.float16), "FP16")
        numpy.testing.assert_allclose(half, expected, atol=1e-6)
        numpy.testing.assert_allclose(
            self.logits(side, brain, "BF16"),
            self.logits(side, brain.astype(numpy.float32)),
            atol=1e-6,
        )

    def test_all_outputs_where_none_is_named(self):
        side = self.side
        answer = side.client.infer("fashion", [side.tensor("pixel_values", PIXELS, "FP32")])
        self.assertEqual(answer.as_numpy("logits").shape, (2, 10))

    def test_classification(self):
        side = self.side
        inputs = [side.tensor("pixel_values", PIXELS, "FP32")]
        scores = side.client.infer("fashion", inputs).as_numpy("logits")
        for binary in [True, False]:
            outputs = [side.output("logits", binary, classes=3)]
            named = side.client.infer("fashion", inputs, outputs=outputs).as_numpy("logits")
            self.assertEqual(named.shape, (2, 3))
            for row, best in zip(scores, named, strict=False):
                text = best[0].decode() if isinstance(best[0], bytes) else best[0]
                self.assertEqual(int(text.split(":")[1]), row.argmax())

    def test_budgets(self):
        side = self.side
        inputs = [side.tensor("pixel_values", PIXELS, "FP32")]
        answer = side.client.infer(
            "fashion", inputs, parameters={"plan": "s[0..6]"}, priority=3, timeout=10_000_000
        )
        response = answer.get_response()
        plan = (
            response["parameters"]["plan"]
            if side.name == "http"
            else response.parameters["plan"].string_param
        )
        self.assertEqual(plan, "s[0..6]")
        with self.assertRaises(InferenceServerException) as caught:
            side.client.infer("fashion", inputs, parameters={"latency_budget_ms": 0.0001})
        self.assertIn(caught.exception.status(), ["422", "StatusCode.FAILED_PRECONDITION"])
        self.assertIn("cheapest", caught.exception.message())
        with self.assertRaisesRegex(InferenceServerException, "unknown parameter `latency`"):
            side.client.infer("fashion", inputs, parameters={"latency": 3})

    def test_a_timeout_is_a_latency_budget(self):
        side = self.side
        inputs = [side.tensor("pixel_values", PIXELS, "FP32")]
        with self.assertRaisesRegex(InferenceServerException, "no plan meets the budget"):
            side.client.infer("fashion", inputs, timeout=1)

    def test_repository(self):
        side = self.side
        index = (
            side.client.get_model_repository_index()
            if side.name == "http"
            else side.client.get_model_repository_index(as_json=True)["models"]
        )
        self.assertEqual(
            [(m["name"], m["state"]) for m in index], [("fashion", "READY"), ("text", "READY")]
        )
        side.client.load_model("fashion")
        side.client.unload_model("fashion")
        self.assertFalse(side.client.is_model_ready("fashion"))
        self.assertTrue(side.client.is_server_ready())
        with self.assertRaisesRegex(InferenceServerException, "it is unloaded"):
            self.logits(side, PIXELS)
        side.client.load_model("fashion")
        self.assertEqual(self.logits(side, PIXELS).shape, (2, 10))
        for call in [side.client.load_model, side.client.unload_model]:
            with self.assertRaisesRegex(InferenceServerException, "no model `nothing`"):
                call("nothing")
        with self.assertRaisesRegex(InferenceServerException, "unknown parameter"):
            side.client.load_model("fashion", config="{}")

    def test_errors(self):
        side = self.side
        good = side.tensor("pixel_values", PIXELS, "FP32")
        small = side.tensor("pixel_values", PIXELS[:, :, :, :27].copy(), "FP32")
        wrong = side.tensor("pixels", PIXELS, "FP32")
        for inputs, status, reason in [
            ([wrong], "400 INVALID_ARGUMENT", "no such input"),
            ([small], "400 INVALID_ARGUMENT", "28, 28"),
            ([good, good], "400 INVALID_ARGUMENT", "twice"),
            ([], "400 INVALID_ARGUMENT", "missing"),
        ]:
            with self.assertRaises(InferenceServerException) as caught:
                side.client.infer("fashion", inputs)
            self.assertIn(reason, caught.exception.message())
            self.assertIn(caught.exception.status().split(".")[-1], status)
        with self.assertRaisesRegex(InferenceServerException, "no model `nothing`"):
            side.client.infer("nothing", [good])
        outputs = [side.output("scores")]
        with self.assertRaisesRegex(InferenceServerException, "no such output"):
            side.client.infer("fashion", [good], outputs=outputs)


class HttpClient(EachClient, unittest.TestCase):
    """The calls over HTTP."""

    def setUp(self):
        self.side = Http()


class GrpcClient(EachClient, unittest.TestCase):
    """The calls over gRPC."""

    def setUp(self):
        self.side = Grpc()


class BothClients(unittest.TestCase):
    """What the clients must agree in."""

    def setUp(self):
        self.sides = [Http(), Grpc()]

    def test_metadata(self):
        http, grpc = self.sides
        one = http.client.get_server_metadata()
        other = grpc.client.get_server_metadata(as_json=True)
        self.assertEqual(one, other)
        self.assertIn("binary_tensor_data", one["extensions"])
        one = http.client.get_model_metadata("fashion")
        other = grpc.client.get_model_metadata("fashion", as_json=True)
        for tensors in ["inputs", "outputs"]:
            shapes = [
                {**tensor, "shape": [str(extent) for extent in tensor["shape"]]}
                for tensor in one[tensors]
            ]
            self.assertEqual(shapes, other[tensors])
        self.assertEqual(one["versions"], other["versions"])

    def test_texts(self):
        answers = []
        for side in self.sides:
            for binary in [True, False]:
                inputs = [side.tensor("text", TEXTS, "BYTES", binary)]
                outputs = [side.output("embedding", binary)]
                answer = side.client.infer("text", inputs, outputs=outputs, request_id="7")
                answers.append(answer.as_numpy("embedding"))
                response = answer.get_response()
                found = response["id"] if side.name == "http" else response.id
                self.assertEqual(found, "7")
        for answer in answers:
            self.assertEqual(answer.shape, (2, 384))
            numpy.testing.assert_allclose(answer, answers[0], atol=1e-5)

    def test_compression(self):
        http, grpc = self.sides
        inputs = [http.tensor("pixel_values", PIXELS, "FP32")]
        expected = http.client.infer("fashion", inputs).as_numpy("logits")
        for algorithm in ["gzip", "deflate"]:
            answer = http.client.infer(
                "fashion",
                inputs,
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            numpy.testing.assert_array_equal(answer.as_numpy("logits"), expected)
        inputs = [grpc.tensor("pixel_values", PIXELS, "FP32")]
        answer = grpc.client.infer("fashion", inputs, compression_algorithm="gzip")
        numpy.testing.assert_allclose(answer.as_numpy("logits"), expected, atol=1e-6)

    def test_callbacks(self):
        http, grpc = self.sides
        inputs = [http.tensor("pixel_values", PIXELS, "FP32")]
        running = [http.client.async_infer("fashion", inputs) for _ in range(8)]
        for one in running:
            self.assertEqual(one.get_result().as_numpy("logits").shape, (2, 10))
        answers = queue.Queue()
        inputs = [grpc.tensor("pixel_values", PIXELS, "FP32")]
        for _ in range(8):
            grpc.client.async_infer(
                "fashion", inputs, lambda result, error: answers.put((result, error))
            )
        for _ in range(8):
            result, error = answers.get(timeout=30)
            self.assertIsNone(error)
            self.assertEqual(result.as_numpy("logits").shape, (2, 10))

    def test_streams(self):
        client, answers = Grpc(), queue.Queue()
        client.client.start_stream(lambda result, error: answers.put((result, error)))
        inputs = [client.tensor("pixel_values", PIXELS, "FP32")]
        for number in range(5):
            client.client.async_stream_infer("fashion", inputs, request_id=str(number))
        client.client.async_stream_infer("nothing", inputs, request_id="wrong")
        client.client.async_stream_infer("fashion", inputs, request_id="after")
        for identifier in ["0", "1", "2", "3", "4"]:
            result, error = answers.get(timeout=30)
            self.assertIsNone(error)
            self.assertEqual(result.get_response().id, identifier)
        _, error = answers.get(timeout=30)
        self.assertIn("there is no model `nothing`", error.message())
        result, error = answers.get(timeout=30)
        self.assertIsNone(error)
        self.assertEqual(result.get_response().id, "after")
        client.client.stop_stream()

    def test_statistics(self):
        http, grpc = self.sides
        http.client.infer("fashion", [http.tensor("pixel_values", PIXELS, "FP32")])
        for name in ["fashion", ""]:
            one = http.client.get_inference_statistics(name)["model_stats"]
            other = grpc.client.get_inference_statistics(name, as_json=True)["model_stats"]
            self.assertEqual([model["name"] for model in one], [model["name"] for model in other])
        stats = http.client.get_inference_statistics("fashion")["model_stats"][0]
        self.assertGreaterEqual(stats["inference_count"], 2)
        self.assertGreater(stats["inference_stats"]["compute_infer"]["ns"], 0)

    def test_configuration(self):
        http, grpc = self.sides
        one = http.client.get_model_config("fashion")
        other = grpc.client.get_model_config("fashion", as_json=True)["config"]
        self.assertEqual(one["max_batch_size"], other["max_batch_size"])
        self.assertEqual(
            [(t["name"], t["data_type"]) for t in one["input"]],
            [(t["name"], t["data_type"]) for t in other["input"]],
        )


class Asyncio(unittest.IsolatedAsyncioTestCase):
    """The asyncio clients."""

    async def test_both(self):
        http = httpaio.InferenceServerClient(served().http_address)
        grpc = grpcaio.InferenceServerClient(served().grpc_address)
        for side, client in [(Http(), http), (Grpc(), grpc)]:
            with self.subTest(client=side.name):
                self.assertTrue(await client.is_server_ready())
                inputs = [side.tensor("pixel_values", PIXELS, "FP32")]
                answers = await asyncio.gather(*[client.infer("fashion", inputs) for _ in range(8)])
                for answer in answers:
                    self.assertEqual(answer.as_numpy("logits").shape, (2, 10))
                with self.assertRaises(InferenceServerException):
                    await client.infer("nothing", inputs)
            await client.close()

    async def test_streams(self):
        side = Grpc()

        async def requests():
            for number in range(3):
                yield {
                    "model_name": "fashion",
                    "request_id": str(number),
                    "inputs": [side.tensor("pixel_values", PIXELS, "FP32")],
                }

        async with grpcaio.InferenceServerClient(served().grpc_address) as client:
            found = []
            async for result, error in client.stream_infer(requests()):
                self.assertIsNone(error)
                found.append(result.get_response().id)
            self.assertEqual(found, ["0", "1", "2"])


if __name__ == "__main__":
    unittest.main()
