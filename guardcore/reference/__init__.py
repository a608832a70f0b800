"""The operators' definitions in plain PyTorch: test oracle, benchmark baseline, and fallback without a kernel."""

from guardcore.reference.joint_sinkhorn import JointPlan, joint_sinkhorn, joint_sinkhorn_packed
from guardcore.reference.sinkhorn import Plan, sinkhorn, sinkhorn_packed

__all__ = ["JointPlan", "Plan", "joint_sinkhorn", "joint_sinkhorn_packed", "sinkhorn", "sinkhorn_packed"]
