"""Bad requests for text: each gets a status of its own and a message that names the key."""

import json
import re
import unittest
from http.client import HTTPConnection

from served import ROOT, Served, eventually

QUESTION = {"role": "user", "content": "Name the capital of France in a sentence."}
CHAT: dict[str, object] = {
    "model": "chat",
    "messages": [QUESTION],
    "temperature": 0,
    "max_tokens": 8,
}
TEXT: dict[str, object] = {
    "model": "chat",
    "prompt": "1, 2, 3, 4,",
    "temperature": 0,
    "max_tokens": 4,
}
PATIENCE = 60


def user(content):
    """Returns a request's messages: one of a user."""
    return {"messages": [{"role": "user", "content": content}]}


def schema_form(schema):
    """Returns a request's form: JSON of a schema."""
    named = {"name": "form", "schema": schema}
    form: dict[str, object] = {"type": "json_schema", "json_schema": named}
    return {"response_format": form}


def nested(depth):
    """Returns the schema of lists in lists."""
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


LOOP = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
STOPS = [str(number) for number in range(1000)]
BIASES = {str(number): 1 for number in range(301)}

# What is changed in a chat that is right, and what the message must say.
WRONG_CHATS: list[tuple[dict[str, object], str]] = [
    ({"model": "nothing"}, "there is no model `nothing`"),
    ({"messages": []}, "`messages`"),
    ({"messages": [{}]}, "`messages[0].role`"),
    ({"messages": [{"role": "king", "content": "a"}]}, "`messages[0].role`"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "`messages[0].role`"),
    ({"messages": [QUESTION, {"role": "user", "content": 5}]}, "`messages[1].content`"),
    (user([{"type": "image_url", "image_url": {"url": "a"}}]), "`messages[0].content`"),
    (user(None), "`messages[0].content` is missing"),
    (user("word " * 9000), "the context holds 8192"),
    (user("word" * 250_000), "`messages`: the messages are longer than 524288 bytes"),
    ({"messages": [QUESTION] * 5000}, "the context holds 8192"),
    ({"max_tokens": 0}, "`max_tokens`: it is 0, it must be at least 1"),
    ({"max_completion_tokens": 0}, "`max_completion_tokens`: it is 0"),
    ({"max_tokens": 8190}, "8190 are to be generated, but the context holds 8192"),
    ({"max_tokens": 10**9}, "the context holds 8192"),
    ({"max_tokens": 2**63}, "the context holds 8192"),
    ({"n": 0}, "`n` is 0, but must be 1 to 16"),
    ({"n": 10**9}, "`n` is 1000000000, but must be 1 to 16"),
    ({"temperature": -0.1}, "`temperature` is -0.1; valid is 0 to 2"),
    ({"temperature": 10**30}, "`temperature`"),
    ({"top_p": 0}, "`top_p`"),
    ({"top_p": 1.1}, "`top_p`"),
    ({"top_k": -2}, "`top_k`"),
    ({"min_p": -1}, "`min_p`"),
    ({"typical_p": 0}, "`typical_p`"),
    ({"repetition_penalty": -1}, "`repetition_penalty`"),
    ({"frequency_penalty": -2.1}, "`frequency_penalty` is -2.1; valid is -2 to 2"),
    ({"presence_penalty": 3}, "`presence_penalty` is 3; valid is -2 to 2"),
    ({"logit_bias": {"a": 1}}, "`logit_bias`"),
    ({"logit_bias": {"-1": 1}}, "`logit_bias`"),
    ({"logit_bias": {"49152": 1}}, "`logit_bias` is for token 49152"),
    ({"logit_bias": {str(2**40): 1}}, "`logit_bias`"),
    ({"logit_bias": {"1": 101}}, "`logit_bias` is 101 for token 1; valid is -100 to 100"),
    ({"logit_bias": BIASES}, "`logit_bias` is a map of 301 tokens; valid are up to 300"),
    ({"stop": STOPS}, "`stop`: there are 1000 stop strings; valid are up to 16"),
    ({"stop": ""}, "`stop`: stop string 0 is empty"),
    ({"stop": ["a", "b" * 1025]}, "`stop`: stop string 1 has 1025 bytes"),
    ({"top_logprobs": 2}, "`top_logprobs`"),
    ({"logprobs": True, "top_logprobs": 21}, "`top_logprobs` is 21, but must be 0 to 20"),
    ({"stream_options": {"include_usage": True}}, "`stream_options`"),
    ({"tools": []}, "parameter `tools` is of 0 tools"),
    ({"latency_budget_ms": 5}, "`latency_budget_ms`"),
    ({"memory_budget_mb": -1}, "memory_budget_mb is -1"),
    ({"min_quality": 2}, "min_quality is 2"),
    ({"priority": -1}, "`priority`"),
    ({"plan": "a" * 5000}, "plan has 5000 bytes"),
    ({"response_format": {"type": "xml"}}, "is `xml`, but must be"),
    ({"response_format": {"type": "json_schema"}}, "missing field `json_schema`"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "must be the only form of the answer"),
    ({"guided_regex": "(("}, "the regular expression is not valid"),
    ({"guided_choice": ["a"] * 1001}, "the number of choices is 1001; valid is up to 1000"),
    ({"guided_grammar": "start"}, "the grammar is not valid"),
]

