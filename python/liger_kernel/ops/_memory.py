"""Memory and layouts: what a kernel can be given, what a result is made like, and when a saved tensor may be overwritten."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor

from liger_kernel import _native

PLAIN = (torch.Tensor, torch.nn.Parameter)
_active_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_functorch_is_active = torch._C._are_functorch_transforms_active
_is_batch = torch._C._functorch.is_legacy_batchedtensor


def stand_for_batches(*values: Any) -> bool:
    """Is one of them many tensors in one, as torch.autograd.grad(is_grads_batched=True) gives them to a backward? They are
    not functorch's; torch's dispatcher calls an operator for each of the many. To be asked where a call is not usual."""
    return any(isinstance(value, Tensor) and _is_batch(value) for value in values)


def is_plain(*tensors: Tensor | None) -> bool:
    """True if their memory is their value: no tracing, no transform, no fake or meta tensors, no subclass, no negated view."""
    if torch.compiler.is_compiling() or _active_modes() or _forward_ad._current_level >= 0:
        return False
    if not _native.is_usual() and (_functorch_is_active() or stand_for_batches(*tensors)):
        return False
    return all(t is None or (type(t) in PLAIN and not t.is_meta and not t.is_neg()) for t in tensors)


def have_no_memory(*values: Any) -> bool:
    """Is one of them a meta or a fake tensor, of which an operator sees the shape and the dtype alone?"""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")  # without it there are none
    kinds = () if fakes is None else (fakes.FakeTensor,)
    return any(isinstance(value, Tensor) and (value.is_meta or isinstance(value, kinds)) for value in values)


def only_memory(value: Any) -> Any:
    """Of a subclass, its memory."""
    if isinstance(value, Tensor) and type(value) not in PLAIN:
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)
    return value


def kept(values: Any) -> Any:
    """What has no gradient as backward is to find it: of a tensor that autograd does not save, because its changes are not
    counted, a copy."""
    if not isinstance(values, Tensor) or not values.is_inference():
        return values
    with torch.inference_mode(False):
        return values.clone()


def kept_labels(target: Tensor) -> Tensor:
    """The same of labels, whatever they are to others: of a subclass that is memory the memory."""
    target = kept(target)
    return only_memory(target) if type(target).__torch_dispatch__ is Tensor.__torch_dispatch__ else target


def constant(values: Tensor | None) -> Tensor | None:
    """Without a gradient, and such as autograd saves."""
    if values is None or torch.compiler.is_compiling():
        return None if values is None else values.detach()
    return kept(values).detach()


LEAST_REUSED = 128 << 10  # bytes: to find out who sees a saved tensor takes longer than to write less memory than that


def are_worth_reuse(upstreams: tuple) -> bool:
    """Are they large enough that the gradients should be looked for a place in saved tensors, which are as large?"""
    return any(u is not None and u.nbytes >= LEAST_REUSED for u in upstreams)


def graph_is_kept() -> bool:
    """Will this backward be run again? Unknown counts as yes."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()


# ---- memory of saved tensors -------------------------------------------------------------------------------------------
#
# A gradient may be written over a saved tensor that nobody can see any more: the graph is being freed, the node has given
# its own references back, and what is left is one reference, ours. Whoever else could see the memory holds one of four
# things: the Python object (a variable, a container, a NumPy array made of it), the tensor behind it (another node that
# saved it, the accumulator of a leaf), another tensor on its storage (a view, a saved output, an alias in a hook), or the
# storage's Python object. Each has a count. What the counts are for a tensor that only we hold is measured, not assumed.


def _references(tensors: tuple) -> list[tuple[int, ...]]:
    """Of each tensor: references to the object, to the tensor behind it, to its storage, to the storage's object."""
    counts: list[tuple[int, ...]] = []
    for tensor in tensors:
        if tensor is None:
            counts.append(())
            continue
        storage = tensor.untyped_storage()
        behind = torch._C._storage_Use_Count(storage._cdata)  # type: ignore[attr-defined]
        use_count = tensor._use_count()  # type: ignore[attr-defined]
        counts.append((sys.getrefcount(tensor), use_count, behind, sys.getrefcount(storage)))
    return counts


def _lone_references() -> tuple[int, ...] | None:
    """The counts of a tensor that only its tuple holds; None if they cannot be had, or miss one kind of holder. They are for
    good: not to be found out while a debugger looks, which may hold all that it sees."""
    if _measured.cache_info().currsize == 0 and (sys.gettrace() or sys.getprofile()):
        return None
    return _measured()


@functools.cache
def _measured() -> tuple[int, ...] | None:
    try:
        with torch.enable_grad():
            tensors = tuple(torch.empty(1, device="cpu") for _ in range(5))
            holders = (
                tensors[1],
                tensors[2].requires_grad_() + 1.0,
                tensors[3].detach(),
                tensors[4].untyped_storage(),
            )
            lone, *held = _references(tensors)
        del holders
    except (AttributeError, TypeError, RuntimeError):
        return None
    return lone if all(any(h > n for h, n in zip(counts, lone)) for counts in held) else None


def _is_own_memory(tensor: Tensor) -> bool:
    """In one piece, allocated by torch, and not shared with another process."""
    storage = tensor.untyped_storage()
    return tensor.is_contiguous() and storage.resizable() and (tensor.is_cuda or not storage.is_shared())


