"""The network of the built-in encoder: a convolutional stem, transformer blocks, and a bag-of-words text tower.

Image side: a stem to 16 x 16 tokens, each centered on its own 8 x 8 pixels of a 128-pixel picture, then transformer
blocks over the tokens. Text side: the mean of word vectors, then a small residual network. Both end in one joint space
where cosine is similarity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Learned temperatures stop here: exp(4) = 55 is as sharp as cosines of a small network can carry.
MAX_SCALE = 4.0


@dataclass(frozen=True)
class BuiltinConfig:
    """Sizes of the network. width: joint space D. image_size / grid: pixels a token covers (8)."""

    image_size: int = 128
    grid: int = 16
    stem: int = 64
    middle: int = 160
    hidden: int = 192
    heads: int = 3
    stem_blocks: int = 1
    middle_blocks: int = 4
    blocks: int = 2
    width: int = 192
    words: int = 0


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a skip: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        # The block starts as the identity, which lets the learning rate start high.
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        inner = F.relu(self.first_norm(self.first(image)))
        return F.relu(image + self.second_norm(self.second(inner)))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a two-layer network of three times the width: [B, N, H] -> [B, N, H]."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.mlp_norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 3 * hidden)
        self.down = nn.Linear(3 * hidden, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, H] -> [B, N, H]."""
        batch, count, hidden = tokens.shape
        mixed = self.qkv(self.attention_norm(tokens)).view(batch, count, 3, self.heads, -1)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(batch, count, hidden))
        return tokens + self.down(F.gelu(self.up(self.mlp_norm(tokens))))


class VisionTower(nn.Module):
    """Pixels to hidden states of the tokens, row-major: float32 [B, 3, S, S] -> [B, N, H]."""

    def __init__(self, config: BuiltinConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_downsample(3, 32, relu=True),
            *_downsample(32, config.stem, relu=True),
            *(ResidualBlock(config.stem) for _ in range(config.stem_blocks)),
            *_downsample(config.stem, config.middle, relu=True),
            *(ResidualBlock(config.middle) for _ in range(config.middle_blocks)),
            nn.Conv2d(config.middle, config.hidden, 1),
        )
        self.positions = nn.Parameter(torch.randn(config.grid**2, config.hidden) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(config.hidden, config.heads) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.hidden)

    def hidden_states(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The token states before the first block and after each block, each [B, N, H], without the final norm."""
        tokens = self.stem(pixels.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        states = [tokens + self.positions]
        for block in self.blocks:
            states.append(block(states[-1]))
        return tuple(states)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, H], normalized."""
        normed: Tensor = self.norm(self.hidden_states(pixels)[-1])
        return normed


def _downsample(inputs: int, outputs: int, relu: bool) -> tuple[nn.Module, ...]:
    layers = (nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs))
    return (*layers, nn.ReLU()) if relu else layers


class AttentionPool(nn.Module):
    """A learned query per head collects the tokens: [B, N, H] -> [B, H]."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.score = nn.Linear(hidden, heads)
        self.value = nn.Linear(hidden, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, H] -> [B, H]."""
        batch, count, hidden = tokens.shape
        weights = self.score(tokens).float().softmax(1).to(tokens.dtype)  # [B, N, heads]
        values = self.value(tokens).view(batch, count, self.heads, -1)
        return torch.einsum("bnh,bnhd->bhd", weights, values).reshape(batch, hidden)


class BuiltinNetwork(nn.Module):
    """Both towers and the temperatures that training learned."""

    def __init__(self, config: BuiltinConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config)
        self.patch_head = nn.Linear(config.hidden, config.width)
        self.pool = AttentionPool(config.hidden, config.heads)
        self.image_head = nn.Linear(config.hidden, config.width)
        # Word 0 is padding.
        self.words = nn.Embedding(config.words, config.width, padding_idx=0)
        # Small, so that the learned network and not the random start decides where a text lies.
        nn.init.normal_(self.words.weight[1:], std=0.05)
        self.text_norm = nn.LayerNorm(config.width)
        self.text_up = nn.Linear(config.width, 2 * config.width)
        self.text_down = nn.Linear(2 * config.width, config.width)
        # exp(scale) multiplies the cosines of the dense, the global and the keyword loss.
        self.scales = nn.Parameter(torch.tensor([2.5, 2.5, 2.0, 2.5]))
        self.biases = nn.Parameter(torch.tensor([-6.0, -4.0]))

    def image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> unit vectors of the patches [B, N, D] and of the image [B, D]."""
        tokens = self.vision(pixels)
        patches = F.normalize(self.patch_head(tokens).float(), dim=-1)
        return patches, F.normalize(self.image_head(self.pool(tokens)).float(), dim=-1)

    def text(self, words: Tensor) -> Tensor:
        """Word numbers int64 [T, L], 0 where a text is shorter -> unit vectors [T, D]."""
        present = (words > 0).unsqueeze(-1)
        mean = (self.words(words) * present).sum(1) / present.sum(1).clamp(min=1)
        inner = self.text_down(F.gelu(self.text_up(self.text_norm(mean))))
        return F.normalize((mean + inner).float(), dim=-1)
