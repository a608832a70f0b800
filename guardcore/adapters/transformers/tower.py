"""One pass of a model's own vision tower for both, screening its pictures and reading them.

Where the tower's weights are those of the encoder that embedded the policy (a LLaVA with a frozen CLIP), the features
that the language model gets are the features that the detector needs. The model's processor decides what is seen: a
center crop is screened as the crop it is, for the rest never reaches the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from guardcore.adapters.transformers.geometry import outward, view, why_not_a_picture, why_not_one_tile
from guardcore.adapters.transformers.tower_memo import TowerMemo
from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.vit import VisionTextEncoder
from guardcore.encoders.vlm import TowerEncoder, TowerHead, find_tower
from guardcore.patches import PatchSet

if TYPE_CHECKING:
    from guardcore.detector.detector import Detector
    from guardcore.detector.verdict import Verdict

# Pictures that are remembered, at some 6 MB each for a large CLIP: more than a batch of generation ever has.
_MOST = 256
# What a picture can be at fault for; the detector's own encoder then judges it, or says what is wrong.
_FAULTS = (ValueError, TypeError, OSError, ArithmeticError)


class SharedTower:
    """A model's vision tower as the detector's encoder, with a memory of the pictures that were screened.

    Args:
        model: a model of transformers with one CLIP or SigLIP tower.
        processor: of the model; its image processor makes one square tile of a picture.
        encoder: that of the detector (hashing its weights and the tower's takes seconds), or the head kept of it.

    Raises:
        TowerMismatchError: the tower's weights are not the encoder's.
        ValueError: the model has no such tower, or its pictures are not what the encoder takes; the reason is named.
    """

    def __init__(self, model: Any, processor: Any, encoder: VisionTextEncoder | TowerHead | TowerEncoder) -> None:
        reason = why_not_one_tile(processor.image_processor) or _other_pixels(
            processor.image_processor, encoder.preprocessing
        )
        if reason:
            raise ValueError(f"processor: {reason}")
        shared = isinstance(encoder, TowerEncoder) and encoder.module is find_tower(model)
        self.encoder = encoder if isinstance(encoder, TowerEncoder) and shared else _tower_encoder(model, encoder)
        self._images = processor.image_processor
        self._preprocessing = encoder.preprocessing
        self._tiles: dict[str, torch.Tensor] = {}
        self._memo = TowerMemo(self.encoder.module, getattr(model.config, "vision_feature_layer", None))
        self._compared = self._memo.state()

    def why_not(self, detector: Detector) -> str | None:
        """None where the tower can serve a detector, else the reason why not, as text."""
        if detector.encoder.fingerprint != self.encoder.fingerprint:
            return f"the detector's encoder is {detector.encoder.name}, not {self.encoder.name}"
        if detector.patches.kind != "tokens":
            return f"the detector's patches are {detector.patches}, and the tower has tokens"
        if self._memo.state() != self._compared:
            return "the tower's weights were changed or moved since they were compared with the encoder's"
        return None

    def screen(self, detector: Detector, images: Sequence[Image.Image | Exception]) -> list[Verdict]:
        """Judge pictures by one pass of the model's tower, and remember what it said for `memo`, up to 256 of them.

        Boxes and regions are in pixels of the pictures. Where the tower can't serve the detector, or a picture is none,
        the detector's own encoder judges.
        """
        self.forget()
        if self.why_not(detector) is not None:
            return detector.screen(images)
        sets: list[PatchSet | None] = []
        for start in range(0, len(images), detector.batch_size):
            sets += self._embed(images[start : start + detector.batch_size], detector)
        sound = [item for item in sets if item is not None]
        judged = iter(detector.screen_patches(sound))
        others = iter(detector.screen([image for image, item in zip(images, sets, strict=True) if item is None]))
        return [next(others if item is None else judged) for item in sets]

    def memo(self) -> AbstractContextManager[None]:
        """While it lasts, the model's tower does not run again for the pixels of the last `screen`.

        They are compared by value: redacted pictures are computed afresh, and so is everything once the tower's weights
        have changed, while it trains, and with gradients. The module's `forward` is restored at the end.
        """
        return self._memo.reuse()

    def tile(self, image: Image.Image) -> torch.Tensor | None:
        """What the image processor made of an equal picture in the last `screen`, `[3, S, S]`; None if there was none.

        Large photographs take longer to shrink than to compare.
        """
        return self._tiles.get(_digest(image))

    def forget(self) -> None:
        """Free the memory of the last `screen`."""
        self._memo.clear()
        self._tiles.clear()

    @torch.no_grad()
    def _embed(self, images: Sequence[Image.Image | Exception], detector: Detector) -> list[PatchSet | None]:
        """Patches of each picture; None where it is none, too long, or the processor refuses it."""
        sound = [image for image in images if why_not_a_picture(image) is None]
        try:
            embedded = iter(self._patches(sound, detector) if sound else [])
        except _FAULTS:
            if len(images) == 1:
                return [None]
            return [item for image in images for item in self._embed([image], detector)]
        return [next(embedded) if why_not_a_picture(image) is None else None for image in images]

    def _patches(self, images: Sequence[Any], detector: Detector) -> list[PatchSet]:
        pixels = self._images(images, return_tensors="pt")["pixel_values"]
        remembered = len(self._tiles) + len(images) <= _MOST
        with self._memo.recording() if remembered else nullcontext():
            embedding = self.encoder.embed_images(pixels)
        if remembered:
            self._tiles |= {_digest(image): tile for image, tile in zip(images, pixels, strict=True)}
        device = detector.bank.prototypes.device
        return [
            PatchSet(patches.to(device), vector[None].to(device), self._boxes(image.size), image.size)
            for image, patches, vector in zip(images, embedding.patches, embedding.image, strict=True)
        ]

    def _boxes(self, size: tuple[int, int]) -> torch.Tensor:
        grid = self._preprocessing.grid
        cells = view(self._images, size).cells(grid, grid, read=grid * self._preprocessing.patch)
        return torch.tensor([outward(cell, size) for cell in cells])


def share(model: Any, processor: Any, detector: Detector) -> tuple[SharedTower | None, str]:
    """The model's tower for a detector, and why: the tower that is shared, or the reason why none can be."""
    encoder = detector.encoder
    if not isinstance(encoder, VisionTextEncoder | TowerEncoder):
        return None, f"the detector's encoder {encoder.name} is no CLIP or SigLIP that a model could share"
    try:
        tower = SharedTower(model, processor, encoder)
    except ValueError as error:
        return None, str(error)
    reason = tower.why_not(detector)
    return (tower, tower.encoder.name) if reason is None else (None, reason)


def _digest(image: Image.Image) -> str:
    image.load()
    # Of all that the pixels depend on. Nobody may find two pictures of one digest, so no cheaper hash will do.
    palette = None if image.palette is None else (image.palette.mode, bytes(image.palette.palette))
    parts = repr((image.mode, image.size, palette, image.info.get("transparency")))
    return hashlib.sha256(parts.encode() + image.tobytes()).hexdigest()


def _tower_encoder(model: Any, encoder: VisionTextEncoder | TowerHead | TowerEncoder) -> TowerEncoder:
    if isinstance(encoder, TowerEncoder):
        raise ValueError(f"model: its tower is not the module that {encoder.name} runs")
    return TowerEncoder(model, encoder)


def _other_pixels(images: Any, preprocessing: Preprocessing) -> str | None:
    """How an image processor's pixels differ from those that an encoder takes; None where they don't."""
    side = view(images, (1, 1)).side
    if side != preprocessing.size:
        return f"its tiles have a side of {side} pixels, the detector's encoder takes {preprocessing.size}"
    scaled = images.do_rescale and images.do_normalize and abs(images.rescale_factor * 255 - 1) < 1e-6
    ours = torch.tensor([preprocessing.mean, preprocessing.std])
    if not scaled or not torch.allclose(torch.tensor([images.image_mean, images.image_std]), ours, atol=1e-4):
        return "it normalizes pixels otherwise than the detector's encoder"
    return None
