"""Measures the built-in encoder on scenes that training never drew: new compositions, and a held-out art style.

    python -m bench.builtin.evaluate --weights guardcore/data/builtin.safetensors --scenes 2000

Detection: a scene's score is the largest share that the softmax over all concept names and "background" gives to unsafe
concepts in one patch. Positives show one unsafe object among 1 to 6 others, negatives none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.builtin.data import IGNORED, collate, load_photographs
from guardcore.encoders.builtin import BuiltinEncoder, read_encoder
from guardcore.evaluation.scenes import Art, Scene, SceneGenerator, SceneObject, SceneOptions, load_art

SEED = 20_261_121
CHUNK = 50
REGION_RECALL = 0.9


@dataclass(frozen=True)
class Judged:
    """Model output on scenes: probabilities float32 [S, N, concepts + 1] and global vectors float32 [S, D]."""

    scenes: tuple[Scene, ...]
    probabilities: Tensor
    images: Tensor


def auroc(negatives: NDArray[np.float64], positives: NDArray[np.float64]) -> float:
    """Probability that a positive scores above a negative; ties count one half."""
    order = np.sort(negatives)
    below, upto = np.searchsorted(order, positives, "left"), np.searchsorted(order, positives, "right")
    return float((below + upto).mean() / (2 * len(order)))


def detection_generator(art: Art, folder: Path, photographs: float = 0.5) -> SceneGenerator:
    """Scenes of the detection test: objects of 20 to 50 % of the side; a share of them on held-out photographs."""
    options = SceneOptions(objects=(1, 6), scale=(0.2, 0.5), photographs=photographs)
    return SceneGenerator(art, art.styles, load_photographs(folder / "photographs" / "held_out"), SEED, options)


def judge(encoder: BuiltinEncoder, scenes: Sequence[Scene], texts: Tensor) -> Judged:
    """Runs the encoder; the probabilities are a softmax over all texts."""
    probabilities, images = [], []
    for start in range(0, len(scenes), CHUNK):
        pictures = [Image.fromarray(s.image) for s in scenes[start : start + CHUNK]]
        embedding = encoder.embed_images(encoder.preprocess(pictures))
        probabilities.append((encoder.scale * embedding.patches @ texts.T).softmax(-1))
        images.append(embedding.image)
    return Judged(tuple(scenes), torch.cat(probabilities), torch.cat(images))


def concept_texts(encoder: BuiltinEncoder, art: Art) -> Tensor:
    """Unit vectors of all concept names, then of "background": [concepts + 1, D]."""
    return encoder.embed_texts([*(c.name for c in art.concepts), "background"])


def patch_top1(judged: Judged, art: Art, grid: int) -> float:
    """Share of object patches whose likeliest concept is right."""
    labels = collate(judged.scenes, grid, len(art.concepts)).labels
    things = (labels != IGNORED) & (labels != len(art.concepts))
    return float((judged.probabilities[..., :-1].argmax(-1) == labels)[things].float().mean())


def retrieval(encoder: BuiltinEncoder, judged: Judged, art: Art, count: int = 200) -> dict[str, float]:
    """Recall@1 between the first `count` scenes and the lists of their objects, both ways, by the global vector;
    and the share of scenes whose likeliest concept is in them."""
    scenes = judged.scenes[:count]
    lists = ["a photo of " + " and ".join(art.concepts[o.concept].name for o in s.objects) for s in scenes]
    similarity = judged.images[: len(scenes)] @ encoder.embed_texts(lists).T
    target = torch.arange(len(scenes))
    names = judged.images[: len(scenes)] @ concept_texts(encoder, art)[:-1].T
    present = [int(best) in {o.concept for o in s.objects} for best, s in zip(names.argmax(1), scenes, strict=True)]
    return {
        "image_to_text": float((similarity.argmax(1) == target).float().mean()),
        "text_to_image": float((similarity.argmax(0) == target).float().mean()),
        "concept_present": float(np.mean(present)),
    }


def unsafe_columns(art: Art, category: str | None = None) -> Tensor:
    """bool [concepts + 1]: the unsafe concepts, or those of one category."""
    hits = [c.category is not None and category in (None, c.category) for c in art.concepts]
    return torch.tensor([*hits, False])


def detection(judged: Judged, art: Art) -> dict[str, Any]:
    """AUROC over all scenes, per category (by that category's own share) and per size of the unsafe object."""
    shares = judged.probabilities[..., unsafe_columns(art)].sum(-1).amax(1).numpy().astype(np.float64)
    culprits = [_culprit(s, art) for s in judged.scenes]
    negative = np.array([c is None for c in culprits])
    rows: dict[str, Any] = {"auroc": auroc(shares[negative], shares[~negative]), "category": {}, "size": {}}
    for category in art.categories:
        own = judged.probabilities[..., unsafe_columns(art, category)].sum(-1).amax(1).numpy().astype(np.float64)
        hits = np.array([c is not None and art.concepts[c.concept].category == category for c in culprits])
        rows["category"][category] = auroc(own[negative], own[hits])
    sides = np.array([0 if c is None else _side(c) for c in culprits]) / judged.scenes[0].image.shape[0]
    for low, high in ((0.0, 0.27), (0.27, 0.37), (0.37, 1.0)):
        hits = ~negative & (sides >= low) & (sides < high)
        if hits.any():
            rows["size"][f"{low:.2f}-{high:.2f}"] = auroc(shares[negative], shares[hits])
    return rows


def masks(judged: Judged, art: Art, grid: int, recall: float = REGION_RECALL) -> dict[str, float]:
    """Share of the pixels of benign scenes that are flagged at the threshold where `recall` of the unsafe objects are
    found: at least half of an object's visible pixels lie in flagged patches."""
    shares = judged.probabilities[..., unsafe_columns(art)].sum(-1).numpy()
    benign, found = [], []
    for scene, share in zip(judged.scenes, shares, strict=True):
        culprit = _culprit(scene, art)
        if culprit is None:
            benign.append(share)
        else:
            found.append(_level_of_half(scene, scene.objects.index(culprit), share, grid))
    threshold = float(np.quantile(found, 1 - recall))
    return {"threshold": threshold, "false_mask": float((np.stack(benign) >= threshold).mean())}


def _level_of_half(scene: Scene, index: int, share: NDArray[np.float32], grid: int) -> float:
    """The highest threshold at which half of the object's visible pixels are flagged."""
    side = scene.owner.shape[0] // grid
    pixels = np.kron(share.reshape(grid, grid), np.ones((side, side), np.float32))[scene.owner == index]
    return float(np.quantile(pixels, 0.5, method="lower")) if len(pixels) else 0.0


def _culprit(scene: Scene, art: Art) -> SceneObject | None:
    return next((o for o in scene.objects if art.concepts[o.concept].category is not None), None)


def _side(thing: SceneObject) -> int:
    left, top, right, bottom = thing.box
    return max(right - left, bottom - top)


def _scenes(generator: SceneGenerator, count: int) -> list[Scene]:
    return [generator.scene(i, "unsafe" if i % 2 else "benign") for i in range(count)]


def _splits(folder: Path) -> dict[str, list[str]]:
    table = json.loads((folder / "concepts.json").read_text("utf-8"))
    held_out = table["held_out"]
    return {"trained": [s for s in table["styles"] if s not in held_out], "unseen": held_out}


def quick_metrics(encoder: BuiltinEncoder, folder: Path, count: int = 500) -> dict[str, float]:
    """Patch top-1 and detection AUROC on `count` scenes of trained and of unseen style, to watch training."""
    rows = {}
    for name, styles in _splits(folder).items():
        art = load_art(folder, styles)
        judged = judge(encoder, _scenes(detection_generator(art, folder), count), concept_texts(encoder, art))
        rows[f"{name}_top1"] = patch_top1(judged, art, encoder.grid)
        rows[f"{name}_auroc"] = detection(judged, art)["auroc"]
        rows[f"{name}_false_mask"] = masks(judged, art, encoder.grid)["false_mask"]
    return rows


def full_metrics(encoder: BuiltinEncoder, folder: Path, count: int) -> dict[str, Any]:
    """Everything the model card reports, for both splits."""
    rows: dict[str, Any] = {"scenes": count, "seed": SEED, "fingerprint": encoder.fingerprint}
    for name, styles in _splits(folder).items():
        art = load_art(folder, styles)
        judged = judge(encoder, _scenes(detection_generator(art, folder), count), concept_texts(encoder, art))
        rows[name] = {
            "patch_top1": patch_top1(judged, art, encoder.grid),
            "retrieval": retrieval(encoder, judged, art),
            "detection": detection(judged, art),
            "masks": masks(judged, art, encoder.grid),
        }
    return rows


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("guardcore/data/builtin.safetensors"))
    parser.add_argument("--art", type=Path, default=Path("bench/art"))
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    text = json.dumps(full_metrics(read_encoder(arguments.weights), arguments.art, arguments.scenes), indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
