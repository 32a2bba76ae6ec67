"""What code around the operators imports: sizes of blocks, devices, versions."""

from __future__ import annotations

import importlib
import importlib.metadata
import operator
import types

import own_process
import pytest
import torch

from liger_kernel import utils
from liger_kernel.ops import utils as ops_utils


def test_calculate_settings():
    assert [ops_utils.calculate_settings(n) for n in (1, 1000, 1025, 8192, 32768, 65537, 200000)] == [
        (1, 4),
        (1024, 4),
        (2048, 8),
        (8192, 16),
        (32768, 32),
        (131072, 32),
        (262144, 32),
    ]


def test_ops_utils():
    assert ops_utils.infer_device is utils.infer_device
    assert ops_utils.is_hip() == (torch.version.hip is not None)
    assert ops_utils.compare_version("torch", operator.ge, "2.0") is True
    assert ops_utils.compare_version("surely_no_such_package", operator.ge, "0") is False
    assert ops_utils.get_npu_core_count(default=7) in (7, ops_utils.get_npu_core_count())
    with ops_utils.device_context(torch.device("cpu")):
        pass
    if importlib.util.find_spec("triton") is None:
        assert dict(ops_utils.torch_to_triton_dtype) == {}
    else:
        assert torch.float32 in ops_utils.torch_to_triton_dtype

    class Function:
        @staticmethod
        @ops_utils.ensure_contiguous
        def forward(ctx, x, n, y=None):
            return x.is_contiguous(), y.is_contiguous(), n

    transposed = torch.zeros(2, 3).T
    assert Function.forward(None, transposed, 5, y=transposed) == (True, True, 5)
    forward, backward = ops_utils.get_amp_custom_fwd_bwd()
    assert callable(forward) and callable(backward)
    assert callable(ops_utils.amp_custom_fwd) and callable(ops_utils.amp_custom_bwd)


def test_infer_device_and_arch(monkeypatch):
    assert utils.infer_device() in ("cuda", "npu", "xpu", "cpu")
    assert utils.infer_comm_backend() in ("nccl", "hccl", "xccl", "mpi", "gloo")
    assert isinstance(utils.PEFT_AVAILABLE, bool)
    utils.infer_device_arch.cache_clear()
    monkeypatch.setattr(utils, "infer_device", lambda: "cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, name in (((9, 0), "hopper"), ((8, 9), "ampere_ada"), ((12, 1), "sm_121"), ((7, 0), "volta_turing")):
        properties = types.SimpleNamespace(major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, p=properties: p)
        utils.infer_device_arch.cache_clear()
        assert utils.infer_device_arch(0) == name and utils.infer_device_arch(0) == name
        assert utils.infer_device_arch.cache_info().hits == 1
    for raw, name in (("gfx90a:sramecc+:xnack-", "cdna2"), ("gfx942", "cdna3"), ("gfx9999", "gfx9999")):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, r=raw: types.SimpleNamespace(gcnArchName=r))
        assert utils._infer_amd_arch(0) == name

    def broken(_):
        raise RuntimeError

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    utils.infer_device_arch.cache_clear()
    assert utils.infer_device_arch() == "cuda"
    utils.infer_device_arch.cache_clear()


def test_version_dispatch():
    pytest.importorskip("transformers", reason="needs transformers")

    def call(required):
        return utils.transformers_version_dispatch(
            required,
            lambda *a, **k: ("before", a, k),
            lambda *a, **k: ("after", a, k),
            before_args=(1,),
            after_args=(2,),
            after_kwargs={"x": 3},
        )

    assert call("4.0.0") == ("after", (2,), {"x": 3})
    assert call("999.0") == ("before", (1,), {})


def test_too_old_transformers_is_refused():
    pytest.importorskip("transformers", reason="needs transformers")
    said = own_process.output(
        "-c",
        """
import transformers
transformers.__version__ = "4.51.3"
try:
    import liger_kernel.transformers.monkey_patch
except ImportError as error:
    print(error)
""",
    )
    assert "4.52.0" in said and "4.51.3" in said
