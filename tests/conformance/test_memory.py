"""A pool that does not fit into the memory that the server may take."""

import concurrent.futures
import unittest
import urllib.request

from served import FASHION, PIXELS, TEXT, Served, post

QUESTIONS = [
    ("text", TEXT, "l6[0..6]"),
    ("text", TEXT, "l3[0..3]"),
    ("fashion", PIXELS, "l[0..6]"),
    ("text", TEXT, "l6[0..6]{int8:0..5}"),
    ("fashion", PIXELS, "s[0..6]"),
]


def ask(server, family, tensor, plan):
    """Returns the status and the answer of a request."""
    return post(server, family, tensor, plan=plan)


class MemoryLimit(unittest.TestCase):
    """`--memory-limit` holds, and every request is answered as without it."""

    @classmethod
    def setUpClass(cls):
        free = Served("--no-preload")
        try:
            base = free.memory_bytes()
            cls.expected = [ask(free, *question) for question in QUESTIONS]
            cls.weights = free.metric("tessera_runtime_resident_bytes")
            cls.evictions = free.metric("tessera_runtime_module_evictions_total")
        finally:
            free.stop()
        # The largest module, the word embeddings, takes 48 MB and is read from the file as needed.
        cls.limit = int(base + cls.weights / 2)

    def check_answers(self, server):
        """Asks everything, and compares with what a server without a limit answers."""
        for question, (_, answer) in zip(QUESTIONS, self.expected, strict=False):
            status, found = ask(server, *question)
            self.assertEqual((status, found.get("outputs")), (200, answer["outputs"]))

    def test_modules_give_way_to_one_another(self):
        self.assertEqual([status for status, _ in self.expected], [200] * len(QUESTIONS))
        self.assertEqual(self.evictions, 0)
        server = Served("--memory-limit", f"{self.limit}B")
        try:
            for _ in range(4):
                self.check_answers(server)
            self.assertGreater(server.metric("tessera_runtime_module_evictions_total"), 10)
            self.assertLess(server.metric("tessera_runtime_resident_bytes"), self.weights / 2)
            self.assertLess(server.memory_bytes("VmHWM"), 1.1 * self.limit)
        finally:
            server.stop()

    def test_workers_share_the_limit(self):
        server = Served("--memory-limit", f"{self.limit}B", "--workers", "3")
        try:
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                asked = [
                    (question, answer)
                    for _ in range(6)
                    for question, (_, answer) in zip(QUESTIONS, self.expected, strict=False)
                ]
                found = pool.map(lambda pair: ask(server, *pair[0]), asked)
                for (question, answer), (status, reply) in zip(asked, found, strict=False):
                    self.assertEqual(status, 200, (question, reply))
                    self.assertEqual(reply["parameters"]["plan"], answer["parameters"]["plan"])
            self.assertGreater(server.metric("tessera_runtime_module_evictions_total"), 10)
            self.assertLess(server.memory_bytes("VmHWM"), 1.1 * self.limit)
        finally:
            server.stop()

    def test_what_is_pinned_stays(self):
        # Modules that are loaded ahead would count as well.
        pins = ("--no-preload", "--pin", "fashion/s,fashion/m.head")
        server = Served("--memory-limit", f"{self.limit}B", *pins)
        try:
            self.check_answers(server)
            ask(server, "text", TEXT, "l3[0..3]")
            ask(server, "text", TEXT, "l6[0..6]")
            self.assertGreater(server.metric("tessera_runtime_module_evictions_total"), 0)
            loads = server.metric("tessera_runtime_module_loads_total", family="fashion")
            self.assertEqual(ask(server, "fashion", PIXELS, "s[0..6]")[0], 200)
            after = server.metric("tessera_runtime_module_loads_total", family="fashion")
            self.assertEqual(after, loads)
        finally:
            server.stop()

    def test_a_pin_of_nothing_is_told(self):
        for pin, reason in [
            ("nothing/x", "is not a FAMILY/NAME"),
            ("fashion", "is not a FAMILY/NAME"),
        ]:
            with self.assertRaisesRegex(RuntimeError, reason):
                Served("--pin", pin, families=FASHION)

    def test_what_was_changed_while_it_was_evicted_is_not_used(self):
        # Small modules that are loaded ahead may find room and stay.
        server = Served("--memory-limit", f"{self.limit}B", "--no-preload", copied=True)
        try:
            self.assertEqual(ask(server, "fashion", PIXELS, "l[0..6]")[0], 200)
            resident = lambda: server.metric("tessera_runtime_resident_modules", family="fashion")
            for _ in range(10):
                if resident() == 0:
                    break
                for plan in ("l6[0..6]", "l3[0..3]", "l6[0..6]{int8:0..5}"):
                    self.assertEqual(ask(server, "text", TEXT, plan)[0], 200)
            self.assertEqual(resident(), 0)
            files = {
                path: path.read_bytes() for path in (server.pool / "fashion").rglob("*.safetensors")
            }
            for path, content in files.items():
                path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            self.assert_refused(server)
            for path in files:
                path.unlink()
            self.assert_refused(server)
            self.assertEqual(ask(server, "text", TEXT, "l6[0..6]")[0], 200)
            for path, content in files.items():
                path.write_bytes(content)
            load = f"http://{server.http_address}/v2/repository/models/fashion/load"
            urllib.request.urlopen(load, b"", timeout=60).close()
            self.assertEqual(ask(server, "fashion", PIXELS, "l[0..6]")[0], 200)
        finally:
            server.stop()

    def assert_refused(self, server):
        """Asks for modules whose files are not what they were."""
        status, answer = ask(server, "fashion", PIXELS, "l[0..6]")
        self.assertEqual((status, answer["code"]), (503, "unavailable"))
        self.assertIn("its files were changed", answer["error"])

    def test_what_does_not_fit_by_itself_is_told(self):
        server = Served("--memory-limit", "1MB", families=FASHION)
        try:
            for _ in range(2):
                status, answer = ask(server, "fashion", PIXELS, "s[0..6]")
                self.assertEqual((status, answer["code"]), (503, "unavailable"))
                self.assertEqual(
                    answer["error"],
                    "model `fashion` is not available: it does not fit into the memory limit",
                )
            self.assertIn("more than the memory limit of 1000000 bytes", server.messages())
        finally:
            server.stop()


if __name__ == "__main__":
    unittest.main()
