"""A pool that does not fit into the memory that the server may take."""

import json
import re
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from served import Served

MEGABYTE = 10**6
PIXELS = {"name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.5] * 784}
TEXT = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["It does not fit."]}
QUESTIONS = [
    ("text", TEXT, "l6[0..6]"),
    ("text", TEXT, "l3[0..3]"),
    ("fashion", PIXELS, "l[0..6]"),
    ("text", TEXT, "l6[0..6]{int8:0..5}"),
    ("fashion", PIXELS, "s[0..6]"),
]


def ask(server, family, tensor, plan):
    """Returns the status and the answer of a request."""
    body = json.dumps({"inputs": [tensor], "parameters": {"plan": plan}}).encode()
    url = f"http://{server.http_address}/v2/models/{family}/infer"
    try:
        with urllib.request.urlopen(url, body, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def metric(server, name):
    """Returns the sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://{server.http_address}/metrics") as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.M))


def peak(server):
    """Returns the most memory that the server's process has held, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


class MemoryLimit(unittest.TestCase):
    """`--memory-limit` holds, and every request is answered as without it."""

    def test_modules_give_way_to_one_another(self):
        free = Served("--no-preload")
        try:
            base = metric(free, "process_resident_memory_bytes")
            expected = [ask(free, *question) for question in QUESTIONS]
            self.assertEqual([status for status, _ in expected], [200] * len(QUESTIONS))
            weights = metric(free, "tessera_runtime_resident_bytes")
            self.assertEqual(metric(free, "tessera_runtime_module_evictions_total"), 0)
        finally:
            free.stop()
        # The largest module, the word embeddings, takes 48 MB and is read from the file as needed.
        limit = int(base + weights / 2)
        server = Served("--memory-limit", f"{limit}B")
        try:
            for _ in range(4):
                for question, (_, answer) in zip(QUESTIONS, expected):
                    status, found = ask(server, *question)
                    self.assertEqual((status, found.get("outputs")), (200, answer["outputs"]))
            self.assertGreater(metric(server, "tessera_runtime_module_evictions_total"), 10)
            self.assertLess(metric(server, "tessera_runtime_resident_bytes"), weights / 2)
            self.assertLess(peak(server), 1.1 * limit)
        finally:
            server.stop()

    def test_what_does_not_fit_by_itself_is_told(self):
        server = Served("--memory-limit", "1MB", families=["fashion"])
        try:
            for _ in range(2):
                status, answer = ask(server, "fashion", PIXELS, "s[0..6]")
                self.assertEqual((status, answer["code"]), (503, "unavailable"))
                self.assertEqual(answer["error"], "model `fashion` is not available: it does not "
                                                  "fit into the memory limit")
            self.assertIn("more than the memory limit of 1000000 bytes", server.messages())
        finally:
            server.stop()


if __name__ == "__main__":
    unittest.main()
