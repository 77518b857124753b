"""The network that is trained jointly: anchors, stitches between them, exits inside them.

A configuration is a list of steps through it; `paired` and the names follow SN-Net (Stitchable
Neural Networks, CVPR 2023, section 3 and its released code's layout).
"""

import itertools
import random
from dataclasses import dataclass, field

import torch
from torch import nn
from vit import Exit, VisionTransformer

SHARES = (1 / 3, 2 / 3)


def paired(depth, kernel=2, stride=1):
    """Lists SN-Net's stitches between anchors of `depth` blocks as (after, before, stitch).

    A window of `kernel` blocks slides by `stride`; it owns one stitch, shared by the pairs in it
    that no window before it has.
    """
    seen, stitches = set(), []
    for window, start in enumerate(range(0, depth - kernel + 1, stride)):
        inside = range(start, start + kernel)
        for pair in [(one, other) for one in inside for other in inside]:
            if pair not in seen:
                seen.add(pair)
                stitches.append((*pair, window))
    return stitches


class Stitch(nn.Module):
    """An affine map of every token."""

    def __init__(self, width_in, width_out):
        super().__init__()
        self.transform = nn.Linear(width_in, width_out)

    def forward(self, tokens):
        return self.transform(tokens)


@dataclass
class Segment:
    """Blocks `begin..end` of an anchor, each with its heads and hidden units (None for all)."""

    anchor: int
    begin: int
    end: int
    widths: list = field(default_factory=list)


class Supernet(nn.Module):
    """Anchors with stitches between neighbours and exits after every block but the last."""

    def __init__(self, anchors):
        super().__init__()
        self.anchors = nn.ModuleList(anchors)
        depth = anchors[0].depth
        self.pairs = paired(depth)
        windows = 1 + max(window for *_, window in self.pairs)
        self.stitch_layers = nn.ModuleList(
            nn.ModuleList(Stitch(small.width, large.width) for _ in range(windows))
            for small, large in itertools.pairwise(anchors)
        )
        self.exits = nn.ModuleList(
            nn.ModuleDict({str(k): Exit(anchor.width) for k in range(1, depth)})
            for anchor in anchors
        )

    def run(self, images, segments):
        """Returns the logits at the end and those of every exit on the way."""
        exits = []
        tokens = self.anchors[segments[0].anchor].stem(images)
        for previous, segment in zip([None, *segments], segments, strict=False):
            if previous:
                pair = (previous.end - 1, segment.begin)
                window = next(w for a, b, w in self.pairs if (a, b) == pair)
                tokens = self.stitch_layers[previous.anchor][window](tokens)
            for offset, index in enumerate(range(segment.begin, segment.end)):
                heads, hidden = segment.widths[offset] if segment.widths else (None, None)
                tokens = self.anchors[segment.anchor].blocks[index](tokens, heads, hidden)
                if str(index + 1) in self.exits[segment.anchor]:
                    exits.append(self.exits[segment.anchor][str(index + 1)](tokens))
        return self.anchors[segments[-1].anchor].classify(tokens), exits

    def whole(self, anchor):
        """Returns the configuration of an anchor alone."""
        return [Segment(anchor, 0, self.anchors[anchor].depth)]

    def sample(self, generator):
        """Draws a configuration: an anchor, a stitched path, or the largest anchor nested."""
        depth, last = self.anchors[0].depth, len(self.anchors) - 1
        kind = generator.random()
        if kind < 0.3:
            return self.whole(generator.choices(range(last + 1), [1, 2, 3])[0])
        if kind < 0.65:
            return self.sample_stitched(generator, depth, last)
        return self.sample_nested(generator, depth, last)

    def sample_stitched(self, generator, depth, last):
        """A path over one stitch, or now and then over two."""
        first = generator.randrange(last)
        after, before, _ = generator.choice(self.pairs)
        path = [Segment(first, 0, after + 1), Segment(first + 1, before, depth)]
        if first + 2 <= last and generator.random() < 0.3:
            later = [p for p in self.pairs if p[0] >= before]
            after, before, _ = generator.choice(later)
            path[1].end = after + 1
            path.append(Segment(first + 2, before, depth))
        return path

    def sample_nested(self, generator, depth, last):
        """A prefix of the blocks, and prefixes of heads and hidden units, alike or mixed."""
        width, heads = self.anchors[last].width, self.anchors[last].blocks[0].attn.heads
        choices = [(round(heads * s), round(4 * width * s)) for s in (*SHARES, 1)]
        end = depth if generator.random() < 0.6 else generator.randrange(2, depth)
        if generator.random() < 0.5:
            one = generator.choice(choices)
            widths = [one] * end
        else:
            widths = [
                (generator.choice(choices)[0], generator.choice(choices)[1]) for _ in range(end)
            ]
        return [Segment(last, 0, end, widths)]


@torch.no_grad()
def fit_stitches(net, images):
    """Starts every stitch as the least-squares map between its ends, mean over its pairs."""
    for number, layers in enumerate(net.stitch_layers):
        small = states(net.anchors[number], images)
        large = states(net.anchors[number + 1], images)
        for window, layer in enumerate(layers):
            fits = [
                least_squares(small[after + 1], large[before])
                for after, before, owner in net.pairs
                if owner == window
            ]
            mean = torch.stack(fits).mean(0)
            layer.transform.weight.copy_(mean[:-1].T)
            layer.transform.bias.copy_(mean[-1])


def states(anchor, images):
    """Returns the tokens before each block and after the last, flattened to rows."""
    tokens = anchor.stem(images)
    found = [tokens]
    for block in anchor.blocks:
        tokens = block(tokens)
        found.append(tokens)
    return [tokens.flatten(0, 1).float() for tokens in found]


def least_squares(inputs, outputs):
    """Solves [inputs, 1] · X = outputs."""
    ones = torch.ones(len(inputs), 1)
    return torch.linalg.lstsq(torch.cat([inputs, ones], 1), outputs, driver="gelsd").solution


def new(widths, heads, depth):
    """Builds untrained anchors."""
    return [VisionTransformer(w, h, depth) for w, h in zip(widths, heads, strict=False)]


def generator(seed):
    """Returns a source of configurations that repeats."""
    return random.Random(seed)
