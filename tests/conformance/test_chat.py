"""Chats and completions of a language model through the `openai` client."""

import asyncio
import json
import random
import unittest

import openai
from served import ROOT, Served, eventually

CAPITAL = [{"role": "user", "content": "Name the capital of France in a sentence."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Chats(unittest.TestCase):
    """The SDK as it is, against SmolLM2."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served(families={"chat": ROOT / "models" / "chat"})
        cls.base = f"http://{cls.server.http_address}/v1"
        cls.client = openai.OpenAI(base_url=cls.base, api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def chat(self, messages=CAPITAL, **options):
        options = {"temperature": 0, "max_tokens": 24} | options
        return self.client.chat.completions.create(model="chat", messages=messages, **options)

    def test_a_question_is_answered(self):
        answer = self.chat()
        choice = answer.choices[0]
        self.assertEqual(choice.message.content, "The capital of France is Paris.")
        self.assertEqual((choice.message.role, choice.finish_reason), ("assistant", "stop"))
        self.assertEqual(answer.usage.completion_tokens, 7)
        self.assertEqual(
            answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens
        )

    def test_a_stream_has_the_same_text_and_ends_with_the_usage(self):
        whole = self.chat()
        events = list(self.chat(stream=True, stream_options={"include_usage": True}))
        texts = [choice.delta.content or "" for event in events for choice in event.choices]
        self.assertEqual("".join(texts), whole.choices[0].message.content)
        self.assertGreater(len([text for text in texts if text]), 3)
        reasons = [choice.finish_reason for event in events for choice in event.choices]
        self.assertEqual(reasons[-1], "stop")
        self.assertEqual(events[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(events[-1].choices, [])

    def test_a_seed_repeats_and_choices_differ(self):
        settings = {"temperature": 1.2, "seed": 7, "n": 3}
        first, again = (self.chat(**settings) for _ in range(2))
        texts = [choice.message.content for choice in first.choices]
        self.assertEqual(texts, [choice.message.content for choice in again.choices])
        self.assertEqual(len(set(texts)), 3)

    def test_logprobs_are_of_the_tokens(self):
        answer = self.chat(logprobs=True, top_logprobs=2)
        tokens = answer.choices[0].logprobs.content
        self.assertEqual("".join(one.token for one in tokens), "The capital of France is Paris.")
        for one in tokens:
            self.assertEqual(len(one.top_logprobs), 2)
            self.assertEqual(one.logprob, max(top.logprob for top in one.top_logprobs))

    def test_a_schema_is_kept(self):
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
        messages = [{"role": "user", "content": "Describe a person as JSON."}]
        answer = self.chat(messages, response_format=form, max_tokens=60)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        person = json.loads(answer.choices[0].message.content)
        self.assertEqual(set(person), {"name", "age"})
        self.assertIsInstance(person["age"], int)

    def test_completions_go_on(self):
        answer = self.client.completions.create(
            model="chat", prompt="1, 2, 3, 4,", max_tokens=12, temperature=0, stop=["7"]
        )
        self.assertEqual(answer.choices[0].text, " 5, 6, ")
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_what_was_asked_before_is_remembered(self):
        long = [{"role": "user", "content": "Count. " + "one two three " * 60}]
        first = self.chat(long, max_tokens=4)
        again = self.chat(long, max_tokens=4)
        self.assertEqual(first.choices[0].message.content, again.choices[0].message.content)
        self.assertGreaterEqual(again.usage.prompt_tokens_details.cached_tokens, 128)

    def test_errors_are_the_sdk_s(self):
        wrong: list[tuple[dict[str, object], str]] = [
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 10**9}, "the context holds 8192"),
            ({"temperature": 3}, "temperature"),
            ({"messages": [{"role": "king", "content": "a"}]}, "role"),
            ({"messages": []}, "messages"),
            ({"logit_bias": {"a": 1}}, "logit_bias"),
            ({"response_format": {"type": "json_schema"}}, "json_schema"),
            ({"extra_body": {"nothing": 1}}, "nothing"),
        ]
        for options, named in wrong:
            with self.assertRaises(openai.BadRequestError, msg=str(options)) as caught:
                self.chat(**options)
            self.assertIn(named, str(caught.exception))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat([{"role": "user", "content": "word " * 9000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError):
            self.chat([{"role": "user", "content": "a" * 1_000_000}])

    def test_clients_that_leave_stop_nobody(self):
        """Sixteen clients read, stop in the middle or leave; the others' texts stay the same."""
        alone = self.chat().choices[0].message.content
        random.seed(3)

        async def one(client, number):
            leaves = number % 2 == 1
            stream = await client.chat.completions.create(
                model="chat",
                messages=CAPITAL,
                temperature=1.5 if leaves else 0,
                seed=number,
                max_tokens=200 if leaves else 24,
                stream=True,
                extra_body={"ignore_eos": True} if leaves else None,
            )
            text, limit = "", random.randint(1, 10)
            async for event in stream:
                text += event.choices[0].delta.content or ""
                limit -= 1
                if leaves and limit <= 0:
                    await stream.close()
                    return None
            return text

        async def every():
            async with openai.AsyncOpenAI(base_url=self.base, api_key="none") as client:
                return await asyncio.gather(*(one(client, number) for number in range(16)))

        texts = [text for text in asyncio.run(every()) if text is not None]
        self.assertEqual(texts, [alone] * 8)
        eventually(lambda: self.server.metric("tessera_serve_queue_depth") == 0)


if __name__ == "__main__":
    unittest.main()
