"""Reads what a server counts: Prometheus's text format."""

import re

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.M)
NAME = re.compile(r"[a-zA-Z_:][\w:]*")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """What a server has counted at one moment."""

    def __init__(self, text):
        self.samples = [
            (name, dict(LABEL.findall(labels)), float(value))
            for name, labels, value in SAMPLE.findall(text)
        ]

    def total(self, name, **labels):
        """Returns the sum of the samples of a name that have these labels; 0 where there is none."""
        return sum(value for _, value in self.find(name, labels))

    def by(self, label, name, **labels):
        """Returns the sums of the samples of a name that have these labels, by another label."""
        sums = {}
        for own, value in self.find(name, labels):
            key = own.get(label, "")
            sums[key] = sums.get(key, 0) + value
        return sums

    def find(self, name, labels):
        """Returns labels and value of the samples of a name that have these labels."""
        if not NAME.fullmatch(name):
            raise ValueError(f"not a metric's name: {name}")
        return [
            (own, value)
            for known, own, value in self.samples
            if known == name and labels.items() <= own.items()
        ]
