"""KServe's inference clients over both protocols: `make conformance-kserve`."""

import sys
import unittest
from pathlib import Path

import numpy
from grpc import StatusCode
from grpc.aio import AioRpcError
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from served import served

PIXELS = numpy.linspace(-1, 1, 784, dtype=numpy.float32).reshape(1, 1, 28, 28)


def request(binary, model="fashion"):
    """Returns a request with a tensor as JSON or as raw bytes."""
    tensor = InferInput("pixel_values", list(PIXELS.shape), "FP32")
    tensor.set_data_from_numpy(PIXELS, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7")


class KServe(unittest.IsolatedAsyncioTestCase):
    """The clients as their documentation shows them."""

    def check(self, answer, expected=None):
        """Checks an answer, and that it is the expected one; returns its scores."""
        self.assertEqual((answer.model_name, answer.id), ("fashion", "7"))
        scores = answer.outputs[0].as_numpy()
        self.assertEqual(scores.shape, (1, 10))
        if expected is not None:
            numpy.testing.assert_allclose(scores, expected, atol=1e-6)
        return scores

    async def test_rest(self):
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        base = f"http://{served().http_address}"
        self.assertTrue(await client.is_server_live(base))
        self.assertTrue(await client.is_server_ready(base))
        self.assertTrue(await client.is_model_ready(base, "fashion"))
        expected = self.check(await client.infer(base, request(False), model_name="fashion"))
        self.check(await client.infer(base, request(True), model_name="fashion"), expected)
        with self.assertRaisesRegex(Exception, "there is no model `nothing`"):
            await client.infer(base, request(False, "nothing"), model_name="nothing")

    async def test_grpc(self):
        client = InferenceGRPCClient(served().grpc_address)
        self.assertTrue(await client.is_server_live())
        self.assertTrue(await client.is_server_ready())
        self.assertTrue(await client.is_model_ready("fashion"))
        expected = self.check(await client.infer(request(False)))
        self.check(await client.infer(request(True)), expected)
        with self.assertRaises(AioRpcError) as failed:
            await client.infer(request(False, "nothing"))
        self.assertEqual(failed.exception.code(), StatusCode.NOT_FOUND)
        await client.close()


if __name__ == "__main__":
    unittest.main()
