"""Gradients over saved tensors: in their memory when nobody can see it, never when somebody can."""

from __future__ import annotations

import gc

import own_process
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from liger_kernel.ops import (
    LigerCrossEntropyFunction,
    LigerFusedGateUpSiLUMulFunction,
    LigerFusedLinearCrossEntropyFunction,
    LigerSiLUMulFunction,
)
from liger_kernel.ops import _memory as operator

SHAPE = (3, 5, 16)
# Without it nobody can know in a backward pass whether its graph is run again: memory is never taken. Torch 2.4 lacks it.
REUSES = hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph")


def swiglu(gate, up):
    return LigerSiLUMulFunction.apply(gate, up, 1.5, 0.7)


class Graph:
    """x -> gate, up -> SwiGLU, where nothing but SwiGLU saves gate and up. `reused`: whose memory its gradient is in."""

    def __init__(self, device, dtype=torch.float32, packed=False, make=lambda x: x * 2.0):
        self.width = 1 if packed else 2
        self.x = [torch.randn(SHAPE, device=device).to(dtype).requires_grad_() for _ in range(self.width)]
        self.saved = [make(x) for x in self.x]
        self.expected = [t.detach().clone() for t in self.saved]
        self.reused: list[bool] = [False] * self.width
        for i, tensor in enumerate(self.saved):
            place = tensor.data_ptr()
            tensor.register_hook(lambda grad, i=i, place=place: self.note(i, grad.data_ptr() == place))
        self.packed = packed

    def note(self, i, same):
        self.reused[i] = same

    def function(self, *tensors):
        return LigerFusedGateUpSiLUMulFunction.apply(*tensors) if self.packed else swiglu(*tensors)

    def take(self):
        """The tensors; the graph forgets them."""
        saved, self.saved = self.saved, []
        return saved

    def gradients(self):
        """What the gradients of gate and up must be, from leaves, whose memory is never taken."""
        leaves = [t.clone().requires_grad_() for t in self.expected]
        self.function(*leaves).sum().backward()
        return [t.grad for t in leaves]

    def check(self, scale=2.0):
        for x, expected in zip(self.x, self.gradients()):
            assert torch.equal(x.grad, scale * expected)


