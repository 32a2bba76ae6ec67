"""Patching a model of a family that has no row, by what its modules do.

A norm, a gated MLP, the rotary function and the forward are each compared with ours, values and gradients, before ours is
put there, in evaluation and in training: in fp32 within rounding, in bf16 bit for bit (the rotary function, which rounds
less often than Hugging Face's, within rounding there too). Small and large values, zeros and NaNs show epsilons and limits.
What differs, reads a number that ours does not, sets something, draws random numbers, or cannot be run, is left alone; what
breaks the model as a whole is taken back. A forward may read such numbers as long as they stay what they were, and nothing
that could not be seen to change.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
import math
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from liger_kernel.transformers import module_patches, patching, rope, stock, stock_rotation
from liger_kernel.transformers.expected import other_activation
from liger_kernel.transformers.geglu import LigerGEGLUMLP
from liger_kernel.transformers.model.causal_lm import projection_of
from liger_kernel.transformers.model.fused_forward import LANGUAGE_MODEL, FusedForward, asks_for_loss
from liger_kernel.transformers.rms_norm import LigerRMSNorm
from liger_kernel.transformers.rows import Head
from liger_kernel.transformers.stock_code import Code
from liger_kernel.transformers.swiglu import LigerBlockSparseTop2MLP, LigerPhi3SwiGLUMLP, LigerSwiGLUMLP

logger = logging.getLogger(__name__)

_NORMS = [(offset, casting) for offset in (0.0, 1.0) for casting in ("llama", "gemma")]
_MLPS: dict[frozenset[str], tuple[type[nn.Module], ...]] = {
    frozenset({"gate_proj", "up_proj", "down_proj"}): (LigerSwiGLUMLP, LigerGEGLUMLP),
    frozenset({"gate_up_proj", "down_proj"}): (LigerPhi3SwiGLUMLP,),
    frozenset({"w1", "w2", "w3"}): (LigerBlockSparseTop2MLP,),
}
_IN_MODES = [(False, 0), (True, 1), (True, 2), (True, 3)]  # (training, seed): what is random must show
_EXTREMES = (2.0**20, 0.0, math.nan)  # scales of what goes into a module, besides 1
_SHAPES: list[tuple[int, ...]] = [(6,), (1, 3), (2, 5), (3, 1)]
# Code that asks for one of these may do something else for inputs, or in modes, that nobody tries.
_OF_SOME_INPUTS = frozenset(
    "float16 half finfo isnan isinf isfinite nan_to_num shape ndim dim size numel stride len is_contiguous requires_grad "
    "is_grad_enabled is_autocast_enabled is_compiling is_dynamo_compiling is_torchdynamo_compiling".split()
)
_EPSILONS = ("variance_epsilon", "eps")
_VALUES = (int, float, bool, str, torch.dtype, torch.Size, type(None))
_WATCHED_OTHERWISE = frozenset({"config", "loss_function"})
_OF_NO_EFFECT = frozenset(
    {"training", "vocab_size", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states"}
)
_KNOWN_KEYWORDS = frozenset({"logits", "vocab_size", "cache", *LANGUAGE_MODEL.split()})
_SMALL = {"narrow": 16, "wide": 24, "packed": 48}  # widths of an MLP's copy, to try


def patch_by_behaviour(model: Any) -> dict[str, str]:
    """What was done: path -> what stands there now. Revert it with `revert_liger_kernel`."""
    done: dict[str, str] = {}
    before = _answers(model)
    for modules in _by_class(model):
        patched = {path: what for path, module in modules.items() if (what := _try_norm(module) or _try_mlp(module))}
        if patched and not _answers_alike(model, before):
            for path in patched:
                patching.restore_instance(modules[path])
        else:
            done.update(patched)
    done.update(_try_rope(model, before))
    if _try_loss(model):
        done["forward"] = "the loss fused into the output projection"
    return done


def _by_class(model: Any) -> list[dict[str, nn.Module]]:
    classes: dict[type, dict[str, nn.Module]] = {}
    for path, module in model.named_modules():
        classes.setdefault(type(module), {})[path] = module
    return list(classes.values())


# ---- comparing -------------------------------------------------------------------------------------------------------


def _same(tolerance: float, one: Callable[..., Any], other: Callable[..., Any], inputs: list[torch.Tensor]) -> bool:
    """Whether two functions have the same values and gradients, and draw no random numbers. Without a tolerance: the same
    bits, of the values."""
    results = []
    for function in (one, other):
        leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
        torchs, pythons = torch.get_rng_state(), random.getstate()
        outputs = function(*leaves)
        if not torch.equal(torchs, torch.get_rng_state()) or pythons != random.getstate():
            return False
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if not tolerance:
            results.append([output.detach() for output in outputs])
            continue
        upstream = [torch.linspace(-1, 1, output.numel()).view(output.shape) for output in outputs]
        gradients = torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
        results.append([*outputs, *(torch.zeros(()) if g is None else g for g in gradients)])
    for a, b in zip(*results, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        alike = _close(a, b, tolerance) if tolerance else torch.allclose(a, b, 0.0, 0.0, equal_nan=True)
        if not alike:
            return False
    return True


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Sums are as far apart as their largest terms."""
    finite = b.detach()[b.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, largest), equal_nan=True)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from a known state here, and from where they were afterwards."""
    cuda = torch.cuda.is_initialized()
    pythons = random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        try:
            yield
        finally:
            random.setstate(pythons)


def _behaves(make: Callable[[torch.dtype], Any], in_bf16: float = 0.0, seed: int = 0) -> bool:
    """Whether the two functions of `make(dtype)` -> (one, other, inputs) are the same in both dtypes. Whatever fails is not
    the same."""
    tolerances = {torch.float32: 1e-5, torch.bfloat16: in_bf16, torch.float16: in_bf16 / 8}
    try:
        with torch.enable_grad(), _seeded(seed):
            return all(_same(tolerance, *make(dtype)) for dtype, tolerance in tolerances.items())
    except Exception as error:
        logger.debug("not probed: %s", error)
        return False


def _behaves_in_modes(make: Callable[[bool, torch.dtype], Any]) -> bool:
    return all(_behaves(functools.partial(make, training), seed=seed) for training, seed in _IN_MODES)


def _values_read(module: nn.Module, *known: str) -> patching.Values | None:
    """What a module's forward reads of the module and its config: numbers and their like, or that there is nothing. None if
    it reads what nobody can watch: other objects, children and buffers than those that are `known`, functions that are not
    its class's, variables of a function around it; or if it leaves something behind, which others may read."""
    code = Code(type(module), accepted=True)
    reads = code.reads - {*known} - _WATCHED_OTHERWISE
    if code.closed or code.writes or not all(_is_watchable(module, name) for name in reads):
        return None
    found: set[Any] = {(None, name, None) for name in reads if not hasattr(module, name)}
    for name in {each for each in code.names if isinstance(each, str)} - _OF_NO_EFFECT - {*known}:
        own = inspect.getattr_static(module, name, ())  # a property may do something
        found |= {("", name, own)} if isinstance(own, _VALUES) else set()
        entry = getattr(getattr(module, "config", None), name, ()) if name.isidentifier() else ()
        found |= {("config", name, entry)} if isinstance(entry, _VALUES) and entry != () else set()
    return tuple(sorted(found, key=lambda each: (str(each[0]), each[1])))


