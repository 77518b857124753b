"""What a reference library computes with a checkpoint, and the inputs that it reads."""

import json
import shutil
from dataclasses import dataclass, field

import numpy
import torch
from sweep_changes import CONFIG


class Unreadable(Exception):
    """The library does not read the checkpoint, or leaves its answer to chance."""


@dataclass
class Reference:
    """Inputs by name, and the output."""

    inputs: dict
    output: numpy.ndarray
    mask: numpy.ndarray | None = None
    """Tokens that are no padding, if the output has a row for each token."""
    texts: list = field(default_factory=list)
    max_tokens: int = 10


def write_checkpoint(folder, raw, base, save):
    """Writes a checkpoint of the configuration `raw`.

    Its tensors are those of the folder `base`, or without one those that `save(folder, raw)` writes.
    """
    if base:
        shutil.copytree(base, folder, dirs_exist_ok=True)
    else:
        save(folder, raw)
    (folder / CONFIG).write_text(json.dumps(raw, indent=1))


def shake(model):
    """Makes every parameter matter: initial values are too small, or all alike."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))


def draw_tokens():
    """Returns two rows of token ids, the second padded, and their mask."""
    random = torch.Generator().manual_seed(11)
    ids = torch.randint(5, 40, (2, 10), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = 1
    return ids, mask


def draw_images(count, shape):
    """Returns images of a shape: channels, height and width."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(13))
