"""GPU kernels in Triton, one file an operator: launch table, kernels, launcher. Installed as guardcore.triton_kernels.

`guardcore.ops` imports a launcher on the first CUDA call; nothing else does. A launcher takes the operator's positional
arguments, returns its tuple, and never waits for the device: what the CPU refuses with a ValueError because it has to
look at values (negative weights, group ids out of range) gives NaN for that item here.
"""