def _is_watchable(module: nn.Module, name: str) -> bool:
    own = inspect.getattr_static(module, name, patching.Absent)
    if own is patching.Absent:
        return not hasattr(module, name)  # else it is a child, or the like
    if isinstance(own, (property, types.FunctionType, staticmethod)):
        return name not in module.__dict__  # the class's: `stock_code` sees it
    return isinstance(own, _VALUES)


def _numbers(*shape: int) -> torch.Tensor:
    """Of few bits, so that sums of squares round nowhere and bits tell formulas apart."""
    return torch.randint(-12, 13, shape) / 4


def _called(module: nn.Module, forward: Any, names: list[str]) -> Callable[..., Any]:
    """`forward(module, x)` as a function of x and of the module's parameters of those names."""

    def function(x: torch.Tensor, *values: torch.Tensor) -> Any:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Caller(module, forward), {f"module.{n}": v for n, v in given.items()}, (x,))

    return function


class _Caller(nn.Module):
    def __init__(self, module: nn.Module, function: Any) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.module, x)


# ---- one module ------------------------------------------------------------------------------------------------------


def _is_plain(module: nn.Module) -> bool:
    return not patching.is_ours(module.forward) and "forward" not in module.__dict__ and not module._buffers


def _takes_any_input(module: nn.Module) -> bool:
    """Whether it takes one argument, and asks for nothing of it that makes a difference between inputs. Another argument (the
    gate of a gated norm) would do something, or be missing."""
    if not Code(type(module), accepted=True).names.isdisjoint(_OF_SOME_INPUTS):
        return False
    parameters = [*inspect.signature(type(module).forward).parameters.values()][1:]
    return [p.kind for p in parameters] == [inspect.Parameter.POSITIONAL_OR_KEYWORD]


