"""An operator's autograd Function, with the call form that its users know.

    class LigerRMSNormFunction(LigerFunction):
        operator = rms_norm
        gradients = ("X", "W")                     # whose gradients the derivative's results are

        @staticmethod
        def arguments(X, W, eps, offset=0.0, ...):  # the public form -> the operator's arguments
            return X, W, eps, ...

        @staticmethod
        def torch_forward(X, W, eps, offset=0.0, ...):
            ...                                    # the same values from differentiable torch operations

`forward` and `backward` come from the operator. A Function may bring its own, and `compiled`, what torch.compile sees; who
calls which, and when the formula runs instead, is decided here for all of them.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor
from torch.autograd.function import FunctionMeta

from liger_kernel import _native
from liger_kernel._exports import names_to_disable
from liger_kernel.ops._formula import check_by_roles, formula
from liger_kernel.ops._memory import PLAIN, are_worth_reuse, have_no_memory, is_plain, kept, take_saved
from liger_kernel.ops._operator import LigerArgumentError, Operator, is_transformed

_is_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_profiling = torch.autograd._profiler_enabled


def _disabled_names() -> frozenset[str]:
    """LIGER_DISABLE=rms_norm,rope,...: these operators run as plain torch, to bisect a training run."""
    names = frozenset(name.strip() for name in os.environ.get("LIGER_DISABLE", "").split(",") if name.strip())
    unknown = sorted(names - names_to_disable())
    if unknown:
        known = ", ".join(sorted(names_to_disable()))
        warnings.warn(f"LIGER_DISABLE: no operator is called {', '.join(unknown)}; known are {known}", stacklevel=2)
    return names


_DISABLED = _disabled_names()


class WithoutGradient:
    """Stands for the autograd context when nobody asks for a gradient. What is set on it goes with it."""

    needs_input_grad = (False,) * 32

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


class OwnApply(FunctionMeta):
    """The metaclass of Functions with an `apply` of their own. Of a class whose metaclass is torch's, torch.compile never
    runs `apply`, but traces `forward` and `backward`: what `apply` decides would be lost in a compiled model."""


def refuse_second_derivative(function: str) -> None:
    """Backward of a backward would silently have no gradient; say so instead."""
    if _is_grad_enabled():
        raise RuntimeError(
            f"{function}: second derivatives are not provided: call backward() or torch.autograd.grad() without "
            f"create_graph=True"
        )


class LigerFunction(torch.autograd.Function, metaclass=OwnApply):
    """See the head of this file. Autograd is skipped where no gradient is needed, and second derivatives are refused.

    Whether one is needed is decided before `forward`: inside it `ctx.needs_input_grad` is True even under no_grad.
    """

    operator: Operator
    names = ""  # in LIGER_DISABLE, separated by blanks; the operator's, if empty
    gradients: tuple[str, ...] = ()
    held: tuple[str, ...] = ()  # the other tensors of the public form
    reuses: tuple[bool, ...] = ()  # which gradients may be written over the saved tensor whose gradient they are

    # further options for `gradients`, from the public arguments: what they alone tell
    remembered: Callable[..., tuple] | None = None

    parameters: dict[str, inspect.Parameter]  # of the public form
    defaults: tuple  # of each, and `empty` where there is none
    differentiable: tuple[int, ...]  # positions of `gradients` among them
    words: dict[str, str]  # what the operator or the library calls an argument -> what its callers call it
    _plain_torch = False
    _direct: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "operator"):
            return  # what several Functions share
        cls.parameters = dict(inspect.signature(cls.torch_forward).parameters)
        cls.defaults = tuple(p.default for p in cls.parameters.values())
        cls.differentiable = tuple(list(cls.parameters).index(name) for name in cls.gradients)
        cls.words = dict(zip([a.name for a in cls.operator.inputs if a.is_tensor], cls.parameters))
        if "eps" in cls.parameters:
            cls.words["epsilon"] = "eps"
        cls.names = cls.names or cls.operator.name
        cls._plain_torch = not _DISABLED.isdisjoint(cls.names.split())
        cls._direct = staticmethod(super(torch.autograd.Function, cls).apply)  # type: ignore[misc]  # no stub
        if "forward" not in vars(cls):
            cls.forward = staticmethod(_derived_forward(cls))  # type: ignore[method-assign]
        _show_signature(cls.forward, cls.parameters)
        if "backward" not in vars(cls):
            cls.backward = staticmethod(_derived_backward(cls))  # type: ignore[method-assign]

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if cls._plain_torch:
            return cls._by_formula(args)
        if _is_compiling():  # what stands below is asked in a way that dynamo can trace, and guards on
            if torch._C._are_functorch_transforms_active() or _forward_ad._current_level >= 0:
                return formula(cls, args)
            return cls.compiled(*args)
        if _forward_ad._current_level >= 0 or not _native.is_usual():  # is_transformed(), without its frame
            if is_transformed():
                return cls._by_formula(args)
            if torch.compiler.is_compiling():
                return cls.compiled(*args)
        try:
            if _is_grad_enabled() and (args[0].requires_grad or cls._needs_gradient(args)):
                return cls._direct(*args)  # without torch's look at functorch's wrappers, which takes a microsecond
            if _is_profiling():
                with torch.profiler.record_function(f"liger::{cls.operator.name}"):
                    return cls.forward(WithoutGradient(), *args)
            return cls.forward(WithoutGradient(), *args)
        except LigerArgumentError as error:
            cls._refuse_what_is_no_tensor(args)
            cls.require(*args)
            raise LigerArgumentError(cls._in_callers_words(str(error))) from None
        except (AttributeError, TypeError, RuntimeError) as error:
            cls._refuse_what_is_no_tensor(args)
            if isinstance(error, TypeError) and str(error).startswith(cls.operator.name):
                raise TypeError(cls._in_callers_words(str(error))) from None
            raise

    @classmethod
    def _by_formula(cls, args: tuple[Any, ...]) -> Any:
        try:
            return formula(cls, args)
        except Exception:
            cls._refuse_what_is_no_tensor(args)
            raise

    @classmethod
    def complete(cls, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The public arguments with what was left out."""
        return args + cls.defaults[len(args) :]

    @classmethod
    def _needs_gradient(cls, args: tuple[Any, ...]) -> bool:
        for position in cls.differentiable:
            if position < len(args) and args[position] is not None and args[position].requires_grad:
                return True
        return False

    @classmethod
    def _refuse_what_is_no_tensor(cls, args: tuple[Any, ...]) -> None:
        """Nor one with rows in memory."""
        required = {cls.words[a.name] for a in cls.operator.inputs if a.type == "Tensor"}
        for name, value in zip(cls.parameters, args):
            if name not in cls.gradients + cls.held or (value is None and name not in required):
                continue
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise TypeError(f"{cls.__name__}: {name} must be a torch.Tensor, not {kind}") from None
            if value.layout is not torch.strided or value.is_nested:
                kind = "nested" if value.is_nested else str(value.layout)
                raise LigerArgumentError(f"{cls.__name__}: {name} is {kind}, but must be strided") from None

    @classmethod
    def _in_callers_words(cls, text: str) -> str:
        """An error of the library or of the operator, which have names of their own for the arguments."""
        known = "|".join(cls.words)
        return re.sub(rf"\b({known})\b(?=:|\.|\[| is | has | must | overlaps)", lambda m: cls.words[m[1]], text)

    @classmethod
    def compiled(cls, *args: Any) -> Any:
        """What torch.compile sees: the operator itself, with the derivative that torch knows of it."""
        cls.require(*args)
        results = cls.operator.traced(*cls.arguments(*args))
        public = len(cls.operator.upstreams)
        return results if isinstance(results, Tensor) else results[0] if public == 1 else results[:public]

    @staticmethod
    def arguments(*args: Any) -> tuple:
        """The operator's arguments from the public ones."""
        raise NotImplementedError

    @staticmethod
    def require(*args: Any) -> None:
        """What is refused in words of the Function's own; asked where the library has refused, or is not there to."""

    @classmethod
    def check(cls, *args: Any) -> None:
        """Refuses what the library would, before the formula runs."""
        cls.require(*args)
        check_by_roles(cls.operator, cls.words, cls.arguments(*args))

    @classmethod
    def check_shapes(cls, args: tuple[Any, ...]) -> None:
        """The same where tensors have nothing else, so that the library, which would refuse them, is not called. To be asked
        where a call is not usual, or has been refused."""
        if have_no_memory(*args):
            cls.check(*args)

    @classmethod
    def now(cls, args: tuple[Any, ...], given: tuple[Any, ...]) -> Any:
        """operator.now(*given) for a `forward` of its own, which was called with `args`."""
        operator = cls.operator
        try:
            if _native.is_usual():
                return operator.eager(*given)
            cls.check_shapes(args)
            return operator.now(*given)
        except LigerArgumentError:
            cls.check_shapes(args)
            return operator.refused(*given)

    @staticmethod
    def torch_forward(*args: Any) -> Any:
        """The same values from differentiable torch operations."""
        raise NotImplementedError

    @staticmethod
    def received(tensor: Any) -> Tensor:
        """A gradient of another kind than Tensor, as the operator takes it."""
        return tensor


