"""Vision transformers with timm's parameter names whose blocks run whole or as a prefix.

Only what the recipe in fashion.py needs: `timm.models.vision_transformer.VisionTransformer` takes
the same parameters and gives the same logits (test_vit.py). A block may run with its first heads
and its first hidden units only (MatFormer, SortedNet); the width of the tokens stays.
"""

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-6


class PatchEmbed(nn.Module):
    """Images [batch, channels, height, width] to tokens [batch, patches, width]."""

    def __init__(self, patch, channels, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images):
        """Cuts into patches first: one matrix product, which is faster than a convolution here."""
        batch, channels, height, _ = images.shape
        patch = self.proj.kernel_size[0]
        grid = height // patch
        cells = images.reshape(batch, channels, grid, patch, grid, patch)
        cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, -1)
        return F.linear(cells, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Self-attention that may use its first heads only."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens, heads=None):
        batch, count, width = tokens.shape
        head_width = width // self.heads
        heads = heads or self.heads
        inner = heads * head_width
        weight, bias, projection = self.qkv.weight, self.qkv.bias, self.proj.weight
        if inner < width:
            weight = weight.view(3, width, width)[:, :inner].reshape(3 * inner, width)
            bias = bias.view(3, width)[:, :inner].reshape(3 * inner)
            projection = projection[:, :inner]
        qkv = F.linear(tokens, weight, bias).view(batch, count, 3, heads, head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        # Written out: the fused kernel's backward pass is several times slower on a CPU.
        scores = (query * head_width**-0.5) @ key.transpose(-2, -1)
        mixed = torch.softmax(scores, -1) @ value
        return F.linear(
            mixed.transpose(1, 2).reshape(batch, count, inner), projection, self.proj.bias
        )


class Mlp(nn.Module):
    """Feed-forward part that may use its first hidden units only."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens, hidden=None):
        hidden = hidden or self.fc1.out_features
        inner = F.gelu(F.linear(tokens, self.fc1.weight[:hidden], self.fc1.bias[:hidden]))
        return F.linear(inner, self.fc2.weight[:, :hidden], self.fc2.bias)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens, heads=None, hidden=None):
        tokens = tokens + self.attn(self.norm1(tokens), heads)
        return tokens + self.mlp(self.norm2(tokens), hidden)


class VisionTransformer(nn.Module):
    """An anchor: stem, blocks, final norm and head, with timm's names."""

    def __init__(self, width, heads, depth, size=28, patch=4, channels=1, classes=10):
        super().__init__()
        self.width, self.depth = width, depth
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(positions(size // patch, width))
        self.patch_embed = PatchEmbed(patch, channels, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Linear(width, classes)
        self.apply(initialize)

    def stem(self, images, kept=None):
        """Embeds images; `kept` patches at random positions are seen, all where it is None."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        if kept:
            tokens = tokens[:, torch.randperm(tokens.shape[1])[:kept]]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat([first, tokens], 1)

    def classify(self, tokens):
        """Returns logits from the first token."""
        return self.head(self.norm(tokens[:, 0]))

    def forward(self, images, kept=None):
        return self.depths(images, self.depth, kept)[-1]

    def depths(self, images, least, kept=None):
        """Returns the logits after `least` blocks and after each one behind them."""
        tokens, found = self.stem(images, kept), []
        for count, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            if count >= least:
                found.append(self.classify(tokens))
        return found


class Exit(nn.Module):
    """Classifies from the first token and the mean of all tokens inside an anchor."""

    def __init__(self, width, classes=10):
        super().__init__()
        self.norm = nn.LayerNorm(2 * width, EPSILON)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, tokens):
        pooled = torch.cat([tokens[:, 0], tokens.mean(1)], 1)
        return self.head(self.norm(pooled))


def positions(grid, width):
    """Sines and cosines of both coordinates, zero for the class token: [1, 1 + grid², width]."""
    quarter = width // 4
    frequency = 1.0 / 100 ** (torch.arange(quarter) / quarter)
    angles = torch.outer(torch.arange(grid).float(), frequency)
    one = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = one[:, None].expand(-1, grid, -1), one[None].expand(grid, -1, -1)
    table = torch.cat([rows, columns], 2).reshape(grid * grid, width)
    return torch.cat([torch.zeros(1, width), 0.2 * table])[None]


def initialize(module):
    """Small normal weights, no biases."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.1)
        nn.init.zeros_(module.bias)
