"""Files that are not what they should be, in the pool and in the cache's place."""

import http.client
import os
import shutil
import tempfile
import unittest
from pathlib import Path

from served import FASHION, PIXELS, Served, post, support


class Caches(unittest.TestCase):
    """A family is served whatever lies where its profile is kept."""

    def check(self, cache, said):
        """Serves with a cache, checks an answer and a warning, and returns what was logged."""
        with support.Served(FASHION, "--cache", cache) as server:
            self.assertEqual(post(server, "fashion", PIXELS)[0], 200)
            messages = server.messages()
        self.assertIn(said, messages)

    def test_a_cache_that_cannot_be_written(self):
        # No folder can be made there, whoever asks: as on a read-only root.
        self.check("/proc/tessera", "profiles cannot be kept")

    def test_a_profile_that_is_not_text(self):
        with tempfile.TemporaryDirectory() as cache:
            self.check(cache, "estimate")
            (profile,) = Path(cache).iterdir()
            profile.write_bytes(b"\xff\xfe\0broken")
            self.check(cache, "the cache of profiles is broken")


class Pipes(unittest.TestCase):
    """A named pipe in the place of weights blocks whoever opens it to read."""

    def test_others_are_served_and_the_server_stops(self):
        with tempfile.TemporaryDirectory() as place:
            broken = Path(place) / "broken"
            shutil.copytree(FASHION["fashion"], broken)
            manifest = broken / "family.toml"
            manifest.write_text(manifest.read_text().replace('"fashion"', '"broken"', 1))
            (broken / "model.safetensors").unlink()
            os.mkfifo(broken / "model.safetensors")
            with Served(families=FASHION) as server:
                shutil.move(broken, server.pool / "broken")
                self.assertEqual(post_load(server, "broken"), 503)
                self.assertIn("not a regular file", server.messages())
                self.assertEqual(post(server, "fashion", PIXELS)[0], 200)


class Links(unittest.TestCase):
    """Files that are links out of their folder, as in Hugging Face's cache."""

    def test_a_family_of_links_is_served(self):
        with tempfile.TemporaryDirectory() as place:
            blobs, family = Path(place) / "blobs", Path(place) / "linked"
            shutil.copytree(FASHION["fashion"], family)
            manifest = family / "family.toml"
            manifest.write_text(manifest.read_text().replace('"fashion"', '"linked"', 1))
            blobs.mkdir()
            for number, path in enumerate(sorted(family.rglob("*.safetensors"))):
                shutil.move(path, blobs / str(number))
                path.symlink_to(blobs / str(number))
            with Served(families=FASHION | {"linked": family}) as server:
                expected = post(server, "fashion", PIXELS)
                found = post(server, "linked", PIXELS)
                self.assertEqual(found[0], 200, found[1])
                self.assertEqual(found[1]["outputs"], expected[1]["outputs"])


def post_load(server, family):
    """Has a family loaded and returns the status."""
    connection = http.client.HTTPConnection(server.http_address, timeout=60)
    connection.request("POST", f"/v2/repository/models/{family}/load")
    status = connection.getresponse().status
    connection.close()
    return status


if __name__ == "__main__":
    unittest.main()
