"""What is measured: for every operator its inputs and its formula in plain torch, and the rows of shapes.

A row's inputs are `diff` (gradients are asked for these), `fixed` (the others) and `upstream` (gradients of the outputs;
empty where the output is a scalar loss). The plain formula is what Hugging Face's models run; in float32 it is also what
every provider is checked against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import losses
import torch
import torch.nn.functional as F
from inputs import EPSILON, IGNORE, Inputs, Operator, normal, targets
from torch import Tensor

MROPE_SECTION = [16, 24, 24]  # of the 64 pairs of a head of 128


# ---- plain formulas, as Hugging Face's Llama has them ---------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight), total


def modulated_rms_norm(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups = x.view(scale.shape[0], -1, x.shape[1])
    return (rms_norm(groups, weight) * (1 + scale[:, None]) + shift[:, None]).view(x.shape)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, EPSILON)


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


def mrope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    sections = MROPE_SECTION * 2
    return rope(q, k, *(torch.cat([m[i % 3] for i, m in enumerate(t.split(sections, -1))], -1) for t in (cos, sin)))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.float(), -1).to(x.dtype)


def attn_res(v: Tensor, query: Tensor, norm: Tensor) -> Tensor:
    scores = torch.einsum("d,nbtd->nbt", query, rms_norm(v, norm))
    return torch.einsum("nbt,nbtd->btd", scores.softmax(0), v)


def mhc(x: Tensor, f: Tensor, phi: Tensor, b: Tensor, *alphas: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer reads, and the streams after it; f is what it answers."""
    streams, wide = x.shape[-2], x.float()
    flat = wide.flatten(-2)
    mix = (flat @ phi.float()) * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + EPSILON)
    sizes = (streams, streams, streams * streams)
    pre, post, res = (m * a + own for m, a, own in zip(mix.split(sizes, -1), alphas, b.split(sizes)))
    matrix = torch.softmax(res.unflatten(-1, (streams, streams)), -1) + EPSILON
    for step in range(39):
        matrix = matrix / (matrix.sum(-1 - (step + 1) % 2, keepdim=True) + EPSILON)
    x_in = (torch.sigmoid(pre).unsqueeze(-1) * wide).sum(-2)
    out = matrix @ wide + 2 * torch.sigmoid(post).unsqueeze(-1) * f.float().unsqueeze(-2)
    return x_in.to(x.dtype), out.to(x.dtype)


def embedding(weight: Tensor, indices: Tensor) -> Tensor:
    return F.embedding(indices, weight)


def sparsemax(x: Tensor) -> Tensor:
    wide = x.float()
    z = wide.sort(-1, descending=True).values
    sums, count = z.cumsum(-1), torch.arange(1, x.shape[-1] + 1, device=x.device)
    size = (1 + count * z > sums).sum(-1, keepdim=True)
    return (wide - (sums.gather(-1, size - 1) - 1) / size).clamp(min=0).to(x.dtype)


def relu_squared(x: Tensor) -> Tensor:
    return torch.square(torch.relu(x))


def dyt(x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return gamma * torch.tanh(alpha * x) + beta


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 32, weight, bias, EPSILON)


def poly_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    def normal(z: Tensor) -> Tensor:
        return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + EPSILON)

    wide = x.float()
    y = weight[0] * normal(wide**3) + weight[1] * normal(wide**2) + weight[2] * normal(wide) + bias
    return y.to(x.dtype)


def int2_matmul(a: Tensor, b: Tensor) -> Tensor:
    weights = torch.cat([(b >> 2 * i & 3).to(torch.int8) - 1 for i in range(4)])
    if a.shape[0] <= 16:  # fewer than torch's product of int8 takes on a GPU; sums below 2^24 are exact
        return (a.float() @ weights.float()).int()
    return torch._int_mm(a, weights)


