"""Tools, and the Responses API, through the `openai` client."""

import json
import unittest
from typing import Any

import openai
from served import ROOT, Served

WEATHER = {
    "name": "weather",
    "description": "Tells the weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TOOLS = [
    {"type": "function", "function": WEATHER},
    {
        "type": "function",
        "function": {"name": "time", "description": "Tells the time."},
    },
]
NAMED = {"type": "function", "function": {"name": "weather"}}
ASKS = {"role": "user", "content": "What is the weather in Paris?"}
CAPITAL = "Name the capital of France in a sentence."
FLAT = [{"type": "function", **WEATHER}]


class Tools(unittest.TestCase):
    """The SDK as it is, against SmolLM2, whose template has no tools."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served(families={"chat": ROOT / "models" / "chat"})
        base = f"http://{cls.server.http_address}/v1"
        cls.client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def chat(self, messages=(ASKS,), **options):
        options = {"temperature": 0, "max_tokens": 80} | options
        return self.client.chat.completions.create(model="chat", messages=list(messages), **options)

    def respond(self, **options):
        options = {
            "temperature": 0,
            "max_output_tokens": 80,
            "input": ASKS["content"],
        } | options
        return self.client.responses.create(model="chat", **options)

    def test_a_named_function_is_called_and_its_result_is_read(self):
        answer = self.chat(tools=TOOLS, tool_choice=NAMED, parallel_tool_calls=False)
        choice = answer.choices[0]
        self.assertEqual((choice.finish_reason, choice.message.content), ("tool_calls", None))
        (call,) = choice.message.tool_calls
        self.assertEqual((call.type, call.function.name), ("function", "weather"))
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris"})
        result = {
            "role": "tool",
            "tool_call_id": call.id,
            "content": "It rains, 12 degrees.",
        }
        answer = self.chat([ASKS, choice.message, result], tools=TOOLS, tool_choice="none")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertIn("weather", answer.choices[0].message.content)

    def test_a_call_in_a_stream_is_put_together_by_the_sdk(self):
        options = {
            "tools": [TOOLS[0]],
            "tool_choice": NAMED,
            "parallel_tool_calls": False,
        }
        whole = self.chat(**options).choices[0].message.tool_calls[0]
        with self.client.chat.completions.stream(
            model="chat",
            messages=[ASKS],
            temperature=0,
            max_tokens=80,
            **options,
        ) as stream:
            deltas = [
                event.arguments_delta
                for event in stream
                if event.type == "tool_calls.function.arguments.delta"
            ]
            call = stream.get_final_completion().choices[0].message.tool_calls[0]
        self.assertEqual(call.function.name, "weather")
        self.assertEqual(json.loads(call.function.arguments), json.loads(whole.function.arguments))
        self.assertGreater(len([delta for delta in deltas if delta]), 2)

    def test_required_calls_one_of_them(self):
        answer = self.chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
        (call,) = answer.choices[0].message.tool_calls
        self.assertIn(call.function.name, ["weather", "time"])
        json.loads(call.function.arguments)

    def test_what_the_model_cannot_choose_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(tools=TOOLS)
        self.assertIn("`tools`", str(caught.exception))
        self.assertIn("`required`", str(caught.exception))

    def test_a_response_is_the_answer_of_the_chat(self):
        question = CAPITAL
        answer = self.chat([{"role": "user", "content": question}])
        whole = self.respond(input=question)
        self.assertEqual(whole.output_text, answer.choices[0].message.content)
        self.assertEqual((whole.status, whole.usage.output_tokens), ("completed", 7))
        self.assertEqual(whole.usage.input_tokens, answer.usage.prompt_tokens)
        again = [
            {"role": "user", "content": question},
            *(item.model_dump(exclude_none=True) for item in whole.output),
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "And of Italy?"}],
            },
        ]
        self.assertIn("Rome", self.respond(input=again, instructions="Be brief.").output_text)

    def test_events_of_a_response_are_those_of_the_sdk(self):
        whole = self.respond(input=CAPITAL)
        with self.client.responses.stream(
            model="chat", input=CAPITAL, temperature=0, max_output_tokens=80
        ) as stream:
            events = list(stream)
            final = stream.get_final_response()
        self.assertEqual(final.output_text, whole.output_text)
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        self.assertEqual("".join(deltas), whole.output_text)
        self.assertGreater(len(deltas), 3)

    def test_a_response_calls_a_function_and_reads_its_result(self):
        options = {
            "tools": FLAT,
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
        with self.client.responses.stream(
            model="chat",
            input=ASKS["content"],
            temperature=0,
            max_output_tokens=80,
            **options,
        ) as stream:
            events = list(stream)
            (call,) = stream.get_final_response().output
        self.assertEqual((call.type, call.name), ("function_call", "weather"))
        self.assertEqual(json.loads(call.arguments), {"city": "Paris"})
        kinds = {event.type for event in events}
        self.assertIn("response.function_call_arguments.delta", kinds)
        self.assertIn("response.completed", kinds)
        result = {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": "12 degrees",
        }
        items = [
            ASKS,
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments,
            },
            result,
        ]
        self.assertIn("12", self.respond(input=items).output_text)

    def test_a_response_keeps_a_schema(self):
        schema = {
            "type": "object",
            "properties": {"age": {"type": "integer"}},
            "required": ["age"],
            "additionalProperties": False,
        }
        form = {"format": {"type": "json_schema", "name": "age", "schema": schema}}
        answer = self.respond(input="How old is a cat?", text=form)
        self.assertIsInstance(json.loads(answer.output_text)["age"], int)

    def test_what_needs_a_memory_is_refused(self):
        refused: list[tuple[dict[str, Any], str]] = [
            ({"store": True}, "store"),
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"conversation": "conv_1"}, "conversation"),
            ({"tools": [{"type": "web_search"}]}, "web_search"),
        ]
        for options, named in refused:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.respond(**options)
            self.assertIn(named, str(caught.exception))


CODER = ROOT / "models" / "coder"


@unittest.skipUnless((CODER / "family.toml").exists(), "`make setup-full` fetches the family")
class ChosenTools(unittest.TestCase):
    """A model that was trained to choose: Qwen2.5-Coder, whose template has tools."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served(families={"coder": CODER})
        base = f"http://{cls.server.http_address}/v1"
        cls.client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def chat(self, content, **options):
        options = {"temperature": 0, "max_tokens": 80, "tools": TOOLS} | options
        messages = [{"role": "user", "content": content}]
        answer = self.client.chat.completions.create(model="coder", messages=messages, **options)
        return answer.choices[0]

    def test_the_model_chooses_a_tool(self):
        choice = self.chat("What is the weather in Paris? Use the tool.")
        self.assertEqual((choice.finish_reason, choice.message.content), ("tool_calls", None))
        (call,) = choice.message.tool_calls
        self.assertEqual(call.function.name, "weather")
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris"})

    def test_the_model_answers_without_a_tool(self):
        choice = self.chat("Write a Python function that adds two numbers.", tool_choice="none")
        self.assertIn("def ", choice.message.content)


if __name__ == "__main__":
    unittest.main()