# Schemas that are not valid, not supported or not to be kept, and what the message must say.
WRONG_SCHEMAS: list[tuple[object, str]] = [
    (5, "schema must be an object or boolean"),
    (False, "Unsatisfiable schema"),
    ({"type": "text"}, "Invalid type: text"),
    ({"enum": []}, "Unsatisfiable schema"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum (3) is greater than maximum (2)"),
    ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength (5)"),
    ({"type": "string", "pattern": "(("}, "unclosed group"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"not": {"type": "string"}}, '["not"]'),
    ({"$ref": "#/$defs/nothing"}, "#/$defs/nothing"),
    ({"$ref": "https://example.com/a.json"}, "https://example.com/a.json"),
    ({"$ref": "file:///etc/passwd"}, "file:///etc/passwd"),
    (LOOP, "no text of the model's tokens keeps it"),
    ({"enum": [f"value {number}" for number in range(100_000)]}, "valid is up to 65536"),
]

# What is changed in a completion that is right, and what the message must say.
WRONG_TEXTS: list[tuple[dict[str, object], str]] = [
    ({"prompt": ""}, "`prompt`: it is empty"),
    ({"prompt": []}, "`prompt`: it is empty"),
    ({"prompt": [1] * 9000}, "the context holds 8192"),
    ({"prompt": [1, 49152]}, "`prompt`: 49152 is no token; there are 49152"),
    ({"prompt": ["a", "b"]}, "an array of one string"),
    ({"logprobs": 21}, "`logprobs` is 21; valid is 0 to 20"),
    ({"suffix": "a"}, "unknown parameter `suffix`"),
]

# Values of each type, and the keys for which those of the type are right.
VALUES: dict[str, object] = {
    "string": "a",
    "object": {"a": 1},
    "array": [1],
    "boolean": True,
    "fraction": 1.5,
    "negative": -1,
    "large": 10**30,
}
KEYS = {
    "model": {"string"},
    "messages": set(),
    "max_tokens": set(),
    "max_completion_tokens": set(),
    "logprobs": {"boolean"},
    "top_logprobs": set(),
    "response_format": set(),
    "chat_template_kwargs": {"object"},
    "temperature": {"fraction"},
    "top_p": set(),
    "top_k": {"negative"},
    "min_p": set(),
    "typical_p": set(),
    "repetition_penalty": {"fraction"},
    "frequency_penalty": {"fraction", "negative"},
    "presence_penalty": {"fraction", "negative"},
    "logit_bias": set(),
    "seed": {"negative"},
    "n": set(),
    "stop": {"string"},
    "ignore_eos": {"boolean"},
    "guided_json": {"object", "boolean"},
    "guided_regex": {"string"},
    "guided_choice": set(),
    "guided_grammar": set(),
    "stream": {"boolean"},
    "stream_options": set(),
    "user": {"string"},
    "plan": {"string"},
    "min_quality": set(),
    "memory_budget_mb": {"fraction"},
    "priority": set(),
}
WRONG_TYPES = [
    (key, value)
    for key, right in KEYS.items()
    for kind, value in VALUES.items()
    if kind not in right
]

