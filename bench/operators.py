"""What every operator of the bench is: its inputs and its formula in plain torch.

The inputs are `diff` (gradients are asked for these), `fixed` (the others) and `upstream` (gradients of the outputs;
empty where the output is a scalar loss). The plain formula is what Hugging Face's models run; in float32 it is also what
every provider is checked against.
"""

from __future__ import annotations

import math

import losses
import torch
import torch.nn.functional as F
from inputs import EPSILON, IGNORE, MROPE_SECTION, Inputs, Operator, normal, targets
from torch import Tensor

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
    # relu, not clamp: what equals the threshold, as a value of 16 bits may, is no part of the support
    return (wide - (sums.gather(-1, size - 1) - 1) / size).relu().to(x.dtype)


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
