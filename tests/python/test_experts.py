"""LigerExperts: the weighted sum of a token's experts, held to the formula in float64."""

from __future__ import annotations

import importlib
import types

import pytest
import torch
from reference import apart

from liger_kernel.transformers.swiglu import LigerExperts


def build(device, experts=5, hidden=13, inter=7, dtype=torch.float32, **names):
    config = types.SimpleNamespace(
        hidden_size=hidden, hidden_act="silu", **(names or dict(num_experts=experts, moe_intermediate_size=inter))
    )
    module = LigerExperts(config).to(device, dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def formula(x, gate_up, down, index, weights):
    """Slot by slot, in the dtype of its arguments."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.zeros_like(rows)
    for token, (experts, shares) in enumerate(zip(index.flatten(0, -2), weights.flatten(0, -2), strict=True)):
        total = torch.zeros_like(rows[0])
        for expert, share in zip(experts.tolist(), shares, strict=True):
            if 0 <= expert < gate_up.shape[0]:
                gate, up = (gate_up[expert] @ rows[token]).chunk(2)
                total = total + share * (down[expert] @ (torch.nn.functional.silu(gate) * up))
        out[token] = total
    return out.view(x.shape)


def check(device, module, index, dtype=torch.float32, tolerance=None):
    if tolerance is None:  # a product after another, and a sum over tokens
        tolerance = apart(module.hidden_dim + module.intermediate_dim + index.numel(), sides=1)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*index.shape[:-1], module.hidden_dim, generator=generator).to(device, dtype).requires_grad_()
    weights = torch.rand(index.shape, generator=generator).to(device).requires_grad_()
    upstream = torch.randn(x.shape, generator=generator).to(device, dtype)
    y = module(x, index.to(device), weights)
    assert y.shape == x.shape and y.dtype == dtype
    inputs = (x, module.gate_up_proj, module.down_proj, weights)
    found = torch.autograd.grad(y, inputs, upstream, allow_unused=True)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    unused = sum(0 * tensor.sum() for tensor in doubles)
    expected = formula(doubles[0], doubles[1], doubles[2], index, doubles[3]) + unused
    wanted = torch.autograd.grad(expected, doubles, upstream.double())
    for name, one, other in zip(
        ("y", "x", "gate_up", "down", "weights"), (y, *found), (expected, *wanted), strict=True
    ):
        if one is None:  # no token has an expert
            assert not other.any(), name
            continue
        scale = max(float(other.detach().abs().max()) if other.numel() else 0.0, 1e-3)
        torch.testing.assert_close(
            one.double(), other, rtol=0, atol=tolerance * scale, msg=lambda t, n=name: f"{n}: {t}"
        )
    return y


INDICES = {
    "plain": torch.tensor([[0, 3], [4, 1], [3, 2], [0, 1]]),
    "an expert twice": torch.tensor([[2, 2], [2, 0], [2, 2]]),
    "experts without tokens": torch.tensor([[1], [1], [1]]),
    "one token": torch.tensor([[4, 0, 2]]),
    "all experts": torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]),
    "outside": torch.tensor([[5, 0], [-1, 7], [2, 5]]),
    "nothing inside": torch.tensor([[5, 5], [9, -3]]),
    "two axes": torch.tensor([[[0, 3], [4, 1]], [[3, 2], [0, 1]]]),
    "no token": torch.zeros(0, 2, dtype=torch.long),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_values_and_gradients(device, index):
    check(device, build(device), index)


def test_integers_and_dtypes(device):
    index = INDICES["plain"]
    for integer in (torch.int32, torch.int16, torch.uint8):
        check(device, build(device), index.to(integer))
    check(device, build(device, dtype=torch.bfloat16), index, torch.bfloat16, 2e-2)


def test_names_of_the_sizes():
    for names in (
        dict(num_local_experts=3, intermediate_size=7),
        dict(n_routed_experts=3, moe_intermediate_size=7, intermediate_size=99),
    ):
        module = build("cpu", **names)
        assert module.gate_up_proj.shape == (3, 14, 13) and module.down_proj.shape == (3, 13, 7)
        assert (module.num_experts, module.intermediate_dim, module.hidden_dim) == (3, 7, 13)
    with pytest.raises(ValueError, match="gelu"):
        LigerExperts(types.SimpleNamespace(hidden_act="gelu"))


def test_where_it_is_found():
    package = importlib.import_module("liger_kernel.transformers")
    assert package.LigerExperts is LigerExperts and "LigerExperts" in dir(package)
    assert "LigerExperts" not in package.__all__


def test_the_same_bits(device):
    module, index = build(device), torch.randint(0, 5, (40, 3), generator=torch.Generator().manual_seed(2))
    assert torch.equal(check(device, module, index), check(device, module, index))


def test_it_computes_what_mixtrals_experts_do():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    if not hasattr(modeling, "MixtralExperts"):
        pytest.skip(f"transformers {transformers.__version__} has a list of experts")
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2
    )
    theirs, ours = modeling.MixtralExperts(config), LigerExperts(config)
    for parameter in theirs.parameters():
        parameter.data.normal_()
    ours.load_state_dict(theirs.state_dict())
    x, index, weights = torch.randn(6, 16), torch.randint(0, 4, (6, 2)), torch.rand(6, 2)
    expected = theirs(x, index, weights)
    close = dict(rtol=0, atol=apart(16 + 24 + 2) * expected.abs().max().item())
    torch.testing.assert_close(ours(x, index, weights), expected, **close)
    torch.testing.assert_close(LigerExperts.forward(theirs, x, index, weights), expected, **close)
