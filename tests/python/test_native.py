"""The binding: from tensors to views, from a status to an exception, threads, fork."""

from __future__ import annotations

import sys
import threading

import own_process
import pytest
import torch

from liger_kernel import _native

SCALARS = (1e-6, 0.0, 0)  # epsilon, offset, casting


def forward(x, weight, y, rstd=None, scalars=SCALARS):
    _native.rms_norm_forward(x, weight, y, rstd, *scalars)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_arrive(device, dtype):
    x = torch.randn(2, 3, 7, device=device).to(dtype)
    weight = torch.nn.Parameter(torch.rand(7, device=device).to(dtype))
    y = torch.empty_like(x)
    forward(x[:, :-1], weight, y[:, :-1])
    reference = torch.nn.functional.rms_norm(x.double(), (7,), weight.double(), 1e-6)
    assert (y[:, :-1] - reference[:, :-1]).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("which", ["x", "weight", "y"])
def test_what_is_not_its_memory_is_refused(device, which):
    """A subclass, and a view that turns the sign: both go through torch's dispatcher instead."""
    plain = {"x": torch.randn(4, 8, device=device), "weight": torch.rand(8, device=device)}
    plain["y"] = torch.full_like(plain["x"], 7.0)
    for odd, words in (
        (plain[which].as_subclass(type("Mine", (torch.Tensor,), {})), "is of a subclass of torch.Tensor"),
        (torch._neg_view(plain[which]), "is a negated view"),
    ):
        with pytest.raises(_native.LigerArgumentError, match=f"{which} {words}"):
            forward(**{**plain, which: odd})
    assert (plain["y"] == 7.0).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor or None, not list"),
        ({"x": torch.ones(4, 8, dtype=torch.float64)}, ValueError, "x is torch.float64, but float32, float16"),
        ({"x": torch.ones(4, 8, dtype=torch.uint8)}, ValueError, "x is torch.uint8, but float32, float16"),
        ({"x": torch.ones(4, 8, dtype=torch.int64)}, ValueError, "x is torch.int64, but float32, float16"),
        ({"y": torch.full((4, 8), 7.0).half()}, ValueError, "y is torch.float16, but "),
        ({"x": torch.ones(1, 1, 1, 1, 1, 4, 8)}, ValueError, "x has 7 dimensions, but at most 6"),
        ({"weight": torch.ones(9)}, AssertionError, "weight"),
        ({"weight": torch.empty(8, device="meta")}, _native.LigerArgumentError, "weight has no memory"),
        ({"scalars": (None, 0.0, 0)}, TypeError, "epsilon must be a float, not NoneType"),
        ({"scalars": (torch.ones(()), 0.0, 0)}, TypeError, "epsilon must be a float, not Tensor"),
        ({"scalars": (1e-6, 0.0, 0.5)}, TypeError, "casting must be an int, not float"),
        ({"scalars": (1e-6, 0.0, 1 << 40)}, ValueError, "casting is 1099511627776"),
        ({"scalars": (1e-6, 0.0, 99)}, ValueError, "casting is 99"),
        ({"scalars": (1e-6, 0.0)}, TypeError, "takes 7 arguments, but 6 were given"),
    ],
)
def test_an_error_names_function_and_argument(change, error, words):
    arguments = {"x": torch.ones(4, 8), "weight": torch.ones(8), "y": torch.full((4, 8), 7.0), **change}
    with pytest.raises(error) as caught:
        forward(**arguments)
    assert str(caught.value).startswith("rms_norm_forward") and words in str(caught.value)
    assert (arguments["y"] == 7.0).all()


def test_tensors_on_two_devices_are_refused(device):
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    with pytest.raises(_native.LigerArgumentError, match="weight is on cuda:0, but x is on cpu"):
        forward(torch.ones(4, 8), torch.ones(8, device=device), torch.empty(4, 8))


def test_an_empty_tensor_is_not_absent(device):
    x = torch.empty(0, 8, device=device)
    forward(x, torch.ones(8, device=device), torch.empty_like(x), torch.empty(0, device=device))


