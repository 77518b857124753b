"""Tests that the pool's records and the fitted files beside them belong together."""

import hashlib
import json
import unittest
from pathlib import Path

POOL = Path(__file__).resolve().parent.parent / "models"


class FittedFiles(unittest.TestCase):
    def test_every_recorded_file_is_there_also_of_anchors_that_are_fetched_later(self):
        for record_file in sorted(POOL.glob("*/fits.json")):
            records = json.loads(record_file.read_text())
            maps = {**records["maps"], **records.get("experts", {})}
            self.assertTrue(maps, record_file)
            for name, record in maps.items():
                path = record_file.parent / record.get("file", name)
                with self.subTest(file=str(path)):
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    self.assertEqual(digest, record["sha256"])


if __name__ == "__main__":
    unittest.main()
