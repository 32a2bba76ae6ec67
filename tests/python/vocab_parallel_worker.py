"""One of the processes of test_vocab_parallel.py: `vocab_parallel_worker.py RANK WORLD STORE_FILE DEVICE`.

Each has a slice of one head, and holds its results and gradients to those of the whole vocabulary in float64.
"""

from __future__ import annotations

import math
import os
import sys

import torch
import torch.distributed as dist

from liger_kernel import _native
from liger_kernel.ops import (
    LigerFusedLinearScaledCrossEntropyFunction,
    LigerLinearLogProbFunction,
    LigerVocabParallelLinearLogProbFunction,
)
from liger_kernel.ops.linear_logprob import OUTPUTS
from liger_kernel.transformers import LigerLinearLogProb, LigerVocabParallelCrossEntropy
from liger_kernel.transformers.functional import (
    liger_fused_linear_scaled_cross_entropy_tp,
    liger_linear_logprob,
)

ROWS, HIDDEN, VOCAB = 23, 16, 60
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def bounds(world, uneven):
    """Where slices begin; uneven ones have sizes that no two share."""
    if not uneven:
        return [r * VOCAB // world for r in range(world + 1)]
    return [0, 7, *(VOCAB - 5 * (world - r) for r in range(2, world)), VOCAB]


def results64(x, weight, bias, target, ids, temperature, softcap, scale, ignore_index):
    """The formulas of LigerLinearLogProbFunction over the whole vocabulary."""
    z = scale * (x @ weight.t() if bias is None else x @ weight.t() + bias)
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    log_p = z.log_softmax(-1)
    labels = target.where(target != ignore_index, 0).long()
    found = {
        "log_prob": log_p.gather(-1, labels[..., None])[..., 0],
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "lse": z.logsumexp(-1),
        "log_sum_sq_probs": (2 * log_p).logsumexp(-1),
        "mean_logits": z.mean(-1),
        "is_top1": z.argmax(-1) == labels,
        "selected": log_p[..., ids],
    }
    counts = target != ignore_index
    return {
        n: v.masked_fill(~(counts.unsqueeze(-1) if v.dim() > counts.dim() else counts), 0) for n, v in found.items()
    }


def near(found, right, steps, unit, what):
    """`steps` roundings of `unit`, of numbers as large as the largest."""
    error, size = (found.double().cpu() - right).abs().max().item(), max(right.abs().max().item(), 1e-3)
    assert error <= steps * unit * size, f"{what}: {error / (unit * size):.1f} units, more than {steps}"


def check(device, dtype, uneven, names, leading=(ROWS,), with_bias=True, **options):
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    torch.manual_seed(5)
    x = torch.randn(*leading, HIDDEN).to(dtype)
    weight, bias = (0.4 * torch.randn(VOCAB, HIDDEN)).to(dtype), (0.5 * torch.randn(VOCAB)).to(dtype)
    target = torch.randint(0, VOCAB // world - 1, leading)  # the last slices have none
    target.view(-1)[1::3] = -1
    target.view(-1)[-1] = x.view(-1, HIDDEN)[-1].float().matmul(weight.float().t()).add(bias.float()).argmax()
    ids = torch.tensor([VOCAB - 1, 0, 8, 8])
    given = dict(temperature=1.0, softcap=None, scale=1.0, ignore_index=-1) | options

    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    right = results64(wide[0], wide[1], wide[2] if with_bias else None, target, ids, **given)
    torch.manual_seed(6)
    kept = ["log_prob", *names, "selected"]
    upstreams = {n: torch.randn(right[n].shape, dtype=torch.float64) for n in kept if n != "is_top1"}
    sum((upstreams[n] * right[n]).sum() for n in upstreams).backward()

    first, last = bounds(world, uneven)[rank : rank + 2]
    parts = [t.to(device).requires_grad_() for t in (x, weight[first:last].clone(), bias[first:last].clone())]
    found = LigerVocabParallelLinearLogProbFunction.apply(
        parts[0], parts[1], target.to(device), group, first if uneven else None, parts[2] if with_bias else None,
        ids.to(device), given["temperature"], given["softcap"], given["scale"], -1, None, tuple(names),
    )  # fmt: skip
    found = dict(zip(kept, found))
    unit = UNIT[dtype]
    for name, value in found.items():
        if name == "is_top1":
            assert torch.equal(value.cpu(), right[name])
        else:  # of the logits one rounding, and of float32 sums of some 60 numbers
            near(value.detach(), right[name].detach(), 4 if dtype is not torch.float32 else 64, unit, name)
    total = sum((upstreams[n].float().to(device) * found[n]).sum() for n in upstreams)
    parameters = parts if with_bias else parts[:2]
    gradients = torch.autograd.grad(total, parameters, retain_graph=True)
    again = torch.autograd.grad(total, parameters)
    cut = [slice(None), slice(first, last), slice(first, last)]
    for name, one, other, twin, part in zip(("dx", "dweight", "dbias"), gradients, again, wide, cut):
        if os.environ.get("LIGER_DISABLE"):  # torch's products do not promise their bits
            near(one, other.double().cpu(), 4, unit, f"{name} again")
        else:
            assert torch.equal(one, other), f"{name}: another one the second time"
        assert one.dtype is dtype
        near(one, twin.grad[part], 12 if dtype is not torch.float32 else 64, unit, name)


def check_scaled(device, dtype):
    """As one process' scaled cross entropy, but for a target that nobody has."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(7)
    x, weight = torch.randn(ROWS, HIDDEN).to(dtype).to(device), (0.4 * torch.randn(VOCAB, HIDDEN)).to(dtype).to(device)
    target = torch.randint(0, VOCAB, (ROWS,), device=device)
    target[3] = -7
    x.requires_grad_(), weight.requires_grad_()
    part = weight.detach().view(world, -1, HIDDEN)[rank].clone().requires_grad_()
    alone = LigerFusedLinearScaledCrossEntropyFunction.apply(x, weight, target, 0.7, -7, 1, True)
    split = liger_fused_linear_scaled_cross_entropy_tp(x, part, target, None, 0.7, -7, 2, True)
    steps = 64 if dtype is torch.float32 else 4
    for name, one, all_of_it in zip(("nll", "entropy"), split, alone):
        assert one.dtype is torch.float32
        near(one.detach(), all_of_it.detach().double().cpu(), steps, UNIT[dtype], name)
    u = torch.linspace(-1, 2, ROWS, device=device)
    right = torch.autograd.grad((u * (alone[0] + alone[1].float())).sum(), (x, weight))
    found = torch.autograd.grad((u * (split[0] + split[1])).sum(), (x, part))
    near(found[0], right[0].double().cpu(), steps, UNIT[dtype], "dx")
    near(found[1], right[1].view(world, -1, HIDDEN)[rank].double().cpu(), steps, UNIT[dtype], "dweight")
    target[0] = VOCAB
    assert liger_fused_linear_scaled_cross_entropy_tp(x, part, target, dist.group.WORLD).isfinite().all()
    assert torch.equal(split[0], liger_fused_linear_scaled_cross_entropy_tp(x, part, target, None, 0.7, -7)) is False


def check_one_of_one(device):
    """A group of one process is no split, and the function is that of one process."""
    group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    x, weight = torch.randn(4, 8, device=device), torch.randn(6, 8, device=device)
    target = torch.arange(4, device=device)
    assert torch.equal(
        liger_linear_logprob(x, weight, target, process_group=group), liger_linear_logprob(x, weight, target)
    )
    module = LigerLinearLogProb(outputs=("entropy",))
    dist.broadcast(x, 0)
    dist.broadcast(weight, 0)
    whole = torch.cat([weight] * dist.get_world_size())
    for one, all_of_it in zip(module(x, weight, target, process_group=dist.group.WORLD), module(x, whole, target)):
        near(one, all_of_it.double().cpu(), 16, 2.0**-24, "module")


def cross_entropy64(logits, target, smoothing, formula, averaged, first, last):
    """Of whole rows of logits; the average of log p is over the ids from first to last."""
    log_p = logits.log_softmax(-1)
    alpha = smoothing * (averaged / (averaged - 1) if formula == "megatron" else 1)
    counts = target != -100
    own = log_p.gather(-1, target.where(counts, 0)[..., None])[..., 0]
    return torch.where(counts, -(1 - alpha) * own - alpha * log_p[..., first:last].mean(-1), 0)


def check_cross_entropy(device, dtype, smoothing, formula, mode, group):
    """`group`: of all processes, each with a slice; or None, of one with all columns."""
    rank, world = (0, 1) if group is None else (dist.get_rank(), dist.get_world_size())
    torch.manual_seed(8)
    logits, target = (2 * torch.randn(5, 3, VOCAB)).to(dtype), torch.randint(0, VOCAB, (5, 3))
    target[1] = -100
    logits[1, 0, 0] = math.nan  # nobody counts it
    first, last = rank * VOCAB // world, (rank + 1) * VOCAB // world
    part = logits[..., first:last].clone().to(device).requires_grad_()
    before = part.detach().clone()
    module = LigerVocabParallelCrossEntropy(-100, smoothing, "none", formula, mode)
    loss = module(part, target.to(device), group)
    u = torch.linspace(-1, 2, 15, device=device).view(5, 3)
    gradient, again = (torch.autograd.grad(loss, part, u, retain_graph=True)[0] for _ in range(2))
    assert loss.dtype is torch.float32 and gradient.dtype is dtype and torch.equal(gradient, again)
    assert torch.equal(part.nan_to_num(7), before.nan_to_num(7))
    wide = logits.nan_to_num(0).double().requires_grad_()
    bounds = (0, VOCAB) if mode == "global" else (first, last)
    right = cross_entropy64(wide, target, smoothing, formula, bounds[1] - bounds[0], *bounds)
    near(loss.detach(), right.detach(), 32, 2.0**-24, "cross entropy")
    # each process' mean of its own slice has a gradient in the softmax of all, but a number of its own
    near(gradient, torch.autograd.grad(right, wide, u.double().cpu())[0][..., first:last], 2, UNIT[dtype], "dlogits")


def check_digits(device):
    """Of a sure row the rest keeps its digits: log p, the entropy and gradients are what little the other slice has."""
    rank, group = dist.get_rank(), dist.group.WORLD
    if dist.get_world_size() != 2 or os.environ.get("LIGER_DISABLE"):  # torch's softmax does not keep them
        return
    x, target = torch.ones(1, 1, device=device, requires_grad=True), torch.tensor([0], device=device)
    for logits in ([20.0, -20.0, 2.0, 3.0], [17.0, -50.0, 0.0, 0.0], [2.0, 3.0, -20.0, 9.0]):
        whole = torch.tensor(logits).view(4, 1)
        part = whole[2 * rank : 2 * rank + 2].to(device).clone().requires_grad_()
        wide = [torch.ones(1, 1, dtype=torch.float64, requires_grad=True), whole.double().requires_grad_()]
        right = results64(*wide, None, target.cpu(), torch.tensor([0]), 1.0, None, 1.0, -100)
        names = ("entropy", "log_sum_sq_probs")
        found = LigerVocabParallelLinearLogProbFunction.apply(
            x, part, target, group, None, None, None, 1.0, None, 1.0, -100, None, names
        )
        for name, value in zip(("log_prob", *names), found):
            exact = (
                -math.log1p(sum(math.exp(z - logits[0]) for z in logits[1:]))
                if name == "log_prob"
                else right[name].item()
            )
            assert abs(value.item() - exact) <= 32 * 2.0**-24 * abs(exact), f"{name} of {logits}"
        dx, dweight = torch.autograd.grad(found[0].sum(), (x, part))
        p = torch.tensor(logits).double().softmax(0)
        others = [-p[j].item() for j in range(1, 4)]
        exact = torch.tensor([math.fsum([-o for o in others]), *others])
        near_each = (dweight.cpu().double().flatten() - exact[2 * rank : 2 * rank + 2]).abs()
        assert (near_each <= 32 * 2.0**-24 * exact[2 * rank : 2 * rank + 2].abs()).all(), f"dweight of {logits}"
        slope = sum(d * z for d, z in zip(exact.tolist(), logits))
        size = max(abs(d * z) for d, z in zip(exact.tolist(), logits))
        assert abs(dx.item() - slope) <= 32 * 2.0**-24 * size, f"dx of {logits}"


def check_dead_slices(device):
    """What has no probability, because its slice has none, is -inf and no one else's; another's gradients are finite."""
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    x = torch.ones(1, 1, device=device, requires_grad=True)
    weight = torch.arange(2.0 * rank, 2.0 * rank + 2, device=device).view(2, 1).requires_grad_()
    bias = torch.full((2,), -math.inf if rank == world - 1 else 0.0, device=device)
    last = torch.tensor([2 * world - 1], device=device)
    log_p, entropy, selected = LigerVocabParallelLinearLogProbFunction.apply(
        x, weight, last, group, None, bias, last, 1.0, None, 1.0, -100, None, ("entropy",)
    )
    assert log_p.item() == selected.item() == -math.inf and entropy.isfinite().all()
    for gradient in torch.autograd.grad(entropy.sum(), (x, weight)):
        assert gradient.isfinite().all()
    logits = (weight.detach() * 1.0).view(1, 1, 2) + bias
    assert LigerVocabParallelCrossEntropy()(logits, last.view(1, 1), group).item() == math.inf


def check_what_else_may_be(device):
    """Targets without dimensions; a default dtype of float64; no group in a world of several; slices that overlap."""
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    x, weight = torch.ones(4, device=device, requires_grad=True), torch.ones(3 + rank, 4, device=device)
    assert (
        LigerVocabParallelLinearLogProbFunction.apply(x, weight, torch.tensor(1, device=device), group, 3 * rank).shape
        == ()
    )
    torch.set_default_dtype(torch.float64)
    log_p = LigerVocabParallelLinearLogProbFunction.apply(
        x[None], weight, torch.tensor([1], device=device), group, 4 * rank
    )
    torch.set_default_dtype(torch.float32)
    assert log_p.dtype is torch.float32
    log_p.sum().backward()
    alone = LigerVocabParallelLinearLogProbFunction.apply(x[None], weight, torch.tensor([1], device=device), None)
    right = LigerLinearLogProbFunction.apply(x[None], weight, torch.tensor([1], device=device))
    for one, other in zip(torch.autograd.grad(alone.sum(), x), torch.autograd.grad(right.sum(), x)):
        assert torch.equal(one, other)
    two_have_it = torch.tensor([1], device=device)
    assert LigerVocabParallelLinearLogProbFunction.apply(x[None], weight, two_have_it, group, 0).isnan().all()
    top1 = LigerVocabParallelLinearLogProbFunction.apply(
        x[None], weight * (math.nan if rank == world - 1 else 1), two_have_it, group, 5 * rank, None, None, 1.0, None, 1.0, -100,
        None, ("is_top1",),
    )[1]  # fmt: skip
    assert not top1.item()


def check_nobodys_target(device):
    """Its logit counts as the largest one, and its loss is log Σ exp(x - max)."""
    group = dist.group.WORLD
    logits = torch.full((1, 1, 4), 3.0, device=device, requires_grad=True)
    target = torch.full((1, 1), 4 * dist.get_world_size(), device=device)
    loss = LigerVocabParallelCrossEntropy()(logits, target, group)
    near(loss.detach(), torch.tensor([[math.log(4 * dist.get_world_size())]], dtype=torch.float64), 8, 2.0**-24, "loss")
    loss.sum().backward()
    near(logits.grad, torch.full((1, 1, 4), 0.25 / dist.get_world_size(), dtype=torch.float64), 8, 2.0**-24, "dlogits")


def check_frozen(device):
    """Of what is frozen no gradient, and where hidden states are, no sum over processes is waited for."""
    rank, group = dist.get_rank(), dist.group.WORLD
    x, weight = torch.randn(5, 8, device=device), torch.randn(6, 8, device=device, requires_grad=True)
    dist.broadcast(x, 0)
    target = torch.tensor([0, 3, 6, 11, 1], device=device)
    log_p = LigerVocabParallelLinearLogProbFunction.apply(x, weight, target, group)
    if rank == 0:  # a collective in here would never end
        log_p.sum().backward()
        assert weight.grad is not None
    dist.barrier()
    with torch.no_grad():
        assert not LigerVocabParallelLinearLogProbFunction.apply(x, weight, target, group).requires_grad
    empty = LigerVocabParallelLinearLogProbFunction.apply(x[:0], weight, target[:0], group)
    assert empty.shape == (0,)


def check_unowned(device):
    """A target of no process: NaN, with NaN gradients in its row; on request its logit is 0."""
    group = dist.group.WORLD
    torch.manual_seed(dist.get_rank())
    x, weight = torch.ones(3, 8, device=device, requires_grad=True), torch.randn(6, 8, device=device)
    target = torch.tensor([0, 6 * dist.get_world_size(), -100], device=device)
    log_p = LigerVocabParallelLinearLogProbFunction.apply(x, weight, target, group)
    assert log_p.isnan().tolist() == [False, True, False]
    log_p.sum().backward()
    assert x.grad.isnan().any(1).tolist() == [False, True, False]
    x.grad = None
    log_p, lse = LigerVocabParallelLinearLogProbFunction.apply(
        x, weight, target, group, None, None, None, 1.0, None, 1.0, -100, None, ("lse",), True
    )
    assert torch.equal(log_p[1], -lse[1])
    log_p.sum().backward()
    assert x.grad.isfinite().all() and x.grad[1].any()


def check_extremes(device):
    """A slice of which nothing has a probability, and the largest logit of two slices at once."""
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    x, weight = torch.ones(2, 1, device=device), torch.full((4, 1), 3.0, device=device)
    bias = torch.full((4,), -math.inf if rank == world - 1 else 0.0, device=device)
    target = torch.tensor([0, 4], device=device)
    names = ("entropy", "lse", "log_sum_sq_probs", "is_top1")
    log_p, entropy, lse, squares, top1 = LigerVocabParallelLinearLogProbFunction.apply(
        x, weight, target, group, None, bias, None, 1.0, None, 1.0, -100, None, names
    )
    count = math.log(4 * (world - 1))
    for value, right in ((entropy, count), (lse, 3 + count), (squares, -count)):
        near(value, torch.full((2,), right, dtype=torch.float64), 8, 2.0**-24, right)
    assert abs(log_p[0].item() + count) <= 8 * 2.0**-24 * max(count, 1)
    assert top1.tolist() == [True, False]  # of equal ones the first


def both_losses(device, group, hidden=None):
    """Three functions of (hidden states, weight or logits), which have a gradient, and these."""
    torch.manual_seed(4)
    rank, world = dist.get_rank(), dist.get_world_size()
    x = torch.randn(7, HIDDEN, device=device) if hidden is None else hidden
    target, ids = torch.randint(0, 5 * world, (7,), device=device), torch.tensor([0, 5 * world - 1], device=device)
    target[2] = -100
    weight, logits = (
        torch.randn(world, 5, HIDDEN, device=device)[rank],
        torch.randn(world, 7, 1, 5, device=device)[rank],
    )
    apply, names = LigerVocabParallelLinearLogProbFunction.apply, tuple(OUTPUTS)

    def alone(x, weight):
        return (apply(x, weight, target, group),)

    def everything(x, weight):
        return apply(x, weight, target, group, None, None, ids, 0.7, 5.0, 1.1, -100, None, names)

    def cross_entropy(x, logits):
        module = LigerVocabParallelCrossEntropy(label_smoothing=0.1, label_smoothing_formula="megatron")
        return (module(logits + 0 * x.sum(), target.unsqueeze(1), group),)

    return [(f, (x, part)) for f, part in ((alone, weight), (everything, weight), (cross_entropy, logits))]


def with_gradients(function, parts):
    leaves = [part.detach().requires_grad_() for part in parts]
    found = function(*leaves)
    smooth = [f for f in found if f.is_floating_point()]
    total = sum((torch.linspace(-1, 2, f.numel(), device=f.device).view(f.shape) * f).sum() for f in smooth)
    return [*found, *torch.autograd.grad(total, leaves)]


def check_compiled(device):
    """One graph, to the same numbers; and one graph for all lengths."""
    group = dist.group.WORLD
    for dynamic in (False, True):
        for function, parts in both_losses(device, group):
            torch._dynamo.reset()
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
            for one, other in zip(with_gradients(compiled, parts), with_gradients(function, parts)):
                assert one.dtype is other.dtype and one.shape == other.shape
                near(one.detach(), other.detach().double().cpu(), 16, 2.0**-24, function.__name__)


def check_graphs_of_groups(device):
    """That of a process alone is not the one of all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    alone = [dist.new_group([r]) for r in range(world)][rank]
    x, part = torch.randn(7, HIDDEN, device=device), torch.randn(5, HIDDEN, device=device)
    target = torch.randint(0, 5, (7,), device=device)

    def log_probs(x, part, group):
        return LigerVocabParallelLinearLogProbFunction.apply(x, part, target, group)

    def cross_entropy(x, part, group):
        return LigerVocabParallelCrossEntropy()((x @ part.T).unsqueeze(1), target.unsqueeze(1), group)

    for function in (log_probs, cross_entropy):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for group in (alone, dist.group.WORLD):
            assert torch.equal(compiled(x, part, group), function(x, part, group))


def check_results_of_collectives(device):
    """They may be under way, as tensor parallelism hands them on; with a gradient too."""
    import torch.distributed._functional_collectives as collectives

    group, world = dist.group.WORLD, dist.get_world_size()
    part = torch.randn(7, HIDDEN, device=device)
    for function, parts in both_losses(device, group, collectives.all_reduce(part, "sum", group)):
        assert type(parts[0]) is collectives.AsyncCollectiveTensor
        for one, other in zip(function(*parts), function(parts[0].wait(), parts[1])):
            assert type(one) is torch.Tensor and torch.equal(one, other)
    gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
    part = part[:1].clone().requires_grad_()
    weight, target = torch.randn(5, HIDDEN, device=device), torch.arange(world, device=device)
    found = []
    for hidden in (gather(part, 0, group), gather(part, 0, group) * 1.0):
        log_p = LigerVocabParallelLinearLogProbFunction.apply(hidden, weight, target, group)
        found += torch.autograd.grad(log_p.sum(), part)
    assert torch.equal(*found) and found[0].any()


def check_shapes_alone(device):
    """Of fake tensors in their mode or out of it, and of meta tensors."""
    group = dist.group.WORLD
    for function, parts in both_losses(device, group):
        right = with_gradients(function, parts)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(part) for part in parts]
            inside = with_gradients(function, fakes)
        for one, other in zip(inside, right):
            assert one.dtype is other.dtype and one.shape == other.shape and one.stride() == other.stride()
    x, weight = torch.empty(3, 4, device="meta", requires_grad=True), torch.empty(5, 4, device="meta")
    log_p = LigerVocabParallelLinearLogProbFunction.apply(x, weight, torch.empty(3, device="meta").long(), group)
    log_p.sum().backward()
    assert log_p.is_meta and x.grad.shape == x.shape


def check_wrappers(device):
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    mesh, target = init_device_mesh(device, (dist.get_world_size(),)), torch.arange(3, device=device)
    x = distribute_tensor(torch.randn(3, 4, device=device), mesh, [Replicate()])
    for call in (
        lambda: LigerVocabParallelLinearLogProbFunction.apply(x, x.to_local(), target, dist.group.WORLD),
        lambda: LigerVocabParallelCrossEntropy()(x.unsqueeze(1), target.unsqueeze(1), dist.group.WORLD),
    ):
        try:
            call()
            raise AssertionError("it was taken")
        except RuntimeError as error:
            assert "tensors must be plain, but" in str(error) and "is a DTensor" in str(error), error


def main():
    rank, world, store, device = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world)
    everything, reduce = list(OUTPUTS), dist.all_reduce

    def wide_reduce(tensor, **options):
        """What is rounded before it is added up is rounded once for each process."""
        assert tensor.dtype is torch.float32
        is_rounded = [torch.equal(tensor, tensor.to(dtype).float()) for dtype in UNIT if dtype is not torch.float32]
        assert tensor.numel() < 64 or not any(is_rounded)
        return reduce(tensor, **options)

    dist.all_reduce = wide_reduce
    if "vocab_parallel_logprob" in os.environ.get("LIGER_DISABLE", ""):
        for name in ("linear_logprob_forward", "linear_logprob_backward"):
            setattr(_native, name, None)  # not to be called
    for dtype in UNIT:
        for uneven in (False, True):
            check(device, dtype, uneven, everything)
            check(device, dtype, uneven, everything, temperature=0.7, softcap=5.0, scale=-1.3)
        check(device, dtype, True, ["mean_logits"], leading=(3, 5), with_bias=False)
        check(device, dtype, False, [])
        check_scaled(device, dtype)
        for formula in ("pytorch", "megatron"):
            for mode in ("global", "partition"):
                for group in (None, dist.group.WORLD):
                    check_cross_entropy(device, dtype, 0.1, formula, mode, group)
        check_cross_entropy(device, dtype, 0.0, "pytorch", "global", dist.group.WORLD)
    check_one_of_one(device)
    check_digits(device)
    check_dead_slices(device)
    check_what_else_may_be(device)
    check_nobodys_target(device)
    check_frozen(device)
    check_unowned(device)
    check_extremes(device)
    check_results_of_collectives(device)
    check_shapes_alone(device)
    check_wrappers(device)
    if not os.environ.get("LIGER_DISABLE"):
        check_compiled(device)
        check_graphs_of_groups(device)
    dist.destroy_process_group()
    print("ok")


if __name__ == "__main__":
    main()
