"""Cosines of pictures and sentences by any encoder: ETA's check of the picture and its score of a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image

from guardcore.encoders.protocol import Encoder


class Similarity:
    """How near pictures are to sentences, as cosines in [-1, 1]; each picture of a request is embedded once.

    Args:
        encoder: any image-text encoder. Pictures are looked at whole, resized to its square.
        images: of one request; may be empty.
    """

    def __init__(self, encoder: Encoder, images: Sequence[Image.Image]) -> None:
        self.encoder = encoder
        with torch.inference_mode():
            vectors = encoder.embed_images(encoder.preprocess(images)).image if images else None
        self._images = None if vectors is None else torch.nn.functional.normalize(vectors.float(), dim=-1)

    def __call__(self, sentences: Sequence[str]) -> list[float]:
        """For each sentence its cosine with the nearest picture.

        NaN where the encoder gives no finite vector; 0 without pictures, and for a sentence that the encoder can't
        read (the built-in one knows few words).
        """
        return [self._nearest(sentence) for sentence in sentences]

    @torch.inference_mode()
    def _nearest(self, sentence: str) -> float:
        if self._images is None:
            return 0.0
        try:
            text = torch.nn.functional.normalize(self.encoder.embed_texts([sentence]).float(), dim=-1)
        except ValueError:
            return 0.0
        cosines = (self._images @ text.to(self._images.device).T).flatten().tolist()
        return math.nan if any(map(math.isnan, cosines)) else max(cosines)
