"""How a call of an operator reaches the C library.

Eagerly it goes straight there. While torch traces, compiles or fakes tensors it goes through `torch.ops.liger.<name>`, the
same function under a schema that torch can reason about. `LigerFunction` is the base of every autograd Function.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionMeta

from liger_kernel import _native

LigerArgumentError = _native.LigerArgumentError

PLAIN = (torch.Tensor, torch.nn.Parameter)
_active_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_profiling = torch.autograd._profiler_enabled
_functorch_is_active = torch._C._are_functorch_transforms_active
_library = torch.library.Library("liger", "DEF")


def is_plain(*tensors: Tensor | None) -> bool:
    """True if memory can be read through data_ptr(): no tracing, no fake tensors, no tensor subclass."""
    if torch.compiler.is_compiling() or _active_modes():
        return False
    return all(t is None or type(t) in PLAIN for t in tensors)


class Operator:
    """A function of tensors with a schema. Call it with positional arguments; the first is a tensor.

    `run` is the function on real tensors, `fake` the one that answers empty tensors of the right shape and dtype.
    `quick` is `run` without preparation: it hands the tensors to the library as they are, and lets the call make the
    results. What the library refuses, it refuses before anything is written: then `run` prepares it, or says why not.
    `eager` is what a call outside of a graph runs: it may answer None for a result that nobody asked for.
    Mutating schemas are not used: an output is always a new tensor.
    """

    def __init__(
        self,
        schema: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        quick: Callable[..., Any] | None = None,
        eager: Callable[..., Any] | None = None,
    ):
        name = schema[: schema.index("(")]
        self.name = name
        self.prepared = run
        self.quick = quick or run
        self.eager = eager or self.quick
        _library.define(schema)
        for key in ("CPU", "CUDA"):
            _library.impl(name, self.run, key)
        torch.library.register_fake(f"liger::{name}", fake, lib=_library)
        self.traced = getattr(torch.ops.liger, name).default

    def run(self, *args: Any) -> Any:
        """The values, from real tensors."""
        try:
            return self.quick(*args)
        except LigerArgumentError:
            pass
        return self.prepared(*args)

    def __call__(self, *args: Any) -> Any:
        if _is_compiling() or _active_modes() or type(args[0]) not in PLAIN:
            return self.traced(*args)
        if _is_profiling():
            with torch.profiler.record_function(f"liger::{self.name}"):
                return self.run(*args)
        try:  # run(), without its frame
            return self.eager(*args)
        except LigerArgumentError:
            pass
        return self.prepared(*args)

    def register_gradient(self, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
        """The derivative of `torch.ops.liger.<name>` itself, for callers that use it without a Function."""
        torch.library.register_autograd(f"liger::{self.name}", backward, setup_context=setup_context, lib=_library)


def _disabled_names() -> frozenset[str]:
    """LIGER_DISABLE=rms_norm,rope,...: these operators run as plain torch, to bisect a training run."""
    return frozenset(name.strip() for name in os.environ.get("LIGER_DISABLE", "").split(",") if name.strip())


_DISABLED = _disabled_names()


class _WithoutGradient:
    """Stands for the autograd context when nobody asks for a gradient."""

    needs_input_grad = (False,) * 32

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


def _plain_apply(cls: type[torch.autograd.Function]) -> Callable[..., Any]:
    return super(torch.autograd.Function, cls).apply  # type: ignore[misc]  # the base class has no stub


class _OwnApply(FunctionMeta):
    """The metaclass of Functions with an `apply` of their own. Of a class whose metaclass is torch's, torch.compile never
    runs `apply`, but traces `forward` and `backward`: what `apply` decides would be lost in a compiled model."""


def _traced_twin(cls: type[LigerFunction]) -> FunctionMeta:
    """What torch.compile traces where a gradient is needed. Its forward leaves out the results that are None, which torch
    2.4 cannot trace; its backward must take as many gradients as there are results then."""

    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        return tuple(result for result in cls.forward(ctx, *args) if result is not None)

    parts = {"forward": forward if cls.optional else cls.forward, "backward": cls.backward}
    statics = {name: staticmethod(function) for name, function in parts.items()}
    return FunctionMeta(cls.__name__, (torch.autograd.Function,), {"__module__": cls.__module__, **statics})


class LigerFunction(torch.autograd.Function, metaclass=_OwnApply):
    """An autograd Function that skips autograd where no gradient is needed, and refuses second derivatives.

    Whether one is needed is decided before `forward`: inside it `ctx.needs_input_grad` is True even under no_grad.
    """

    operator = ""  # its names in LIGER_DISABLE, separated by blanks
    differentiable: tuple[int, ...] = ()  # positions of the arguments that can have a gradient
    optional: tuple[int, ...] = ()  # positions of the arguments that ask for the results after the first, else None
    _plain_torch = False
    _direct: Callable[..., Any]
    _traced: Any

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls._plain_torch = not _DISABLED.isdisjoint(cls.operator.split())
        cls._direct = staticmethod(_plain_apply(cls))
        cls._traced = _traced_twin(cls)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if cls._plain_torch:
            return cls.torch_forward(*args)
        if _is_grad_enabled() and (args[0].requires_grad or cls._needs_gradient(args)):
            if _is_compiling():
                return cls._with_absent(cls._traced.apply(*args), args)
            if _functorch_is_active():
                return super().apply(*args)
            return cls._direct(*args)  # without torch's look at functorch's wrappers, which takes a microsecond
        return cls.forward(_WithoutGradient(), *args)

    @classmethod
    def _needs_gradient(cls, args: tuple[Any, ...]) -> bool:
        given = (args[position] for position in cls.differentiable if position < len(args))
        return any(tensor is not None and tensor.requires_grad for tensor in given)

    @classmethod
    def _with_absent(cls, results: Any, args: tuple[Any, ...]) -> Any:
        """The twin's results, and None for each that nobody asked for. Torch 2.4 forgets which have no gradient."""
        if not cls.optional:
            return results
        given = [result.detach() for result in results[1:]]
        asked = [position < len(args) and args[position] for position in cls.optional]
        return (results[0], *(given.pop(0) if flag else None for flag in asked))

    @staticmethod
    def torch_forward(*args: Any) -> Any:
        """The same values from differentiable torch operations."""
        raise NotImplementedError


