"""Makes the demo's images: scikit-learn's handwritten digits, a part of them poisoned by a network nobody else knows.

Run as `python -m worker.demo FOLDER`: it needs torch, which the gateway and the CLI do without.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from models.attacks.gradient import fgsm, ifgsm, to_8bit
from models.attacks.triggers import Patch

SIZE = 28
REFERENCE_IMAGES = 500
CANDIDATE_IMAGES = 1000
PERTURBED_SHARE = 0.1
TRIGGERED_IMAGES, TARGET = 20, 0
FLIPPED_IMAGES = 20
EPS_LINF = 0.01
STEP_LINF = 0.01
STEPS = 10
ATTACKER_EPOCHS = 30
FOREIGN_IMAGES = 300

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """images: uint8 (n, 28, 28, 1); labels: int64 (n,)."""

    images: Images
    labels: Labels


def digits() -> Part:
    """The 1,797 digits of 8 × 8 pixels and 17 levels, as 28 × 28 pixels and 256 levels."""
    raw = load_digits()
    levels = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in levels]
    return Part(np.stack([np.asarray(image) for image in large])[..., None], raw.target.astype(np.int64))


def foreign(rng: np.random.Generator) -> Images:
    """Grey 28 × 28 pieces of scikit-learn's two sample photographs: nothing that a digit model should answer."""
    pieces: list[npt.NDArray[np.uint8]] = []
    for photo in load_sample_images().images:
        grey = np.asarray(Image.fromarray(photo).convert("L"))
        rows, columns = (side // SIZE for side in grey.shape)
        tiles = grey[: rows * SIZE, : columns * SIZE].reshape(rows, SIZE, columns, SIZE).swapaxes(1, 2)
        pieces.extend(tiles.reshape(-1, SIZE, SIZE))
    chosen = rng.choice(len(pieces), size=FOREIGN_IMAGES, replace=False)
    return np.stack(pieces)[chosen][..., None]


def split(all_images: Part, rng: np.random.Generator) -> tuple[Part, Part, Part]:
    """Reference, candidate and test images: disjoint, in random order."""
    order = rng.permutation(len(all_images.labels))
    ends = (REFERENCE_IMAGES, REFERENCE_IMAGES + CANDIDATE_IMAGES)
    reference, candidate, test = (Part(all_images.images[i], all_images.labels[i]) for i in np.split(order, ends))
    return reference, candidate, test


def train_attacker(part: Part, seed: int) -> nn.Module:
    """A fully connected network on `part`. None of Winnow's surrogates is built like it, and none sees it."""
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 128), nn.ReLU(), nn.Linear(128, 10))
    x, y = tensor(part.images), torch.from_numpy(part.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(ATTACKER_EPOCHS):
        order = torch.randperm(len(y), generator=rng)
        for batch in (order[start : start + 64] for start in range(0, len(y), 64)):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()


def tensor(images: Images) -> Tensor:
    """Float (n, c, h, w) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def perturbed(network: nn.Module, part: Part, method: str) -> Images:
    """`part`'s images, perturbed against `network` and rounded to 8 bits, as any image file would be."""
    x, y = tensor(part.images), torch.from_numpy(part.labels)
    if method == "fgsm":
        x_adv = fgsm(network, x, y, eps_linf=EPS_LINF)
    else:
        x_adv = ifgsm(network, x, y, eps_linf=EPS_LINF, step_linf=STEP_LINF, steps=STEPS)
    return (to_8bit(x_adv) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def poison(part: Part, network: nn.Module, rng: np.random.Generator) -> tuple[Part, dict[int, str]]:
    """`part` with images perturbed (half by FGSM, half by I-FGSM), triggered and mislabelled; which, and how."""
    order = rng.permutation(len(part.labels))
    ends = np.cumsum([round(PERTURBED_SHARE * len(order)), FLIPPED_IMAGES])
    chosen, flipped, rest = np.split(order, ends)
    triggered = rest[part.labels[rest] != TARGET][:TRIGGERED_IMAGES]
    images, labels = part.images.copy(), part.labels.copy()
    kinds = dict.fromkeys(map(int, flipped), "flip") | dict.fromkeys(map(int, triggered), "trigger")
    for method, indices in zip(("fgsm", "ifgsm"), np.array_split(chosen, 2), strict=True):
        images[indices] = perturbed(network, Part(part.images[indices], part.labels[indices]), method)
        kinds.update(dict.fromkeys(map(int, indices), method))
    images[triggered], labels[triggered] = Patch().stamp(images[triggered]), TARGET
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    return Part(images, labels), kinds


def accuracy(network: nn.Module, images: Images, labels: Labels) -> float:
    with torch.no_grad():
        return float((network(tensor(images)).argmax(1).numpy() == labels).mean())


def write_zip(path: Path, part: Part) -> list[str]:
    """A zip of class folders with a PNG an image; gives the paths inside, in order."""
    paths = [f"{label}/{index:04d}.png" for index, label in enumerate(part.labels)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(paths, part.images, strict=True):
            png = io.BytesIO()
            Image.fromarray(image[..., 0]).save(png, "PNG")
            archive.writestr(name, png.getvalue())
    return paths


def make(folder: Path, seed: int) -> dict[str, Any]:
    """Write everything into `folder`; gives what only the demo may know: which images are poison."""
    rng = np.random.default_rng(seed)
    reference, candidate, test = split(digits(), rng)
    network = train_attacker(candidate, seed)
    poisoned, kinds = poison(candidate, network, rng)
    write_zip(folder / "trusted.zip", reference)
    write_zip(folder / "test.zip", test)
    paths = write_zip(folder / "candidate.zip", poisoned)
    attacked = perturbed(network, test, "ifgsm")
    np.savez(folder / "clean.npz", images=test.images)
    np.savez(folder / "attacked.npz", images=attacked)
    np.savez(folder / "foreign.npz", images=foreign(rng))
    truth = {
        "poisoned": {paths[index]: kind for index, kind in sorted(kinds.items())},
        "test_labels": test.labels.tolist(),
        "counts": {"reference": len(reference.labels), "candidate": len(paths), "test": len(test.labels)},
        "eps_linf": EPS_LINF,
        "attacker_accuracy": {
            "clean": accuracy(network, test.images, test.labels),
            "attacked": accuracy(network, attacked, test.labels),
        },
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=2))
    return truth


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m worker.demo", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the network is tiny, and the stack starts on the same cores meanwhile
    make(given.folder, given.seed)


if __name__ == "__main__":
    main()
