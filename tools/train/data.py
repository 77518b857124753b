"""Fashion-MNIST from IDX files, and the augmentation of the recipe."""

import gzip
from pathlib import Path

import numpy
import torch

MEAN, DEVIATION = 0.2860, 0.3530
SHIFT = 1


def read_idx(path):
    """Reads an IDX file of bytes, gzipped or not."""
    raw = Path(path).read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: is no IDX file of bytes")
    shape = numpy.frombuffer(raw, ">u4", raw[3], 4)
    return numpy.frombuffer(raw, numpy.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def load(folder, split):
    """Returns normalized images [n, 1, 28, 28] f32 and labels [n]; `split` is train or t10k."""
    images = read_idx(Path(folder) / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(Path(folder) / f"{split}-labels-idx1-ubyte.gz")
    images = torch.from_numpy(images.astype(numpy.float32)).unsqueeze(1)
    return (images / 255 - MEAN) / DEVIATION, torch.from_numpy(labels.astype(numpy.int64))


def augment(images):
    """Mirrors half of the images, and shifts each by up to SHIFT pixels."""
    return shift(mirror(images, torch.rand(len(images)) < 0.5))


def mirror(images, chosen):
    """Mirrors the chosen images."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def shift(images):
    """Moves each image by up to SHIFT pixels in both directions."""
    count, _, height, width = images.shape
    empty = (0 - MEAN) / DEVIATION
    padded = torch.nn.functional.pad(images, [SHIFT] * 4, value=empty)
    rows = torch.randint(0, 2 * SHIFT + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 2 * SHIFT + 1, (count, 1)) + torch.arange(width)
    picked = padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
    return picked.unsqueeze(1)


def batches(count, size):
    """Yields shuffled positions, `size` at a time; what is left over is dropped."""
    order = torch.randperm(count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]
