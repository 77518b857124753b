#!/usr/bin/env python3
"""Writes ONNX exports of image networks with random weights, to try `tessera import` on.

python3 tools/exports.py --out /tmp/exports                 torch's exporter of today
python3 tools/exports.py --out /tmp/exports --legacy        the one that traces TorchScript
python3 tools/exports.py --out /tmp/exports --only resnet18 --opset 18
"""

import argparse
import time
from pathlib import Path

import timm
import torch

MODELS = {
    "resnet18": "resnet18",
    "mobilenetv3": "mobilenetv3_small_100",
    "efficientnet": "efficientnet_lite0",
    "swin": "swin_tiny_patch4_window7_224",
    "convnext": "convnext_atto",
    "mixer": "mixer_s32_224",
    "deit": "deit_tiny_patch16_224",
}


def main():
    """Writes the exports asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--opset", type=int, default=18)
    parser.add_argument("--legacy", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name in options.only:
        start = time.time()
        model = timm.create_model(MODELS[name], num_classes=10).eval()
        shake(model)
        path = options.out / f"{name}{'_legacy' if options.legacy else ''}_{options.opset}.onnx"
        export(model, path, options)
        print(f"{path} in {time.time() - start:.1f} s", flush=True)


@torch.no_grad()
def shake(model):
    """Gives norms statistics and scales that matter, as training would."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def export(model, path, options):
    """Writes one export whose batch varies."""
    images = torch.randn(2, 3, 224, 224)
    if options.legacy:
        torch.onnx.export(
            model,
            images,
            path,
            dynamo=False,
            opset_version=options.opset,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
        return
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        model,
        (images,),
        path,
        dynamo=True,
        opset_version=options.opset,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        dynamic_shapes=({0: batch},),
        verbose=False,
    )


if __name__ == "__main__":
    main()
