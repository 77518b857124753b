"""A pool whose files change under a running server."""

import re
import shutil
import unittest
import urllib.request

from served import FASHION, PIXELS, Served, eventually, post


def infer(server, **parameters):
    """Returns the status and the answer of a request."""
    return post(server, "fashion", PIXELS, **parameters)


class ChangedFiles(unittest.TestCase):
    """Weights that are changed or removed before a module is loaded."""

    def test_a_changed_file_is_not_used(self):
        server = Served("--no-preload", families=FASHION, copied=True)
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
        cls.server = Served("--poll-pool", "1", families=FASHION, copied=True)
        cls.folder = cls.server.pool / "fashion"

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def status(self):
        return infer(self.server)[0]

    def test_families_come_change_break_and_go(self):
        self.assertEqual(self.status(), 200)
        manifest = (self.folder / "family.toml").read_text()
        # Broken: what was served before still is, and it is tried once.
        (self.folder / "family.toml").write_text("name = 1")
        eventually(lambda: self.count_failures("fashion"))
        for number in range(3):
            self.wait_for_another_look(f"broken-{number}")
        self.assertEqual(self.count_failures("fashion"), 1)
        self.assertEqual(self.status(), 200)
        # Mended: it is loaded anew.
        num_ready = self.count("ready")
        (self.folder / "family.toml").write_text(manifest)
        eventually(lambda: self.count("ready") > num_ready)
        # Gone, and back.
        aside = self.server.pool.parent / "aside"
        shutil.move(self.folder, aside)
        eventually(lambda: self.status() == 404)
        shutil.move(aside, self.folder)
        eventually(lambda: self.status() == 200)

    def wait_for_another_look(self, name):
        """Adds a broken family, and waits until the server has found it and all the others."""
        (self.server.pool / name).mkdir()
        (self.server.pool / name / "family.toml").write_text("name = 1")
        eventually(lambda: self.count_failures(name))

    def count_failures(self, family):
        """Returns how often the server has logged that a family is not loaded."""
        # The reason has several lines, and the family follows it.
        failed = re.findall(r'not loaded: .*? family="([^"]+)"', self.server.messages(), re.S)
        return failed.count(family)

    def count(self, words):
        """Returns how often the server has logged these words."""
        return self.server.messages().count(words)


if __name__ == "__main__":
    unittest.main()