# Bodies that are no request at all, and what the message must say.
WRONG_BODIES = [
    (b"", "EOF"),
    (b"[]", "is an array, but must be a JSON object"),
    (b'{"model": "chat"}', "missing field `messages`"),
    (b'{"messages": []}', "missing field `model`"),
    (b'{"model": "chat", "messages": [{"role": "user", "content": "a', "EOF"),
    (b'{"model": "chat", "messages": [], "messages": []}', "duplicate field `messages`"),
    (b'{"model": "chat", "messages": [], "temperature": NaN}', "expected value"),
    (b'{"model": "chat", "messages": [{"role": "user", "content": "\\ud800"}]}', "escape"),
    (b'{"model": "chat", "messages": [{"role": "user", "content": "\xff"}]}', "UTF-8"),
    (b'{"model": "chat", "messages": [{"content": ' + b"[" * 100_000, "recursion limit"),
]


class BadChats(unittest.TestCase):
    """Requests that are refused, and a server that goes on."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served(families={"chat": ROOT / "models" / "chat"})

    @classmethod
    def tearDownClass(cls):
        eventually(lambda: cls.server.metric("tessera_generation_sequences_running") == 0)
        cls.server.stop()

    def post(self, path, body):
        """Returns the status and the answer to a request."""
        body = body if isinstance(body, bytes) else json.dumps(body)
        connection = HTTPConnection(self.server.http_address, timeout=PATIENCE)
        try:
            connection.request("POST", path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def refusal(self, path, body, status=400):
        """Returns the message of a refusal, in the form of OpenAI's."""
        found, answer = self.post(path, body)
        self.assertEqual(found, status, answer)
        self.assertEqual(answer["error"]["type"], "invalid_request_error")
        self.assertTrue(answer["error"]["code"])
        return answer["error"]["message"]

    def test_values(self):
        for change, reason in WRONG_CHATS:
            with self.subTest(str(change)[:100]):
                status = 404 if change.keys() & {"model"} else 400
                message = self.refusal("/v1/chat/completions", CHAT | change, status)
                self.assertIn(reason, message)

    def test_values_are_refused_before_a_stream_begins(self):
        for change, reason in WRONG_CHATS[-8:]:
            with self.subTest(str(change)[:100]):
                message = self.refusal("/v1/chat/completions", CHAT | {"stream": True} | change)
                self.assertIn(reason, message)

    def test_schemas(self):
        for schema, reason in WRONG_SCHEMAS:
            with self.subTest(str(schema)[:100]):
                message = self.refusal("/v1/chat/completions", CHAT | schema_form(schema))
                self.assertIn("`response_format`", message)
                self.assertIn(reason, message)

    def test_deep_schemas_are_kept_or_refused(self):
        status, answer = self.post("/v1/chat/completions", CHAT | schema_form(nested(100)))
        self.assertEqual(status, 200, answer)
        deep = json.dumps(CHAT | schema_form("HERE")).encode()
        deep = deep.replace(b'"HERE"', b'{"items": ' * 50_000 + b"{}" + b"}" * 50_000)
        self.assertIn("recursion limit", self.refusal("/v1/chat/completions", deep))

    def test_completions(self):
        for change, reason in WRONG_TEXTS:
            with self.subTest(str(change)[:100]):
                self.assertIn(reason, self.refusal("/v1/completions", TEXT | change))

    def test_types(self):
        for key, value in WRONG_TYPES:
            with self.subTest(f"{key}: {value}"):
                status, answer = self.post("/v1/chat/completions", CHAT | {key: value})
                self.assertEqual(status, 400, answer)
                if answer["error"]["code"] != "context_length_exceeded":
                    self.assertEqual(re.split(r"[.\[]", answer["error"]["param"])[0], key)

    def test_bodies(self):
        for body, reason in WRONG_BODIES:
            with self.subTest(body[:60]):
                self.assertIn(reason, self.refusal("/v1/chat/completions", body))

    def test_what_is_too_large_costs_little(self):
        """A megabyte of one word is refused before it is tokenized; memory comes back."""
        large = CHAT | user("word" * 250_000)
        self.refusal("/v1/chat/completions", large)
        before = self.server.memory_bytes()
        for _ in range(20):
            self.refusal("/v1/chat/completions", large)
        self.assertLess(self.server.memory_bytes() - before, 64 << 20)

    def test_the_server_answers_after_all_that(self):
        status, answer = self.post("/v1/chat/completions", CHAT)
        self.assertEqual(status, 200)
        self.assertEqual(
            answer["choices"][0]["message"]["content"], "The capital of France is Paris."
        )


if __name__ == "__main__":
    unittest.main()
