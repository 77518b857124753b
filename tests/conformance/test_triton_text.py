"""Text from Triton's APIs: the extension `generate` over HTTP, and `tritonclient` over gRPC."""

import json
import queue
import unittest
import urllib.error
import urllib.request

import numpy
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
from served import FASHION, ROOT, Served, eventually
from tritonclient.utils import InferenceServerException

PROMPT = "The capital of France is"
GREEDY: dict[str, object] = {"temperature": 0, "max_tokens": 12}
SEEDED: dict[str, object] = {"temperature": 1.3, "top_k": 50, "seed": 7, "max_tokens": 12}
MANY = 4000
ENDLESS: dict[str, object] = {"seed": 1, "ignore_eos": True, "max_tokens": MANY}


def tensor(name, value, module=grpcclient):
    """Returns an input with one element, as the samples of vLLM's backend make it."""
    datatype = "BOOL" if isinstance(value, bool) else "BYTES"
    values = [value] if datatype == "BOOL" else [value.encode()]
    made = module.InferInput(name, [1], datatype)
    made.set_data_from_numpy(numpy.array(values, bool if datatype == "BOOL" else numpy.object_))
    return made


def inputs(sampling, module=grpcclient, prompt=PROMPT, **switches):
    """Returns the inputs of a request for text."""
    made = [tensor("text_input", prompt, module)]
    made.append(tensor("sampling_parameters", json.dumps(sampling), module))
    return made + [tensor(name, value, module) for name, value in switches.items()]


def text_of(result):
    """Returns the text of an answer."""
    return result.as_numpy("text_output")[0].decode()


def is_final(result):
    """Returns whether no more answers follow."""
    return result.get_response().parameters["triton_final_response"].bool_param


