"""int8 x int2: packing, unpacking and the product, against integer sums of int64. Integers have no gradient, so that what
every operator owes besides (compile, fake tensors, views, streams, errors) is tested here and not from a description."""

from __future__ import annotations

import os
import threading

import own_process
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from liger_kernel.ops.experimental import mm_int8int2
from liger_kernel.ops.experimental.mm_int8int2 import int2_matmul, pack_weights, unpack_weights
from liger_kernel.transformers.experimental import matmul

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def activations(m: int, k: int, device, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8).to(device)


def packed_bytes(rows: int, n: int, device, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, n), generator=generator, dtype=torch.uint8).to(device)


def expected(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """By the layout's definition, on the CPU, which multiplies matrices of int64."""
    rows = b.shape[0]
    weights = torch.empty(4 * rows, b.shape[1], dtype=torch.int64)
    for i in range(4):
        weights[i * rows : (i + 1) * rows] = (b.cpu().long() >> 2 * i & 3) - 1
    return (a.cpu().long() @ weights).int().to(a.device)


# ---- packing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.uint8])
@pytest.mark.parametrize("shape", [(8, 5), (4, 1), (12,), (7, 3), (1, 2), (5,), (0, 3), (4, 0)])
def test_packing_and_back(device, shape, dtype):
    """What is packed comes back, with -1 in rows that were missing; the argument stays as it is."""
    weights = torch.randint(-1, 2, shape, device=device).to(dtype)
    before = weights.clone()
    packed = pack_weights(weights)
    rows = -(-shape[0] // 4)
    assert packed.dtype is torch.uint8 and packed.shape == (rows, *shape[1:]) and packed.is_contiguous()
    assert torch.equal(weights, before)
    back = unpack_weights(packed)
    assert back.dtype is torch.int32 and back.shape == (4 * rows, *shape[1:])
    assert torch.equal(back[: shape[0]].to(dtype), weights) and (back[shape[0] :] == -1).all()


def test_where_a_weight_stands(device):
    """Byte row r: rows r, r + R, r + 2R, r + 3R, from the lowest bits up."""
    weights = torch.tensor([[-1], [0], [1], [-1], [0], [0], [1], [1]], device=device)
    assert pack_weights(weights).flatten().tolist() == [0 | 2 << 2 | 1 << 4 | 2 << 6, 1 | 0 << 2 | 1 << 4 | 2 << 6]
    assert unpack_weights(torch.tensor([[0b11100100]], dtype=torch.uint8)).flatten().tolist() == [-1, 0, 1, 2]


def test_every_byte_goes_back(device):
    """All four codes, transposed views too."""
    every = torch.arange(256, dtype=torch.uint8, device=device).view(32, 8)
    for view in (every, every.t(), every[::3, 1:], every.flatten()):
        unpacked = unpack_weights(view)
        assert unpacked.min() == -1 and unpacked.max() == 2
        assert torch.equal(unpacked, unpack_weights(view.contiguous()))
        assert torch.equal(pack_weights(unpacked), view)


def test_a_number_out_of_range_spoils_no_other(device):
    weights = torch.tensor([[7], [0], [-5], [1]], device=device)
    assert unpack_weights(pack_weights(weights))[1::2].flatten().tolist() == [0, 1]


@pytest.mark.parametrize("function", [pack_weights, unpack_weights])
def test_what_cannot_be_packed(function):
    for wrong in (torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.complex64), torch.tensor(1)):
        with pytest.raises(ValueError, match=f"{function.__name__}: the weights are"):
            function(wrong)
    for bits in (1, 4, 8):
        with pytest.raises(ValueError, match=f"bits is {bits}, but must be 2"):
            function(torch.zeros(4, 2, dtype=torch.uint8), bits)
    function(torch.zeros(4, 2, dtype=torch.uint8), bits=2)


# ---- the product -------------------------------------------------------------------------------------------------------

SHAPES = [(1, 4, 1), (1, 256, 33), (3, 12, 7), (8, 64, 130), (9, 64, 64), (17, 68, 31), (33, 1000, 70), (130, 260, 257)]
SHAPES += [(64, 4096, 96), (300, 128, 640), (5, 65544, 3), (40, 40004, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(device, shape):
    m, k, n = shape
    a, b = activations(m, k, device), packed_bytes(k // 4, n, device)
    c = matmul(a, b)
    assert c.dtype is torch.int32 and c.shape == (m, n) and c.is_contiguous() and c.device == a.device
    assert torch.equal(c, expected(a, b))
    assert torch.equal(mm_int8int2._Formula.torch_forward(a, b), c)


def test_packed_weights(device):
    weights = torch.randint(-1, 2, (96, 40), device=device)
    a = activations(11, 96, device)
    right = (a.cpu().long() @ weights.cpu().long()).int()
    assert torch.equal(matmul(a, pack_weights(weights)).cpu(), right)


@pytest.mark.parametrize("m", [1, 6, 50])
@pytest.mark.parametrize("size", [(16, 24), (33, 17), (130, 200)], ids=str)
def test_views_of_the_weights(device, m, size):
    rows, n = size
    a = activations(m, 4 * rows, device)
    wide = packed_bytes(rows + 5, 2 * n + 3, device)
    views = {
        "transposed": packed_bytes(n, rows, device).t(),
        "a part": wide[2 : rows + 2, 1 : n + 1],
        "every second column": wide[:rows, : 2 * n : 2],
        "one row again": wide[:1, :n].expand(rows, n),
        "one column again": wide[:rows, :1].expand(rows, n),
        "misaligned": packed_bytes(1, rows * n + 1, device)[0, 1:].view(rows, n),
    }
    for name, b in views.items():
        assert torch.equal(matmul(a, b), expected(a, b)), name


@pytest.mark.parametrize("offset", [1, 3, 4, 16])
@pytest.mark.parametrize("m", [2, 20])
def test_misaligned_activations(device, m, offset):
    a = torch.zeros(m * 192 + offset, dtype=torch.int8, device=device)[offset:].view(m, 192)
    a.copy_(activations(m, 192, device))
    b = packed_bytes(48, 64, device)
    assert torch.equal(matmul(a, b), expected(a, b))


@pytest.mark.parametrize("m, k, n", [(0, 8, 5), (3, 8, 0), (3, 0, 5), (40, 0, 5), (0, 0, 0)])
def test_nothing(device, m, k, n):
    c = matmul(activations(m, k, device), packed_bytes(k // 4, n, device))
    assert c.shape == (m, n) and c.dtype is torch.int32 and not c.any()


@pytest.mark.parametrize("m", [1, 12])
def test_sums_wrap_around(device, m):
    """-128 · 2 is what no int32 holds 2^23 + 4 times."""
    k = (1 << 23) + 4
    a = torch.full((m, k), -128, dtype=torch.int8, device=device)
    b = torch.full((k // 4, 1), 255, dtype=torch.uint8, device=device)
    assert (matmul(a, b) == (1 << 31) - 1024).all()
    assert (matmul(a[:, 8:].contiguous(), b[2:]) == -(1 << 31) + 1024).all()


def test_nothing_is_changed(device):
    a, b = activations(20, 64, device), packed_bytes(16, 40, device)
    kept = a.clone(), b.clone()
    first = matmul(a, b)
    assert torch.equal(first, matmul(a, b)) and torch.equal(a, kept[0]) and torch.equal(b, kept[1])


def test_no_unpacked_copy_outlives_the_call(device):
    a, b = activations(64, 1024, device), packed_bytes(256, 1024, device)
    if device.type == "cpu":
        assert mm_int8int2._native.int2_matmul_workspace(a, b, a.new_empty((64, 1024), dtype=torch.int32)) == 0
        return
    matmul(a, b)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    c = matmul(a, b)
    assert torch.cuda.memory_allocated() - before == c.nbytes


@pytest.mark.parametrize("wrong, words", [
    (lambda a, b: (a, b[:-1]), "a has 64 columns, but b has 15 rows of four weights, which are 60"),
    (lambda a, b: (a[:, :63].contiguous(), b), "a has 63 columns, but b has 16 rows"),
    (lambda a, b: (a.t(), b), "a has 5 columns, but b has 16 rows"),
    (lambda a, b: (a.repeat(1, 2)[:, ::2], b), r"a has strides \(128, 2\), but must be contiguous"),
    (lambda a, b: (a[0], b), "a has 1 dimensions, but must have 2"),
    (lambda a, b: (a, b[None]), "b has 3 dimensions, but must have 2"),
    (lambda a, b: (a.to(torch.uint8), b), "a is torch.uint8, but must be torch.int8"),
    (lambda a, b: (a, b.to(torch.int8)), "b is torch.int8, but must be torch.uint8"),
    (lambda a, b: (a.float(), b), "a is torch.float32, but must be torch.int8"),
])  # fmt: skip
def test_what_is_refused(device, wrong, words):
    a, b = activations(5, 64, device), packed_bytes(16, 24, device)
    for error in (AssertionError, ValueError):
        with pytest.raises(error, match=words):
            matmul(*wrong(a, b))


def test_what_is_no_tensor(device):
    a, b = activations(5, 64, device), packed_bytes(16, 24, device)
    with pytest.raises(TypeError, match="a must be a torch.Tensor, not list"):
        matmul([1, 2], b)
    with pytest.raises(TypeError, match="b must be a torch.Tensor, not NoneType"):
        matmul(a, None)
    with pytest.raises(ValueError, match="but a is on"):
        matmul(a, b.to("meta"))


def test_the_library_names_dtypes_as_torch_does(device):
    a, b = activations(5, 64, device), packed_bytes(16, 24, device)
    with pytest.raises(ValueError, match=r"int2_matmul: a is torch.uint8, but must be int8"):
        int2_matmul(a.to(torch.uint8), b)
    with pytest.raises(ValueError, match=r"int2_matmul: b is torch.bool, but must be uint8"):
        int2_matmul(a, b.bool())
    with pytest.raises(ValueError, match=r"int2_matmul: b: shape\[0\] is 15, but must be 16"):
        torch.ops.liger.int2_matmul(a, b[:-1])
    for one, other in ((a[0], b), (a, b[0]), (a[0, 0], b), (a, b[0, 0])):
        with pytest.raises(ValueError, match="dimensions, but must have 2"):
            torch.ops.liger.int2_matmul(one, other)


# ---- inside torch's machinery ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 20])
def test_opcheck(device, m):
    torch.library.opcheck(int2_matmul.traced, (activations(m, 64, device), packed_bytes(16, 40, device)))


def test_the_operator_takes_any_strides(device):
    a, b = activations(64, 20, device).t(), packed_bytes(16, 40, device)
    assert torch.equal(torch.ops.liger.int2_matmul(a, b), expected(a, b))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(device, dynamic):
    """One graph; sizes of 2 and more do not compile it again."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def layer(x, weights):
        q = (x * 4).round().to(torch.int8)
        return matmul(q, pack_weights(weights)).float() * 0.25

    function = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=count if dynamic else "aot_eager")
    for m, k, n in ((12, 64, 40), (9, 32, 48), (30, 128, 8)):
        x = torch.randn(m, k, device=device)
        weights = torch.randint(-1, 2, (k, n), device=device)
        assert torch.equal(function(x, weights), layer(x, weights))
    assert not dynamic or len(graphs) == 1


def test_compile_refuses_what_eager_does(device):
    torch._dynamo.reset()
    function = torch.compile(matmul, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="rows of four weights"):
        function(activations(5, 64, device), packed_bytes(15, 24, device))


def test_fake_and_meta_tensors(device):
    with FakeTensorMode():
        c = matmul(
            torch.empty(5, 64, dtype=torch.int8, device=device), torch.empty(16, 24, dtype=torch.uint8, device=device)
        )
        assert c.shape == (5, 24) and c.dtype is torch.int32 and c.device.type == device.type
    c = matmul(
        torch.empty(5, 64, dtype=torch.int8, device="meta"), torch.empty(16, 24, dtype=torch.uint8, device="meta")
    )
    assert c.is_meta and c.shape == (5, 24) and c.dtype is torch.int32 and c.is_contiguous()


def test_modes_and_transforms(device):
    """A flop counter, vmap, forward mode, torch.jit.trace, grad: none of them changes a value."""
    a, b = activations(6, 64, device), packed_bytes(16, 24, device)
    right = expected(a, b)
    with FlopCounterMode(display=False):
        assert torch.equal(matmul(a, b), right)
    batch = torch.stack((a, a.flip(0)))
    assert torch.equal(torch.func.vmap(matmul, (0, None))(batch, b), torch.stack((right, right.flip(0))))
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(matmul(a, b), right)
    traced = torch.jit.trace(matmul, (a, b), check_trace=False)
    other = activations(6, 64, device, seed=9)
    assert torch.equal(traced(other, b), expected(other, b))
    x = torch.randn(6, 64, device=device)
    slope = torch.func.grad(lambda x: (x * matmul(a, b).float().sum()).sum())(x)
    assert torch.equal(slope, right.float().sum().expand(6, 64))


def test_nothing_has_a_gradient(device):
    a, b = activations(6, 64, device), packed_bytes(16, 24, device)
    scale = torch.tensor(0.5, device=device, requires_grad=True)
    c = matmul(a, b)
    assert not c.requires_grad
    (c * scale).sum().backward()
    assert scale.grad == c.sum()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(device, low):
    a, b = activations(6, 64, device), packed_bytes(16, 24, device)
    with torch.autocast(device.type, dtype=low):
        assert torch.equal(matmul(a, b), expected(a, b))


def test_subclasses_and_inference(device):
    class Mine(torch.Tensor):
        pass

    a, b = activations(6, 64, device), packed_bytes(16, 24, device)
    assert torch.equal(matmul(a.as_subclass(Mine), b).as_subclass(torch.Tensor), expected(a, b))
    assert torch.equal(matmul(a, torch.nn.Parameter(b, requires_grad=False)), expected(a, b))
    with torch.inference_mode():
        assert torch.equal(matmul(a, b), expected(a, b))


def test_profiler_shows_the_name(device):
    a, b = activations(6, 64, device), packed_bytes(16, 24, device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        matmul(a, b)
    assert any(event.key == "liger::int2_matmul" for event in profile.key_averages())


def test_every_element_is_written(device):
    a, b = activations(37, 260, device), packed_bytes(65, 45, device)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(matmul(a, b), expected(a, b))
    finally:
        torch.use_deterministic_algorithms(False)


def test_any_number_of_threads(device):
    a, b = activations(700, 512, device), packed_bytes(128, 300, device)
    right, before = expected(a, b), torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(matmul(a, b), right)
    finally:
        torch.set_num_threads(before)


def test_concurrent_calls(device):
    a, b = activations(64, 512, device), packed_bytes(128, 96, device)
    right, found = expected(a, b), []
    threads = [threading.Thread(target=lambda: found.append(matmul(a, b))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(c, right) for c in found)


def test_fork(device):
    if device.type != "cpu":
        pytest.skip("CUDA cannot be used after fork")
    a, b = activations(300, 512, device), packed_bytes(128, 300, device)
    right = matmul(a, b).tolist()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if matmul(a, b).tolist() == right else 1)  # torch.equal would use OpenMP, which a child cannot
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", ["int2_matmul", "mm_int8int2"])
def test_disabled(device, name):
    """The same values from torch alone."""
    code = (
        "import torch; from liger_kernel import _native; from liger_kernel.ops.experimental import mm_int8int2 as m\n"
        f"a = torch.randint(-128, 128, (9, 64), dtype=torch.int8, device={str(device)!r})\n"
        f"b = torch.randint(0, 256, (16, 24), dtype=torch.uint8, device={str(device)!r})\n"
        "right = m.int2_matmul(a, b)\n"
        "m.int2_matmul.eager = None\n"
        "assert torch.equal(m.matmul(a, b), right)"
    )
    done = own_process.run("-c", code, LIGER_DISABLE=name)
    assert done.returncode == 0 and "no operator is called" not in done.stderr, done.stderr
    assert own_process.run("-c", code).returncode != 0  # without the variable it is the operator that is called


# ---- on CUDA -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(device):
    if device.type != "cuda":
        pytest.skip("about streams and graphs")
    return device


@pytest.mark.parametrize(
    ("m", "n", "rows"),
    [
        (4096, 4096, 32),  # one round of k, many tiles
        (4096, 4096, 48),
        (2049, 2305, 256),  # a row and columns alone in their tiles
        (2049, 2305, 272),  # and k is no multiple of a round
        (257, 17000, 48),
        (257, 17000, 36),  # quarters of k begin anywhere
        (5000, 1000, 1024),
        (129, 17000, 144),
    ],
)
def test_many_tiles(gpu, m, n, rows):
    """As many tiles as a GPU has multiprocessors, where it has kernels of its own."""
    a, b = activations(m, 4 * rows, gpu), packed_bytes(rows, n, gpu)
    weights = torch.cat([(b >> 2 * i & 3).double() - 1 for i in range(4)])
    exact = (a.double() @ weights).int()  # below 2^53
    for _ in range(3):
        assert torch.equal(matmul(a, b), exact)


def test_many_tiles_of_any_weights(gpu):
    """Transposed, and columns between others."""
    a, b = activations(257, 192, gpu), packed_bytes(48, 17000, gpu)
    right = matmul(a, b)
    assert torch.equal(matmul(a, b.t().contiguous().t()), right)
    assert torch.equal(matmul(a, torch.zeros(48, 17016, dtype=torch.uint8, device=gpu)[:, 3:17003].copy_(b)), right)


def test_sums_of_many_tiles_wrap_around(gpu):
    """2^23 products of -256 are -2^31, and 64 more begin anew."""
    m, n, k = 2560, 1792, (1 << 23) + 64
    if torch.cuda.mem_get_info(gpu)[0] < 60e9:
        pytest.skip("needs 60 GB that are free")
    a = torch.full((m, k), -128, dtype=torch.int8, device=gpu)
    b = torch.full((k // 4, n), 0xFF, dtype=torch.uint8, device=gpu)
    assert (matmul(a, b) == (1 << 31) - 64 * 256).all()


@pytest.mark.parametrize(("m", "n"), [(1, 128), (7, 128), (200, 128), (257, 17000)])
def test_graph_capture(gpu, m, n):
    """After one call; a replay reads what lies there then."""
    a, b = activations(m, 256, gpu), packed_bytes(64, n, gpu)
    matmul(a, b)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        c = matmul(a, b)
    for seed in (5, 6):
        a.copy_(activations(m, 256, gpu, seed))
        b.copy_(packed_bytes(64, n, gpu, seed))
        graph.replay()
        assert torch.equal(c, expected(a, b))


@pytest.mark.parametrize(("m", "n"), [(1, 256), (200, 256), (257, 17000)])
def test_on_another_stream_without_waiting(gpu, m, n):
    a, b = activations(m, 512, gpu), packed_bytes(128, n, gpu)
    right = expected(a, b)
    matmul(a, b)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**7)
            doubled = b.bitwise_not().bitwise_not()
            c = matmul(a, doubled)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(c, right)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("m", "n"), [(20, 24), (257, 17000)])
def test_on_a_gpu_that_is_not_current(m, n):
    a, b = activations(m, 64, "cuda:1"), packed_bytes(16, n, "cuda:1")
    assert torch.equal(matmul(a, b), expected(a, b)) and torch.cuda.current_device() == 0


def test_more_than_2_31_elements(gpu):
    """Of c; and the bytes of a beyond 2^31."""
    if torch.cuda.get_device_properties(gpu).total_memory < 40e9:
        pytest.skip("needs 40 GB")
    m, n = 70000, 32768
    a, b = activations(m, 64, gpu), packed_bytes(16, n, gpu)
    c = matmul(a, b)
    for rows in (slice(0, 3), slice(65533, 65540), slice(m - 3, m)):
        assert torch.equal(c[rows], expected(a[rows], b))
    del c
    m, k = 33000, 65600
    a = torch.empty((m, k), dtype=torch.int8, device=gpu)
    a.random_(-128, 128)
    b = packed_bytes(k // 4, 12, gpu)
    c = matmul(a, b)
    for rows in (slice(0, 3), slice(m - 3, m)):
        assert torch.equal(c[rows], expected(a[rows], b))