@pytest.fixture(params=[False, True], ids=["two", "packed"])
def packed(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_that_nobody_sees_is_reused(device, packed, dtype):
    graph = Graph(device, dtype, packed)
    y = graph.function(*graph.take())
    y.sum().backward()
    assert graph.reused == [REUSES] * graph.width
    graph.check()


def test_a_model_reuses_it(device):
    """Projections without bias, as Llama has them."""
    gate, up, down = (torch.nn.Linear(16, 16, bias=False, device=device) for _ in range(3))
    places, found = [], []

    def forward(x):
        g, u = gate(x), up(x)
        for t in (g, u):
            places.append(t.data_ptr())
            t.register_hook(lambda grad: found.append(grad.data_ptr()))
        return down(swiglu(g, u))

    forward(torch.randn(2, 3, 16, device=device)).sum().backward()
    assert len(found) == len(places) and (sorted(found) == sorted(places)) is REUSES


def test_only_what_is_needed(device):
    graph = Graph(device)
    gate, up = graph.take()
    frozen = up.detach().clone()
    y = swiglu(gate, frozen)
    del gate, up
    y.sum().backward()
    assert graph.reused[0] is REUSES and torch.equal(frozen, graph.expected[1])
    assert torch.equal(graph.x[0].grad, 2 * graph.gradients()[0])


def test_retained_graph(device, packed):
    graph = Graph(device, packed=packed)
    y = graph.function(*graph.take())
    for _ in range(2):
        y.sum().backward(retain_graph=True)
        assert not any(graph.reused)
        graph.check()
        for x in graph.x:
            x.grad = None
    y.sum().backward()
    assert graph.reused == [REUSES] * graph.width
    graph.check()


class Elsewhere(torch.autograd.Function):
    """Saves its input and gives its gradient a second backward's worth of time: it runs after SwiGLU's."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2.0

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        ctx.seen.append(x.clone())
        return 2 * grad


HOLDERS = {
    "object": lambda t: t,
    "list": lambda t: [t],
    "view": lambda t: t[:1],
    "detached": lambda t: t.detach(),
    "data": lambda t: t.data,
    "storage": lambda t: t.untyped_storage(),
    "numpy": lambda t: t.detach().cpu().numpy(),
    "dlpack": lambda t: torch.utils.dlpack.to_dlpack(t.detach()),
    "graph of the tensor": lambda t: t.sin(),
    "graph of a view": lambda t: t.view(-1).sin(),
    "graph of a copy that saves nothing": lambda t: t.view(-1) * 2.0,
}


def seen(held):
    if isinstance(held, list):
        held = held[0]
    if isinstance(held, torch.UntypedStorage):
        return torch.tensor(held.tolist())
    if isinstance(held, torch.Tensor):
        node = held.grad_fn
        saved = getattr(node, "_saved_self", None) if node is not None and "Sin" in type(node).__name__ else held
        return saved.detach().clone()
    return torch.as_tensor(held).clone() if not type(held).__name__ == "PyCapsule" else None


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_somebody_holds_keeps_its_values(device, packed, holder):
    graph = Graph(device, packed=packed)
    saved = graph.take()
    held = [HOLDERS[holder](t) for t in saved]
    before = [seen(h) for h in held]
    y = graph.function(*saved)
    del saved
    y.sum().backward()
    if holder == "dlpack":
        before, held = graph.expected, [torch.utils.dlpack.from_dlpack(h) for h in held]
        assert all(torch.equal(a, b) for a, b in zip(before, held))
    else:
        assert all(torch.equal(a, seen(b)) for a, b in zip(before, held))
    if holder != "graph of a copy that saves nothing" and device.type == "cpu":
        assert not any(graph.reused)
    graph.check()


def test_one_of_two_is_held(device):
    graph = Graph(device)
    gate, up = graph.take()
    y = swiglu(gate, up)
    del gate
    y.sum().backward()
    assert graph.reused == [REUSES, False] and torch.equal(up, graph.expected[1])
    graph.check()


def test_another_consumer_that_runs_later(device):
    """Another node of the same graph saved gate, and is reached after SwiGLU's backward."""
    graph = Graph(device)
    gate, up = graph.take()
    other = gate.sin()  # made first: the engine runs later nodes first
    y = swiglu(gate, up)
    del gate, up
    (y.sum() + other.sum()).backward()
    expected = graph.gradients()
    total = 2 * (expected[0] + graph.expected[0].cos())
    assert torch.equal(graph.x[0].grad, total) and graph.reused[1] is REUSES
    assert torch.equal(graph.x[1].grad, 2 * expected[1])


@pytest.mark.parametrize("make", [torch.exp, torch.sigmoid, torch.tanh])
def test_a_saved_output(device, packed, make):
    """The node that made gate needs it for its own gradient."""
    graph = Graph(device, packed=packed, make=make)
    y = graph.function(*graph.take())
    y.sum().backward()
    assert not any(graph.reused)
    for x, value, expected in zip(graph.x, graph.expected, graph.gradients()):
        twin = x.detach().clone().requires_grad_()
        make(twin).backward(expected)
        assert torch.equal(make(twin), value) and torch.equal(x.grad, twin.grad)


def test_inputs_of_grad(device, packed):
    """torch.autograd.grad with respect to gate and up themselves, which the caller holds."""
    graph = Graph(device, packed=packed)
    saved = graph.take()
    grads = torch.autograd.grad(graph.function(*saved).sum(), saved)
    assert all(torch.equal(a, b) for a, b in zip(saved, graph.expected))
    assert all(torch.equal(a, b) for a, b in zip(grads, graph.gradients()))
    assert len({t.data_ptr() for t in (*grads, *saved)}) == 2 * graph.width


def test_leaves(device, packed):
    """The caller lets go of its leaves; their accumulators do not."""
    leaves = [torch.randn(SHAPE, device=device, requires_grad=True) for _ in range(1 if packed else 2)]
    before = [t.detach().clone() for t in leaves]
    y = Graph(device, packed=packed).function(*leaves)
    accumulators = [edge[0] for edge in y.grad_fn.next_functions if edge[0] is not None]
    del leaves
    y.sum().backward()
    assert all(torch.equal(a.variable, b) for a, b in zip(accumulators, before))


def test_both_are_one_tensor(device):
    graph = Graph(device)
    gate, _ = graph.take()
    y = swiglu(gate, gate)
    del gate
    y.sum().backward()
    leaf = graph.expected[0].clone().requires_grad_()
    swiglu(leaf, leaf).sum().backward()
    assert torch.equal(graph.x[0].grad, 2 * leaf.grad)


def test_halves_of_one_tensor(device):
    x = torch.randn(4, 32, device=device, requires_grad=True)
    y = swiglu(*(x * 2.0).chunk(2, -1))
    y.sum().backward()
    leaf = (2 * x).detach().requires_grad_()
    swiglu(*leaf.chunk(2, -1)).sum().backward()
    assert torch.equal(x.grad, 2 * leaf.grad)


def test_upstream_is_the_gate(device):
    graph = Graph(device)
    gate, up = graph.take()
    y = swiglu(gate, up)
    del up
    y.backward(gate)
    assert torch.equal(gate, graph.expected[0])
    leaves = [t.clone().requires_grad_() for t in graph.expected]
    swiglu(*leaves).backward(graph.expected[0])
    assert all(torch.equal(x.grad, 2 * leaf.grad) for x, leaf in zip(graph.x, leaves))


@pytest.mark.parametrize("gate_dtype, up_dtype", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_two_dtypes(device, gate_dtype, up_dtype):
    graph = Graph(device)
    gate, up = (t.to(d) for t, d in zip(graph.take(), (gate_dtype, up_dtype)))
    leaves = [t.detach().clone().requires_grad_() for t in (gate, up)]
    y = swiglu(gate, up)
    del gate, up
    y.sum().backward()
    swiglu(*leaves).sum().backward()
    assert all(torch.equal(x.grad, 2 * leaf.grad.float()) for x, leaf in zip(graph.x, leaves))


# ---- what stands between a node and the tensors it saved -------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("hold", [False, True])
def test_checkpoint(device, packed, reentrant, hold):
    graph, held, copies = Graph(device, packed=packed), [], []

    def block(*inputs):
        tensors = [x * 2.0 for x in inputs]
        if hold:
            held.extend(tensors)
            copies.extend(t.detach().clone() for t in tensors)
        return graph.function(*tensors)

    graph.take()
    checkpoint(block, *graph.x, use_reentrant=reentrant).sum().backward()
    graph.check()
    assert all(torch.equal(a, b) for a, b in zip(held, copies))
    assert len(held) == (2 * graph.width if hold else 0)


def test_hooks_that_keep_everything(device, packed):
    graph, kept = Graph(device, packed=packed), []

    def pack(tensor):
        kept.append(tensor)
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, kept.__getitem__):
        y = graph.function(*graph.take())
    y.sum().backward()
    assert not any(graph.reused) and all(any(torch.equal(k, e) for k in kept) for e in graph.expected)
    graph.check()


def test_hooks_that_answer_what_another_node_saved(device):
    """Then the number of references is what it would be without any hook and without the other node."""
    graph = Graph(device)
    gate, up = graph.take()
    others = [gate.sin(), up.sin()]
    answers = iter([lambda: others[0].grad_fn._saved_self, lambda: others[1].grad_fn._saved_self])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: next(answers), lambda answer: answer()):
        y = swiglu(gate, up)
    del gate, up
    y.sum().backward()
    assert all(torch.equal(o.grad_fn._saved_self, e) for o, e in zip(others, graph.expected))
    graph.check()


