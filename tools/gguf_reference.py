#!/usr/bin/env python3
"""Writes tests/references/blocks.safetensors: blocks of every type of GGUF and their values.

The values are those of the `gguf` package (gguf==0.19.0, numpy, safetensors). Each type has random
blocks with finite scales.

  python3 tools/gguf_reference.py
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import dequantize
from safetensors.numpy import save_file

# Type, bytes of a block, and places of its half-precision numbers.
TYPES = [
    (Type.Q4_0, 18, [0]),
    (Type.Q4_1, 20, [0, 2]),
    (Type.Q5_0, 22, [0]),
    (Type.Q5_1, 24, [0, 2]),
    (Type.Q8_0, 34, [0]),
    (Type.Q4_K, 144, [0, 2]),
    (Type.Q5_K, 176, [0, 2]),
    (Type.Q6_K, 210, [208]),
]


def main() -> None:
    """Writes the file."""
    random = np.random.default_rng(0)
    tensors = {}
    for block_type, num_bytes, halves in TYPES:
        num_blocks = 6 if num_bytes < 100 else 2
        blocks = random.integers(0, 256, (num_blocks, num_bytes), dtype=np.uint8)
        for place in halves:
            scales = random.normal(0, 0.01, num_blocks).astype(np.float16)
            blocks[:, place : place + 2] = scales.view(np.uint8).reshape(num_blocks, 2)
        tensors[f"{block_type.name}.blocks"] = blocks.reshape(-1)
        values = dequantize(blocks, block_type).astype(np.float32)
        tensors[f"{block_type.name}.values"] = values.reshape(-1)
    target = Path(__file__).parent.parent / "tests/references/blocks.safetensors"
    save_file(tensors, target)


if __name__ == "__main__":
    main()
