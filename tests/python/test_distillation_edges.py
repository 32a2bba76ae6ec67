"""Losses on two heads: rows that do not count may hold anything, distances may write, and what is refused."""

import math

import own_process
import peak_memory
import pytest
import torch
from distillation_formulas import MORE, STUDENT, MeanSquares, call, operands, problem
from reference import DTYPES, unit

from liger_kernel import _native, chunked_loss, ops
from liger_kernel.chunked_loss.fused_linear_distillation import LigerFusedLinearDistillationBase
from liger_kernel.transformers import functional


@pytest.mark.parametrize(
    "loss", [chunked_loss.LigerFusedLinearJSDLoss, chunked_loss.LigerFusedLinearCosineSimilarityLoss]
)
def test_a_teacher_that_is_no_number_where_nothing_counts(device, loss):
    """Compiled and transformed, too."""
    x, weight = torch.randn(4, 8, device=device), torch.randn(11, 8, device=device)
    teacher, head = torch.randn(4, 6, device=device), torch.randn(11, 6, device=device)
    teacher[1], labels = math.nan, torch.tensor([1, -100, 2, 3], device=device)

    def run(x, weight):
        return loss()(x, weight, teacher, head, labels)

    found = []
    for form in (run, torch.compile(run, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        found.append(torch.autograd.grad(form(*leaves), leaves))
    found.append(torch.func.grad(run, (0, 1))(x, weight))
    for gradients in found:
        for one, right in zip(gradients, found[0]):
            # sums of 4 rows and of 11 classes, of what is about 1: some 32 roundings by each form
            torch.testing.assert_close(one, right, rtol=64 * 2.0**-24, atol=64 * 2.0**-24)


@pytest.mark.parametrize("form", ["chunks", "compiled", "transformed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_student_that_is_no_number_where_nothing_counts(device, dtype, form):
    """Of the products of all tokens too, by which 0 times NaN would reach the weight."""
    given = problem(device, dtype, chunk_size=7)
    names, ignored = ("student_input", "teacher_input"), given["true_labels"] == -100
    assert ignored.any()
    found = []
    for nothing in (0.0, math.nan):
        filled = {n: given[n].detach().masked_fill(ignored.unsqueeze(-1), nothing) for n in names}
        leaves = [(given | filled)[n].detach().requires_grad_() for n in STUDENT]
        loss_of = lambda *t, filled=filled: call(MeanSquares, given | filled | dict(zip(STUDENT, t)))  # noqa: E731
        if form == "transformed":
            found.append(torch.func.grad(loss_of, (0, 1, 2))(*(t.detach() for t in leaves)))
        else:
            loss = compiled(loss_of)(*leaves) if form == "compiled" else loss_of(*leaves)
            found.append((loss, *torch.autograd.grad(loss, leaves)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("form", ["plain torch", "transformed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["cross entropy", "kl", "jsd", "top-k kl"])
def test_formulas_of_hidden_states_that_are_no_number_where_nothing_counts(device, name, dtype, form, monkeypatch):
    """11 columns: of such products torch's CPU would spread a NaN to the row before it, in 16 bits."""
    make = lambda *size: torch.randn(*size, device=device).to(dtype)  # noqa: E731
    function, beside = {
        "cross entropy": (ops.LigerFusedLinearCrossEntropyFunction, []),
        "kl": (ops.LigerFusedLinearKLDivFunction, [make(23, 61).softmax(-1)]),
        "jsd": (ops.LigerFusedLinearJSDFunction, [make(23, 11), make(61, 11)]),
        "top-k kl": (ops.LigerTopKKLFunction, [torch.tensor([[0, 1]], device=device).expand(23, 2), make(23, 2) - 9]),
    }[name]
    labels = torch.arange(23, device=device).masked_fill(torch.arange(23, device=device) % 3 == 0, -100)
    ignored = labels.eq(-100).unsqueeze(1)
    model = make(23, 11), make(61, 11)
    monkeypatch.setattr(function, "_plain_torch", form == "plain torch")
    found = []
    for nothing in (0.0, math.nan):
        filled = [t.masked_fill(ignored, nothing) if len(t) == 23 and t.is_floating_point() else t for t in beside]
        x, others = (
            model[0].masked_fill(ignored, nothing),
            [*filled, *((None, ignored[:, 0]) if name == "top-k kl" else (labels,))],
        )
        loss_of = lambda x, w, others=others: function.apply(x, w, *others)  # noqa: E731
        one = lambda *t, f=loss_of: f(*t)[0] if name == "cross entropy" else f(*t)  # noqa: E731
        if form == "transformed":
            found.append(torch.func.grad(one, (0, 1))(x, model[1]))
        else:
            leaves = [t.clone().requires_grad_() for t in (x, model[1])]
            found.append(torch.autograd.grad(one(*leaves), leaves))
    assert all(map(torch.equal, *found))


def test_a_distance_that_writes_over_its_arguments():
    """Without a gradient it may, and the hard loss is none of its business."""

    class InPlace(LigerFusedLinearDistillationBase):
        @staticmethod
        def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None):
            return student_logits.sub_(teacher_logits).square_().sum()

        @classmethod
        def forward(cls, ctx, *args):
            return super().forward(cls, ctx, *args, return_soft_hard_loss=True)

        @staticmethod
        def backward(ctx, *upstreams):
            return LigerFusedLinearDistillationBase.backward(ctx, *upstreams)

    x, weight, labels = torch.randn(4, 8), torch.randn(11, 8), torch.tensor([1, 0, 2, 3])
    _, _, hard = InPlace.apply(x, weight, torch.randn(4, 8), weight, labels, None, None)
    right = torch.nn.functional.cross_entropy(x @ weight.t(), labels)
    torch.testing.assert_close(hard, right, rtol=64 * 2.0**-24, atol=0)


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_a_beta_that_is_no_weight(beta):
    with pytest.raises(ValueError, match="beta is"):
        chunked_loss.LigerFusedLinearJSDLoss(beta=beta)(*(torch.randn(3, 4),) * 4, torch.tensor([0, 1, 2]))


# ---- compiled ----------------------------------------------------------------------------------------------------------


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("trained", [(0, 1, 2), (0,), (1,), (2,), ()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_operator_when_compiled(device, dtype, trained):
    """To the values of the plain call, and no more gradients than are needed."""
    given = problem(device, dtype, teacher_vocab=MORE, temperature=2.0, chunk_size=5)
    given |= {n: given[n].detach().requires_grad_(i in trained) for i, n in enumerate(STUDENT)}
    leaves = [t for t in operands(given) if t.requires_grad]
    graphs = []

    def watch(graph, _inputs):
        graphs.append([node.target for node in graph.graph.nodes])
        return graph

    torch._dynamo.reset()
    found = torch.compile(lambda: call(MeanSquares, given), fullgraph=True, backend=watch)()
    assert torch.ops.liger.linear_distillation.default in graphs[0]
    for loss in (found, compiled(lambda: call(MeanSquares, given))()):
        right = call(MeanSquares, given)
        assert torch.equal(loss, right)
        if trained:
            for factor in (1.0, -3.0):
                above = torch.tensor(factor, device=device)
                wanted = torch.autograd.grad(right, leaves, above, retain_graph=True)
                for one, other in zip(torch.autograd.grad(loss, leaves, above, retain_graph=True), wanted):
                    assert one.dtype is other.dtype
                    assert (one - other).abs().max() <= 4 * unit(dtype) * other.abs().max()


def test_the_operator_as_torch_checks_it(device):
    given = problem(device, torch.float32, chunk_size=5)
    heads = [given[n] for n in (*STUDENT, "teacher_input", "teacher_weight", "teacher_bias", "true_labels")]
    options = (
        "distillation_formulas.MeanSquares",
        0.0,
        False,
        -100,
        0.5,
        True,
        0.5,
        True,
        1.0,
        5,
        0,
        0,
        True,
        True,
        True,
    )
    torch.library.opcheck(torch.ops.liger.linear_distillation.default, (*heads, *options))
    with pytest.raises(RuntimeError, match="the class nothing, which this call was compiled with, is not there"):
        torch.ops.liger.linear_distillation(*heads, "nothing", *options[1:])


def test_classes_of_one_name(device):
    """Each has its own distance, in graphs that torch has compiled for another too."""
    x, weight, labels = (
        torch.randn(3, 8, device=device),
        torch.randn(11, 8, device=device),
        torch.arange(3, device=device),
    )

    def make(factor):
        class Own(LigerFusedLinearDistillationBase):
            @staticmethod
            def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None, power=1):
                return factor * (student_logits - teacher_logits).abs().pow(power).sum()

            @classmethod
            def forward(cls, ctx, *given):
                options = {"power": given[5]} if len(given) > 5 else {}
                return super().forward(cls, ctx, *given[:5], None, None, weight_hard_loss=0.0, **options)

        return Own

    one, ten = make(1.0), make(10.0)
    plain, own = compiled(lambda f: f.apply(x, weight, -x, weight, labels)), {}
    assert torch.equal(plain(one) * 10, plain(ten)) and plain(one) != 0
    for form in (lambda f: f, compiled):  # a distance with options is in the graph
        own[form] = form(lambda: ten.apply(x, weight, -x, weight, labels, 2))()
    assert math.isclose(*(found.item() for found in own.values()), rel_tol=64 * 2.0**-24)


def test_autocast_reaches_a_distance_of_ones_own(device):
    """Compiled or not."""
    x, weight, labels = (
        torch.randn(3, 8, device=device),
        torch.randn(11, 8, device=device),
        torch.arange(3, device=device),
    )
    mix, seen = torch.randn(11, 4, device=device), []

    class Mixed(LigerFusedLinearDistillationBase):
        @staticmethod
        def distillation_loss_fn(student_logits, teacher_logits, target=None, ignore_index=None):
            mixed = student_logits @ mix
            seen.append(mixed.dtype)
            return mixed.float().square().sum()

        @classmethod
        def forward(cls, ctx, *given):
            return super().forward(cls, ctx, *given, None, None, weight_hard_loss=0.0)

    for form in (lambda f: f, compiled):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            form(lambda: Mixed.apply(x, weight, -x, weight, labels))()
    assert set(seen) == {torch.bfloat16}


def test_a_name_that_forward_does_not_have():
    """It would be lost, as autograd takes arguments by position."""

    class Own(LigerFusedLinearDistillationBase):
        @classmethod
        def forward(cls, ctx, *given, **options):
            return super().forward(cls, ctx, *given, **options)

    x, labels = torch.randn(3, 8), torch.arange(3)
    with pytest.raises(
        TypeError, match="Own: temperature can only be given where forward has a parameter of that name"
    ):
        Own.apply(x, x, x, x, labels, temperature=2.0)


@pytest.mark.parametrize("label", [11, -1])
def test_labels_out_of_range_when_compiled(label):
    x, weight = torch.randn(3, 8), torch.randn(11, 8)
    loss = compiled(chunked_loss.LigerFusedLinearJSDLoss(weight_hard_loss=0.0))
    with pytest.raises(ValueError, match=rf"^true_labels\[1\] is {label}, which is out of bounds"):
        loss(x, weight, x, weight, torch.tensor([0, label, 2]))


# ---- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """
import peak_memory, sys, torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
device, form = sys.argv[1:]
V, H, N = 32768, 64, 2048
x = torch.randn(N, H, device=device).bfloat16().requires_grad_()
w = (.2 * torch.randn(V, H, device=device)).bfloat16().requires_grad_()
tx, tw, y = x.detach().clone(), w.detach().clone(), torch.zeros(N, dtype=torch.int64, device=device)
loss = LigerFusedLinearJSDLoss(chunk_size=N)
if form == "compiled":
    loss = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
for rows in (8, 16):
    loss(x[:rows], w[:64 * rows], tx[:rows], tw[:64 * rows], y[:rows]).backward()
x.grad = w.grad = None
peak_memory.tell(device, lambda: loss(x, w, tx, tw, y).backward())
"""


@pytest.mark.parametrize("form", ["eager", "compiled"])
def test_memory_is_what_the_budget_says(device, form):
    """The float32 logits of all rows of one model would be 256 MB. What is made is the budget, and the weight's gradient, with its
    float32 sum and multiplied by the upstream."""
    head, rest = 32768 * 64 * 2 / 2**20, 16 + 32 * (device.type == "cuda")
    assert peak_memory.told(MEMORY, device.type, form, LIGER_LOSS_WORKSPACE_MB="32") < 32 + 4 * head + rest


def test_budgets_are_read_as_the_library_reads_them(device):
    """It says how many rows of logits they hold."""
    code = (
        "import sys, torch\nfrom liger_kernel import _native\nfrom liger_kernel.ops._linear_head import NAMED_BUDGET as B\n"
        "x = torch.zeros(6000, 8, device=sys.argv[1]); w = torch.zeros(2**16, 8, device=sys.argv[1])\n"
        "y = torch.zeros(6000, dtype=torch.int64, device=sys.argv[1])\n"
        "print(B >> 20, _native.linear_logprob_forward_chunk_rows(x, w, None, y, *(None,) * 10, -100, 6000, 1., 0., 1., 0))"
    )
    known = {}
    for text in ("", "64", "128", " +64", "64.9", "64MB", "0", "-64", "x", "1048577", "999999999999999999999"):
        budget, rows = own_process.output("-c", code, device.type, LIGER_LOSS_WORKSPACE_MB=text).split()
        assert known.setdefault(budget, rows) == rows, text
    assert set(known) == {"0", "64", "128"} and len(set(known.values())) == 3


HEADS = {
    "linear_kl_div": lambda x, w, t, v: functional.liger_fused_linear_kl_div(x, w, v),
    "linear_jsd": lambda x, w, t, v: functional.liger_fused_linear_jsd(x, w, t, w.detach()),
    "linear_topk_kl": lambda x, w, t, v: functional.liger_topk_kl(x, w, t[:, :8].long(), -9 + v[:, :8]),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_frozen_head_plans_no_sum(device, monkeypatch, name):
    """Logits of all rows may take what an f32 sum of the head's gradient would. Without that gradient there is no sum."""
    advised = []
    ask = getattr(_native, f"{name}_chunk_rows")
    monkeypatch.setattr(_native, f"{name}_chunk_rows", lambda *args: advised.append(ask(*args)) or advised[-1])
    x = torch.randn(160, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(131072, 64, device=device, dtype=torch.bfloat16)
    teacher = torch.arange(64, device=device).expand(160, 64).to(torch.bfloat16)
    probabilities = torch.zeros(160, 131072, device=device, dtype=torch.bfloat16)
    for frozen in (False, True):
        HEADS[name](x, weight.requires_grad_(not frozen), teacher, probabilities)
    assert advised[0] == 160 and (advised[1] < 160 or device.type == "cuda")