_FORWARD = """
def forward({parameters}):
    {given} = _arguments({names})
    try:
        if _native.is_usual():
            {results} = _eager({given})
        else:
            _check_shapes(({names},))
            {results} = _now({given})
    except _LigerArgumentError:
        _check_shapes(({names},))
        {results} = _refused({given})
    ctx.options = ({options}{remembered})
    ctx.to_save = ({saved})
    {unused}
    return {public}
"""


def _derived_forward(cls: type[LigerFunction]) -> Callable[..., Any]:
    """What operator.now() and operator.save() do, with every argument and result by its name and autograd's context by its
    attributes: the source is written here, because tuples that are taken apart and put together again, and methods, would
    take a third of a call's time in Python. `save_for_backward` and `set_materialize_grads` are these assignments too."""
    operator = cls.operator
    assert operator.derivative is not None
    given, results = [a.name for a in operator.inputs], [f"result_{r.name}" for r in operator.results]
    known = given + results
    public = results[: len(operator.upstreams)]
    held = {name for name, word in cls.words.items() if word in cls.held}

    def as_saved(name: str) -> str:
        return f"{name} if {name} is None or not {name}.is_inference() else _kept({name})" if name in held else name

    source = _FORWARD.format(
        parameters=", ".join(["ctx", *map(_as_source, cls.parameters.values())]),
        names=", ".join(cls.parameters),
        given="".join(f"{name}, " for name in given),
        results=", ".join(results),
        options="".join(f"{known[i]}, " for i in operator.options),
        remembered=f"*_remembered({', '.join(cls.parameters)})" if cls.remembered else "",
        saved="".join(f"{as_saved(known[i])}, " for i in operator.saved),
        unused="ctx.materialize_grads = False" if len(public) > 1 else "",  # None is the upstream of what nobody used
        public=", ".join(public),
    )
    names = {
        "_arguments": cls.arguments,
        "_eager": operator.eager,
        "_now": operator.now,
        "_refused": operator.refused,
        "_check_shapes": cls.check_shapes,
        "_native": _native,
        "_LigerArgumentError": LigerArgumentError,
        "_remembered": cls.remembered,
        "_kept": kept,
        "_defaults": {name: p.default for name, p in cls.parameters.items()},
    }
    exec(compile(source, f"<forward of {cls.__name__}>", "exec"), names)
    forward: Any = names["forward"]
    forward.__module__, forward.__qualname__ = cls.__module__, f"{cls.__qualname__}.forward"
    return forward