def take_saved(ctx: Any) -> tuple[tuple, list[bool]]:
    """The saved tensors, some of which may be None, and of each whether a gradient may be written over it.

    Where the graph is freed, the node's references are dropped first: what an unpack hook answers is counted like
    anything else. A graph that is captured may be replayed twice over one forward pass, so it keeps what it has saved.
    """
    saved = ctx.saved_tensors
    nothing = [False] * len(saved)
    if not is_plain(*saved) or graph_is_kept() or _lone_references() is None:
        return saved, nothing
    drop = getattr(ctx, "maybe_clear_saved_tensors", None)
    on_cuda = any(t is not None and t.is_cuda for t in saved)
    if drop is None or (on_cuda and torch.cuda.is_current_stream_capturing()):
        return saved, nothing
    drop()
    lone = _lone_references()
    return saved, [t is not None and c == lone and _is_own_memory(t) for c, t in zip(_references(saved), saved)]


# ---- layouts -----------------------------------------------------------------------------------------------------------


def _folds(tensor: Tensor) -> bool:
    """Do the leading dimensions fold into at most two row strides?"""
    if tensor.stride(-1) != 1:
        return False
    levels, extent, stride = 0, 1, 0
    for size, step in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1])):
        if size == 1:
            continue
        if levels == 0 or step != stride * extent:
            levels, extent, stride = levels + 1, 1, step
        extent *= size
    return levels <= 2


NATIVE_DTYPE = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}  # liger_dtype
FLOATS = tuple(NATIVE_DTYPE)


def require_float(operator: str, **tensors: Tensor | None) -> None:
    """For arguments that are widened, so that the library would name fewer dtypes than there are."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name} must be a torch.Tensor, not {type(tensor).__name__}")
        if tensor is not None and tensor.dtype not in FLOATS:
            supported = "float32, float16 and bfloat16 are supported"
            raise _native.LigerArgumentError(f"{operator}: {name} is {tensor.dtype}, but {supported}")


def rows(tensor: Tensor, _dtype: torch.dtype | None = None) -> Tensor:
    """The tensor itself if the C library takes its strides, else a contiguous copy. At most six dimensions: more are folded,
    so outputs are made in the shape of the given tensor and passed through here too."""
    if not tensor.is_contiguous() and (tensor.dim() > 6 or not _folds(tensor)):
        tensor = tensor.contiguous()
    return tensor if tensor.dim() <= 6 else tensor.flatten(0, -2)


def planes(tensor: Tensor, _dtype: torch.dtype | None = None) -> Tensor:
    """[batch, channels, ...] in one piece, and of no more dimensions than the C library takes."""
    tensor = tensor.contiguous()
    return tensor if tensor.dim() <= 6 else tensor.flatten(2)


def single(tensor: Tensor, _dtype: torch.dtype | None = None) -> Tensor:
    """A factor or an upstream of losses: f32."""
    return tensor.float().contiguous()


def matrix(tensor: Tensor, _dtype: torch.dtype | None = None) -> Tensor:
    """Any row stride will do, but the last dimension must be contiguous and rows must not overlap."""
    if tensor.dim() == 2 and (tensor.stride(1) != 1 or 0 <= tensor.stride(0) < tensor.shape[1]):
        return tensor.contiguous()
    return tensor


def wide_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return rows(tensor.to(dtype))


def fresh(tensor: Tensor) -> Tensor:
    """The tensor itself, new and unwritten; a large one on the CPU in huge pages, where they pay."""
    if not tensor.is_cuda and type(tensor) is Tensor:
        _native.ask_for_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def new_rows(tensor: Tensor) -> Tensor:
    """Contiguous memory of the same shape and dtype."""
    if tensor.is_contiguous():  # without the keyword the call is a third cheaper
        return fresh(torch.empty_like(tensor))
    return fresh(torch.empty_like(tensor, memory_format=torch.contiguous_format))


def new_heads(x: Tensor) -> Tensor:
    """[B, heads, S, D] as a view of [B, S, heads, D] memory, the layout that projections and attention use."""
    batch, heads, seq, dim = x.shape
    strides = (seq * heads * dim, dim, heads * dim, 1)
    return fresh(torch.empty_strided((batch, heads, seq, dim), strides, dtype=x.dtype, device=x.device))


def heads(x: Tensor, _dtype: torch.dtype | None = None) -> Tensor:
    """Any strides will do but for the last dimension's."""
    return x if x.is_contiguous() or x.stride(-1) == 1 else x.contiguous()


def parameter(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Kernels take parameters of the activations' dtype or f32: anything else is widened, which is exact."""
    if weight.dtype is not dtype and weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    return weight if weight.is_contiguous() else weight.contiguous()


def constants(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter that all columns share; as the others. Of one element it may have any number of dimensions."""
    tensor = parameter(tensor, dtype)
    return tensor if tensor.dim() <= 6 else tensor.flatten()


def modulation(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Parameters [..., cols] of groups of rows; as the others."""
    return rows(parameter(tensor, dtype))


def upstream(tensor: Tensor, _dtype: torch.dtype | None = None) -> Tensor:
    """The gradient of losses of elements, [rows, cols]: f32. What is the same for all of a row, or for all, is one number for each
    row, or one: sums and means of such losses are expanded."""
    tensor = tensor.float()
    if tensor.dim() == 2 and tensor.numel() and tensor.stride(1) == 0:
        tensor = tensor[:, 0]
        return tensor[0] if tensor.stride(0) == 0 else tensor.contiguous()
    return rows(tensor)


def absent(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What a traced operator answers in the place of a result that nobody asked for."""
    return torch.empty(0, dtype=dtype or like.dtype, device=like.device)
