"""An operator, described once.

The description is a function that calls the C library:

    @Operator
    def rms_norm(x: Rows, weight: Weight | None, eps: float, ..., y: Made = Wish.LIKE, rstd: Made = Wish.PER_ROW):
        return _native.rms_norm_forward(x, weight, y, rstd, eps, ...)

Its parameters are the operator's arguments, tensors first and in the order of the C struct; those whose default is a `Wish`
are its results, and the wish says what they are like. The annotation of a tensor says how it is prepared where the library
does not take it as it is. From that come the schema, the call, the fake, and `torch.ops.liger.<name>`, through which every
call goes while torch traces, compiles, fakes or counts, or where an argument is a subclass.

    @rms_norm.gradient
    def rms_norm_gradient(dy: Rows, x: Rows, weight: Weight | None, rstd: Tensor, ..., dx: Asked = Wish.LIKE[1], ...):

is an operator too, and the derivative of the first: `dy` is the upstream of its result `y`, `dx` the gradient of its argument
`x`, and whatever else has the name of an argument or a result is saved for it. An `Asked` result is made only where it is
needed: the schema has a flag `need_<result>` for it.

Mutating schemas are not used: an output is always a new tensor.
"""

from __future__ import annotations

import inspect
import math
import operator
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor

from liger_kernel import _native
from liger_kernel._native import LigerArgumentError, Wish
from liger_kernel.ops._memory import (
    absent,
    constants,
    fresh,
    heads,
    is_plain,
    kept,
    matrix,
    modulation,
    new_heads,
    new_rows,
    only_memory,
    parameter,
    planes,
    require_float,
    rows,
    single,
    stand_for_batches,
    upstream,
    wide_rows,
)

# What a tensor is to an operator.
Rows = Annotated[Tensor, rows]  # [..., cols], leading dimensions that fold into at most two strides
AnyRows = Annotated[Tensor, wide_rows]  # likewise; where an operator's are of several dtypes, all are widened to f32
Weight = Annotated[Tensor, parameter]  # of the activations' dtype, or f32
Constants = Annotated[Tensor, constants]  # likewise, but not one for each column
Modulation = Annotated[Tensor, modulation]  # likewise, [..., cols]: of groups of rows, or rows beside others
Planes = Annotated[Tensor, planes]  # [batch, channels, ...], contiguous
Matrix = Annotated[Tensor, matrix]  # [rows, cols], rows that do not overlap
Single = Annotated[Tensor, single]  # f32
Upstream = Annotated[Tensor, upstream]  # f32, of losses of elements or of their sum
Heads = Annotated[Tensor, heads]  # [batch, heads, seq, dim] of any strides
# What a result is: always made, or only when it is asked for.
Made = Any
Asked = Annotated[Any, "asked"]

_active_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_is_compiling = torch.compiler.is_dynamo_compiling
_is_profiling = torch.autograd._profiler_enabled
_functorch_is_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state
_library = torch.library.Library("liger", "DEF")

TABLE: dict[str, Operator] = {}  # every operator that has been described


def is_transformed() -> bool:
    """Does torch look at functions here, and not at values? functorch, torch.jit.trace, or a forward-mode level."""
    if _forward_ad._current_level >= 0:
        return True
    # one look at what all of them leave in torch's dispatcher, before each is asked
    return not _native.is_usual() and (_functorch_is_active() or _tracing_state() is not None)


class _Argument(typing.NamedTuple):
    name: str
    type: str  # as in a schema
    prepare: Callable[..., Tensor] | None
    default: Any

    @property
    def is_tensor(self) -> bool:
        return self.type.startswith("Tensor")

    @property
    def schema(self) -> str:
        return f"{self.type} {self.name}" + ("" if self.default is inspect.Parameter.empty else f"={self.default}")


class _Result(typing.NamedTuple):
    name: str
    wish: Wish
    asked: bool


_SCHEMA_TYPES = {Tensor: "Tensor", float: "float", int: "int", bool: "bool", str: "str", torch.SymInt: "SymInt"}


def _argument(name: str, hint: Any, default: Any) -> _Argument:
    optional = type(None) in typing.get_args(hint)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    prepare = hint.__metadata__[0] if typing.get_origin(hint) is Annotated else None
    base = typing.get_args(hint)[0] if prepare else hint
    return _Argument(name, _SCHEMA_TYPES[base] + "?" * optional, prepare, default)


