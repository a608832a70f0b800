"""The operators' definitions in plain PyTorch: test oracle, benchmark baseline, and fallback without a kernel."""

from guardcore.reference.calibrated_attention import Attention, calibrated_attention
from guardcore.reference.calibrated_attention_paged import calibrated_attention_paged
from guardcore.reference.joint_sinkhorn import JointPlan, joint_sinkhorn, joint_sinkhorn_packed
from guardcore.reference.sinkhorn import Plan, sinkhorn, sinkhorn_packed
from guardcore.reference.sinkhorn_screen import Screen, sinkhorn_screen, sinkhorn_screen_packed

__all__ = [
    "Attention",
    "JointPlan",
    "Plan",
    "Screen",
    "calibrated_attention",
    "calibrated_attention_paged",
    "joint_sinkhorn",
    "joint_sinkhorn_packed",
    "sinkhorn",
    "sinkhorn_packed",
    "sinkhorn_screen",
    "sinkhorn_screen_packed",
]
