"""Writes the network that servers are compared on: 12 encoder blocks of DeiT-Ti's size.

It reads and writes 197 tokens of 192 channels in FP32. Input and output have the shapes of an image
and of logits, [batch, 1, 197, 192] and [batch, 37824], so that `tessera import` takes it as it is.
The weights are random: what is measured does not depend on them.
"""

from pathlib import Path

import numpy

import onnx
from onnx import TensorProto, helper, numpy_helper

TOKENS, WIDTH, HEADS, BLOCKS, HIDDEN = 197, 192, 3, 12, 768
INPUT, OUTPUT = "tokens", "features"
SHAPE = [1, 1, TOKENS, WIDTH]
HEAD_WIDTH = WIDTH // HEADS


class Builder:
    """A graph that grows node by node."""

    def __init__(self):
        self.nodes, self.weights, self.random = [], [], numpy.random.default_rng(0)

    def weight(self, name, *shape):
        values = self.random.normal(0, 0.02, shape).astype(numpy.float32)
        return self.constant(name, values)

    def constant(self, name, values):
        self.weights.append(numpy_helper.from_array(numpy.asarray(values), name))
        return name

    def node(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def linear(self, rows, name, width, wider):
        product = self.node(
            "MatMul", [rows, self.weight(f"{name}.weight", width, wider)], f"{name}.product"
        )
        return self.node("Add", [product, self.weight(f"{name}.bias", wider)], name)

    def norm(self, rows, name):
        scale = self.constant(f"{name}.weight", numpy.ones(WIDTH, numpy.float32))
        shift = self.constant(f"{name}.bias", numpy.zeros(WIDTH, numpy.float32))
        return self.node("LayerNormalization", [rows, scale, shift], name, epsilon=1e-6)

    def heads(self, rows, name, order):
        shape = numpy.array([0, TOKENS, HEADS, HEAD_WIDTH], numpy.int64)
        split = self.node("Reshape", [rows, self.constant(f"{name}.shape", shape)], f"{name}.split")
        return self.node("Transpose", [split], name, perm=order)

    def block(self, rows, name):
        normed = self.norm(rows, f"{name}.norm1")
        query, key, value = (
            self.heads(
                self.linear(normed, f"{name}.{part}", WIDTH, WIDTH),
                f"{name}.{part}.heads",
                [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3],
            )
            for part in "qkv"
        )
        scale = self.constant(f"{name}.scale", numpy.float32(HEAD_WIDTH**-0.5))
        query = self.node("Mul", [query, scale], f"{name}.scaled")
        scores = self.node("MatMul", [query, key], f"{name}.scores")
        weights = self.node("Softmax", [scores], f"{name}.weights", axis=-1)
        mixed = self.node("MatMul", [weights, value], f"{name}.mixed")
        back = self.node("Transpose", [mixed], f"{name}.back", perm=[0, 2, 1, 3])
        shape = self.constant(f"{name}.flat", numpy.array([0, TOKENS, WIDTH], numpy.int64))
        merged = self.node("Reshape", [back, shape], f"{name}.merged")
        attended = self.linear(merged, f"{name}.projection", WIDTH, WIDTH)
        rows = self.node("Add", [rows, attended], f"{name}.attention")
        hidden = self.linear(self.norm(rows, f"{name}.norm2"), f"{name}.fc1", WIDTH, HIDDEN)
        hidden = self.node("Gelu", [hidden], f"{name}.gelu")
        return self.node("Add", [rows, self.linear(hidden, f"{name}.fc2", HIDDEN, WIDTH)], name)


def write(path):
    """Writes the network to `path`."""
    builder = Builder()
    shape = builder.constant("rows.shape", numpy.array([0, TOKENS, WIDTH], numpy.int64))
    rows = builder.node("Reshape", [INPUT, shape], "rows")
    for index in range(BLOCKS):
        rows = builder.block(rows, f"blocks.{index}")
    flat = builder.constant("flat.shape", numpy.array([0, TOKENS * WIDTH], numpy.int64))
    builder.node("Reshape", [rows, flat], OUTPUT)
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        builder.nodes,
        "deit-ti",
        [value(INPUT, ["batch", *SHAPE[1:]])],
        [value(OUTPUT, ["batch", TOKENS * WIDTH])],
        builder.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