def test_hooks_that_copy(device, packed):
    graph = Graph(device, packed=packed)
    with torch.autograd.graph.save_on_cpu():
        y = graph.function(*graph.take())
    y.sum().backward()
    graph.check()


def test_saved_tensors_taken_from_the_node(device, packed):
    graph = Graph(device, packed=packed)
    y = graph.function(*graph.take())
    taken = y.grad_fn.saved_tensors
    y.sum().backward()
    assert not any(graph.reused) and all(torch.equal(a, b) for a, b in zip(taken, graph.expected))
    graph.check()


# ---- memory that is not torch's alone ----------------------------------------------------------------------------------


class Lent(torch.autograd.Function):
    """A result in the memory of a NumPy array, or in memory that another process could map."""

    @staticmethod
    def forward(ctx, x, array):
        return x.clone().share_memory_() if array is None else torch.from_numpy(array).copy_(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


@pytest.mark.parametrize("shared", [False, True])
def test_memory_of_others(shared):
    import numpy

    x = torch.randn(SHAPE, requires_grad=True)
    array = None if shared else numpy.zeros(SHAPE, dtype=numpy.float32)
    found = []
    gate = Lent.apply(x, array)
    place = gate.data_ptr()
    gate.register_hook(lambda grad: found.append(grad.data_ptr()))
    y = swiglu(gate, torch.ones(SHAPE))
    del gate
    y.sum().backward()
    assert found != [place] and (shared or torch.equal(torch.from_numpy(array), x.detach()))


# ---- the counts --------------------------------------------------------------------------------------------------------


def test_the_counts_are_known_here():
    assert operator._lone_references() is not None
    assert REUSES or torch.__version__ < (2, 11)


DEBUGGED = """
    import sys
    from liger_kernel.ops import _memory

    def look(frame, event, argument):
        frame.f_locals  # what it answers is held as long as the frame is
        return look

    def counts():
        return _memory._lone_references()

    sys.settrace(look)
    seen = counts()
    sys.settrace(None)
    print(seen is None, counts() == _memory._references((_memory.torch.empty(1),))[0])
"""


def test_the_counts_are_not_found_out_in_a_debugger():
    """They would be those of a tensor that the debugger holds too, and a tensor that somebody else holds would look free."""
    assert own_process.output("-c", DEBUGGED) == "True True\n"


@pytest.mark.parametrize("blind", [(0,), (0, 1), (2,), (3,)])
def test_counts_that_miss_a_holder_forbid_reuse(device, monkeypatch, blind):
    """Zeros in their place mean that a holder is not seen, and memory is never taken. In newer torch the object's count
    sees what the second one sees."""
    real = operator._references
    monkeypatch.setattr(
        operator, "_references", lambda t: [tuple(0 if i in blind else n for i, n in enumerate(c)) for c in real(t)]
    )
    operator._measured.cache_clear()
    try:
        assert operator._lone_references() is None
        graph = Graph(device)
        graph.function(*graph.take()).sum().backward()
        assert not any(graph.reused)
        graph.check()
    finally:
        monkeypatch.undo()
        operator._measured.cache_clear()


@pytest.mark.parametrize("missing", ["_storage_Use_Count", "_get_current_graph_task_keep_graph"])
def test_an_older_torch_never_reuses(device, packed, monkeypatch, missing):
    place = torch._C if missing == "_storage_Use_Count" else torch._C._autograd
    monkeypatch.delattr(place, missing, raising=REUSES)
    operator._measured.cache_clear()
    try:
        graph = Graph(device, packed=packed)
        graph.function(*graph.take()).sum().backward()
        assert not any(graph.reused)
        graph.check()
    finally:
        monkeypatch.undo()
        operator._measured.cache_clear()


def test_memory_of_a_backward_pass(device):
    """Two buffers of gate's size less at the peak; nothing is left over."""
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    size = 64 << 20
    x = torch.randn(size // 4, 1, device=device).view(-1, 1024).requires_grad_()
    y = swiglu(x * 2.0, x * 3.0)
    up = torch.ones_like(y)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y.backward(up)
    assert torch.cuda.max_memory_allocated() - before <= 2 * size + (1 << 20)


# ---- losses, whose gradient is what is saved ---------------------------------------------------------------------------


def cross_entropy(device):
    x = torch.randn(6, 40, device=device).requires_grad_()
    target = torch.randint(0, 40, (6,), device=device)
    return LigerCrossEntropyFunction.apply(x, target, None)[0], [x]


def linear_cross_entropy(device, frozen=False):
    x, weight, bias = (torch.randn(s, device=device) for s in ((6, 16), (40, 16), (40,)))
    leaves = [weight.requires_grad_(), bias.requires_grad_(), *([] if frozen else [x.requires_grad_()])]
    target = torch.randint(0, 40, (6,), device=device)
    return LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, bias)[0], leaves


def frozen_input(device):
    """One of the saved gradients is None."""
    return linear_cross_entropy(device, True)


def by_the_operator(device):
    """Under torch's dispatcher, with the derivative that torch knows."""
    x, target = torch.randn(6, 40, device=device).requires_grad_(), torch.randint(0, 40, (6,), device=device)
    options = (None, -100, 0.0, 0.0, 1, 0.0, False, False, False, True)
    return torch.ops.liger.cross_entropy(x, target, *options)[0], [x]


def linear_by_the_operator(device):
    x, weight = (torch.randn(s, device=device).requires_grad_() for s in ((6, 16), (40, 16)))
    target = torch.randint(0, 40, (6,), device=device)
    options = (-100, 0.0, 0.0, 1, 0.0, False, 0, False, False, False, False, True, True, False)
    return torch.ops.liger.linear_cross_entropy(x, weight, target, None, None, None, *options)[0], [x, weight]


@pytest.fixture(params=[cross_entropy, linear_cross_entropy, frozen_input, by_the_operator, linear_by_the_operator])
def loss(request):
    return request.param


def held_by_hooks(loss, device):
    store = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (store.append(t), t)[1], lambda t: t):
        value, leaves = loss(device)
    return value, leaves, store