class Texts(unittest.TestCase):
    """The clients against SmolLM2."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served(families={"chat": ROOT / "models" / "chat"} | FASHION)
        cls.base = f"http://{cls.server.http_address}"

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def ask(self, path, body):
        """Returns the answer to a body of JSON."""
        request = urllib.request.Request(self.base + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def completion(self, sampling):
        """Returns the text of `/v1/completions`."""
        body = {"model": "chat", "prompt": PROMPT} | sampling
        return self.ask("/v1/completions", body)["choices"][0]["text"]

    def generate(self, body, model="chat"):
        """Returns the answer of `/generate`."""
        return self.ask(f"/v2/models/{model}/generate", body)

    def events(self, body):
        """Returns the events of `/generate_stream`."""
        request = urllib.request.Request(
            f"{self.base}/v2/models/chat/generate_stream", json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            self.assertEqual(response.headers["content-type"], "text/event-stream; charset=utf-8")
            lines = [line.decode() for line in response if line.strip()]
        self.assertTrue(all(line.startswith("data: ") for line in lines), lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def stream(self, requests, **options):
        """Sends requests on one stream; returns the answers by id once all are final."""
        answers, found, left = queue.Queue(), {}, set()
        with grpcclient.InferenceServerClient(self.server.grpc_address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for identifier, sent in requests.items():
                client.async_stream_infer("chat", sent, request_id=identifier, **options)
                found[identifier] = []
                left.add(identifier)
            while left:
                result, error = answers.get(timeout=60)
                self.assertIsNone(error)
                identifier = result.get_response().id
                self.assertIn(identifier, left, "nothing follows the final answer")
                found[identifier].append(result)
                if is_final(result):
                    left.remove(identifier)
            client.stop_stream()
        self.assertTrue(answers.empty())
        return found

    def test_generate_has_the_text_of_completions(self):
        for sampling in [GREEDY, SEEDED]:
            text = self.completion(sampling)
            whole = self.generate({"text_input": PROMPT, "parameters": sampling})
            self.assertEqual(whole["text_output"], PROMPT + text)
            self.assertEqual((whole["model_name"], whole["model_version"]), ("chat", "1"))
            body = {"text_input": PROMPT, "exclude_input_in_output": True, "id": "7"} | sampling
            whole = self.generate(body)
            self.assertEqual((whole["text_output"], whole["id"]), (text, "7"))
            body = {"text_input": PROMPT, "parameters": {"stream": True} | sampling}
            events = self.events(body)
            self.assertGreater(len(events), 3)
            self.assertEqual("".join(event["text_output"] for event in events), text)

    def test_generate_refuses_with_the_reason(self):
        wrong: list[tuple[str, dict[str, object], int, str]] = [
            ("chat", {"max_tokens": 10**9}, 400, "the context holds 8192"),
            ("chat", {"parameters": {"bad_words": ""}}, 400, "`bad_words`"),
            ("fashion", {}, 400, "which does not generate text"),
            ("nothing", {}, 404, "no model `nothing`"),
        ]
        for model, more, status, word in wrong:
            with self.assertRaises(urllib.error.HTTPError) as caught:
                self.generate({"text_input": PROMPT} | more, model)
            self.assertEqual(caught.exception.code, status)
            self.assertIn(word, json.load(caught.exception)["error"])

    def test_a_stream_has_an_answer_for_each_piece(self):
        for sampling in [GREEDY, SEEDED]:
            text = self.completion(sampling)
            sent = inputs(sampling, stream=True, return_finish_reason=True)
            answers = self.stream({"one": sent})["one"]
            self.assertGreater(len(answers), 3)
            self.assertEqual("".join(text_of(answer) for answer in answers), text)
            reasons = [answer.as_numpy("finish_reason")[0].decode() for answer in answers]
            self.assertEqual(reasons[-1], "length")
            self.assertEqual(set(reasons[:-1]), {"None"})
            self.assertTrue(answers[-1].get_response().parameters["plan"].string_param)

    def test_parameters_may_be_the_request_s(self):
        text = self.completion(SEEDED)
        as_texts: dict[str, object] = {name: str(value) for name, value in SEEDED.items()}
        streamed = SEEDED | {"stream": True, "min_quality": 0.1}
        every: list[dict[str, object]] = [SEEDED, as_texts, streamed]
        for parameters in every:
            sent = [tensor("text_input", PROMPT), tensor("exclude_input_in_output", True)]
            answers = self.stream({"one": sent}, parameters=parameters, priority=1)["one"]
            self.assertEqual("".join(text_of(answer) for answer in answers), text)
            self.assertEqual(len(answers) > 1, "stream" in parameters)

    def test_without_a_stream_there_is_one_answer(self):
        text = self.completion(GREEDY)
        [answer] = self.stream({"one": inputs(GREEDY)})["one"]
        self.assertEqual(text_of(answer), PROMPT + text)
        with grpcclient.InferenceServerClient(self.server.grpc_address) as client:
            sent = inputs(GREEDY, stream=False, return_num_output_tokens=True)
            answer = client.infer("chat", sent)
            self.assertEqual(text_of(answer), PROMPT + text)
            self.assertEqual(answer.as_numpy("num_output_tokens").tolist(), [12])
            outputs = [grpcclient.InferRequestedOutput("text_output")]
            answer = client.infer("chat", sent, outputs=outputs)
            self.assertIsNone(answer.as_numpy("num_output_tokens"))
            with self.assertRaisesRegex(InferenceServerException, "ModelStreamInfer have several"):
                client.infer("chat", inputs(GREEDY, stream=True))
        http = httpclient.InferenceServerClient(self.server.http_address)
        answer = http.infer("chat", inputs(GREEDY, httpclient, exclude_input_in_output=True))
        self.assertEqual(text_of(answer), text)

    def test_an_empty_final_answer_comes_where_it_is_asked_for(self):
        text = self.completion(GREEDY)
        sent = {"one": inputs(GREEDY, stream=True)}
        *answers, last = self.stream(sent, enable_empty_final_response=True)["one"]
        self.assertEqual("".join(text_of(answer) for answer in answers), text)
        self.assertEqual(len(last.get_response().outputs), 0)
        self.assertEqual(last.get_response().model_name, "chat")

    def test_requests_of_a_stream_are_answered_beside_each_other(self):
        sampling = [GREEDY | {"max_tokens": 24}, SEEDED | {"max_tokens": 24}]
        alone = [self.completion(one) for one in sampling]
        sent = {str(index): inputs(sampling[index % 2], stream=True) for index in range(6)}
        for identifier, answers in self.stream(sent).items():
            text = "".join(text_of(answer) for answer in answers)
            self.assertEqual(text, alone[int(identifier) % 2])

    def test_an_error_has_the_id_of_its_request_and_the_stream_goes_on(self):
        answers = queue.Queue()
        with grpcclient.InferenceServerClient(self.server.grpc_address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for sampling, word in [
                ({"best_of": 2}, "`best_of`"),
                ({"temperature": "warm"}, "`temperature`"),
                ({"max_tokens": 10**9}, "the context holds 8192"),
            ]:
                client.async_stream_infer("chat", inputs(sampling), request_id="wrong")
                result, error = answers.get(timeout=60)
                self.assertIsNone(result)
                self.assertIn(word, error.message())
            client.async_stream_infer("chat", inputs(GREEDY), request_id="right")
            result, error = answers.get(timeout=60)
            self.assertIsNone(error)
            self.assertEqual(result.get_response().id, "right")
            client.stop_stream()

    def test_a_client_that_cancels_frees_its_sequences(self):
        generated = "tessera_generation_generated_tokens_total"
        running = "tessera_generation_sequences_running"
        before = self.server.metric(generated)
        answers = queue.Queue()
        client = grpcclient.InferenceServerClient(self.server.grpc_address)
        client.start_stream(lambda result, error: answers.put((result, error)))
        for _ in range(2):
            client.async_stream_infer("chat", inputs(ENDLESS, stream=True))
        for _ in range(6):
            self.assertIsNone(answers.get(timeout=60)[1])
        client.stop_stream(cancel_requests=True)
        eventually(lambda: self.server.metric(running) == 0)
        self.assertLess(self.server.metric(generated) - before, 2 * MANY)
        client.close()
        before = self.server.metric(generated)
        body = json.dumps({"text_input": PROMPT} | ENDLESS).encode()
        url = f"{self.base}/v2/models/chat/generate_stream"
        response = urllib.request.urlopen(urllib.request.Request(url, body), timeout=60)
        self.assertTrue(response.readline().startswith(b"data: "))
        response.close()
        eventually(lambda: self.server.metric(running) == 0)
        self.assertLess(self.server.metric(generated) - before, MANY)

    def test_metadata_and_configuration_say_it(self):
        with grpcclient.InferenceServerClient(self.server.grpc_address) as client:
            metadata = client.get_model_metadata("chat", as_json=True)
            shapes = {one["name"]: one["shape"] for one in metadata["inputs"]}
            self.assertEqual(shapes["text_input"], ["1"])
            self.assertEqual(shapes["stream"], ["1"])
            self.assertIn("text_output", {one["name"] for one in metadata["outputs"]})
            config = client.get_model_config("chat").config
            self.assertTrue(config.model_transaction_policy.decoupled)
            self.assertEqual(config.max_batch_size, 0)
            config = client.get_model_config("fashion").config
            self.assertFalse(config.model_transaction_policy.decoupled)
        config = httpclient.InferenceServerClient(self.server.http_address)
        policy = config.get_model_config("chat")["model_transaction_policy"]
        self.assertEqual(policy, {"decoupled": True})


class Asyncio(unittest.IsolatedAsyncioTestCase):
    """The asyncio client, as the sample of vLLM's backend uses it."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served(families={"chat": ROOT / "models" / "chat"})

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    async def test_the_sample(self):
        """Parameters come twice, as texts: in a tensor and with the request."""
        sampling = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "20", "seed": "3"}
        prompts = [PROMPT, "1, 2, 3,"]

        async def requests():
            for number, prompt in enumerate(prompts):
                yield {
                    "model_name": "chat",
                    "inputs": inputs(sampling, prompt=prompt, stream=True),
                    "outputs": [grpcclient.InferRequestedOutput("text_output")],
                    "request_id": str(number),
                    "parameters": sampling,
                }

        texts = {"0": "", "1": ""}
        async with grpcaio.InferenceServerClient(self.server.grpc_address) as client:
            async for result, error in client.stream_infer(requests()):
                self.assertIsNone(error)
                texts[result.get_response().id] += text_of(result)
        self.assertIn("Paris", texts["0"])
        self.assertTrue(texts["1"].startswith(" 4, 5, 6"), texts["1"])


if __name__ == "__main__":
    unittest.main()
