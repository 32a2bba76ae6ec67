"""What is wrong with a call is said in words, and in the names that the caller has written."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from test_operators import CASES, leaves, on
from torch import Tensor

from liger_kernel import ops
from liger_kernel.ops import (
    LigerFusedGateUpSiLUMulFunction,
    LigerFusedLinearCrossEntropyFunction,
    LigerLayerNormFunction,
    LigerQwen2VLMRopeFunction,
    LigerRMSNormFunction,
    LigerRopeFunction,
    grpo_loss,
)
from liger_kernel.transformers import functional

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


# What may have no dimensions: values each for itself, a row of one, an index, a constant of one element.
SCALARS = {("relu_squared", 0), ("softmax", 0), ("sparsemax", 0), ("embedding", 1), ("dyt", 1), ("poly_norm", 2)}
SCALARS |= {(name, position) for name in ("mhc_coeffs", "mhc_aggregate") for position in (3, 4, 5)}


def with_one(args, position, value):
    return [value if i == position else a for i, a in enumerate(args)]


@every_case
@pytest.mark.parametrize("plain_torch", [False, True])
def test_tensors_without_dimensions(case, device, monkeypatch, plain_torch):
    """An operator or its formula that asks for a last dimension, or for the first, says that there is none."""
    monkeypatch.setattr(case.function, "_plain_torch", plain_torch)
    args = on(device, case.make(5))
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            scalar = with_one(args, position, value.detach().reshape(-1)[0])
            if (case.name, position) in SCALARS:
                of_one = with_one(args, position, value.detach().reshape(-1)[:1])
                assert torch.equal(case(*scalar)[0].flatten(), case(*of_one)[0].flatten())
                continue
            with pytest.raises(ValueError, match="dimension|shape"):
                case(*scalar)


def test_halves_without_dimensions(device):
    for apply in (LigerFusedGateUpSiLUMulFunction.apply, torch.compile(LigerFusedGateUpSiLUMulFunction.apply)):
        with pytest.raises(Exception, match="y has no dimensions") as caught:
            apply(torch.tensor(1.0, device=device))
        assert not isinstance(caught.value, IndexError)


@every_case
@pytest.mark.parametrize("plain_torch", [False, True])
def test_arguments_are_named_as_the_caller_names_them(case, device, monkeypatch, plain_torch):
    monkeypatch.setattr(case.function, "_plain_torch", plain_torch)
    args = on(device, case.make(5))
    for position, (name, value) in enumerate(zip(case.function.parameters, args)):
        if isinstance(value, Tensor) and value.is_floating_point() and name not in ("ce_weight",):
            with pytest.raises(ValueError, match=rf": {name} is torch.float64"):
                case(*with_one(args, position, value.double()))


def tensors_of(case, args):
    """(position, the caller's name, the tensor)"""
    named = enumerate(zip(case.function.parameters, args))
    return [(i, name, value) for i, (name, value) in named if isinstance(value, Tensor)]


@every_case
def test_a_tensor_without_memory_beside_others(case, device):
    """As a weight that nobody has loaded: torch calls what is to make empty results then."""
    args = on(device, case.make(5))
    tensors = tensors_of(case, args)
    for position, name, value in tensors[1:]:
        with pytest.raises(ValueError, match=rf": {name} is on meta, but {tensors[0][1]} is on {device.type}"):
            case(*with_one(args, position, value.to("meta")))
    if len(tensors) > 1:
        with pytest.raises(ValueError, match=rf" is on {device.type}.*, but {tensors[0][1]} is on meta"):
            case(*with_one(args, 0, args[0].to("meta")))


def is_refused(case, args):
    try:
        case(*args)
    except ValueError:
        return True
    return False


@contextlib.contextmanager
def without_memory(kind):
    """What makes a tensor one of no memory, in the mode to call with it."""
    if kind == "meta":
        yield lambda t: t.to("meta")
        return
    mode = torch._subclasses.FakeTensorMode()
    with mode if kind == "in fake mode" else contextlib.nullcontext():
        yield mode.from_tensor


@pytest.mark.parametrize("kind", ["meta", "fake", "in fake mode"])
@every_case
def test_no_memory_is_refused_what_memory_is(case, device, kind):
    """Shapes and dtypes are all there is, so that they must not be taken where they would be refused later."""
    args = on(device, case.make(5))
    for position, name, value in tensors_of(case, args):
        wrong = [(value.double(), f": {name} is torch.float64")] if value.is_floating_point() else []
        narrow = value[..., : value.shape[-1] - 1].contiguous() if value.dim() > 0 else value.new_zeros((2, 3))
        if position > 0 and is_refused(case, with_one(args, position, narrow)):
            wrong.append((narrow, None))
        for other, text in wrong:
            with without_memory(kind) as bare:
                given = [bare(a) if isinstance(a, Tensor) else a for a in with_one(args, position, other)]
                with pytest.raises(ValueError, match=text):
                    case(*given)


@pytest.mark.parametrize("kind", ["meta", "fake", "in fake mode"])
@pytest.mark.parametrize("case", [c for c in CASES.values() if not c.name.startswith("linear")], ids=lambda c: c.name)
def test_an_operator_refuses_dtypes_without_memory(case, device, kind):
    """torch.ops.liger.<name>, which has no Function before it. A linear head's converts to the dtype of its products."""
    operator, x = case.function.operator, torch.zeros(4, 24, dtype=torch.float64, device=device)
    with without_memory(kind) as bare:
        x = bare(x)
        given = [x if a.type == "Tensor" else None if a.is_tensor else 1 for a in operator.inputs]
        flags = [False] * len(operator.asked)
        with pytest.raises(ValueError, match=r"^\w+: \w+ is torch.float64"):
            operator.traced(*given, *flags)


@every_case
def test_two_devices_are_refused_while_torch_compiles(case):
    """Shapes are all that is looked at then, so that this needs no GPU."""
    with torch._subclasses.FakeTensorMode() as mode:
        args = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in case.make(5)]
        for position, name, value in tensors_of(case, args)[1:]:
            elsewhere = torch.empty(value.shape, dtype=value.dtype, device="cuda")
            with pytest.raises(ValueError, match=rf": {name} is on cuda:0, but .* is on cpu"):
                case(*with_one(args, position, elsewhere))