def held_by_name(loss, device):
    value, leaves = loss(device)
    node = value.grad_fn
    while not node.name().startswith(("Liger", "Generated")):
        node = node.next_functions[0][0]
    return value, leaves, list(node.saved_tensors)


def held_by_alias(loss, device):
    value, leaves, store = held_by_hooks(loss, device)
    return value, leaves, [None if t is None else t.detach()[:1] for t in store]


@pytest.mark.parametrize("hold", [held_by_hooks, held_by_name, held_by_alias])
def test_a_formed_gradient_that_somebody_holds_is_kept(device, loss, hold):
    value, leaves, held = hold(loss, device)
    held = [t for t in held if t is not None and t.is_floating_point()]
    assert len(held) >= len(leaves)
    before = [t.clone() for t in held]
    (3 * value).backward()
    assert all(map(torch.equal, held, before))
    assert all(any(torch.equal(leaf.grad[:1], 3 * t[:1]) for t in held) for leaf in leaves if leaf.dim() > 1)


def test_a_formed_gradient_that_nobody_holds_is_the_gradient(device, loss):
    """No second one is made, and none is copied into .grad."""
    places = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (places.append(t.data_ptr()), t)[1], lambda t: t):
        value, leaves = loss(device)
    (3 * value).backward()
    assert ({leaf.grad.data_ptr() for leaf in leaves} <= set(places)) is REUSES


@pytest.mark.parametrize("least, reused", [(1, True), (4 * 3 * 5 * 16, True), (4 * 3 * 5 * 16 + 1, False)])
def test_small_gradients_have_their_own_memory(device, monkeypatch, least, reused):
    """To look who sees the saved tensors would take longer than to write a small gradient elsewhere."""
    monkeypatch.setattr(operator, "LEAST_REUSED", least)
    graph = Graph(device)
    graph.function(*graph.take()).sum().backward()
    assert graph.reused == [reused and REUSES] * 2
