"""Tensors of torch.distributed: RMSNorm gathers them, SwiGLU computes the shards. One process is a mesh of one."""

from __future__ import annotations

import pytest
import torch

from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction

if not torch.distributed.is_available():
    pytest.skip("torch has no distributed package", allow_module_level=True)

import torch.distributed as dist  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402

try:
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor
except ImportError:  # torch 2.4
    from torch.distributed._tensor import DTensor, Shard, distribute_tensor


@pytest.fixture(scope="module")
def mesh(device):
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh(device.type, (1,))
    dist.destroy_process_group()


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize("sharded", [(True, True), (True, False), (False, True)])
def test_swiglu(mesh, device, sharded):
    values = [torch.randn(4, 8, device=device) for _ in range(2)]
    given = [distribute_tensor(v, mesh, [Shard(0)]) if s else v.clone() for v, s in zip(values, sharded)]
    expected = LigerSiLUMulFunction.apply(*(v.requires_grad_() for v in values), 1.5, 0.7)
    y = LigerSiLUMulFunction.apply(*(t.requires_grad_() for t in given), 1.5, 0.7)
    assert isinstance(y, DTensor) and torch.equal(y.full_tensor(), expected)
    upstream = torch.randn(4, 8, device=device)
    expected.backward(upstream)
    y.backward(distribute_tensor(upstream, mesh, [Shard(0)]))
    assert all(torch.equal(full(a.grad), b.grad) for a, b in zip(given, values))


def test_rms_norm(mesh, device):
    x, weight = torch.randn(4, 8, device=device), torch.randn(8, device=device)
    y = LigerRMSNormFunction.apply(distribute_tensor(x, mesh, [Shard(1)]), weight, 1e-6)
    assert type(y) is torch.Tensor and torch.equal(y, LigerRMSNormFunction.apply(x, weight, 1e-6))