def _show_signature(forward: Any, parameters: dict[str, inspect.Parameter]) -> None:
    """To whoever looks, the public form."""
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = inspect.Signature([context, *parameters.values()])


def _as_source(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}=_defaults[{parameter.name!r}]"


def _derived_backward(cls: type[LigerFunction]) -> Callable[..., Any]:
    operator, differentiable, name = cls.operator, cls.differentiable, cls.__name__

    def backward(ctx: Any, *upstreams: Any) -> tuple:
        refuse_second_derivative(name)
        upstreams = tuple([u if type(u) in PLAIN or u is None else cls.received(u) for u in upstreams])
        asked = ctx.needs_input_grad
        needs = [asked[position] for position in differentiable if position < len(asked)]
        if cls.reuses and are_worth_reuse(upstreams) and is_plain(*upstreams):
            found = _over_saved(cls, ctx, upstreams, needs)
        else:
            found = operator.gradients(ctx.saved_tensors, ctx.options, upstreams, needs)
        gradients: list = [None] * len(asked)
        for position, gradient in zip(differentiable, found):
            gradients[position] = gradient
        return tuple(gradients)

    return backward


def _over_saved(cls: type[LigerFunction], ctx: Any, upstreams: tuple, needs: list) -> tuple:
    """The gradients, in the memory of the saved tensors that they belong to where nobody can see it any more."""
    operator, derivative = cls.operator, cls.operator.derivative
    assert derivative is not None
    saved, free = take_saved(ctx)
    places = [operator.saved.index(position) for position in operator.differentiable]
    over = [need and reuse and free[place] for need, reuse, place in zip(needs, cls.reuses, places)]
    if any(over) and len({t.dtype for t in (*saved, *upstreams)}) == 1:
        args = operator.gradient_arguments(saved, ctx.options, upstreams)
        try:
            return derivative.over(args, needs, [saved[p].data if o else None for p, o in zip(places, over)])
        except LigerArgumentError:
            pass
    return operator.gradients(saved, ctx.options, upstreams, needs)
