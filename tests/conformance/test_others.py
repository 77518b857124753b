"""The `openai` client, the standard health service and server reflection against the server."""

import unittest

import grpc
import numpy
import openai
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from served import served

TEXT = "The cat sat on the mat."


class OpenAi(unittest.TestCase):
    """Embeddings through the SDK."""

    def setUp(self):
        base = f"http://{served().http_address}/v1"
        self.client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)

    def embed(self, given, **options):
        """Returns the vectors, and the answer."""
        answer = self.client.embeddings.create(model="text", input=given, **options)
        return numpy.array([one.embedding for one in answer.data], numpy.float32), answer

    def test_models_are_listed(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["text"])
        self.assertEqual(self.client.models.retrieve("text").id, "text")

    def test_base64_and_floats_are_the_same_numbers(self):
        packed, answer = self.embed([TEXT, "another text"])
        plain, _ = self.embed([TEXT, "another text"], encoding_format="float")
        numpy.testing.assert_allclose(packed, plain, atol=1e-6)
        numpy.testing.assert_allclose(numpy.linalg.norm(packed, axis=1), 1, atol=1e-5)
        self.assertEqual([one.index for one in answer.data], [0, 1])
        self.assertEqual(answer.usage.prompt_tokens, 9 + 4)

    def test_dimensions_keep_the_first_numbers(self):
        whole, _ = self.embed(TEXT)
        short, _ = self.embed(TEXT, dimensions=64)
        expected = whole[:, :64] / numpy.linalg.norm(whole[:, :64], axis=1)
        numpy.testing.assert_allclose(short, expected, atol=1e-5)

    def test_tokens_are_taken(self):
        one, _ = self.embed([101, 7592, 2088, 102])
        rows, _ = self.embed([[101, 7592, 2088, 102], [101, 7592, 102]])
        numpy.testing.assert_allclose(rows[0], one[0], atol=1e-4)

    def test_budgets_are_extra_keys(self):
        plan = {"plan": "l6[0..3]", "explain": True}
        _, answer = self.embed(TEXT, extra_body=plan)
        self.assertEqual(answer.tessera["plan"], "l6[0..3]")
        self.assertIn("compute_ms", answer.tessera)
        with self.assertRaises(openai.UnprocessableEntityError) as caught:
            self.embed(TEXT, extra_body={"latency_budget_ms": 0.001})
        self.assertIn("cheapest", str(caught.exception))

    def test_errors_are_the_sdk_s(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.embeddings.create(model="nothing", input=TEXT)
        self.assertEqual(caught.exception.code, "not_found")
        refused: list[tuple[object, dict[str, object]]] = [
            ([], {}),
            ("", {"dimensions": 0}),
            (TEXT, {"dimensions": 385}),
            (TEXT, {"extra_body": {"temperature": 1}}),
            ([[]], {}),
            ([-1], {}),
        ]
        for given, options in refused:
            with self.assertRaises(openai.BadRequestError, msg=f"{given} {options}"):
                self.embed(given, **options)
        with self.assertRaisesRegex(openai.BadRequestError, "image-classification"):
            self.client.embeddings.create(model="fashion", input=TEXT)


class Standard(unittest.TestCase):
    """gRPC's own services."""

    def setUp(self):
        self.channel = grpc.insecure_channel(served().grpc_address)
        self.addCleanup(self.channel.close)

    def test_health(self):
        health = health_pb2_grpc.HealthStub(self.channel)
        for service in ["", "inference.GRPCInferenceService", "text", "fashion"]:
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING, service)
        with self.assertRaises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_reflection(self):
        for reflection in reflections(self.channel):
            services = reflection.get_services()
            self.assertIn("inference.GRPCInferenceService", services)
            pool = DescriptorPool(reflection)
            request = pool.FindMessageTypeByName("inference.ModelInferRequest")
            self.assertEqual(request.fields_by_name["raw_input_contents"].number, 7)
            service = pool.FindServiceByName("inference.GRPCInferenceService")
            self.assertEqual(len(service.methods), 12)


def reflections(channel):
    """Returns the descriptors as clients find them."""
    return [ProtoReflectionDescriptorDatabase(channel)]


if __name__ == "__main__":
    unittest.main()
