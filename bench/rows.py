"""What is measured: the rows of operators and shapes, on a GPU and on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from inputs import Inputs
from operators import OPERATORS


@dataclass(frozen=True)
class Row:
    name: str
    group: str
    op: str
    shape: tuple[int, ...]
    dtype: str = "bfloat16"
    intermediate: bool = False  # inputs are other layers' results, as between two layers of a model, and not leaves
    bar_ms: float | None = None  # on an H200, forward and backward
    bar_mb: float | None = None
    sums: str | None = None  # the dtype in which gradients of parameters accumulate, where a provider has the choice
    environment: tuple[tuple[str, str], ...] = ()  # variables for our own process

    def inputs(self, device: str) -> Inputs:
        made = OPERATORS[self.op].inputs(self.shape, getattr(torch, self.dtype), device)
        for tensor in made.diff:
            tensor.requires_grad_()
        return made

    def work(self) -> tuple[float, float]:
        """Bytes that must move and operations of the products, forward and backward."""
        size = 4 if self.dtype == "float32" else 2
        operator = OPERATORS[self.op]
        if self.op in ("rope", "mrope"):
            batch, seq, heads, kv_heads, dim = self.shape
            elements = batch * seq * (heads + kv_heads) * dim
        elif self.op == "attn_res":
            blocks, rows, hidden = self.shape
            elements = (blocks + 2 / 3) * rows * hidden  # v twice and its gradient; h and its gradient
        elif self.op == "mhc":  # x is read once for what a layer reads and once for what is left of it, each way
            elements = 10.25 * math.prod(self.shape)
        elif self.op == "embedding":
            tokens, hidden, vocab = self.shape
            elements = (3 * tokens + vocab) * hidden
        else:
            elements = self.shape[0] * self.shape[1]
        return operator.passes * size * float(elements), operator.products * 2.0 * math.prod(self.shape)


CUDA_ROWS = [
    Row("RMSNorm 16384x2048", "norm", "rms_norm", (16384, 2048), bar_ms=0.090, bar_mb=132),
    Row("RMSNorm 16384x4096", "norm", "rms_norm", (16384, 4096), bar_ms=0.169, bar_mb=262),
    Row("RMSNorm 16384x8192", "norm", "rms_norm", (16384, 8192), bar_ms=0.332, bar_mb=521),
    Row("RMSNorm 16384x16384", "norm", "rms_norm", (16384, 16384), bar_ms=0.663, bar_mb=1034),
    Row("add+RMSNorm 16384x4096", "norm", "add_rms_norm", (16384, 4096), intermediate=True, bar_ms=0.268, bar_mb=390),
    Row("modulated RMSNorm 16384x4096", "norm", "modulated_rms_norm", (16384, 4096)),
    Row("LayerNorm 16384x4096", "norm", "layer_norm", (16384, 4096), bar_ms=0.171, bar_mb=262),
    Row("RoPE 4x4096, 32+8 heads x 128", "pointwise", "rope", (4, 4096, 32, 8, 128), bar_ms=0.166, bar_mb=321),
    Row("M-RoPE 4x4096, 32+8 heads x 128", "pointwise", "mrope", (4, 4096, 32, 8, 128)),
    Row("SwiGLU 16384x14336", "pointwise", "swiglu", (16384, 14336), bar_ms=0.869, bar_mb=1344),
    Row("GeGLU 16384x14336", "pointwise", "geglu", (16384, 14336), bar_ms=0.865, bar_mb=1344),
    Row("AttnRes 8 of 8192x4096", "norm", "attn_res", (8, 8192, 4096)),
    Row("mHC 16384x4x4096", "norm", "mhc", (16384, 4, 4096), intermediate=True, bar_ms=2.4, bar_mb=2500),
    Row(
        "Embedding 16384x4096, V=128256",
        "pointwise",
        "embedding",
        (16384, 4096, 128256),
        bar_ms=0.363,
        bar_mb=1132,
    ),
    Row("Sparsemax 4096x4096 fp32", "pointwise", "sparsemax", (4096, 4096), "float32", bar_ms=0.086, bar_mb=132),
    Row("Sparsemax 4096x32768 fp32", "pointwise", "sparsemax", (4096, 32768), "float32", bar_ms=0.56, bar_mb=1042),
    Row("ReLU² 16384x14336", "pointwise", "relu_squared", (16384, 14336)),
    Row("DyT 16384x4096", "norm", "dyt", (16384, 4096)),
    Row("GroupNorm 16x512x64x64 by 32", "norm", "group_norm", (16, 512 * 64 * 64)),
    Row("GroupNorm 64x512x16x16 by 32", "norm", "group_norm", (64, 512 * 16 * 16)),
    Row("GroupNorm 1x512x512x512 by 32", "norm", "group_norm", (1, 512 * 512 * 512)),
    Row("PolyNorm 16384x4096", "norm", "poly_norm", (16384, 4096)),
    Row("Softmax 16384x4096", "pointwise", "softmax", (16384, 4096), bar_ms=0.166, bar_mb=256),
    Row("Softmax 8192x32768", "pointwise", "softmax", (8192, 32768), bar_ms=0.636, bar_mb=1024),
    Row("int2 x int8 4096x4096x14336", "int2", "int2_matmul", (4096, 4096, 14336), "int8", bar_ms=0.40, bar_mb=282),
    Row("int2 x int8 1x4096x14336", "int2", "int2_matmul", (1, 4096, 14336), "int8"),
    Row(
        "MTA 2x32x2048x2048, 9x9",
        "pointwise",
        "multi_token_attention",
        (2, 32 * 2048 * 2048),
        bar_ms=1.7,
        bar_mb=1540,
    ),
    Row("CE 16384x32000", "cross_entropy", "cross_entropy", (16384, 32000), bar_ms=0.58, bar_mb=1001),
    Row("CE 8192x128256", "cross_entropy", "cross_entropy", (8192, 128256), bar_ms=1.16, bar_mb=2005),
    Row("KL 4096x128256", "divergence", "kl_div", (4096, 128256), bar_ms=0.79, bar_mb=1004),
    Row("JSD 4096x128256", "divergence", "jsd", (4096, 128256), bar_ms=0.79, bar_mb=1004),
    Row("TVD 4096x128256", "divergence", "tvd", (4096, 128256), bar_ms=0.79, bar_mb=1004),
    # two reads, then two and a write: at the rate that three passes over a row of KL divergence are to take .79 ms
    Row("CE+TVD 4096x128256", "cross_entropy", "ce_tvd", (4096, 128256), bar_ms=1.317, bar_mb=1004),
    Row("FLCE 4096x4096x128256", "flce", "linear_cross_entropy", (4096, 4096, 128256), bar_ms=18.9, bar_mb=2040),
    Row("FLCE 16384x4096x128256", "flce", "linear_cross_entropy", (16384, 4096, 128256), bar_ms=79.5, bar_mb=3260),
    Row(
        "FLCE 16384x4096x128256, bf16 sums",
        "flce",
        "linear_cross_entropy",
        (16384, 4096, 128256),
        bar_mb=2200,
        sums="bfloat16",
    ),
    Row(
        "FLCE 16384x4096x128256, bf16 sums, 126 MB",
        "flce",
        "linear_cross_entropy",
        (16384, 4096, 128256),
        bar_mb=1256,
        sums="bfloat16",
        environment=(("LIGER_LOSS_WORKSPACE_MB", "126"),),
    ),
    Row("FLCE 16384x2048x32000", "flce", "linear_cross_entropy", (16384, 2048, 32000), bar_ms=9.9, bar_mb=690),
    Row("FLCE 1024x2048x128256", "flce", "linear_cross_entropy", (1024, 2048, 128256), bar_ms=2.5, bar_mb=756),
    Row(
        "FLCE 16384x2048x248320, 512 MB",
        "flce",
        "linear_cross_entropy",
        (16384, 2048, 248320),
        bar_mb=1550,
        environment=(("LIGER_LOSS_WORKSPACE_MB", "512"),),
    ),
    Row(
        "log p + entropy 16384x4096x131072",
        "flce",
        "scaled_cross_entropy",
        (16384, 4096, 131072),
        bar_ms=111,
        bar_mb=1600,
    ),
    Row(
        "log p + entropy 16384x2048x248320",
        "flce",
        "scaled_cross_entropy",
        (16384, 2048, 248320),
        bar_ms=109,
        bar_mb=1400,
    ),
    Row(
        "log p + entropy 8192x4096x151936",
        "flce",
        "scaled_cross_entropy",
        (8192, 4096, 151936),
        bar_ms=66,
        bar_mb=1700,
    ),
    Row(
        "log p + entropy 8192x4096x151936, 4096 MB",
        "flce",
        "scaled_cross_entropy",
        (8192, 4096, 151936),
        bar_ms=48,
        environment=(("LIGER_LOSS_WORKSPACE_MB", "4096"),),
    ),
    Row("linear JSD 4096x1024x128256", "flce", "linear_jsd", (4096, 1024, 128256), bar_ms=10.5, bar_mb=1560),
    Row("linear KL 4096x4096x128256", "flce", "linear_kl_div", (4096, 4096, 128256), bar_ms=20.2, bar_mb=2040),
    Row(
        "linear top-k KL 4096x4096x128256, k=64",
        "flce",
        "linear_topk_kl",
        (4096, 4096, 128256),
        bar_ms=20.2,
        bar_mb=2040,
    ),
    Row("DPO 8x1024x4096x128256", "flce", "dpo", (8, 1024, 4096, 128256), bar_ms=54.1, bar_mb=3090),
    Row("ORPO 8x1024x4096x128256", "flce", "orpo", (8, 1024, 4096, 128256), bar_ms=41.4, bar_mb=3088),
    Row("SimPO 8x1024x4096x128256", "flce", "simpo", (8, 1024, 4096, 128256), bar_ms=40.2, bar_mb=3088),
    Row("CPO 8x1024x4096x128256", "flce", "cpo", (8, 1024, 4096, 128256), bar_ms=40.3, bar_mb=3088),
    Row("GRPO 8x1024x4096x128256", "flce", "grpo", (8, 1024, 4096, 128256), bar_ms=39.4, bar_mb=3088),
    Row("JSD on heads 4096x1024/2048x128256", "flce", "distill_jsd", (4096, 1024, 128256)),
    Row("cosine on heads 4096x1024/2048x128256", "flce", "distill_cosine", (4096, 1024, 128256)),
    Row("GRPO 8x1024x4096x128256, half", "flce", "grpo_half", (8, 1024, 4096, 128256), bar_ms=22, bar_mb=3088),
]


def _cpu_rows(dtype: str, short: str) -> list[Row]:
    return [
        Row(f"RMSNorm 2048x1024 {short}", "norm", "rms_norm", (2048, 1024), dtype),
        Row(f"RMSNorm 2048x4096 {short}", "norm", "rms_norm", (2048, 4096), dtype),
        Row(f"modulated RMSNorm 2048x1024 {short}", "norm", "modulated_rms_norm", (2048, 1024), dtype),
        Row(f"LayerNorm 2048x1024 {short}", "norm", "layer_norm", (2048, 1024), dtype),
        Row(f"LayerNorm 2048x4096 {short}", "norm", "layer_norm", (2048, 4096), dtype),
        Row(f"RoPE 2x1024, 16+8 heads x 64 {short}", "pointwise", "rope", (2, 1024, 16, 8, 64), dtype),
        Row(f"M-RoPE 2x512, 16+8 heads x 128 {short}", "pointwise", "mrope", (2, 512, 16, 8, 128), dtype),
        Row(f"SwiGLU 2048x2816 {short}", "pointwise", "swiglu", (2048, 2816), dtype),
        Row(f"SwiGLU 2048x11008 {short}", "pointwise", "swiglu", (2048, 11008), dtype),
        Row(f"GeGLU 2048x2816 {short}", "pointwise", "geglu", (2048, 2816), dtype),
        Row(f"GeGLU 2048x11008 {short}", "pointwise", "geglu", (2048, 11008), dtype),
        Row(f"Softmax 2048x4096 {short}", "pointwise", "softmax", (2048, 4096), dtype),
        Row(f"AttnRes 8 of 512x1024 {short}", "norm", "attn_res", (8, 512, 1024), dtype),
        Row(f"mHC 1638x4x1024 {short}", "norm", "mhc", (1638, 4, 1024), dtype),
        Row(f"mHC 1638x4x4096 {short}", "norm", "mhc", (1638, 4, 4096), dtype),
        Row(f"Embedding 2048x1024, V=32000 {short}", "pointwise", "embedding", (2048, 1024, 32000), dtype),
        Row(f"Sparsemax 1024x4096 {short}", "pointwise", "sparsemax", (1024, 4096), dtype),
        Row(f"Sparsemax 256x32768 {short}", "pointwise", "sparsemax", (256, 32768), dtype),
        Row(f"ReLU² 2048x11008 {short}", "pointwise", "relu_squared", (2048, 11008), dtype),
        Row(f"DyT 2048x4096 {short}", "norm", "dyt", (2048, 4096), dtype),
        Row(f"GroupNorm 4x512x64x64 by 32 {short}", "norm", "group_norm", (4, 512 * 64 * 64), dtype),
        Row(f"PolyNorm 2048x4096 {short}", "norm", "poly_norm", (2048, 4096), dtype),
        Row(f"MTA 1x32x512x512, 9x9 {short}", "pointwise", "multi_token_attention", (1, 32 << 18), dtype),
        Row(f"CE 1024x32000 {short}", "cross_entropy", "cross_entropy", (1024, 32000), dtype),
        Row(f"KL 1024x32000 {short}", "divergence", "kl_div", (1024, 32000), dtype),
        Row(f"JSD 1024x32000 {short}", "divergence", "jsd", (1024, 32000), dtype),
        Row(f"TVD 1024x32000 {short}", "divergence", "tvd", (1024, 32000), dtype),
        Row(f"CE+TVD 512x32000 {short}", "cross_entropy", "ce_tvd", (512, 32000), dtype),
        Row(f"FLCE 1024x1024x32000 {short}", "flce", "linear_cross_entropy", (1024, 1024, 32000), dtype),
        Row(f"linear JSD 1024x512x32000 {short}", "flce", "linear_jsd", (1024, 512, 32000), dtype),
        Row(f"linear KL 1024x1024x32000 {short}", "flce", "linear_kl_div", (1024, 1024, 32000), dtype),
        Row(f"linear top-k KL 1024x1024x32000, k=64 {short}", "flce", "linear_topk_kl", (1024, 1024, 32000), dtype),
        Row(f"log p + entropy 1024x1024x32000 {short}", "flce", "scaled_cross_entropy", (1024, 1024, 32000), dtype),
        Row(f"DPO 8x128x1024x32000 {short}", "flce", "dpo", (8, 128, 1024, 32000), dtype),
        Row(f"JSD on heads 1024x512/1024x32000 {short}", "flce", "distill_jsd", (1024, 512, 32000), dtype),
        Row(f"cosine on heads 1024x512/1024x32000 {short}", "flce", "distill_cosine", (1024, 512, 32000), dtype),
        Row(f"GRPO 8x128x1024x32000 {short}", "flce", "grpo", (8, 128, 1024, 32000), dtype),
        Row(f"GRPO 8x128x1024x32000 {short}, half", "flce", "grpo_half", (8, 128, 1024, 32000), dtype),
    ]


CPU_ROWS = [
    *_cpu_rows("float32", "fp32"),
    Row("FLCE 256x2048x128256 fp32", "flce", "linear_cross_entropy", (256, 2048, 128256), "float32"),
    *_cpu_rows("bfloat16", "bf16"),
    Row("int2 x int8 410x4096x1434", "int2", "int2_matmul", (410, 4096, 1434), "int8"),
    Row("GEMM 1024x4096x8192 bf16", "gemm", "gemm", (1024, 4096, 8192), "bfloat16"),
]


def all_rows(device: str) -> list[Row]:
    return CUDA_ROWS if device == "cuda" else CPU_ROWS
