"""A pool whose files change under a running server."""

import shutil
import time
import unittest
import urllib.request

from served import Served, post

PIXELS = {"name": "pixel_values", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.5] * 784}
POLL_SECONDS = 1


def infer(server, **parameters):
    """Returns the status and the answer of a request."""
    return post(server, "fashion", PIXELS, parameters)


def wait_for(condition, seconds=30):
    """Waits until a condition holds, and tells whether it does."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


class ChangedFiles(unittest.TestCase):
    """Weights that are changed or removed before a module is loaded."""

    def test_a_changed_file_is_not_used(self):
        server = Served("--no-preload", families=["fashion"], copied=True)
        try:
            loaded, other = "s[0..6]", "l[0..6]"
            self.assertEqual(infer(server, plan=loaded)[0], 200)
            weights = next((server.pool / "fashion").rglob("*.safetensors"))
            content = weights.read_bytes()
            weights.write_bytes(content[:-1] + b"?")
            status, answer = infer(server, plan=other)
            self.assertEqual((status, answer["code"]), (503, "unavailable"))
            self.assertEqual(
                answer["error"],
                "model `fashion` is not available: its files were changed; it must be loaded again",
            )
            self.assertIn("was changed or removed after", server.messages())
            weights.unlink()
            self.assertEqual(infer(server, plan=other)[0], 503)
            # What was loaded before is served as before.
            self.assertEqual(infer(server, plan=loaded)[0], 200)
            weights.write_bytes(content)
            load = f"http://{server.http_address}/v2/repository/models/fashion/load"
            urllib.request.urlopen(load, b"", timeout=60).close()
            self.assertEqual(infer(server, plan=other)[0], 200)
        finally:
            server.stop()


class Polled(unittest.TestCase):
    """A server that follows its pool's folder."""

    @classmethod
    def setUpClass(cls):
        cls.server = Served("--poll-pool", str(POLL_SECONDS), families=["fashion"], copied=True)
        cls.folder = cls.server.pool / "fashion"

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def status(self):
        return infer(self.server)[0]

    def test_families_come_change_break_and_go(self):
        self.assertEqual(self.status(), 200)
        manifest = (self.folder / "family.toml").read_text()
        self.ready = self.count("ready")
        # Broken: what was served before still is, and it is tried once.
        (self.folder / "family.toml").write_text("name = 1")
        self.assertTrue(wait_for(lambda: self.count("not loaded: ")))
        time.sleep(3 * POLL_SECONDS)
        self.assertEqual(self.count("not loaded: "), 1)
        self.assertEqual(self.status(), 200)
        # Mended: it is loaded anew.
        (self.folder / "family.toml").write_text(manifest)
        self.assertTrue(wait_for(lambda: self.count("ready") > self.ready))
        # Gone, and back.
        aside = self.server.pool.parent / "aside"
        shutil.move(self.folder, aside)
        self.assertTrue(wait_for(lambda: self.status() == 404))
        shutil.move(aside, self.folder)
        self.assertTrue(wait_for(lambda: self.status() == 200))

    def count(self, words):
        """Returns how often the server has logged these words."""
        return self.server.messages().count(words)


if __name__ == "__main__":
    unittest.main()
