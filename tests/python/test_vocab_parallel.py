"""Heads and logits whose vocabulary is split over processes give what one process would."""

import contextlib
import pathlib

import own_process
import pytest
import torch

from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyTPFunction, LigerVocabParallelLinearLogProbFunction

WORKER = pathlib.Path(__file__).with_name("vocab_parallel_worker.py")


@pytest.mark.parametrize(
    ("world", "disabled"), [(2, ""), (3, ""), (2, "linear_logprob"), (2, "vocab_parallel_logprob")]
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


def test_a_transform_is_refused():
    x, weight, target = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    with pytest.raises(RuntimeError, match="must be plain"):
        torch.func.vmap(lambda x: LigerVocabParallelLinearLogProbFunction.apply(x, weight, target, None))(x[None])
