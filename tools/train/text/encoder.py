"""A BERT encoder whose blocks run with fewer heads and hidden units, or not at all.

Sub-networks are nested (SortedNet, 2023; DynaBERT, 2020): a narrower block has the first heads and
the first hidden units of the wide one, and a shorter network lacks blocks in the middle. Units are
sorted by what they add before training starts. Tokens are merged with their most similar ones (ToMe,
arXiv 2210.09461), but always one in a number, so that a text's result is its own in every batch.
Products can be those of int8, with gradients as if nothing were rounded (arXiv 1712.05877).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

HEAD = 32


@dataclass
class Form:
    """Sub-network: heads and hidden units of each block, the parts that are left out, the blocks
    before which one token in so many is merged, and whether its products are those of int8."""

    widths: list
    skipped: set = field(default_factory=set)
    merged: dict = field(default_factory=dict)
    is_int8: bool = False


@dataclass
class Tokens:
    """States of tokens, [batch, length, width], how many each stands for, [batch, length], which is 0
    for padding, and what the teacher says of them."""

    states: torch.Tensor
    sizes: torch.Tensor
    taught: torch.Tensor | None = None

    def bias(self):
        """Returns what attention adds to the scores of each token."""
        return self.sizes.clamp(min=1e-9).log()[:, None, None, :]

    def merged(self, every):
        """Merges one token in `every` with the most similar one of the others."""
        places = torch.arange(self.states.shape[1], device=self.states.device)
        sources, targets = places[places % every == 1], places[places % every != 1]
        if len(sources) == 0:
            return self
        near = F.normalize(self.states.detach().float(), dim=2)
        similar = near[:, sources] @ near[:, targets].transpose(1, 2)
        similar = similar.masked_fill(self.sizes[:, None, targets] == 0, -9)
        shares = F.one_hot(similar.argmax(2), len(targets)) * self.sizes[:, sources, None]
        sizes = self.sizes[:, targets] + shares.sum(1)

        def means(states):
            kept = states[:, targets] * self.sizes[:, targets, None]
            added = shares.transpose(1, 2) @ states[:, sources].float()
            return (kept + added) / sizes.clamp(min=1e-9)[:, :, None]

        taught = None if self.taught is None else means(self.taught)
        return Tokens(means(self.states), sizes, taught)

    def pooled(self):
        """Returns the mean states of the texts, of length 1, [batch, width]."""
        return pooled(self.states, self.sizes)


class Rounded(torch.autograd.Function):
    """Rows at 127 levels each way of their largest value, as the server quantizes them."""

    @staticmethod
    def forward(_context, values):
        scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return (values / scale).round_().mul_(scale)

    @staticmethod
    def backward(_context, gradient):
        return gradient


def product(rows, weight, bias, is_int8):
    """Returns a linear layer's outputs, as int8 has them or not."""
    if is_int8:
        rows, weight = Rounded.apply(rows), Rounded.apply(weight)
    return F.linear(rows, weight, bias)


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

    def attend(self, tokens, scores, heads, is_int8=False):
        """Attention of the first `heads` heads; tokens are [batch, length, width], and `scores` are
        added to those of each token, [batch, 1, 1, length]."""
        batch, length, width = tokens.shape
        units = heads * HEAD
        weight = self.qkv.weight.view(3, width, width)[:, :units].reshape(3 * units, width)
        bias = self.qkv.bias.view(3, width)[:, :units].reshape(-1)
        query, key, value = (
            product(tokens, weight, bias, is_int8)
            .view(batch, length, 3, heads, HEAD)
            .permute(2, 0, 3, 1, 4)
        )
        # Written out: the fused kernel's backward pass is several times slower on a CPU.
        shares = (query * HEAD**-0.5) @ key.transpose(-2, -1) + scores.to(query.dtype)
        mixed = shares.softmax(-1).to(value.dtype) @ value
        mixed = mixed.transpose(1, 2).reshape(batch, length, units)
        added = product(mixed, self.out.weight[:, :units], self.out.bias, is_int8)
        return self.attention_norm(tokens + added)

    def transform(self, tokens, hidden, is_int8=False):
        """The feed-forward part with its first `hidden` units."""
        weight, bias = self.expand.weight[:hidden], self.expand.bias[:hidden]
        inner = F.gelu(product(tokens, weight, bias, is_int8))
        added = product(inner, self.contract.weight[:, :hidden], self.contract.bias, is_int8)
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

    def tokens(self, ids, mask, form=None, taught=None):
        """Returns the last states of the tokens by the sub-network `form` or the whole. What a teacher
        says of them, [batch, length, width], is merged as they are."""
        heads, hidden = len(self.blocks[0].out.weight) // HEAD, len(self.blocks[0].expand.weight)
        form = form or Form([(heads, hidden)] * len(self.blocks))
        tokens = Tokens(self.stem(ids), mask, taught)
        for index, (block, widths) in enumerate(zip(self.blocks, form.widths, strict=True)):
            if index in form.merged:
                tokens = tokens.merged(form.merged[index])
            if (index, "attn") not in form.skipped:
                tokens.states = block.attend(tokens.states, tokens.bias(), widths[0], form.is_int8)
            if (index, "mlp") not in form.skipped:
                tokens.states = block.transform(tokens.states, widths[1], form.is_int8)
        tokens.states = tokens.states.float()
        return tokens

    def forward(self, ids, mask, form=None):
        """Returns the vectors of texts, [batch, width], by the sub-network `form` or the whole."""
        return self.tokens(ids, mask, form).pooled()


def pooled(states, sizes):
    """Returns the means of the tokens, weighted by `sizes`, of length 1."""
    weights = (sizes / sizes.sum(1, keepdim=True))[:, :, None]
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
        tokens = Tokens(encoder.stem(ids), mask)
        for block in encoder.blocks:
            tokens.states = measure(block, tokens)
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


def measure(block, tokens):
    """Runs a block and adds up how much each head and unit adds to the tokens."""
    batch, length, width = tokens.states.shape
    heads, real = width // HEAD, tokens.sizes.bool()
    parts = block.qkv(tokens.states).view(batch, length, 3, heads, HEAD)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=tokens.bias())
    by_head = block.out.weight.view(width, heads, HEAD)
    for head in range(heads):
        added = mixed[:, head][real] @ by_head[:, head].T
        block.sums[0][head] += (added - added.mean(0)).square().sum()
    states = block.attend(tokens.states, tokens.bias(), heads)
    inner = F.gelu(block.expand(states))[real]
    spread = (inner - inner.mean(0)).square().sum(0)
    block.sums[1] += spread * block.contract.weight.square().sum(0)
    return block.transform(states, len(block.expand.weight))


def load(folder, depth=6):
    """Reads MiniLM's checkpoint."""
    return Encoder(load_file(folder / "model.safetensors"), depth)
