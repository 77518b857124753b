"""Tests of train/place.py: a family that is trained anew and killed at any step stays as it was."""

import re
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent / "train"))
import place

MANIFEST = """name = "tiny"
[stitches]
file = "model.safetensors"
sha256 = ""
[anchors.a]
part = { file = "model.safetensors", config = "anchors/a/config.json" }
[anchors.a.sha256]
"anchors/a/config.json" = ""
"model.safetensors" = ""
"""


class Killed(BaseException):
    """Ends a run where no code of it gets to clear up."""


def write(folder, weights):
    """Writes a family as training does."""
    with place.Writer(folder, MANIFEST) as writer:
        writer.add("model.safetensors", weights)
        writer.add("anchors/a/config.json", b"config of " + weights)
        writer.commit()


def loaded(folder):
    """Returns what the manifest names, having checked every digest; None where there is none."""
    path = folder / "family.toml"
    if not path.exists():
        return None
    named = re.findall(r'^"([^"]+)" = "([0-9a-f]+)"$', path.read_text(), flags=re.M)
    assert len(named) == 2, named
    for name, digest in named:
        assert place.sha256(folder / name) == digest, name
    part = re.search(r'part = { file = "([^"]+)", config = "([^"]+)" }', path.read_text())
    assert sorted(part.groups()) == sorted(name for name, _ in named)
    return (folder / part[1]).read_bytes()


class PlaceTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "tiny"

    def kill(self, steps, weights):
        """Ends a run before its renaming number `steps`; tells whether it got so far."""
        left, rename = [steps], place.os.replace

        def replace(*paths):
            if not left[0]:
                raise Killed
            left[0] -= 1
            rename(*paths)

        with mock.patch.object(place.os, "replace", replace):
            try:
                write(self.folder, weights)
            except Killed:
                return True
        return False

    def test_a_killed_run_leaves_the_old_state_and_no_litter_after_the_next(self):
        for old in (None, b"old"):
            for steps in range(10):
                with self.subTest(old=old, steps=steps):
                    self.setUp()
                    if old:
                        write(self.folder, old)
                    killed = self.kill(steps, b"new")
                    self.assertEqual(loaded(self.folder), old if killed else b"new")
                    write(self.folder, b"newest")
                    self.assertEqual(loaded(self.folder), b"newest")
                    write(self.folder, b"newest")
                    files = [path for path in self.folder.rglob("*") if path.is_file()]
                    self.assertEqual(len(files), 3, files)
                if not killed:
                    break
            self.assertFalse(killed)

    def test_the_files_in_use_before_stay_until_the_next_run(self):
        write(self.folder, b"old")
        mapped = self.folder / "model.safetensors"
        write(self.folder, b"new")
        self.assertEqual(mapped.read_bytes(), b"old")
        write(self.folder, b"newest")
        self.assertFalse(mapped.exists())

    def test_two_runs_do_not_write_at_once(self):
        with (
            place.Writer(self.folder, MANIFEST),
            self.assertRaisesRegex(SystemExit, "another run"),
        ):
            place.Writer(self.folder, MANIFEST)


if __name__ == "__main__":
    unittest.main()