def multi_token_attention(scores: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    future = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
    p = torch.softmax(scores.masked_fill(future, -1e9), -1)
    y = F.conv2d(p, weight, bias, padding=weight.shape[-1] // 2, groups=scores.shape[1])
    return y.masked_fill(future, 0.0)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target, ignore_index=IGNORE)


def cross_entropy_bf16(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=IGNORE)


def kl_div(x: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(x.float(), y.float(), reduction="batchmean")


def kl_div_bf16(x: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(x, y, reduction="batchmean")


def jsd(x: Tensor, y: Tensor) -> Tensor:
    """As TRL's GKDTrainer has it, with beta = 1/2."""
    x, y = x.float(), y.float()
    mixture = torch.logaddexp(x, y) - math.log(2)
    both = F.kl_div(mixture, y, reduction="sum", log_target=True) + F.kl_div(
        mixture, x, reduction="sum", log_target=True
    )
    return both / (2 * x.shape[0])


def tvd(x: Tensor, y: Tensor) -> Tensor:
    return (x.float() - y.float()).abs().sum() / (2 * x.shape[0])


def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(F.linear(x, weight), target)


def linear_cross_entropy_bf16(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return cross_entropy_bf16(F.linear(x, weight), target)


def scaled_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of the targets, and the entropy, of each token."""
    logits = F.linear(x, weight)
    log_p = logits.float().log_softmax(-1)
    counts, labels = target != IGNORE, target.clamp(min=0)
    nll = -log_p.gather(-1, labels[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.where(counts, nll, 0), torch.where(counts, entropy, 0).to(logits.dtype)


def linear_kl_div(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    log_p = F.linear(x, weight).float().log_softmax(-1)
    return F.kl_div(log_p, target.float(), reduction="batchmean")


def linear_topk_kl(x: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """The listed ids, and what is left of both."""
    log_p = F.linear(x, weight).float().log_softmax(-1)
    q = logprobs.exp()
    rest, log_s = 1 - q.sum(-1), log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
    rows = (q * (logprobs - log_p.gather(-1, ids))).sum(-1) + rest * (rest.log() - log_s)
    return rows.mean()


def linear_jsd(x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor) -> Tensor:
    """As TRL's GKD trainer writes it, in float32."""
    log_q, log_p = (F.linear(*head).float().log_softmax(-1) for head in ((x, weight), (teacher_x, teacher_weight)))
    log_m = torch.logaddexp(log_q, log_p) - math.log(2.0)
    kl_p, kl_q = (F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_p, log_q))
    return 0.5 * (kl_p + kl_q)


def ce_tvd(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and the total variation distance to the teacher, of each row."""
    ce = F.cross_entropy(student.float(), target, ignore_index=IGNORE, reduction="none")
    tvd = 0.5 * (student.float().softmax(-1) - teacher.float().softmax(-1)).abs().sum(-1)
    return ce, tvd.masked_fill(target == IGNORE, 0)


def matmul(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.linear(x, weight)


# ---- operators ----------------------------------------------------------------------------------------------------------


def _norm_inputs(shape, dtype, device) -> Inputs:
    rows, hidden = shape
    x = normal((rows, hidden), dtype, device, 1)
    weight = 1 + normal((hidden,), dtype, device, 2, 0.1)
    return Inputs([x, weight], upstream=[normal((rows, hidden), dtype, device, 3)])


def _add_norm_inputs(shape, dtype, device) -> Inputs:
    plain = _norm_inputs(shape, dtype, device)
    x, weight = plain.diff
    more = normal(tuple(shape), dtype, device, 4)
    return Inputs([x, more, weight], upstream=[*plain.upstream, normal(tuple(shape), dtype, device, 6)], rotated=2)


def _modulated_inputs(shape, dtype, device) -> Inputs:
    """8 samples."""
    plain = _norm_inputs(shape, dtype, device)
    return Inputs([*plain.diff, *(normal((8, shape[1]), dtype, device, s) for s in (7, 8))], upstream=plain.upstream)


def _layer_norm_inputs(shape, dtype, device) -> Inputs:
    plain = _norm_inputs(shape, dtype, device)
    return Inputs([*plain.diff, normal(shape[1:], dtype, device, 7, 0.1)], upstream=plain.upstream)


def _rope_inputs(shape, dtype, device) -> Inputs:
    batch, seq, heads, kv_heads, dim = shape
    q = normal((batch, seq, heads, dim), dtype, device, 1).transpose(1, 2)
    k = normal((batch, seq, kv_heads, dim), dtype, device, 2).transpose(1, 2)
    inverse = 1e4 ** (-torch.arange(0, dim, 2, device=device) / dim)
    angle = torch.arange(seq, device=device)[:, None] * inverse
    angle = torch.cat((angle, angle), -1)[None]
    up = [normal((batch, n, seq, dim), dtype, device, s) for n, s in ((heads, 3), (kv_heads, 4))]
    return Inputs([q, k], [angle.cos().to(dtype), angle.sin().to(dtype)], up, rotated=2)


def _mrope_inputs(shape, dtype, device) -> Inputs:
    """Other angles for each of the three positions of each token."""
    made = _rope_inputs(shape, dtype, device)
    batch, seq, _, _, dim = shape
    angle = normal((3, batch, seq, dim // 2), torch.float32, device, 5, 10.0).repeat(1, 1, 1, 2)
    return Inputs(made.diff, [angle.cos().to(dtype), angle.sin().to(dtype)], made.upstream, rotated=2)


def _gated_inputs(shape, dtype, device) -> Inputs:
    return Inputs([normal(shape, dtype, device, s) for s in (1, 2)], [], [normal(shape, dtype, device, 3)], rotated=2)


def _softmax_inputs(shape, dtype, device) -> Inputs:
    return Inputs([normal(shape, dtype, device, 1)], upstream=[normal(shape, dtype, device, 3)])


def _attn_res_inputs(shape, dtype, device) -> Inputs:
    blocks, rows, hidden = shape
    query = normal((hidden,), dtype, device, 2, hidden**-0.5)
    norm = 1 + normal((hidden,), dtype, device, 4, 0.1)
    v = normal((blocks, 1, rows, hidden), dtype, device, 1)
    return Inputs([v, query, norm], upstream=[normal((1, rows, hidden), dtype, device, 3)])


def _mhc_inputs(shape, dtype, device) -> Inputs:
    tokens, streams, cols = shape
    k, m = streams * cols, streams * (streams + 2)
    phi, b = normal((k, m), dtype, device, 4, 0.02), torch.zeros(m, device=device)
    alphas = [torch.ones((), device=device) for _ in range(3)]
    x, up = (normal(shape, dtype, device, seed) for seed in (1, 3))
    f, up_in = (normal((tokens, cols), dtype, device, seed) for seed in (2, 6))
    return Inputs([x, f, phi, b, *alphas], upstream=[up_in, up], rotated=2)


def _embedding_inputs(shape, dtype, device) -> Inputs:
    tokens, hidden, vocab = shape
    indices = torch.randint(vocab, (tokens,), generator=torch.Generator(device=device).manual_seed(5), device=device)
    upstream = normal((tokens, hidden), dtype, device, 3)
    return Inputs([normal((vocab, hidden), dtype, device, 1)], [indices], [upstream], rotated=0)


def _dyt_inputs(shape, dtype, device) -> Inputs:
    x, gamma, beta = _layer_norm_inputs(shape, dtype, device).diff
    alpha = torch.full((1,), 0.5, dtype=dtype, device=device)
    return Inputs([x, alpha, gamma, beta], upstream=[normal(shape, dtype, device, 3)])


def _group_norm_inputs(shape, dtype, device) -> Inputs:
    """512 channels, 32 groups."""
    x, dy = (normal(shape, dtype, device, seed).view(shape[0], 512, -1) for seed in (1, 3))
    return Inputs([x, *_layer_norm_inputs((1, 512), dtype, device).diff[1:]], upstream=[dy])


def _poly_norm_inputs(shape, dtype, device) -> Inputs:
    weight, bias = (torch.full(size, value, dtype=dtype, device=device) for size, value in (((3,), 1 / 3), ((), 1.0)))
    return Inputs([normal(shape, dtype, device, 1), weight, bias], upstream=[normal(shape, dtype, device, 3)])


def _int2_inputs(shape, dtype, device) -> Inputs:
    rows, inner, cols = shape
    generator = torch.Generator(device=device).manual_seed(1)
    a = torch.randint(-128, 128, (rows, inner), generator=generator, dtype=torch.int8, device=device)
    b = torch.randint(0, 256, (inner // 4, cols), generator=generator, dtype=torch.uint8, device=device)
    return Inputs([], [a, b], rotated=0)


def _multi_token_attention_inputs(shape, dtype, device) -> Inputs:
    """32 heads, each with 9 x 9 taps of its own."""
    batch, heads, size = shape[0], 32, math.isqrt(shape[1] // 32)
    scores, upstream = (normal((batch, heads, size, size), dtype, device, seed) for seed in (1, 3))
    weight, bias = normal((heads, 1, 9, 9), dtype, device, 2, 1 / 9), normal((heads,), dtype, device, 4, 0.1)
    return Inputs([scores, weight, bias], upstream=[upstream])


def _loss_inputs(shape, dtype, device) -> Inputs:
    rows, vocab = shape
    return Inputs([normal((rows, vocab), dtype, device, 1, 2.0)], [targets(rows, vocab, device)])


def _divergence_inputs(logs: tuple[bool, bool]):
    """Student and teacher: log-probabilities, or probabilities."""

    def inputs(shape, dtype, device) -> Inputs:
        made = []
        for seed, log in zip((1, 2), logs):
            x = normal(tuple(shape), dtype, device, seed, 2.0)
            for rows in x.split(max(1, (1 << 28) // shape[1])):  # in place: no second matrix in float32
                wide = rows.float().log_softmax(-1)
                rows.copy_(wide if log else wide.exp_())
            made.append(x)
        return Inputs(made[:1], made[1:])

    return inputs


def _ce_tvd_inputs(shape, dtype, device) -> Inputs:
    made = _loss_inputs(shape, dtype, device)
    teacher = made.diff[0].float() + normal(shape, torch.float32, device, 2)
    upstream = [normal(shape[:1], torch.float32, device, seed) for seed in (3, 4)]
    return Inputs(made.diff, [teacher.to(dtype), *made.fixed], upstream)


def _linear_inputs(shape, dtype, device) -> Inputs:
    rows, hidden, vocab = shape
    x = normal((rows, hidden), dtype, device, 1)
    weight = normal((vocab, hidden), dtype, device, 2, 2.0 * hidden**-0.5)
    return Inputs([x, weight], [targets(rows, vocab, device)])


def _linear_kl_div_inputs(shape, dtype, device) -> Inputs:
    """A teacher's probabilities, rounded as its model's are."""
    rows, _, vocab = shape
    teacher = normal((rows, vocab), torch.float32, device, 3, 2.0).softmax(-1).to(dtype)
    return Inputs(_linear_inputs(shape, dtype, device).diff, [teacher])


def _linear_topk_kl_inputs(shape, dtype, device) -> Inputs:
    """A teacher's 64 most probable ids."""
    rows, _, vocab = shape
    logprobs, ids = normal((rows, vocab), torch.float32, device, 3, 2.0).log_softmax(-1).topk(64)
    return Inputs(_linear_inputs(shape, dtype, device).diff, [ids, logprobs])


def _linear_jsd_inputs(shape, dtype, device) -> Inputs:
    """A teacher whose hidden states are twice as wide."""
    rows, hidden, vocab = shape
    teacher_x = normal((rows, 2 * hidden), dtype, device, 3)
    teacher_weight = normal((vocab, 2 * hidden), dtype, device, 4, 2.0 * (2 * hidden) ** -0.5)
    return Inputs(_linear_inputs(shape, dtype, device).diff, [teacher_x, teacher_weight])


def _scaled_cross_entropy_inputs(shape, dtype, device) -> Inputs:
    made = _linear_inputs(shape, dtype, device)
    upstream = [normal(shape[:1], kind, device, seed) for kind, seed in ((torch.float32, 3), (dtype, 4))]
    return Inputs(made.diff, made.fixed, upstream)


_CASTING = (EPSILON, 0.0, "llama", True)
_LOSS = (None, IGNORE, 0.0, 0.0, "mean", None, False)
_LINEAR = ("LigerFusedLinearCrossEntropyFunction", "fused_linear_cross_entropy", (None, *_LOSS))

OPERATORS = {
    "rms_norm": Operator(_norm_inputs, rms_norm, "LigerRMSNormFunction", "rms_norm", _CASTING, passes=5),
    "add_rms_norm": Operator(
        _add_norm_inputs, add_rms_norm, "LigerFusedAddRMSNormFunction", "fused_add_rms_norm", _CASTING, passes=8
    ),
    "modulated_rms_norm": Operator(
        _modulated_inputs,
        modulated_rms_norm,
        "LigerModulatedRMSNormFunction",
        "modulated_rms_norm",
        _CASTING,
        passes=5,
    ),
    "layer_norm": Operator(
        _layer_norm_inputs, layer_norm, "LigerLayerNormFunction", "layer_norm", (EPSILON,), passes=5
    ),
    "rope": Operator(_rope_inputs, rope, "LigerRopeFunction", "rope", passes=4),
    "mrope": Operator(_mrope_inputs, mrope, "LigerQwen2VLMRopeFunction", "qwen2vl_mrope", (MROPE_SECTION,), passes=4),
    "swiglu": Operator(_gated_inputs, swiglu, "LigerSiLUMulFunction", "swiglu", passes=8),
    "geglu": Operator(_gated_inputs, geglu, "LigerGELUMulFunction", "geglu", passes=8),
    "softmax": Operator(_softmax_inputs, softmax, "LigerSoftmaxFunction", "softmax", passes=5),
    "attn_res": Operator(_attn_res_inputs, attn_res, "LigerAttnResFunction", "attn_res", (EPSILON,), passes=3),
    "mhc": Operator(_mhc_inputs, mhc, "liger_mhc_forward", "mhc", passes=1),
    "embedding": Operator(_embedding_inputs, embedding, "LigerEmbeddingFunction", "experimental.embedding", passes=1),
    # of random rows backward reads next to nothing
    "sparsemax": Operator(_softmax_inputs, sparsemax, "LigerSparsemaxFunction", "sparsemax", (-1,), passes=3),
    "relu_squared": Operator(_softmax_inputs, relu_squared, "LigerReLUSquaredFunction", "relu_squared", passes=5),
    "dyt": Operator(_dyt_inputs, dyt, "LigerDyTFunction", "dyt", passes=5),
    "group_norm": Operator(
        _group_norm_inputs, group_norm, "LigerGroupNormFunction", "group_norm", (512, 32, EPSILON), passes=5
    ),
    "poly_norm": Operator(_poly_norm_inputs, poly_norm, "LigerPolyNormFunction", "poly_norm", (EPSILON,), passes=5),
    "int2_matmul": Operator(_int2_inputs, int2_matmul, "matmul", "experimental.mm_int8int2", products=1),
    # half of scores and of the upstream twice, all of the results
    "multi_token_attention": Operator(
        _multi_token_attention_inputs,
        multi_token_attention,
        "LigerMultiTokenAttentionFunction",
        "multi_token_attention",
        (1, 4, 1, 32),
        passes=4,
    ),
    "cross_entropy": Operator(
        _loss_inputs, cross_entropy, "LigerCrossEntropyFunction", "cross_entropy", _LOSS, passes=2
    ),
    "kl_div": Operator(
        _divergence_inputs((True, False)), kl_div, "LigerKLDivLossFunction", "kl_div", ("batchmean",), passes=3
    ),
    "jsd": Operator(_divergence_inputs((True, True)), jsd, "LigerJSDFunction", "jsd", (None, 0.5, IGNORE), passes=3),
    "tvd": Operator(
        _divergence_inputs((False, False)), tvd, "LigerTVDLossFunction", "tvd", (None, "batchmean", IGNORE), passes=3
    ),
    "ce_tvd": Operator(_ce_tvd_inputs, ce_tvd, "LigerFusedCETVDFunction", "fused_ce_tvd", (IGNORE,), passes=5),
    "linear_cross_entropy": Operator(_linear_inputs, linear_cross_entropy, *_LINEAR, products=3),
    # two products' worth for the teacher's logits
    "linear_jsd": Operator(
        _linear_jsd_inputs, linear_jsd, "LigerFusedLinearJSDFunction", "fused_linear_jsd", products=5
    ),
    "linear_kl_div": Operator(
        _linear_kl_div_inputs, linear_kl_div, "LigerFusedLinearKLDivFunction", "fused_linear_kl_div", products=3
    ),
    "linear_topk_kl": Operator(_linear_topk_kl_inputs, linear_topk_kl, "LigerTopKKLFunction", "topk_kl", products=3),
    "scaled_cross_entropy": Operator(
        _scaled_cross_entropy_inputs,
        scaled_cross_entropy,
        "LigerFusedLinearScaledCrossEntropyFunction",
        "fused_linear_scaled_cross_entropy",
        (1.0, IGNORE, 1, True),
        products=3,
    ),
    # a product is not public: the loss's forward holds one, and a pass over its result besides
    "gemm": Operator(_linear_inputs, matmul, *_LINEAR, products=1),
    **losses.OPERATORS,
}


# ---- rows ---------------------------------------------------------------------------------------------------------------


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
