"""Multi-token attention's convolution of attention weights as a module."""

from __future__ import annotations

import math

import torch
from torch import nn

from liger_kernel._native import LigerArgumentError
from liger_kernel.ops import LigerMultiTokenAttentionFunction
from liger_kernel.ops.multi_token_attention import check_options, pair


class LigerMultiTokenAttention(nn.Module):
    """`scores` [B, in_channels, L, L]: a softmax of each row up to the diagonal (a sparsemax, if `sparse`), convolved over queries,
    keys and channels, and 0 beyond the diagonal: [B, out_channels, L, L].

    Options as those of `torch.nn.Conv2d`; the result must be L x L (ValueError). fp32, fp16 or bf16; sparse: fp32 scores only
    (RuntimeError).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, dilation=1, groups: int = 1,
        bias: bool = True, sparse: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise LigerArgumentError(
                f"in_channels is {in_channels} and out_channels is {out_channels}, but both must be multiples of groups, which "
                f"is {groups} and must be 1 or more"
            )
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise LigerArgumentError(f"LigerMultiTokenAttention: {name} is {channels}, but must be 1 or more")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = pair("stride", stride)
        self.padding = pair("padding", padding)
        self.dilation = pair("dilation", dilation)
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        check_options("LigerMultiTokenAttention", kernel_size=self.kernel_size, **options)
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.sparse = sparse
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, scores):
        return LigerMultiTokenAttentionFunction.apply(
            scores, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.sparse
        )

    def extra_repr(self):
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"sparse={self.sparse}"
        )


def liger_multi_token_attention(
    scores, weight, bias=None, stride=1, padding=0, dilation=1, groups: int = 1, sparse: bool = False
):
    """See `LigerMultiTokenAttention`."""
    return LigerMultiTokenAttentionFunction.apply(scores, weight, bias, stride, padding, dilation, groups, sparse)
