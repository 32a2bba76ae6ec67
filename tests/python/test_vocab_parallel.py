"""Heads and logits whose vocabulary is split over processes give what one process would."""

import contextlib
import pathlib

import own_process
import pytest
import torch

from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyTPFunction, LigerVocabParallelLinearLogProbFunction
from liger_kernel.transformers import LigerVocabParallelCrossEntropy

WORKER = pathlib.Path(__file__).with_name("vocab_parallel_worker.py")


@pytest.mark.parametrize(
    ("world", "disabled"),
    [(2, ""), (3, ""), (2, "linear_logprob"), (2, "vocab_parallel_logprob,vocab_parallel_cross_entropy")],
)
def test_each_process_has_the_numbers_of_all(tmp_path, device, world, disabled):
    if device.type == "cuda" and torch.cuda.device_count() < world:
        pytest.skip(f"{world} GPUs are not here")
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                own_process.start(WORKER, rank, world, tmp_path / "store", device.type, LIGER_DISABLE=disabled)
            )
            for rank in range(world)
        ]
        said = [process.communicate(timeout=300) for process in processes]
    for process, (out, errors) in zip(processes, said):
        assert process.returncode == 0 and out == "ok\n", errors


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ((1, True), TypeError, "temperature must be a real number"),
        ((1, 0.0), ValueError, "temperature is 0.0"),
        ((3, 1.5), TypeError, "tiles_per_reduce must be an integer"),
        ((3, 3), ValueError, "tiles_per_reduce is 3"),
        ((4, 1), TypeError, "return_entropy"),
        ((4, False), RuntimeError, "torch.distributed must be initialized"),
    ],
)
def test_what_the_scaled_cross_entropy_refuses(change, error, words):
    """In this order: a later fault is not named before an earlier one."""
    options = [None, 1.0, -100, 1, False]
    position, value = change
    for at, bad in ((4, 1), (3, 1.5)):
        if at > position:
            options[at] = bad
    options[position] = value
    x = torch.randn(3)  # no matrix, which is found last
    with pytest.raises(error, match=words):
        LigerFusedLinearScaledCrossEntropyTPFunction.apply(x, x, x, *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(reduction="mean"), "reduction must be 'none'"),
        (dict(label_smoothing=1.0), "label_smoothing must be in"),
        (dict(label_smoothing=-0.1), "label_smoothing must be in"),
        (dict(label_smoothing_formula="tensorflow"), "label_smoothing_formula"),
        (dict(label_smoothing_mode="local"), "label_smoothing_mode"),
    ],
)
def test_what_the_cross_entropy_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        LigerVocabParallelCrossEntropy(**options)


def test_the_cross_entropy_of_one_process():
    module = LigerVocabParallelCrossEntropy(ignore_index=-1, label_smoothing=0.25)
    for part in ("ignore_index=-1", "label_smoothing=0.25", "reduction='none'", "label_smoothing_formula='pytorch'"):
        assert part in module.extra_repr()
    assert "label_smoothing_mode='global'" in repr(module)
    with pytest.raises(ValueError, match="3-D"):
        module(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="target has shape"):
        module(torch.randn(3, 1, 4), torch.tensor([0, 1, 2]))
    assert module(torch.randn(0, 2, 4), torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2)

    class OfOne:
        group_name = "one"

        def size(self):
            return 1

    logits, target = torch.randn(3, 2, 5), torch.tensor([[0, 1], [4, -1], [2, 2]])
    right = torch.nn.functional.cross_entropy(
        logits.double().flatten(0, 1), target.flatten(), ignore_index=-1, label_smoothing=0.25, reduction="none"
    )
    assert (module(logits, target, OfOne()).flatten() - right).abs().max() <= 16 * 2.0**-24 * right.max()


def test_what_log_probabilities_refuse():
    """By the names that their callers know."""
    apply, target = LigerVocabParallelLinearLogProbFunction.apply, torch.tensor([0, 1, 2])
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    with pytest.raises(ValueError, match=": targets is torch.float32"):
        apply(x, weight, target.float(), None)
    with pytest.raises(ValueError, match=": selected_token_ids is torch.float32"):
        apply(x, weight, target, None, None, None, torch.ones(2))
    with pytest.raises(ValueError, match=": bias has shape"):
        apply(x, weight, target, None, None, torch.ones(4))


def test_a_transform_is_refused():
    x, weight, target = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    with pytest.raises(RuntimeError, match="must be plain"):
        torch.func.vmap(lambda x: LigerVocabParallelCrossEntropy()(x, target[:, None]))(x[None, :, None])
    with pytest.raises(RuntimeError, match="must be plain"):
        torch.func.vmap(lambda x: LigerVocabParallelLinearLogProbFunction.apply(x, weight, target, None))(x[None])


@pytest.mark.parametrize("names", [(), ("entropy", "lse", "log_sum_sq_probs", "mean_logits", "is_top1")])
def test_the_operators_as_torch_checks_them(device, names):
    """Without a group, of which a name would be given."""
    x, weight, bias = (torch.randn(*s, device=device, requires_grad=True) for s in ((3, 4), (5, 4), (5,)))
    target, ids = torch.tensor([0, 4, -100], device=device), torch.tensor([1, 1], device=device)
    flags = [name in names for name in ("entropy", "lse", "log_sum_sq_probs", "mean_logits", "is_top1")]
    options = ("", 0, -100, -1, 0.5, 3.0, 0.7, 0, False, *flags, bool(names), "mean_logits" in names)
    operands = (x, weight, target, bias if names else None, ids if names else None)
    torch.library.opcheck(torch.ops.liger.vocab_parallel_logprob.default, (*operands, *options))
    smoothing = (0.1 if names else 0.0, 5, True)
    torch.library.opcheck(
        torch.ops.liger.vocab_parallel_cross_entropy.default, (bias.expand(3, 5), target, "", -100, *smoothing)
    )


def test_one_graph_counts_the_products_of_a_slice():
    x, weight, target = (
        torch.randn(3, 4, requires_grad=True),
        torch.randn(5, 4, requires_grad=True),
        torch.tensor([0, 1, 2]),
    )
    torch._dynamo.reset()
    apply = torch.compile(LigerVocabParallelLinearLogProbFunction.apply, fullgraph=True, backend="aot_eager")
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch.ops.liger.vocab_parallel_logprob(
            x, weight, target, None, None, "", 0, -100, -1, 1.0, 0.0, 1.0, 0, False, *(False,) * 7
        )[0].sum().backward()
    assert counter.get_total_flops() == 4 * 2 * 3 * 4 * 5
    named = apply(x, weight, targets=target, process_group=None, temperature=0.5)
    assert torch.equal(named, LigerVocabParallelLinearLogProbFunction.apply(x, weight, target, None, temperature=0.5))