@every_case
def test_what_has_no_rows_in_memory(case, device):
    args = on(device, case.make(5))
    for position, name, value in tensors_of(case, args):
        with pytest.raises(ValueError, match=f": {name} is torch.sparse_coo, but must be strided"):
            case(*with_one(args, position, value.detach().to_sparse()))


# ---- None where a tensor must be ----------------------------------------------------------------------------------------


def none_is_named(call, name):
    with pytest.raises(TypeError, match=rf"(^|: ){name} must be a torch.Tensor, not NoneType$"):
        call()


OPTIONAL = {("rms_norm", "W"), ("add_rms_norm", "W"), ("modulated_rms_norm", "W"), ("modulated_rms_norm", "shift")}
OPTIONAL |= {("layer_norm", "W"), ("layer_norm", "B"), ("dyt", "beta"), ("rope", "position_ids")}
OPTIONAL |= {(name, "bias") for name in ("linear_cross_entropy", "linear_cross_entropy_none", "linear_logprob")}
OPTIONAL |= {
    ("linear_topk_kl", "bias"),
    ("linear_topk_kl", "ignore_mask"),
    ("multi_token_attention", "bias"),
    ("linear_logprob", "selected_token_ids"),
    ("cross_entropy", "weight"),
}
OPTIONAL |= {(name, "shift_labels") for name in ("jsd", "tvd", "tvd_none", "linear_jsd", "linear_kl_div")}


@every_case
@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("plain_torch", [False, True])
def test_none_is_no_tensor(case, device, monkeypatch, plain_torch, grads):
    monkeypatch.setattr(case.function, "_plain_torch", plain_torch)
    args = leaves(case, on(device, case.make(5)), case.trained if grads else ())
    for position, name, _value in tensors_of(case, args):
        if (case.name, name) in OPTIONAL:
            case(*with_one(args, position, None))
        else:
            none_is_named(lambda position=position: case(*with_one(args, position, None)), name)


HELPERS = {name: value for name in ops.__all__ if inspect.isfunction(value := getattr(ops, name))}


@pytest.mark.parametrize("helper", HELPERS.values(), ids=HELPERS)
def test_none_is_no_tensor_of_a_helper(helper):
    """Whatever else may be wrong with a call: it has no other tensor of the right shape."""
    parameters = inspect.signature(helper).parameters.values()
    given = {
        p.name: torch.randn(3, 4) if "Tensor" in str(p.annotation) else 1 if p.default is p.empty else p.default
        for p in parameters
    }
    required = [p.name for p in parameters if p.annotation == "Tensor"]
    assert required or helper.__name__ == "attn_res_forward"
    for name in required:
        none_is_named(lambda name=name: helper(**(given | {name: None})), name)


