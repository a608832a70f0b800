"""The operators, one family a file: public call, schema, fake, and a row that says who runs it where.

The dispatcher chooses: the C++ kernels of guardcore._C run CPU tensors, the Triton kernels of guardcore.triton_kernels
run CUDA and ROCm tensors, and the definition of guardcore.reference runs every device that has no kernel, which it says
once. To force the definition, call it.
"""

from __future__ import annotations

from guardcore.ops.calibrated_attention import AttentionOutput, calibrated_attention
from guardcore.ops.calibrated_attention_paged import calibrated_attention_paged
from guardcore.ops.joint_sinkhorn import (
    JointBuffers,
    JointOutput,
    joint_sinkhorn,
    joint_sinkhorn_buffers,
    joint_sinkhorn_packed,
)
from guardcore.ops.registration import load_kernels, registered
from guardcore.ops.sinkhorn import SinkhornBuffers, SinkhornOutput, sinkhorn, sinkhorn_buffers, sinkhorn_packed
from guardcore.ops.sinkhorn_screen import ScreenOutput, sinkhorn_screen, sinkhorn_screen_packed
from guardcore.ops.target_mass_attention import target_mass_attention

__all__ = [
    "OPS",
    "AttentionOutput",
    "JointBuffers",
    "JointOutput",
    "ScreenOutput",
    "SinkhornBuffers",
    "SinkhornOutput",
    "calibrated_attention",
    "calibrated_attention_paged",
    "joint_sinkhorn",
    "joint_sinkhorn_buffers",
    "joint_sinkhorn_packed",
    "sinkhorn",
    "sinkhorn_buffers",
    "sinkhorn_packed",
    "sinkhorn_screen",
    "sinkhorn_screen_packed",
    "target_mass_attention",
]

OPS = registered()

load_kernels()