def refuse_second_derivative(function: str) -> None:
    """Backward of a backward would silently have no gradient; say so instead."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{function}: second derivatives are not provided: call backward() or torch.autograd.grad() without "
            f"create_graph=True"
        )


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


def _references(tensors: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    """Of each tensor: references to the object, to the tensor behind it, to its storage, to the storage's object."""
    counts: list[tuple[int, ...]] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        behind = torch._C._storage_Use_Count(storage._cdata)  # type: ignore[attr-defined]
        use_count = tensor._use_count()  # type: ignore[attr-defined]
        counts.append((sys.getrefcount(tensor), use_count, behind, sys.getrefcount(storage)))
    return counts


@functools.cache
def _lone_references() -> tuple[int, ...] | None:
    """The counts of a tensor that only its tuple holds; None if they cannot be had, or miss one kind of holder."""
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


def take_saved(ctx: Any) -> tuple[tuple[Tensor, ...], list[bool]]:
    """The saved tensors, and of each whether a gradient may be written over it.

    Where the graph is freed, the node's references are dropped first: what an unpack hook answers is counted like
    anything else. A graph that is captured may be replayed twice over one forward pass, so it keeps what it has saved.
    """
    saved = ctx.saved_tensors
    nothing = [False] * len(saved)
    if not is_plain(*saved) or graph_is_kept() or _lone_references() is None:
        return saved, nothing
    drop = getattr(ctx, "maybe_clear_saved_tensors", None)
    if drop is None or (saved[0].is_cuda and torch.cuda.is_current_stream_capturing()):
        return saved, nothing
    drop()
    lone = _lone_references()
    return saved, [counts == lone and _is_own_memory(tensor) for counts, tensor in zip(_references(saved), saved)]


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


def rows(tensor: Tensor) -> Tensor:
    """The tensor itself if the C library takes its strides, else a contiguous copy. At most six dimensions: more are folded,
    so outputs are made in the shape of the given tensor and passed through here too."""
    if not tensor.is_contiguous() and (tensor.dim() > 6 or not _folds(tensor)):
        tensor = tensor.contiguous()
    return tensor if tensor.dim() <= 6 else tensor.view(-1, tensor.shape[-1])


_HUGE = 4 << 20


def fresh(tensor: Tensor) -> Tensor:
    """The tensor itself, new and unwritten. A large one on the CPU is memory straight from the system, whose page faults
    cost more than the arithmetic that fills it: huge pages have 512 times fewer."""
    if not tensor.is_cuda and type(tensor) is Tensor and tensor.nbytes >= _HUGE:
        _native.ask_for_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def new_rows(tensor: Tensor) -> Tensor:
    """Contiguous memory of the same shape and dtype."""
    if tensor.is_contiguous():  # without the keyword the call is a third cheaper
        return fresh(torch.empty_like(tensor))
    return fresh(torch.empty_like(tensor, memory_format=torch.contiguous_format))


def parameter(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Kernels take parameters of the activations' dtype or f32: anything else is widened, which is exact."""
    if weight is None:
        return None
    if weight.dtype is not dtype and weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    return weight if weight.is_contiguous() else weight.contiguous()


def absent(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What a traced operator answers in the place of a result that nobody asked for."""
    return torch.empty(0, dtype=dtype or like.dtype, device=like.device)


# ---- workspace ---------------------------------------------------------------------------------------------------------


def workspace(like: Tensor, size: int) -> Tensor | None:
    """`size` bytes of scratch on the tensor's device, aligned to 256. Nothing is kept: between calls it is memory for
    everybody, and while a graph is captured it comes from the graph's own pool."""
    if size == 0:
        return None
    if like.is_cuda:
        return like.new_empty(size, dtype=torch.uint8)
    raw = torch.empty(size + 256, dtype=torch.uint8)
    return raw[-raw.data_ptr() % 256 :][:size]
