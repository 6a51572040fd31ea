"""The fused loss as Triton kernels."""