X, HEAD, IDS = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
LOGITS = torch.randn(3, 5)
PUBLIC = {
    "liger_cross_entropy": dict(input=LOGITS, target=IDS),
    "liger_dyt": dict(x=X, alpha=torch.ones(1), gamma=torch.ones(4)),
    "liger_fused_add_rms_norm": dict(X=X, R=X),
    "liger_fused_linear_cross_entropy": dict(input=X, weight=HEAD, target=IDS),
    "liger_fused_linear_jsd": dict(student_input=X, student_weight=HEAD, teacher_input=X, teacher_weight=HEAD),
    "liger_fused_linear_kl_div": dict(student_input=X, student_weight=HEAD, target=LOGITS),
    "liger_geglu": dict(a=X, b=X),
    "liger_jsd": dict(input=X, target=X),
    "liger_kl_div": dict(input=X, target=X),
    "liger_layer_norm": dict(X=X),
    "liger_linear_logprob": dict(hidden=X, weight=HEAD, targets=IDS),
    "liger_modulated_rms_norm": dict(X=X[None], scale=X[None]),
    "liger_poly_norm": dict(X=X, W=torch.ones(3), B=torch.ones(1)),
    "liger_relu_squared": dict(x=X),
    "liger_rms_norm": dict(X=X),
    "liger_softmax": dict(x=X),
    "liger_sparsemax": dict(input=X),
    "liger_swiglu": dict(a=X, b=X),
    "liger_tvd": dict(input=X, target=X),
    "LigerFusedLinearScaledCrossEntropyFunction": dict(_input=X, weight=HEAD, target=IDS),
    "LigerVocabParallelLinearLogProbFunction": dict(hidden=X, weight=HEAD, targets=IDS),
    "fused_selective_log_softmax": dict(logits=X[None], input_ids=IDS[None, :2]),
}
BESIDE = {"W": None, "B": None, "beta": None, "eps": 1e-6, "process_group": None}


@pytest.mark.parametrize("name", PUBLIC)
def test_none_is_no_tensor_of_a_public_function(name):
    places = (functional, ops, grpo_loss)
    function = next(getattr(place, name) for place in places if hasattr(place, name))
    parameters = list(
        inspect.signature(getattr(function, "forward", getattr(function, "apply", function))).parameters.values()
    )
    function = getattr(function, "apply", function)
    given = {p.name: BESIDE[p.name] for p in parameters if p.name in BESIDE and p.default is p.empty} | PUBLIC[name]
    function(**given)
    for tensor in PUBLIC[name]:
        none_is_named(lambda tensor=tensor: function(**(given | {tensor: None})), tensor)


def test_none_is_no_tensor_of_split_logits():
    for position, name in enumerate(("vocab_parallel_logits", "target")):
        args = with_one([LOGITS[None], IDS[None], None, -100, 0.0, "pytorch", "global"], position, None)
        none_is_named(lambda args=args: ops.LigerVocabParallelCEFunction.apply(*args), name)


def test_what_must_be_there():
    q, angle = torch.randn(1, 2, 3, 8), torch.randn(1, 3, 8)
    with pytest.raises(TypeError, match="LigerRopeFunction: cos must be a torch.Tensor, not NoneType"):
        LigerRopeFunction.apply(q, q, None, angle)
    with pytest.raises(ValueError, match="rotary_dim is 4.0, but must be even"):
        LigerRopeFunction.apply(q, q, angle, angle, None, 1, 4.0)
    planes = angle.expand(3, 1, 3, 8)
    for sections in (None, 4, [1.0, 1.0, 2.0], [2, 2], torch.tensor([1, 1, 2])):
        with pytest.raises(ValueError, match="mrope_section is .*, but must be three numbers of pairs"):
            LigerQwen2VLMRopeFunction.apply(q, q, planes, planes, sections)


def test_an_accumulator_that_there_is_not():
    x, weight, target = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 4])
    for wrong in (torch.float64, "bfloat16"):
        given = (None, None, -100, 0.0, 0.0, "mean", None, False, wrong)
        with pytest.raises(ValueError, match=f"accum_dtype is {wrong}, but None, float32, float16 and bfloat16"):
            LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, *given)


def test_numbers_are_named_too():
    x, weight = torch.randn(2, 8), torch.ones(8)
    for apply in (LigerRMSNormFunction.apply, lambda x, w, eps: LigerLayerNormFunction.apply(x, w, w, eps)):
        with pytest.raises(ValueError, match="eps is -1, but must be 0 or more"):
            apply(x, weight, -1.0)
        with pytest.raises(TypeError, match="eps must be a float, not str"):
            apply(x, weight, "1")
    with pytest.raises(ValueError, match=r"Invalid casting mode: \['llama'\]"):
        LigerRMSNormFunction.apply(x, weight, 1.0, 0.0, ["llama"])


def test_what_is_no_model_is_said_in_words():
    pytest.importorskip("transformers", reason="needs transformers")
    from liger_kernel.transformers import apply_liger_kernel, apply_liger_kernel_to_qwen3

    with pytest.raises(TypeError, match="apply_liger_kernel_to_qwen3.*nonsense.*it takes rope"):
        apply_liger_kernel_to_qwen3(nonsense=True)
    with pytest.raises(TypeError, match="apply_liger_kernel_to_qwen3: model must be a Hugging Face model, but Linear"):
        apply_liger_kernel_to_qwen3(model=torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="apply_liger_kernel: model must be a Hugging Face model, but int"):
        apply_liger_kernel(3)