def _try_norm(module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if module._modules or list(module._parameters) != ["weight"] or weight is None or not _is_plain(module):
        return None
    if not _takes_any_input(module):
        return None
    if weight.ndim != 1 or not isinstance(epsilon, float) or isinstance(module, nn.LayerNorm):
        return None
    values = _values_read(module, "weight", *_EPSILONS)
    if values is None:
        return None
    scales = (1.0, 2.0 ** math.floor(math.log2(epsilon) / 2) if epsilon > 0 else 2.0**-10, *_EXTREMES)
    for offset, casting in _NORMS:
        pair = functools.partial(_norm_pair, module, weight.shape[0], offset, casting)
        if all(_behaves_in_modes(functools.partial(pair, *probe)) for probe in _probes(scales)):
            _patch_norm(module, offset, casting, values)
            return f"LigerRMSNorm, offset {offset}, rounded as {casting}"
    return None


def _patch_norm(module: nn.Module, offset: float, casting: str, values: patching.Values = ()) -> None:
    module_patches.patch_norm(module, LigerRMSNorm, 0.0, values=values, offset=offset, casting_mode=casting)


def _probes(scales: tuple[float, ...]) -> list[tuple[float, tuple[int, ...]]]:
    """Scales of the input, and shapes of it before the last dimension."""
    return [(scale, _SHAPES[0]) for scale in scales] + [(scales[0], shape) for shape in _SHAPES[1:]]


def _norm_pair(
    module: nn.Module,
    width: int,
    offset: float,
    casting: str,
    scale: float,
    shape: tuple[int, ...],
    training: bool,
    dtype: torch.dtype,
) -> Any:
    weight = (torch.rand(width) + 0.5).to(dtype)
    theirs = copy.copy(module)
    theirs._parameters, theirs._buffers = {"weight": nn.Parameter(weight)}, copy.deepcopy(module._buffers)
    theirs.training = training
    ours = copy.copy(theirs)
    _patch_norm(ours, offset, casting)
    forwards = [_called(m, type(m).forward, ["weight"]) for m in (theirs, ours)]
    if dtype is torch.float16:
        scale = min(scale, 2.0**10)  # what it can hold
    return (*forwards, [(scale * _numbers(*shape, width)).to(dtype), weight])


def _try_mlp(module: nn.Module) -> str | None:
    linears = {name for name, child in module._modules.items() if type(child) is nn.Linear}
    others = {name: child for name, child in module._modules.items() if name not in linears}
    if module._parameters or not _is_plain(module) or not _takes_any_input(module):
        return None
    values = _values_read(module, *module._modules)
    for ours in _MLPS.get(frozenset(linears), ()):
        if values is None or not all(_is_activation(module, name, child, ours) for name, child in others.items()):
            continue
        if all(
            _behaves_in_modes(functools.partial(_mlp_pair, module, ours, *probe))
            for probe in _probes((1.0, *_EXTREMES))
        ):
            module_patches.patch_module(module, ours, values=values)
            return ours.__name__
    return None


def _is_activation(mlp: nn.Module, name: str, child: Any, ours: type[nn.Module]) -> bool:
    """Whether a child is the activation that ours computes, under the name by which it is watched; another one, as dropout
    with a probability that may be set, would be forgotten."""
    is_called = name in ("act_fn", "activation_fn") and name in Code(type(mlp), accepted=True).reads
    return is_called and other_activation(child, ours) is None


def _mlp_pair(
    module: nn.Module,
    ours: type[nn.Module],
    scale: float,
    shape: tuple[int, ...],
    training: bool,
    dtype: torch.dtype,
) -> Any:
    """A copy with small projections, so that trying costs nothing however large the model is."""
    small = copy.copy(module)
    small._modules = {name: _small(name, child) for name, child in module._modules.items()}
    small._buffers = copy.deepcopy(module._buffers)
    small.to(dtype).train(training)
    names = [name for name, _ in small.named_parameters()]
    values = [parameter.detach() for parameter in small.parameters()]
    forwards = [_called(small, forward, names) for forward in (type(module).forward, ours.forward)]
    if dtype is torch.float16:
        scale = min(scale, 2.0**4)  # of products of two such values
    return (*forwards, [(scale * torch.randn(*shape, _SMALL["narrow"])).to(dtype), *values])


def _small(name: str, child: Any) -> Any:
    if type(child) is not nn.Linear:
        return copy.deepcopy(child)
    inner = _SMALL["packed" if name == "gate_up_proj" else "wide"]
    sizes = (_SMALL["wide"], _SMALL["narrow"]) if name in ("down_proj", "w2") else (_SMALL["narrow"], inner)
    return nn.Linear(*sizes, bias=child.bias is not None)


# ---- the whole -------------------------------------------------------------------------------------------------------


def _small_batch(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 11, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@contextlib.contextmanager
def _in_mode(model: Any, training: bool, seed: int, gradients: bool = False) -> Iterator[None]:
    """All of a model in training or evaluation, with its activations kept; nothing of it is changed afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    checkpointed = [module for module, _ in modes if getattr(module, "gradient_checkpointing", False) is True]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for module, _ in modes:
            module.training = training
        for module in checkpointed:
            module.gradient_checkpointing = False
        with _seeded(seed), torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in checkpointed:
            module.gradient_checkpointing = True
        for buffer, value in buffers:
            if buffer.device.type != "meta" and not torch.equal(buffer, value):
                buffer.data.copy_(value)


def _run(
    model: Any, forward: Any = None, training: bool = False, seed: int = 0, gradients: bool = False, **options: Any
) -> Any:
    """The model's answer to a small batch, or None if it cannot be run so."""
    try:
        with _in_mode(model, training, seed, gradients):
            batch = {**_small_batch(model), **options}
            return model(**batch) if forward is None else forward(model, **batch)
    except Exception as error:
        logger.debug("not run: %s", error)
        return None


def _answers(model: Any) -> list[torch.Tensor | None]:
    """In evaluation and in training."""
    answers = [_run(model, training=training) for training in (False, True)]
    return [None if answer is None else answer[0] for answer in answers]


def _answers_alike(model: Any, before: list[torch.Tensor | None]) -> bool:
    """Whether the model as a whole still answers as before. Rounding adds up over its layers."""
    for expected, actual in zip(before, _answers(model), strict=True):
        if expected is None:
            continue
        tolerance = 1e-3 if expected.dtype is torch.float32 else 5e-2
        if actual is None or not _near(actual, expected, tolerance):
            return False
    return True


def _near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((actual - expected).norm() <= tolerance * expected.norm())


def _modeling(model: Any) -> Any:
    return sys.modules[stock.class_of(model).__module__]


def _try_rope(model: Any, before: list[torch.Tensor | None]) -> dict[str, str]:
    """Ours beside theirs on the very arguments that the model gives them: the layout is in the call, not in the function."""
    modeling, name = _modeling(model), "apply_rotary_pos_emb"
    theirs = getattr(modeling, name, None)
    if theirs is None or patching.is_ours(theirs):
        return {}
    if not all(stock_rotation.is_own(module, modeling.__name__) for module in stock_rotation.modules_in(model)):
        return {}
    calls: list[bool] = []

    def both(q: Any, k: Any, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> Any:
        expected = theirs(q, k, cos, sin, *args, **kwargs)

        def make(dtype: torch.dtype) -> Any:
            tensors = [t.detach().cpu().to(dtype) for t in (q, k, cos, sin)]
            return (
                *(_of_q_and_k(f, tensors[2:], args, kwargs) for f in (theirs, rope.liger_rotary_pos_emb)),
                tensors[:2],
            )

        calls.append(_behaves(make, in_bf16=2**-5))  # theirs rounds each product, ours the sum
        return expected

    setattr(modeling, name, both)
    try:
        ran = _run(model)
    finally:
        setattr(modeling, name, theirs)
    if ran is None or not calls or not all(calls):
        return {}
    patching.replace(
        modeling, name, stock_rotation.while_stock(modeling, name, rope.liger_rotary_pos_emb, accepted=True)
    )
    stock_rotation.watch_model(model)
    if not _answers_alike(model, before):
        patching.restore(modeling, name)
        return {}
    return {f"{modeling.__name__}.{name}": "liger_rotary_pos_emb"}


def _of_q_and_k(function: Any, angles: list[torch.Tensor], args: Any, kwargs: Any) -> Callable[..., Any]:
    return lambda q, k: tuple(function(q, k, *angles, *args, **kwargs))


def _try_loss(model: Any) -> bool:
    own = type(model)
    base = getattr(model, "base_model_prefix", "")
    row = Head(base=base)
    head = projection_of(model, row) if hasattr(model, "get_output_embeddings") else None
    if head is None or model._modules.get(base) is None or not _is_plain(model) or not asks_for_loss(own.forward):
        return False
    if not _has_known_parameters(own.forward):
        return False
    values = _values_read(model, base, *(name for name, child in model._modules.items() if child is head))
    if values is None:
        return False
    patch = FusedForward(row, values, written=False)
    forward = patch.methods(own)["forward"]
    for scale in (1.0, 2.0**8):
        # what limits or caps logits shows where they are large
        scaled = head.register_forward_pre_hook(lambda module, args, scale=scale: (args[0] * scale,))
        try:
            if not all(_is_its_loss(model, head, forward, training, seed) for training, seed in _IN_MODES):
                return False
        finally:
            scaled.remove()
    for batch in _batches(model, "kwargs" in _kinds_of(own.forward), Code(own, accepted=True).keywords):
        for training, seed in _IN_MODES[:2]:
            if not _is_its_loss(model, head, forward, training, seed, batch):
                return False
            if not _has_its_gradients(model, head, forward, training, seed, batch):
                return False
    return patching.give_methods(model, patch)


def _kinds_of(forward: Any) -> dict[str, Any]:
    """Its parameters; `kwargs` stands for those that gather others, by whatever name."""
    gathers = inspect.Parameter.VAR_KEYWORD
    return {"kwargs" if p.kind is gathers else p.name: p for p in inspect.signature(forward).parameters.values()}


def _has_known_parameters(forward: Any) -> bool:
    """Another one may do anything where it is given."""
    return _kinds_of(forward).keys() <= {"self", "cache", *LANGUAGE_MODEL.split()}


def _batches(model: Any, gathers: bool, keywords: frozenset[str]) -> Iterator[dict[str, Any]]:
    """What tells forwards apart that are the same for one sequence without padding. `gathers`: keyword arguments that are
    nobody's parameters are taken, and should reach the base model and the loss; also those that the forward names."""
    config = model.config.get_text_config()
    pad = getattr(config, "pad_token_id", None) or 0
    ids = torch.arange(5, 5 + 2 * 19, device=model.device).remainder(config.vocab_size).view(2, 19)
    mask = torch.ones_like(ids)
    special = _special_tokens(config.vocab_size, model.config, config)
    if special:
        mixed = ids.clone()
        mixed[:, ::2] = torch.tensor(special * 20, device=model.device)[:20].view(2, 10)
        yield {"input_ids": mixed, "attention_mask": mask.clone(), "labels": mixed}
    ids[0, -4:] = ids[1, :3] = ids[1, 9] = pad
    mask[0, -4:] = mask[1, :3] = 0
    labels = ids.clone()
    some = labels.clone()
    some[:, 4:7] = some[0, -2:] = -100
    batch = {"input_ids": ids, "attention_mask": mask}
    yield {**batch, "labels": labels}  # of padding too
    yield {**batch, "labels": some}
    if gathers:
        yield {**batch, "labels": some, "num_items_in_batch": 7}
        yield {**batch, "labels": some, "position_ids": torch.arange(19, device=model.device).mul(2).expand(2, 19)}
        if others := keywords - _KNOWN_KEYWORDS:
            yield {**batch, "labels": some, **dict.fromkeys(sorted(others), 2.0)}


def _special_tokens(vocabulary: int, *configs: Any) -> list[int]:
    """What configs name as tokens of a meaning of their own, which a loss may leave out."""
    entries = [value for config in configs for name, value in vars(config).items() if "token" in name]
    tokens = [token for entry in entries for token in (entry if isinstance(entry, (list, tuple)) else [entry])]
    return sorted({token for token in tokens if type(token) is int and 0 <= token < vocabulary})


def _is_its_loss(
    model: Any, head: Any, forward: Any, training: bool, seed: int, batch: Mapping[str, Any] | None = None
) -> bool:
    """Whether our forward says what the model's own does: of logits and the loss of logits the same bits, of the fused loss
    within rounding."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    given = {"labels": _small_batch(model)["input_ids"]} if batch is None else batch
    options: dict[str, Any] = {"training": training, "seed": seed, **given}
    expected = _run(model, **options)
    if type(expected) is not CausalLMOutputWithPast or expected.logits is None or expected.loss is None:
        return False  # a forward that adds something of its own
    logits: Any = _run(model, forward, skip_logits=False, **options)
    fused: Any = _run(model, forward, skip_logits=True, **options)
    if logits is None or fused is None or fused.logits is not None:
        return False
    if not torch.equal(logits.logits, expected.logits) or not torch.equal(logits.loss, expected.loss):
        return False
    tolerance = 1e-4 if head.weight.dtype is torch.float32 else 2e-2
    return torch.allclose(fused.loss.float(), expected.loss.float(), rtol=tolerance, atol=tolerance)


def _has_its_gradients(
    model: Any, head: Any, forward: Any, training: bool, seed: int, batch: Mapping[str, Any]
) -> bool:
    """Whether the gradients are those of the model's own forward: it may detach, or change them on their way."""
    options: dict[str, Any] = {"training": training, "seed": seed, **batch}
    expected = _gradients(model, head, None, **options)
    fused = _gradients(model, head, forward, skip_logits=True, **options)
    if expected is None or fused is None:
        return False
    finite = expected.isfinite() & fused.isfinite()  # of the embedding of padding, zero, a norm in fp16 makes infinity
    return _near(fused[finite], expected[finite], 1e-3 if head.weight.dtype is torch.float32 else 5e-2)


def _gradients(model: Any, head: Any, forward: Any, **options: Any) -> torch.Tensor | None:
    """Those of the loss, in what the embeddings answer, the head and parameters of one dimension: of few numbers, they are
    everywhere. None if they cannot be had."""
    leaves: list[torch.Tensor] = []

    def embed(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    small = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    trained = [parameter for parameter in (*head.parameters(), *small) if parameter.requires_grad]
    try:
        hook = model.get_input_embeddings().register_forward_hook(embed)
        try:
            answer = _run(model, forward, gradients=True, **options)
        finally:
            hook.remove()
        found = torch.autograd.grad(answer.loss, [*leaves, *trained], materialize_grads=True)
        return torch.cat([gradient.flatten().float().to(head.weight.device) for gradient in found])
    except Exception as error:
        logger.debug("no gradients: %s", error)
        return None


def described(done: dict[str, str]) -> Iterator[str]:
    """`done` with the layers of one kind told in one line."""
    layers: dict[tuple[str, str], int] = {}
    for path, what in done.items():
        name = ".".join("*" if part.isdigit() else part for part in path.split("."))
        layers[name, what] = layers.get((name, what), 0) + 1
    for (name, what), count in layers.items():
        yield f"{name}: {what}" + (f" ({count})" if count > 1 else "")
