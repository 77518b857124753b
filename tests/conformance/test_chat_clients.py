"""Chats through clients that people use, as they are: LangChain, `llm` and the npm package `openai`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

# Traces would leave this machine.
os.environ["LANGSMITH_TRACING"] = "false"

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
from served import ROOT, Served, eventually

CAPITAL = "Name the capital of France in a sentence."
PARIS = "The capital of France is Paris."
NODE_PACKAGE = ROOT / ".tessera" / "clients" / "openai"
NODE_CLIENT = Path(__file__).resolve().parent / "chat.mjs"
PATIENCE = 120

_served = None


def chatting():
    """Returns the server of this module."""
    global _served
    _served = _served or Served(families={"chat": ROOT / "models" / "chat"})
    return _served


def tearDownModule():
    if _served:
        _served.stop()


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int
    hobbies: list[str] = Field(max_length=2)


class LangChain(unittest.TestCase):
    """`ChatOpenAI` of `langchain-openai`."""

    def model(self, **options):
        base = f"http://{chatting().http_address}/v1"
        options = {"temperature": 0, "max_tokens": 24, "max_retries": 0} | options
        return ChatOpenAI(model="chat", base_url=base, api_key="none", **options)

    def test_a_question_is_answered(self):
        answer = self.model().invoke(CAPITAL)
        self.assertEqual(answer.content, PARIS)
        self.assertEqual(answer.response_metadata["finish_reason"], "stop")
        self.assertEqual(answer.response_metadata["model_name"], "chat")
        self.assertEqual(answer.usage_metadata["output_tokens"], 7)

    def test_a_conversation_goes_on(self):
        answer = self.model().invoke(
            [
                SystemMessage("You are a helpful assistant."),
                HumanMessage(CAPITAL),
                AIMessage(PARIS),
                HumanMessage("And of Italy?"),
            ]
        )
        self.assertIn("Rome", answer.content)

    def test_a_stream_has_the_same_text(self):
        pieces = list(self.model(stream_usage=True).stream(CAPITAL))
        self.assertEqual("".join(piece.content for piece in pieces), PARIS)
        self.assertGreater(len([piece for piece in pieces if piece.content]), 3)
        usages = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
        self.assertEqual([usage["output_tokens"] for usage in usages], [7])

    def test_an_answer_has_the_form_of_a_class(self):
        model = self.model(max_tokens=120, temperature=1, seed=3)
        shaped = model.with_structured_output(Person, method="json_schema")
        person = shaped.invoke("Describe a person as JSON.")
        self.assertIsInstance(person, Person)
        self.assertLessEqual(len(person.name), 20)

    def test_an_answer_has_the_form_of_a_schema(self):
        schema = {
            "title": "Colour",
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green", "blue"]}},
            "required": ["colour"],
            "additionalProperties": False,
        }
        shaped = self.model().with_structured_output(schema, method="json_schema", strict=True)
        answer = shaped.invoke("Which colour has the sky?")
        self.assertEqual(list(answer), ["colour"])
        self.assertIn(answer["colour"], ["red", "green", "blue"])

    def test_eight_at_once_are_as_each_alone(self):
        model = self.model()
        lands = ["France", "Italy", "Spain", "Poland", "Japan", "Egypt", "Cuba", "Peru"]
        questions = [f"Name the capital of {land} in a sentence." for land in lands]
        together = model.batch(questions, config={"max_concurrency": 8})
        alone = [model.invoke(question) for question in questions]
        self.assertEqual([a.content for a in together], [a.content for a in alone])
        self.assertEqual(together[0].content, PARIS)

    def test_probabilities_are_of_the_tokens(self):
        answer = self.model(logprobs=True, top_logprobs=2).invoke(CAPITAL)
        tokens = answer.response_metadata["logprobs"]["content"]
        self.assertEqual("".join(one["token"] for one in tokens), PARIS)
        self.assertEqual({len(one["top_logprobs"]) for one in tokens}, {2})


class Llm(unittest.TestCase):
    """The program `llm`, with the server as an extra model."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        base = f"http://{chatting().http_address}/v1"
        # JSON is YAML.
        models = [{"model_id": "pool", "model_name": "chat", "api_base": base}]
        (Path(self.folder.name) / "extra-openai-models.yaml").write_text(json.dumps(models))
        self.command = [sys.executable, "-m", "llm"]
        self.environment = os.environ | {
            "LLM_USER_PATH": self.folder.name,
            # A program writes what it has at once only if it is told to.
            "PYTHONUNBUFFERED": "1",
        }

    def llm(self, *arguments):
        """Runs the program; returns what it prints."""
        done = subprocess.run(
            [*self.command, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_the_model_is_listed(self):
        self.assertIn("pool", self.llm("models"))

    def test_a_prompt_is_answered_whole_and_streamed(self):
        prompt = ["-m", "pool", "-o", "temperature", "0", "-o", "max_tokens", "24", CAPITAL]
        self.assertEqual(self.llm(*prompt, "--no-stream"), PARIS + "\n")
        self.assertEqual(self.llm(*prompt), PARIS + "\n")

    def test_an_answer_appears_while_it_is_written(self):
        options = ["-o", "temperature", "0", "-o", "max_tokens", "1000"]
        process = subprocess.Popen(
            [*self.command, "-m", "pool", *options, "Tell a long story of a dog."],
            stdout=subprocess.PIPE,
            env=self.environment,
        )
        try:
            self.assertTrue(process.stdout.read(1))
            eventually(lambda: chatting().metric("tessera_generation_sequences_running") == 1)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        eventually(lambda: not chatting().metric("tessera_generation_sequences_running"))

    def test_a_chat_goes_on(self):
        options = ["-m", "pool", "-o", "temperature", "0", "-o", "max_tokens", "24"]
        self.llm(*options, "--system", "You are a helpful assistant.", CAPITAL)
        self.assertIn("Rome", self.llm("--continue", *options[2:], "And of Italy?"))


def missing_for_node():
    """Returns why the npm package cannot be tested; None if it can."""
    if not shutil.which("node"):
        return "node is not installed (Debian: nodejs)"
    if not (NODE_PACKAGE / "package.json").is_file():
        return f"{NODE_PACKAGE} is missing: `make conformance` fetches it if npm is installed"
    return None


@unittest.skipIf(missing_for_node(), missing_for_node())
class Node(unittest.TestCase):
    """The npm package `openai`, in `chat.mjs`."""

    @classmethod
    def setUpClass(cls):
        address = f"http://{chatting().http_address}/v1"
        done = subprocess.run(
            ["node", NODE_CLIENT, NODE_PACKAGE / "index.mjs", address],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(f"chat.mjs ended with {done.returncode}:\n{done.stderr}")
        cls.found = json.loads(done.stdout)

    def test_models_are_listed(self):
        self.assertEqual(self.found["models"], ["chat"])

    def test_a_question_is_answered(self):
        answer = self.found["whole"]
        self.assertEqual(answer["choices"][0]["message"]["content"], PARIS)
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        self.assertEqual(answer["usage"]["completion_tokens"], 7)

    def test_a_stream_has_the_same_text(self):
        events = self.found["events"]
        texts = [choice["delta"].get("content") for event in events for choice in event["choices"]]
        self.assertEqual("".join(text or "" for text in texts), PARIS)
        self.assertGreater(len([text for text in texts if text]), 3)
        self.assertEqual(events[-1]["usage"]["completion_tokens"], 7)
        self.assertEqual(self.found["gathered"], PARIS)

    def test_a_schema_is_kept(self):
        self.assertEqual(list(self.found["parsed"]), ["age"])
        self.assertIsInstance(self.found["parsed"]["age"], int)

    def test_completions_go_on(self):
        self.assertEqual(self.found["completion"], " 5, 6, ")

    def test_a_reader_that_leaves_ends_the_answer(self):
        self.assertTrue(self.found["left_after"])
        eventually(lambda: not chatting().metric("tessera_generation_sequences_running"))

    def test_an_error_is_the_sdk_s(self):
        self.assertEqual(self.found["error"]["name"], "BadRequestError")
        self.assertEqual(self.found["error"]["status"], 400)
        self.assertIn("max_tokens", self.found["error"]["message"])


if __name__ == "__main__":
    unittest.main()
