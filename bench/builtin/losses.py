"""The losses of the built-in encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.builtin.data import IGNORED, Batch
from bench.builtin.texts import TextSampler
from guardcore.encoders.builtin_network import MAX_SCALE, BuiltinNetwork

# Relative weights of the losses; BACKGROUND is that of empty patches, DETECTION counts in the late stage only.
POOLED, GLOBAL, CAPTION, KEYWORD, BACKGROUND, DETECTION = 0.5, 0.25, 0.15, 0.15, 0.35, 0.3
KEYWORDS_A_STEP, TOKENS_A_STEP = 128, 1536


def total_loss(
    network: BuiltinNetwork, batch: Batch, pixels: Tensor, sampler: TextSampler, *, late: bool
) -> dict[str, Tensor]:
    """All losses of a batch by name; "total" is their weighted sum. pixels: float32 [B, 3, S, S].

    late: adds the detection losses, which only make sense once concepts are known.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        patches, image = network.image(pixels)
    texts = network.text(sampler.names())  # [concepts + 1, D]
    scales = network.scales.clamp(max=MAX_SCALE).exp()
    objects, background = dense_losses(patches, texts, batch, scales[0])
    losses = {
        "objects": objects,
        "background": background,
        "pooled": pooled_loss(patches, texts, batch, scales[0]),
        "global": global_loss(image, texts[:-1], batch, scales[1], network.biases[1]),
        "caption": caption_loss(image, network.text(sampler.captions(batch.concepts)), scales[3]),
        "keyword": keyword_loss(network, patches, batch, sampler, scales[2]),
    }
    if late:
        losses |= detection_losses(patches, texts, batch, scales[0], sampler.unsafe)
    weights = {
        "objects": 1.0,
        "background": BACKGROUND,
        "pooled": POOLED,
        "global": GLOBAL,
        "caption": CAPTION,
        "keyword": KEYWORD,
        "unsafe_patch": DETECTION,
        "unsafe_scene": DETECTION,
    }
    losses["total"] = torch.stack([weights[k] * v for k, v in losses.items()]).sum()
    return losses


def dense_losses(patches: Tensor, texts: Tensor, batch: Batch, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over all concept texts and the background text: of the object patches, and of the empty ones."""
    background = texts.shape[0] - 1
    used = batch.labels != IGNORED
    labels = batch.labels[used]
    entropy = F.cross_entropy(scale * patches[used] @ texts.T, labels, reduction="none")
    empty = labels == background
    weights = torch.where(empty, 0.0, batch.weights[used])
    objects = (entropy * weights).sum() / weights.sum().clamp(min=1)
    return objects, (entropy * empty).sum() / empty.sum().clamp(min=1)


def detection_losses(patches: Tensor, texts: Tensor, batch: Batch, scale: Tensor, unsafe: Tensor) -> dict[str, Tensor]:
    """Is a patch, and is a scene, unsafe at all? By the share that the softmax gives to unsafe concepts.

    unsafe: bool [concepts + 1]. The scene's log-odds are the mean of its four highest patches: mistakes that a detector
    would make weigh most. Scenes whose only unsafe object is nearly hidden are left out.
    """
    logits = scale * patches @ texts.T
    odds = logits[..., unsafe].logsumexp(-1) - logits[..., ~unsafe].logsumexp(-1)  # [B, N]
    used = batch.labels != IGNORED
    truth = unsafe[batch.labels.clamp(min=0)] & used
    patch = F.binary_cross_entropy_with_logits(odds[used], truth[used].float(), pos_weight=torch.tensor(4.0))
    visible = (batch.present & unsafe[:-1]).any(1)
    clear = visible == truth.any(1)
    scene = F.binary_cross_entropy_with_logits(odds.topk(4, 1).values.mean(1)[clear], visible[clear].float())
    return {"unsafe_patch": patch, "unsafe_scene": scene}


def pooled_loss(patches: Tensor, texts: Tensor, batch: Batch, scale: Tensor) -> Tensor:
    """Cross-entropy of each object as a whole, by the mean of its patches: steadier than patch by patch early on."""
    concepts = texts.shape[0] - 1
    places = ((batch.labels != IGNORED) & (batch.labels != concepts)).nonzero()
    keys = places[:, 0] * concepts + batch.labels[places[:, 0], places[:, 1]]
    found, owner = keys.unique(return_inverse=True)
    sums = torch.zeros(len(found), patches.shape[-1]).index_add(0, owner, patches[places[:, 0], places[:, 1]])
    return F.cross_entropy(scale * F.normalize(sums, dim=-1) @ texts.T, found % concepts)


def global_loss(image: Tensor, texts: Tensor, batch: Batch, scale: Tensor, bias: Tensor) -> Tensor:
    """Sigmoid loss of the image vector against every concept text: which concepts are in the scene?"""
    logits = scale * image @ texts.T + bias
    signs = torch.where(batch.present, 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum(1).mean() / 4


def caption_loss(image: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss between the scenes of a batch and the lists of their objects."""
    logits = scale * image @ captions.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def keyword_loss(network: BuiltinNetwork, patches: Tensor, batch: Batch, sampler: TextSampler, scale: Tensor) -> Tensor:
    """Sigmoid loss of object patches against single keywords, which many concepts may share ("weapon", "drink")."""
    concepts = len(sampler.concepts)
    places = ((batch.labels != IGNORED) & (batch.labels != concepts)).nonzero()
    places = places[torch.randperm(len(places))[:TOKENS_A_STEP]]
    words, columns = sampler.some_keywords(KEYWORDS_A_STEP)
    vectors = patches[places[:, 0], places[:, 1]]
    logits = scale * vectors @ network.text(words).T + network.biases[0]
    member = sampler.membership[batch.labels[places[:, 0], places[:, 1]]][:, columns]
    # Positives are about one in 40: weigh them up so that they are not ignored at first.
    return F.binary_cross_entropy_with_logits(logits, member, pos_weight=torch.tensor(8.0)) * 4
