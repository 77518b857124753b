"""Tests of reading what a server counts."""

import unittest

from support.metrics import Metrics

TEXT = r"""# HELP asked Requests.
# TYPE asked counter
asked{family="text",code="ok"} 3
asked{family="text",code="bad"} 1
asked{family="a \"b\", c=\"d\"",code="ok"} 2.5e1
asked_total 7
depth{family="text"} -1
load NaN
bytes_bucket{le="+Inf"} 4
"""


class Reading(unittest.TestCase):
    def setUp(self):
        self.metrics = Metrics(TEXT)

    def test_a_total_is_over_all_labels_that_are_not_named(self):
        self.assertEqual(self.metrics.total("asked"), 29)
        self.assertEqual(self.metrics.total("asked", family="text"), 4)
        self.assertEqual(self.metrics.total("asked", code="ok", family="text"), 3)
        self.assertEqual(self.metrics.total("depth"), -1)

    def test_names_are_whole(self):
        self.assertEqual(self.metrics.total("asked_total"), 7)
        self.assertEqual(self.metrics.total("as"), 0)
        with self.assertRaises(ValueError):
            self.metrics.total('asked{code="ok"}')

    def test_labels_may_hold_quotes_and_commas(self):
        name = r"a \"b\", c=\"d\""
        self.assertEqual(self.metrics.by("family", "asked", code="ok"), {"text": 3, name: 25})

    def test_sums_by_a_label(self):
        self.assertEqual(self.metrics.by("code", "asked"), {"ok": 28, "bad": 1})
        self.assertEqual(self.metrics.by("le", "bytes_bucket"), {"+Inf": 4})


if __name__ == "__main__":
    unittest.main()