def test_workspace_is_one_argument(device):
    x, dy = torch.randn(5, 8, device=device), torch.randn(5, 8, device=device)
    weight, rstd = torch.rand(8, device=device), torch.empty(5, device=device)
    forward(x, weight, torch.empty_like(x), rstd)
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    arguments = (dy, x, weight, rstd, dx, dweight, 0.0, 0)
    size = _native.rms_norm_backward_workspace(*arguments)
    assert size == _native.rms_norm_backward_workspace(*arguments, None) and size > 0
    raw = torch.empty(size + 256, dtype=torch.uint8, device=device)
    aligned = raw[-raw.data_ptr() % 256 :][:size]
    with pytest.raises(_native.LigerError, match="workspace.* bytes"):
        _native.rms_norm_backward(*arguments, aligned[:-1])
    _native.rms_norm_backward(*arguments, aligned)
    x64 = x.double().requires_grad_()
    torch.nn.functional.rms_norm(x64, (8,), weight.double(), 1e-6).backward(dy.double())
    assert torch.allclose(dx.double(), x64.grad, atol=1e-5)


def test_torch_set_num_threads_is_obeyed():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert ", 1 now" in _native.context_facts(-1)["threads"]
        torch.set_num_threads(3)
        assert ", 3 now" in _native.context_facts(-1)["threads"]
    finally:
        torch.set_num_threads(before)


