"""A BERT encoder whose blocks run with fewer heads and hidden units, or not at all.

Sub-networks are nested (SortedNet, 2023; DynaBERT, 2020): a narrower block has the first heads and
the first hidden units of the wide one, and a shorter network lacks blocks in the middle. Units are
sorted by what they add before training starts.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

HEAD = 32


@dataclass
class Form:
    """Sub-network: heads and hidden units of each block, and the parts that are left out."""

    widths: list
    skipped: set = field(default_factory=set)


class Block(nn.Module):
    """A block with the norms behind its residuals."""

    def __init__(self, width, hidden):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def attend(self, tokens, mask, heads):
        """Attention of the first `heads` heads; tokens are [batch, length, width]."""
        batch, length, width = tokens.shape
        units = heads * HEAD
        weight = self.qkv.weight.view(3, width, width)[:, :units].reshape(3 * units, width)
        bias = self.qkv.bias.view(3, width)[:, :units].reshape(-1)
        query, key, value = (
            F.linear(tokens, weight, bias)
            .view(batch, length, 3, heads, HEAD)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(batch, length, units)
        added = F.linear(mixed, self.out.weight[:, :units], self.out.bias)
        return self.attention_norm(tokens + added)

    def transform(self, tokens, hidden):
        """The feed-forward part with its first `hidden` units."""
        inner = F.gelu(F.linear(tokens, self.expand.weight[:hidden], self.expand.bias[:hidden]))
        added = F.linear(inner, self.contract.weight[:, :hidden], self.contract.bias)
        return self.norm(tokens + added)


class Encoder(nn.Module):
    """MiniLM's encoder, whose output is the mean of its tokens, of length 1."""

    def __init__(self, tensors, depth):
        super().__init__()
        name = "embeddings.{}_embeddings.weight"
        words = tensors[name.format("word")]
        hidden = tensors["encoder.layer.0.intermediate.dense.weight"].shape[0]
        self.words = nn.Parameter(words, requires_grad=False)
        places = tensors[name.format("position")] + tensors[name.format("token_type")][0]
        self.places = nn.Parameter(places, requires_grad=False)
        self.norm = nn.LayerNorm(words.shape[1], eps=1e-12)
        self.norm.weight.data = tensors["embeddings.LayerNorm.weight"].clone()
        self.norm.bias.data = tensors["embeddings.LayerNorm.bias"].clone()
        self.norm.requires_grad_(False)
        self.blocks = nn.ModuleList(Block(words.shape[1], hidden) for _ in range(depth))
        for index, block in enumerate(self.blocks):
            take(block, tensors, f"encoder.layer.{index}.")

    def stem(self, ids):
        """Embeds the tokens."""
        return self.norm(self.words[ids] + self.places[: ids.shape[1]])

    def states(self, ids, mask, form=None):
        """Returns the last states of the tokens, [batch, length, width], by the sub-network `form` or
        the whole."""
        heads, hidden = len(self.blocks[0].out.weight) // HEAD, len(self.blocks[0].expand.weight)
        form = form or Form([(heads, hidden)] * len(self.blocks))
        tokens = self.stem(ids)
        seen = mask[:, None, None, :].bool()
        for index, (block, widths) in enumerate(zip(self.blocks, form.widths, strict=True)):
            if (index, "attn") not in form.skipped:
                tokens = block.attend(tokens, seen, widths[0])
            if (index, "mlp") not in form.skipped:
                tokens = block.transform(tokens, widths[1])
        return tokens.float()

    def forward(self, ids, mask, form=None):
        """Returns the vectors of texts, [batch, width], by the sub-network `form` or the whole."""
        return pooled(self.states(ids, mask, form), mask)


def pooled(states, mask):
    """Returns the means of the tokens that `mask` keeps, of length 1."""
    weights = (mask / mask.sum(1, keepdim=True))[:, :, None]
    return F.normalize((states * weights).sum(1), dim=1)


def layers_of(block, prefix):
    """Returns a block's layers but for queries, keys and values, with their names in BERT's layout."""
    return [
        (block.out, prefix + "attention.output.dense"),
        (block.attention_norm, prefix + "attention.output.LayerNorm"),
        (block.expand, prefix + "intermediate.dense"),
        (block.contract, prefix + "output.dense"),
        (block.norm, prefix + "output.LayerNorm"),
    ]


def projections(prefix):
    """Returns the names of queries, keys and values, which are one layer here."""
    return [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]


def take(block, tensors, prefix):
    """Copies a block's weights from those of BERT's layout."""
    for layer, name in layers_of(block, prefix):
        layer.weight.data = tensors[name + ".weight"].clone()
        layer.bias.data = tensors[name + ".bias"].clone()
    names = projections(prefix)
    block.qkv.weight.data = torch.cat([tensors[name + ".weight"] for name in names])
    block.qkv.bias.data = torch.cat([tensors[name + ".bias"] for name in names])


def give(encoder):
    """Returns the blocks' weights in BERT's layout."""
    tensors = {}
    for index, block in enumerate(encoder.blocks):
        prefix = f"encoder.layer.{index}."
        for layer, name in layers_of(block, prefix):
            tensors[name + ".weight"], tensors[name + ".bias"] = layer.weight, layer.bias
        width = len(block.out.weight)
        for number, name in enumerate(projections(prefix)):
            rows = slice(number * width, (number + 1) * width)
            tensors[name + ".weight"] = block.qkv.weight[rows]
            tensors[name + ".bias"] = block.qkv.bias[rows]
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def sort_units(encoder, batches):
    """Puts heads and hidden units that add most first; the whole network stays the same."""
    for block in encoder.blocks:
        block.sums = [
            torch.zeros(len(block.out.weight) // HEAD),
            torch.zeros(len(block.expand.weight)),
        ]
    for ids, mask in batches:
        tokens, seen = encoder.stem(ids), mask[:, None, None, :].bool()
        real = mask.bool()
        for block in encoder.blocks:
            tokens = measure(block, tokens, seen, real)
    for block in encoder.blocks:
        heads, units = [sums.argsort(descending=True) for sums in block.sums]
        rows = (heads[:, None] * HEAD + torch.arange(HEAD)).flatten()
        width = len(block.out.weight)
        three = torch.cat([rows + part * width for part in range(3)])
        block.qkv.weight.data, block.qkv.bias.data = block.qkv.weight[three], block.qkv.bias[three]
        block.out.weight.data = block.out.weight[:, rows].contiguous()
        block.expand.weight.data = block.expand.weight[units]
        block.expand.bias.data = block.expand.bias[units]
        block.contract.weight.data = block.contract.weight[:, units].contiguous()
        del block.sums


def measure(block, tokens, seen, real):
    """Runs a block and adds up how much each head and unit adds to the tokens."""
    batch, length, width = tokens.shape
    heads = width // HEAD
    query, key, value = block.qkv(tokens).view(batch, length, 3, heads, HEAD).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    by_head = block.out.weight.view(width, heads, HEAD)
    for head in range(heads):
        added = mixed[:, head][real] @ by_head[:, head].T
        block.sums[0][head] += (added - added.mean(0)).square().sum()
    tokens = block.attend(tokens, seen, heads)
    inner = F.gelu(block.expand(tokens))[real]
    spread = (inner - inner.mean(0)).square().sum(0)
    block.sums[1] += spread * block.contract.weight.square().sum(0)
    return block.transform(tokens, len(block.expand.weight))


def load(folder, depth=6):
    """Reads MiniLM's checkpoint."""
    return Encoder(load_file(folder / "model.safetensors"), depth)
