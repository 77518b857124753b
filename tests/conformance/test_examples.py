"""The programs of examples/ run as their first lines say."""

import subprocess
import sys
import unittest

from served import ROOT, served


class Examples(unittest.TestCase):
    def run_example(self, name, address):
        command = [sys.executable, str(ROOT / "examples" / name), address]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def test_http(self):
        lines = self.run_example("http_infer.py", f"http://{served().http_address}").splitlines()
        self.assertRegex(lines[0], r"^200 ms: plan l.*, \[2, 384\] in ")
        self.assertIn("no plan", lines[-1])

    def test_grpc(self):
        output = self.run_example("grpc_infer.py", served().grpc_address)
        self.assertRegex(output, r"^plan l.*, shape \[1, 384\]\n$")

    def test_openai(self):
        output = self.run_example("openai_embeddings.py", f"http://{served().http_address}")
        self.assertGreater(float(output.removeprefix("cosine ")), 0.7)


if __name__ == "__main__":
    unittest.main()