def test_the_same_bits_for_any_number_of_threads():
    x = torch.randn(301, 517)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = torch.empty_like(x)
            forward(x, None, y)
            results.append(y)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_several_threads_at_once():
    x = torch.randn(200, 1024)
    expected = torch.nn.functional.rms_norm(x, (1024,), None, 1e-6)
    wrong = []

    def work():
        for _ in range(20):
            y = torch.empty_like(x)
            forward(x, None, y)
            if not torch.allclose(y, expected, atol=1e-5):
                wrong.append(y)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_the_gil_is_released(device, where):
    """A second Python thread goes on while a kernel runs on the CPU, or is launched while the device's queue is full."""
    device = torch.device("cpu") if where == "cpu" else device
    x = torch.randn(20_000, 1024, device=device)
    y, counted, stop = torch.empty_like(x), [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1

    interval = sys.getswitchinterval()
    worker = threading.Thread(target=count)
    sys.setswitchinterval(1)  # the counter gets the GIL only if somebody gives it away
    try:
        worker.start()
        before = counted[0]
        for _ in range(1 if device.type == "cpu" else 2000):  # more launches than a queue holds
            forward(x, None, y)
        during = counted[0] - before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        worker.join()
    assert during > 0


def test_a_forked_child_computes_alone():
    printed = own_process.output(
        "-c",
        """
        import os, signal, torch
        from liger_kernel import _native
        x = torch.randn(300, 1024)
        y = torch.empty_like(x)
        call = lambda: _native.rms_norm_forward(x, None, y, None, 1e-6, 0.0, 0)
        call()
        right = y[299].clone()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            y[299].zero_()  # little: torch's own parallel loops would hang here
            call()
            alone = ", 1 now" in _native.context_facts(-1)["threads"]
            os._exit(0 if torch.equal(y[299], right) and alone else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
    )
    assert printed.strip() == "0"


@pytest.mark.parametrize("before", ["imported only", "called"])
def test_a_forked_child_needs_no_threads_of_its_parent(before):
    """Torch's team and its BLAS are dead in a child, whether the library was used before the fork or not; so it is in a
    child of the child."""
    printed = own_process.output(
        "-c",
        f"""
        import os, signal, torch
        from liger_kernel import _native
        from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Loss
        x, w, target = torch.randn(300, 1024), torch.randn(2000, 1024), torch.arange(300)
        (x @ w.t()).exp().sum()  # wakes the team and the threads of the BLAS
        y = torch.empty_like(x)
        def call():
            _native.rms_norm_forward(x, None, y, None, 1e-6, 0.0, 0)
            with torch.no_grad():
                return Loss.apply(x, w, target)[0]
        if {before == "called"}:
            call()
        def child(depth):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                fine = bool(call().isfinite()) and (depth == 0 or child(depth - 1) == 0)
                os._exit(0 if fine else 1)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(child(1))
        """,
    )
    assert printed.strip() == "0"


def test_a_missing_library_is_reported_at_first_use(tmp_path):
    printed = own_process.output(
        "-c",
        """
        import liger_kernel
        from liger_kernel import _native
        for attempt in range(2):
            try:
                _native.rms_norm_forward
            except _native.LigerError as error:
                print(error)
        print(_native.report()["library"])
        """,
        LIGER_NATIVE_DIR=str(tmp_path),
    )
    lines = printed.splitlines()
    assert len(lines) == 3 and all(str(tmp_path) in line and "could not be loaded" in line for line in lines)


def test_names_are_plain_attributes_after_the_first_use():
    assert _native.rms_norm_forward is vars(_native)["rms_norm_forward"]
    with pytest.raises(AttributeError, match="has no no_such_operator"):
        _native.no_such_operator  # noqa: B018


FIRST_USE = """
    import sys, warnings, torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    with torch._subclasses.FakeTensorMode():
        torch.ones(2)  # a first one may fork, and then the library is there already
    from liger_kernel import _native

    found, importing = [], _native._import_binding

    class Watched:
        '''The binding, and what it is told of torch.'''

        def __init__(self, module):
            self.__dict__.update({name: getattr(module, name) for name in dir(module)})
            self.tell = self.__dict__.pop("setup")

        def setup(self, *told):
            sample, quick = told[7], told[-1]
            assert type(sample) is torch.Tensor and not sample.is_meta and sample.data_ptr() != 0
            found.append((sample.shape, sample.stride(), [f is not None for f in quick]))
            return self.tell(*told)

    _native._import_binding = lambda folder: Watched(importing(folder))

    class Seen:
        calls = 0

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            Seen.calls += 1
            return function(*args, **kwargs or {})

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Seen.calls += 1
            return function(*args, **kwargs or {})

    class Handler(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return load(*args) if "neg" in str(function) else function(*args, **kwargs or {})

    def load(x):
        assert not found
        before = Seen.calls
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _native.load()
        assert found and Seen.calls == before
        return x + 1

    x, way = torch.ones(2), sys.argv[1]
    if way == "none":
        load(x)
    elif way == "trace":
        torch.jit.trace(load, x, check_trace=False)
    elif way == "handler":
        with Handler():
            torch.neg(x)
    elif way == "handler in a trace":
        with Handler():
            torch.jit.trace(torch.neg, x, check_trace=False)
    elif way in ("grad", "vmap"):
        getattr(torch.func, way)(lambda x: load(x).sum())(x[None] if way == "vmap" else x)
    else:
        mode = {"fake": torch._subclasses.FakeTensorMode, "functions": Functions, "dispatch": Dispatch}[way]()
        with mode:
            load(torch.ones(2))
            torch.ones(2)
        assert way == "fake" or Seen.calls > 0
    print(found, _native.is_usual())
"""


WAYS = ["trace", "fake", "dispatch", "functions", "grad", "vmap", "handler", "handler in a trace"]


@pytest.mark.parametrize("way", WAYS)
def test_first_use_anywhere(way):
    """What the binding finds of torch does not depend on where it is used first, and it is found unseen."""
    found = own_process.output("-c", FIRST_USE, way)
    assert found == own_process.output("-c", FIRST_USE, "none") and found.endswith("True\n")


FIRST_COMPILED = """
    import torch
    from liger_kernel.ops import LigerSoftmaxFunction

    x = torch.randn(3, 5)
    y = torch.compile(LigerSoftmaxFunction.apply, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, x.softmax(-1))
    print("done")
"""


def test_first_use_in_a_compiled_model_that_is_only_evaluated():
    """torch runs its first call of a custom operator in a mode of its own."""
    assert own_process.output("-c", FIRST_COMPILED) == "done\n"


def test_modes_and_transforms_are_seen():
    """One look tells whether torch is as usual; nothing is usual where the binding may not look."""
    seen = []

    def look(x):
        seen.append(_native.is_usual())
        return x.sum()

    assert _native.is_usual()
    with torch.no_grad(), torch.autocast("cpu"), torch.device("cpu"):
        assert _native.is_usual()
    x = torch.ones(2)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x[None])
    torch.jit.trace(look, x, check_trace=False)
    with torch._subclasses.FakeTensorMode():
        look(torch.ones(2))
    thread = threading.Thread(target=look, args=(x,))
    thread.start()
    thread.join()
    assert seen == [False, False, False, False, True]
    try:
        assert not _native.watch_dispatch(False) and not _native.is_usual()
    finally:
        _native.watch_dispatch(True)
    assert _native.is_usual()