_PARAMETERS = (parameter, constants, modulation)  # of the activations' dtype, or f32

_FLOATS = (rows, wide_rows, *_PARAMETERS, planes, heads, matrix)  # what has one of the dtypes of activations

_DTYPES = {
    Wish.PER_ROW: torch.float32,
    Wish.SCALAR: torch.float32,
    Wish.PER_ROW_I64: torch.int64,
    Wish.PER_ROW_BITS: torch.int32,
}


def _make(wish: Wish, like: Tensor) -> Tensor:
    """What the library would make, for any kind of tensor."""
    kind = wish[0]
    if kind == Wish.LIKE:
        return new_rows(like)
    if kind == Wish.HEADS:
        return new_heads(like)
    if kind == Wish.PER_ROW_BITS:
        cols = like.shape[-1] if like.dim() else 1
        return like.new_empty((math.prod(like.shape[:-1]), (cols + 31) // 32), dtype=torch.int32)
    shape = (math.prod(like.shape[:-1]),) if kind in (Wish.PER_ROW, Wish.PER_ROW_SAME, Wish.PER_ROW_I64) else ()
    return like.new_empty(shape, dtype=_DTYPES.get(kind, like.dtype))


def _pick(positions: Sequence[int]) -> Callable[[tuple], tuple]:
    """The elements at these positions."""
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return (lambda known: (known[positions[0]],)) if positions else lambda known: ()


def _refuse_tangents(operator: str, args: tuple) -> None:
    """A kernel would drop a tangent without a word, and its result would look like a constant. To be asked at a forward-mode
    level, where the values are still those that the caller has: below torch's autograd functorch's have lost it."""
    for value in args:
        if isinstance(value, Tensor) and _forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError(
                f"liger::{operator}: an argument has a forward-mode tangent, which the operator would drop: of what is here "
                f"only the forward of a Function (apply) or a module has a derivative in forward mode"
            )


class _Watched:
    """A torch.library.Library for `register_autograd`, whose kernel would not see a tangent."""

    @staticmethod
    def impl(name: str, kernel: Callable[..., Any], key: str, **options: Any) -> None:
        def watched(keyset: Any, *args: Any, **named: Any) -> Any:
            if _forward_ad._current_level >= 0:
                _refuse_tangents(name, args)
            return kernel(keyset, *args, **named)

        _library.impl(name, watched, key, **options)


class Operator:
    """See the head of this file. Call it with positional arguments and, for results on request, their flags.

    What is derived an operator may bring itself, in a subclass that describes it: `wish`, `likes`, `eager`, `prepared`,
    `fake`, `gradients` with `differentiable`, or `setup_context` and `backward`.
    """

    differentiable: tuple[int, ...] = ()  # the arguments whose gradients `gradients` answers

    def __init__(self, function: Callable[..., Any], name: str | None = None):
        self.function = function
        self.name = name or function.__name__
        self.derivative: Operator | None = None
        self._mixed: Callable[..., Any] | None = None
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        self.inputs = [_argument(p.name, hints[p.name], p.default) for p in parameters if type(p.default) is not Wish]
        wishes = [p for p in parameters if type(p.default) is Wish and p.default.kind != Wish.SCRATCH.kind]
        self.results = [_Result(p.name, p.default, hints[p.name] is Asked) for p in wishes]
        self.asked = [r for r in self.results if r.asked]
        assert self.results == [r for r in self.results if not r.asked] + self.asked, "what is always made comes first"
        optional = [a for a in self.inputs if a.default is not inspect.Parameter.empty]
        assert not (optional and self.asked), "flags stand behind all arguments"
        self._made, self._asked = [r.wish for r in self.results if not r.asked], [r.wish for r in self.asked]
        self.positions = {argument.name: i for i, argument in enumerate(self.inputs)}
        if not self.asked and type(self).eager is Operator.eager:
            self.eager = function  # type: ignore[method-assign]  # the defaults are the wishes, and a frame is saved
        self._register()
        TABLE[self.name] = self

    def schema(self) -> str:
        arguments = [a.schema for a in self.inputs] + [f"bool need_{r.name}" for r in self.asked]
        results = ["Tensor"] * len(self.results)
        answer = results[0] if len(results) == 1 else f"({', '.join(results)})"
        return f"{self.name}({', '.join(arguments)}) -> {answer}"

    def _register(self) -> None:
        _library.define(self.schema())
        for key in ("CPU", "CUDA"):
            _library.impl(self.name, self._run, key)
        torch.library.register_fake(f"liger::{self.name}", self._fake, lib=_library)
        self.traced = getattr(torch.ops.liger, self.name).default

    # ---- the call

    def __call__(self, *args: Any) -> Any:
        if _is_compiling():
            return self.traced(*args)
        if is_transformed():
            if _forward_ad._current_level >= 0:
                _refuse_tangents(self.name, args)
            return self.traced(*args)
        if _is_profiling():
            with torch.profiler.record_function(f"liger::{self.name}"):
                return self.now(*args)
        return self.now(*args)

    def now(self, *args: Any) -> Any:
        """The call, by somebody who has looked whether torch compiles or transforms here."""
        if not _native.is_usual() and (_active_modes() or torch.compiler.is_compiling() or stand_for_batches(*args)):
            return self.traced(*args)
        try:
            return self.eager(*args)
        except LigerArgumentError:  # before anything was written
            return self.refused(*args)

    def refused(self, *args: Any) -> Any:
        """What the library has not taken as it is."""
        if is_plain(*(a for a in args if isinstance(a, Tensor))):
            return self.prepared(*args)
        return self.traced(*args)

    def eager(self, *args: Any) -> Any:
        """The library's function on the tensors as they are; None in the place of what nobody asked for."""
        count = len(self.inputs)
        asked = [wish if need else Wish.NOTHING for wish, need in zip(self._asked, args[count:])]
        return self.function(*args[:count], *self._made, *asked)

    def prepared(self, *args: Any) -> Any:
        """The same with every tensor brought to what the library takes; what it still refuses is an error in words."""
        given = self._complete(args)
        dtypes = {v.dtype for a, v in zip(self.inputs, given) if a.prepare is wide_rows and v is not None}
        widened = (a.prepare is wide_rows or a.prepare in _PARAMETERS for a in self.inputs)
        require_float(self.name, **{a.name: v for a, v, wide in zip(self.inputs, given, widened) if wide})
        mixed = len(dtypes) > 1
        if mixed and self._mixed is not None:
            return self._mixed(*args)
        parameters = {v.dtype for a, v in zip(self.inputs, given) if a.prepare in _PARAMETERS and v is not None}
        ready = self._prepare(given, torch.float32 if mixed or len(parameters) > 1 else given[0].dtype)
        made = self._made_by_the_library(ready, given, args[len(self.inputs) :])
        if made is None:
            flags = iter(args[len(self.inputs) :])
            likes = self.likes(*given)
            made = [self._new(self.wish(r, given), likes, ready) if not r.asked or next(flags) else None
                    for r in self.results]  # fmt: skip
            self.function(*ready, *map(self._folded, self.results, made))
        # what was widened has a result in the dtype that it was widened to
        made = [m if m is None or r.wish.kind != Wish.LIKE.kind else m.to(given[r.wish.source].dtype)
                for r, m in zip(self.results, made)]  # fmt: skip
        return tuple(made) if len(made) > 1 else made[0]

    def _made_by_the_library(self, ready: list, given: tuple, flags: tuple) -> Any:
        """The results, in a fraction of the time that it takes to make them here. None: some are in another shape than what
        they are like, or in a dtype that depends on what was given."""
        if any(isinstance(r, Tensor) and r.dim() != g.dim() for r, g in zip(ready, given)):
            return None
        try:
            made = self.eager(*ready, *flags)
        except LigerArgumentError:  # in words below
            return None
        return made if isinstance(made, tuple) else (made,)

    def _complete(self, args: tuple) -> tuple:
        """The arguments without the flags, with the defaults of those that are not given."""
        return args[: len(self.inputs)] + tuple(a.default for a in self.inputs[len(args) :])

    def _prepare(self, given: tuple, dtype: torch.dtype) -> list:
        """Each tensor alone, by what it is to the operator."""
        return [
            value if value is None or not a.is_tensor else a.prepare(value, dtype) if a.prepare else value.contiguous()
            for a, value in zip(self.inputs, given)
        ]

    def _new(self, wish: Wish, likes: tuple, ready: list) -> Tensor:
        like, dtype = likes[wish.source], ready[wish.source].dtype
        if wish.kind == Wish.LIKE.kind and dtype is not like.dtype:
            return fresh(like.new_empty(like.shape, dtype=dtype))
        return _make(wish, like)

    def _folded(self, result: _Result, made: Tensor | None) -> Tensor | None:
        """Of as few dimensions as the argument that it is like."""
        if made is None or made.dim() <= 6:
            return made
        return (self.inputs[result.wish.source].prepare or rows)(made, made.dtype)

    def wish(self, result: _Result, given: tuple) -> Wish:
        """What a result is to be, where that depends on the options."""
        return result.wish

    def likes(self, *given: Any) -> tuple:
        """The tensors that the wishes speak of."""
        return given

    def mixed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates what runs where rows are of several dtypes and to widen them is not enough."""
        self._mixed = function
        return function

    def over(self, args: tuple, needs: list, tensors: list[Tensor | None]) -> Any:
        """The call with results written over these tensors, where there is one. LigerArgumentError: nothing is written."""
        into = [t if t is not None else r.wish if need else Wish.NOTHING
                for r, need, t in zip(self.results, needs, tensors)]  # fmt: skip
        made = self.function(*self._prepare(args, args[0].dtype), *into)
        made = iter(made if isinstance(made, tuple) else (made,))
        return tuple(t if t is not None else next(made) for t in tensors)

    # ---- for torch

    def _run(self, *args: Any) -> Any:
        """The values, called by the dispatcher, which wants a tensor for every result."""
        if _forward_ad._current_level >= 0:
            _refuse_tangents(self.name, args)
        args = tuple(map(only_memory, args))  # inside the dispatcher a subclass has had its say
        try:
            results = self.eager(*args)
        except LigerArgumentError:
            results = self.prepared(*args)
        if len(self.results) == 1:
            return results
        return tuple(self._absent(r, args) if v is None else v for r, v in zip(self.results, results))

    def _absent(self, result: _Result, args: tuple) -> Tensor:
        first = _first_tensor(args)
        like = args[result.wish.source]
        like = first if like is None else like
        return absent(first, _DTYPES.get(result.wish[0], like.dtype))

    def _fake(self, *args: Any) -> Any:
        """torch comes here too where one tensor of a call is meta and the others are not: what it made then would be memory
        that nobody writes."""
        given = [(a.name, v.device) for a, v in zip(self.inputs, args) if a.is_tensor and v is not None]
        first, device = given[0]
        for name, other in given[1:]:
            if other != device:
                raise LigerArgumentError(f"{self.name}: {name} is on {other}, but {first} is on {device}")
        self.require_floats(args)
        self.require(*args)
        return self.fake(*args)

    def require(self, *args: Any) -> None:
        """Refuses what the library would but for dtypes, for where it is not asked: a result of no memory is all that a caller
        sees of a call that will fail."""

    def require_floats(self, args: tuple, words: dict[str, str] | None = None) -> None:
        floats = {(words or {}).get(a.name, a.name): v for a, v in zip(self.inputs, args) if a.prepare in _FLOATS}
        require_float(self.name, **floats)

    def fake(self, *args: Any) -> Any:
        """Empty tensors of the right shape, dtype and strides."""
        given = self._complete(args)
        flags, likes = iter(args[len(self.inputs) :]), self.likes(*given)
        made = []
        for result in self.results:
            wish = self.wish(result, given)
            wanted = (not result.asked or next(flags)) and likes[wish.source] is not None
            made.append(_make(wish, likes[wish.source]) if wanted else self._absent(result, args))
        return tuple(made) if len(made) > 1 else made[0]

    # ---- the derivative

    def gradient(self, function: Callable[..., Any], kind: type[Operator] | None = None) -> Operator:
        """Decorates the description of the derivative, and makes it the one of `torch.ops.liger.<name>`."""
        self.derivative = derivative = (kind or Operator)(function, f"{self.name}_backward")
        upstreams = [f"d{r.name}" for r in self.results]
        known = [a.name for a in self.inputs] + [r.name for r in self.results]
        names = [a.name for a in derivative.inputs]
        self.upstreams = [i for i, name in enumerate(upstreams) if name in names]
        saved = [a.name for a in derivative.inputs if a.is_tensor and a.name not in upstreams]
        options = [a.name for a in derivative.inputs if not a.is_tensor]
        self.saved = tuple(known.index(name) for name in saved)
        self.options = tuple(known.index(name) for name in options)
        self._saved_of, self._options_of = _pick(self.saved), _pick(self.options)
        pool = [upstreams[i] for i in self.upstreams] + saved + options
        self._in_order = _pick([pool.index(name) for name in names])
        if not self.differentiable:
            self.differentiable = tuple(self.positions[r.name.removeprefix("d")] for r in derivative.results)
        self.register_derivative()
        derivative.refuse_derivatives()
        return derivative

    def register_derivative(self) -> None:
        """`setup_context` and `backward` become what torch runs for callers of `torch.ops.liger.<name>`."""
        torch.library.register_autograd(
            f"liger::{self.name}",
            lambda ctx, *upstreams: self.backward(ctx, *upstreams),
            setup_context=lambda ctx, inputs, output: self.setup_context(ctx, inputs, output),
            lib=_Watched(),  # type: ignore[arg-type]  # of a library it is only asked to register the kernel
        )

    def refuse_derivatives(self) -> None:
        """A derivative of a derivative is refused where torch would leave it out, in reverse and in forward mode."""

        def refuse(ctx: Any, *upstreams: Tensor | None) -> None:
            raise RuntimeError(f"liger::{self.name}: second derivatives are not provided")

        torch.library.register_autograd(f"liger::{self.name}", refuse, lib=_Watched())  # type: ignore[arg-type]

    def save(self, ctx: Any, given: tuple, results: tuple) -> None:
        known = given + results
        ctx.options = self._options_of(known)
        ctx.save_for_backward(*map(kept, self._saved_of(known)))

    def setup_context(self, ctx: Any, inputs: tuple, output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*(r for i, r in enumerate(results) if i not in self.upstreams))
        ctx.set_materialize_grads(False)
        self.save(ctx, inputs[: len(self.inputs)], results)

    def backward(self, ctx: Any, *upstreams: Tensor | None) -> tuple:
        gradients: list = [None] * len(ctx.needs_input_grad)
        needs = [ctx.needs_input_grad[i] for i in self.differentiable]
        for position, gradient in zip(
            self.differentiable, self.gradients(ctx.saved_tensors, ctx.options, upstreams, needs)
        ):
            gradients[position] = gradient
        return tuple(gradients)

    def gradient_arguments(self, saved: tuple, options: tuple, upstreams: tuple) -> tuple:
        return self._in_order((*[upstreams[i] for i in self.upstreams], *saved, *options))

    def gradients(self, saved: tuple, options: tuple, upstreams: tuple, needs: list) -> tuple:
        """One for each of `differentiable`, None where it is not needed or nothing comes from above."""
        derivative = self.derivative
        assert derivative is not None
        if all(upstreams[i] is None for i in self.upstreams) or not any(needs):
            return (None,) * len(needs)
        args = self.gradient_arguments(saved, options, upstreams)
        if not derivative.asked:
            return (derivative(*args),)
        return tuple([g if need else None for g, need in zip(derivative(*args, *needs), needs)])


class KeepsStatistics(Operator):
    """The second of its two results is f32, of a shape for which there is no wish."""

    def shape(self, *given: Any) -> Sequence[int]:
        raise NotImplementedError

    def statistics(self, *given: Any) -> Tensor:
        """Zeros where there may be nothing to have them, which nobody writes."""
        made = given[0].new_empty if given[0].numel() else given[0].new_zeros
        return made(self.shape(*given), dtype=torch.float32)

    def eager(self, *args: Any) -> Any:
        made = _native.new(args[0], self.shape(*args), torch.float32)
        if args[0].numel() == 0:
            made.zero_()
        return self.function(*args, self._made[0], made)

    def _new(self, wish: Wish, likes: tuple, ready: list) -> Tensor:
        return self.statistics(*ready) if wish.kind == Wish.PER_ROW.kind else super()._new(wish, likes, ready)

    def fake(self, *args: Any) -> Any:
        return new_rows(args[0]), self.statistics(*args)


class Shaped(Operator):
    """Its one result has a shape, and perhaps a dtype, for which there is no wish."""

    dtype: torch.dtype | None = None  # that of the first argument

    def shape(self, *given: Any) -> Sequence[int]:
        raise NotImplementedError

    def likes(self, *given: Any) -> tuple:
        return (given[0].new_empty(1, dtype=self.dtype).expand(self.shape(*given)),)

    def eager(self, *given: Any) -> Any:
        return self.function(*given, _native.new(given[0], self.shape(*given), self.dtype))


def _first_tensor(args: tuple) -> Tensor:
    """Upstreams, which nobody may have given, stand first."""
    return next(value for value in args if isinstance(value, Tensor))


def _new_like(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """For any kind of tensor, and of any number of dimensions."""
    return fresh(like.new_empty(shape, dtype=dtype))


class EachShaped(Operator):
    """Results of shapes for which there are no wishes: `shapes` has a tensor or a (shape, dtype) for each."""

    def shapes(self, *given: Any) -> tuple:
        raise NotImplementedError

    def _results(self, given: tuple, flags: tuple, new: Callable[..., Tensor]) -> list:
        need, first = iter(flags), _first_tensor(given)
        made: list = []
        for result, like in zip(self.results, self.shapes(*given)):
            shape, dtype = (like.shape, like.dtype) if isinstance(like, Tensor) else like
            made.append(new(first, shape, dtype) if not result.asked or next(need) else None)
        return made

    def eager(self, *args: Any) -> Any:
        given, flags = args[: len(self.inputs)], args[len(self.inputs) :]
        made = self._results(given, flags, _native.new)
        self.function(*given, *made)
        return tuple(made) if len(made) > 1 else made[0]

    def require_floats(self, args: tuple, words: dict[str, str] | None = None) -> None:
        require_float(self.name, **{a.name: v for a, v in zip(self.inputs, args) if a.is_tensor})

    def prepared(self, *args: Any) -> Any:
        given, flags = args[: len(self.inputs)], args[len(self.inputs) :]
        self.require_floats(given)
        ready = self._prepare(given, _first_tensor(given).dtype)
        like = [r.view(v.shape) if a.is_tensor and v is not None else v
                for a, v, r in zip(self.inputs, given, ready)]  # fmt: skip
        made = self._results(tuple(like), flags, _new_like)
        self.function(*ready, *(m if m is None or m.dim() <= 6 else m.view(-1, m.shape[-1]) for m in made))
        exact = self.shapes(*given)  # the dtypes before anything was widened
        dtypes = [like.dtype if isinstance(like, Tensor) else like[1] for like in exact]
        made = [None if m is None else m.to(dtype) for m, dtype in zip(made, dtypes)]
        return tuple(made) if len(made) > 1 else made[0]

    def fake(self, *args: Any) -> Any:
        given, flags = args[: len(self.inputs)], args[len(self.inputs) :]
        made = self._results(given, flags, _new_like)
        made = [self._absent(r, args) if m is None else m for r, m in zip(self.results, made)]
        return tuple(made) if len(made) > 1 else made[0]


def as_of(one: Tensor | None, other: Tensor | None, result: Any, wish: Wish | None = None) -> Any:
    """`wish`, the gradient of `one`, in the place of a wish for that of `other`: the library makes both in one dtype. Where
    theirs are two it makes them in f32, which is what both are widened to when the call as it stands is refused. Without a
    wish, because `other` has another shape: its memory."""
    if not isinstance(result, Wish) or result == Wish.NOTHING:
        return result
    if one is None or other is None or one.dtype is not other.dtype or (wish and one.shape != other.shape):
        raise LigerArgumentError("two parameters are not alike")
    return wish or new_rows(other)


__all__ = [
    "TABLE",
    "Asked",
    "Constants",
    "EachShaped",
    "Heads",
    "KeepsStatistics",
    "LigerArgumentError",
    "Made",
    "Modulation",
    "Operator",
    "Planes",
    "Rows",
    "Shaped",
    "Upstream",
    "Weight",
    "Wish",
    "as_of",
    "fresh",
    "is_transformed",
]
