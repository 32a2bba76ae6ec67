"""Every check of tools/ and tests/abi sees what it is there to see: an error is planted in a copy of the tree."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import own_process
import pytest

ROOT = Path(__file__).resolve().parents[2]

NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
needs_nvcc = pytest.mark.skipif(not Path(NVCC).exists(), reason="needs nvcc")
needs_sources = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")


@pytest.fixture
def tree(tmp_path):
    """A copy of what git would commit of liger/, tools/ and tests/."""
    for folder in ("liger", "tools", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def ruff() -> list[str]:
    """The formatter, as a module of this Python or as a program beside it or on PATH."""
    if importlib.util.find_spec("ruff") is not None:
        return [sys.executable, "-m", "ruff"]
    found = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    return [found] if found else []


def run(tree: Path, *command: str):
    result = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


BROKEN_RULES = [  # file, what is appended to it, what is said of that
    ("liger/core/tensor.c", '#include "liger/cpu/isa.h"\n', "core/tensor.c: must not include liger/cpu/isa.h"),
    ("liger/cpu/parallel.c", '#include "liger/cuda/cuda_state.h"\n', "must not include liger/cuda/cuda_state.h"),
    ("liger/ops/rope/rope.c", '#include "liger/cpu/simd.h"\n', "rope.c: must not include liger/cpu/simd.h"),
    (
        "liger/ops/rope/rope.c",
        '#include "liger/ops/swiglu/swiglu.h"\n',
        "rope.c: must not include liger/ops/swiglu/swiglu.h",
    ),
    ("liger/ops/rope/rope_cpu.c", "#include <cuda_runtime.h>\n", "only the CUDA backend knows CUDA"),
    ("liger/ops/rope/rope.h", "#include <cuda_runtime.h>\n", "only the CUDA backend knows CUDA"),
    ("liger/core/tensor.c", "#include <Python.h>\n", "knows torch or Python"),
    ("liger/ops/ops.def", "LIGER_OP(ghost, ghost)\n", "ops/ghost: no ghost_cpu.c"),
    ("liger/core/tensor.c", "/* see /ho" + "me/me/notes */\n", "means nothing to a reader"),
    ("liger/cuda/gated.cuh", "struct swiglu_forward_problem;\n", "names `swiglu_forward_problem`"),
    ("liger/cpu/norm.h", "void liger_rms_norm_forward(void);\n", "names `liger_rms_norm_forward`"),
    ("liger/ops/geglu/geglu_cuda.cu", "__global__ void own() {}\n", "`__global__` beside liger/cuda/gated.cuh"),
    (
        "liger/ops/rms_norm/rms_norm_cpu.c",
        "void f(void) { liger_parallel_for(0, 1, 1, 0, 0); }\n",
        "beside liger/cpu/norm.h",
    ),
]


@needs_sources
def test_check_rooms_sees(tree):
    """Each in a line of its own, which begins with the file."""
    for file, text, _ in BROKEN_RULES:
        append(tree / file, text)
    code, said = run(tree, "tools/check_rooms.py", str(tree))
    assert code == 1
    for file, _, words in BROKEN_RULES:
        place = "liger/ops/ghost" if file.endswith("ops.def") else file
        assert any(line.startswith(f"{place}:") and words in line for line in said.splitlines()), (file, words, said)


@needs_sources
def test_check_rooms_sees_files(tree):
    (tree / "liger/ops/rope/rope_cuda.cu").unlink()
    (tree / "liger/ops/stray").mkdir()
    shutil.copy(tree / "liger/cpu/isa.h", tree / "liger/core/isa.h")
    umbrella = tree / "liger/liger.h"
    umbrella.write_text(umbrella.read_text().replace('#include "liger/ops/rope/rope.h"\n', ""))
    code, said = run(tree, "tools/check_rooms.py", str(tree))
    assert code == 1
    for words in ("no rope_cuda.cu", "ops/stray: no row", "isa.h: several files", "does not include the public header"):
        assert words in said


# ---- a new operator --------------------------------------------------------------------------------------------------


@pytest.fixture
def whole_tree(tmp_path):
    """A copy of all that git would commit."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


@needs_sources
def test_a_new_room_keeps_the_rules(whole_tree):
    assert run(whole_tree, "tools/new_op.py", "any_op", "--root", str(whole_tree))[0] == 0
    code, said = run(whole_tree, "tools/check_rooms.py", str(whole_tree))
    assert "any_op" not in said
    code, said = run(whole_tree, "tools/new_op.py", "any_op", "--root", str(whole_tree))
    assert code != 0 and "already" in said
    code, said = run(whole_tree, "tests/abi/check_abi.py")
    assert code == 1 and "+liger_any_op_forward_args 232 bytes" in said


@needs_sources
@pytest.mark.skipif(not ruff(), reason="there is no ruff")
def test_a_new_room_is_formatted(whole_tree):
    assert run(whole_tree, "tools/new_op.py", "any_op", "--root", str(whole_tree))[0] == 0
    for command in (["check", "--quiet", "."], ["format", "--quiet", "--check", "."]):
        done = subprocess.run([*ruff(), *command], cwd=whole_tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def keep_rooms(tree: Path, *rooms: str) -> None:
    """The library with these alone is built in seconds; what else the driver checks needs others."""
    ops_def = tree / "liger/ops/ops.def"
    rows = re.compile(rf"^LIGER_\w+\((?! *(?:{'|'.join(rooms)}) *,).*\n", re.MULTILINE)
    ops_def.write_text(rows.sub("", ops_def.read_text()))
    for name in ("core_checks", "thread_checks"):
        text = f'#include "tests/{name}.h"\nvoid {name}(struct report *report) {{ (void)report; }}\n'
        (tree / f"tests/{name}.c").write_text(text)


@needs_sources
@pytest.mark.skipif(shutil.which("ninja") is None, reason="there is no ninja on PATH")
def test_a_new_operator_passes_all_tests_at_once(whole_tree):
    """Its cases on the CPU, its own Python tests, those that every operator owes, and nvcc."""
    build = whole_tree / "build"
    assert run(whole_tree, "tools/new_op.py", "square", "--root", str(whole_tree))[0] == 0
    # the linear losses' loops and the tables of the product sets name the others
    others = (r"row_\w+", r"logprob_\w+", "logits_gradient", r"cross_entropy_(count|rows|reduce)")
    keep_rooms(whole_tree, "square", "gemm", "column_sum", "interleave", "int2_matmul", *others)
    definitions = {"CMAKE_BUILD_TYPE": "Debug", "CMAKE_C_FLAGS_DEBUG": "-O1", "LIGER_WERROR": "ON"}
    definitions |= {"LIGER_CUDA": "OFF", "LIGER_CPU_ISAS": "best", "Python_EXECUTABLE": sys.executable}
    commands = [
        ["cmake", "-G", "Ninja", "-S", whole_tree, "-B", build, *(f"-D{k}={v}" for k, v in definitions.items())],
        ["cmake", "--build", build, "--target", "liger_test", "liger_binding"],
        [build / "liger_test", "--op", "square"],
    ]
    if Path(NVCC).exists():
        source = whole_tree / "liger/ops/square/square_cuda.cu"
        options = ["-std=c++17", "-arch=sm_80", f"-I{whole_tree}", "-DLIGER_HAS_CUDA=1", "--Werror=all-warnings"]
        commands.append([NVCC, *options, "-c", source, "-o", build / "square.o"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    tests = [
        whole_tree / "tests/python" / f"test_{name}.py" for name in ("square", "operators", "operators_transformed")
    ]
    environment = {"PYTHONPATH": str(whole_tree / "python"), "LIGER_NATIVE_DIR": str(build)}
    options = ["-p", "no:cacheprovider", "-k", "square and not squared"]
    said = own_process.output("-m", "pytest", *options, *tests, timeout=300, **environment)
    assert int(re.search(r"(\d+) passed", said)[1]) > 40, said


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("    float epsilon;", "    float epsilon2, epsilon;", "rms_norm_forward_args.epsilon"),
        ("LIGER_CAST_GEMMA = 1", "LIGER_CAST_GEMMA = 3", "LIGER_CAST_GEMMA = 3"),
        (
            "typedef struct liger_rms",
            "int undeclared_type(size_type);\ntypedef struct liger_rms",
            "does not compile alone",
        ),
        ("typedef struct liger_rms", "static inline int f(void) { return 1u < -1; }\ntypedef struct liger_rms", "c++"),
    ],
)
def test_check_abi_sees(tree, before, after, words):
    header = tree / "liger/ops/rms_norm/rms_norm.h"
    text = header.read_text()
    assert before in text
    header.write_text(text.replace(before, after, 1))
    code, said = run(tree, "tests/abi/check_abi.py")
    assert code == 1 and words in said


def build_library(folder: Path, source: str, *flags: str) -> Path:
    library = folder / "libliger.so"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-Wl,--no-as-needed", *flags]
    subprocess.run(command, input=source, text=True, check=True)
    return library


def test_check_library_sees(tmp_path):
    symbols = tmp_path / "symbols.txt"
    symbols.write_text("liger_one\n")
    check = ("tools/check_library.py", "--symbols", str(symbols), str(tmp_path / "libliger.so"))
    build_library(tmp_path, "int liger_one(void) { return 1; }", "-Wl,-soname,libliger.so.0")
    assert run(ROOT, *check)[0] == 0
    plants = [
        (
            "int liger_one(void) { return 1; }",
            ["-Wl,-soname,libliger.so.0", "-x", "none", "-lstdc++"],
            "needs libstdc++",
        ),
        ("int liger_one(void) { return 1; }", [], "SONAME is None"),
        (
            "int liger_one(void) { return 1; } int two;",
            ["-Wl,-soname,libliger.so.0"],
            "exports two, which does not begin",
        ),
        ("int liger_two(void) { return 1; }", ["-Wl,-soname,libliger.so.0"], "does not export liger_one"),
        (
            "int liger_one(void) { return 1; } __attribute__((used)) static char big[90000000] = {1};",
            ["-Wl,-soname,libliger.so.0"],
            "but the budget is",
        ),
    ]
    for source, flags, words in plants:
        build_library(tmp_path, source, *flags)
        code, said = run(ROOT, *check)
        assert code == 1 and words in said, words


def test_one_version():
    """Of the C headers, the package and the distribution."""
    places = {
        "liger/core/version.h": r'#define LIGER_VERSION "(.*)"',
        "python/liger_kernel/__init__.py": r'__version__ = "(.*)"',
        "pyproject.toml": r'(?m)^version = "(.*)"',
    }
    versions = {path: re.search(pattern, (ROOT / path).read_text())[1] for path, pattern in places.items()}
    header = (ROOT / "liger/core/version.h").read_text()
    versions["its numbers"] = ".".join(re.findall(r"#define LIGER_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header))
    assert len(set(versions.values())) == 1, versions


def write_wheel(folder: Path, change=lambda files: None, name="liger_kernel-0.9.0-cp310-abi3-linux_x86_64.whl") -> Path:
    package = ROOT / "python"
    files = {str(p.relative_to(package)): "" for p in (*package.rglob("*.py"), *package.rglob("py.typed"))}
    files |= dict.fromkeys(("liger_kernel/_native/_binding.abi3.so", "liger_kernel/_native/libliger.so"), "")
    information = "liger_kernel-0.9.0.dist-info/"
    files |= dict.fromkeys((information + f for f in ("RECORD", "WHEEL", "licenses/LICENSE")), "")
    files[information + "METADATA"] = "Name: liger-kernel\nRequires-Python: >=3.10\n"
    change(files)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return folder / name


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (lambda f: None, "liger_kernel-0.9.0-cp311-cp311-linux_x86_64.whl", "is not called"),
        (lambda f: f.pop("liger_kernel/py.typed"), None, "lacks liger_kernel/py.typed"),
        (lambda f: f.pop("liger_kernel/_native/libliger.so"), None, "lacks liger_kernel/_native/libliger.so"),
        (lambda f: f.update({"liger_kernel/_native/binding.c": ""}), None, "holds liger_kernel/_native/binding.c"),
        (lambda f: f.update({"include/liger/liger.h": ""}), None, "holds include/liger/liger.h"),
        (lambda f: f.update({"liger_kernel-0.9.0.dist-info/METADATA": ""}), None, "does not require Python"),
    ],
)
def test_check_wheel_sees(tmp_path, change, name, words):
    assert run(ROOT, "tools/check_wheel.py", str(write_wheel(tmp_path)))[0] == 0
    planted = write_wheel(tmp_path, change, *([name] if name else []))
    code, said = run(ROOT, "tools/check_wheel.py", str(planted))
    assert code == 1 and words in said


SPILLING = """
%s
extern "C" __global__ void __launch_bounds__(1024, 2) planted(float *p) {
    float v[64];
    for (int i = 0; i < 64; i++) v[i] = p[threadIdx.x + 1024 * i];
    __syncthreads();
    for (int i = 0; i < 64; i++) p[threadIdx.x + 1024 * i] = v[63 - i];
}
"""


@needs_nvcc
def test_check_cuda_build_sees(tree):
    file, build = tree / "liger/planted.cu", tree / "build"
    (build / "cuda").mkdir(parents=True)
    said = build / "cuda/planted.cu.o.ptxas"

    def check(text):
        file.write_text(text)
        return run(tree, "tools/check_cuda_build.py", "--build", str(build), "--archs", "80", str(file))

    code, words = check(SPILLING % "")
    assert code == 1 and "it was not built there" in words
    command = [tree / "tools/nvcc_said.sh", said, NVCC, "-arch=sm_80", "-Xptxas=-v", "-c", file, "-o", "/dev/null"]
    subprocess.run(command, check=True)
    code, words = check(SPILLING % "")
    assert code == 1 and "planted spills" in words
    assert check(SPILLING % "/* spills allowed: planted: a test */")[0] == 0
    code, words = check(SPILLING % "/* spills allowed: planted: a test */ /* spills allowed: nobody: a test */")
    assert code == 1 and "`nobody` is not needed" in words
    code, words = run(tree, "tools/check_cuda_build.py", "--build", str(build), str(file))
    assert code == 1 and "no report of ptxas -v on sm_80, sm_90a" in words
    said.write_text("")  # compiled without -Xptxas=-v
    code, words = check(SPILLING % "")
    assert code == 1 and "no report of ptxas" in words
    file.write_text("this is not C++")
    code, words = run(tree, "tools/check_cuda_build.py", str(file))
    assert code == 1 and "does not compile" in words


@needs_nvcc
def test_what_nvcc_says_is_shown_but_for_the_report(tmp_path):
    (tmp_path / "planted.cu").write_text("__global__ void f(float *p) { int unused; *p = 1; }")
    command = [ROOT / "tools/nvcc_said.sh", tmp_path / "said", NVCC]
    command += ["-arch=sm_80", "-Xptxas=-v", "-c", tmp_path / "planted.cu", "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "unused" in done.stdout and "ptxas info" not in done.stdout
    assert "Compiling entry function" in (tmp_path / "said").read_text()
    assert subprocess.run([*command, "--no-such-option"], capture_output=True).returncode != 0


def test_gen_binding_refuses_what_it_cannot_convert():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import gen_binding
    finally:
        sys.path.pop(0)
    text = "typedef struct liger_f_args { size_t size; %s } liger_f_args;\nliger_status liger_f(liger_context *c, const liger_f_args *a);"
    fields = gen_binding.parse_header(
        text % "liger_tensor x, y; float e; void *workspace; size_t workspace_bytes;", "h"
    )
    assert [(f.name, f.kind) for f in fields[0].fields] == [
        ("x", "tensor"),
        ("y", "tensor"),
        ("e", "float"),
        ("workspace", "workspace"),
    ]
    with pytest.raises(SystemExit, match="no converter"):
        gen_binding.parse_header(text % "void *mystery;", "h")
    with pytest.raises(SystemExit, match="has no function"):
        gen_binding.parse_header((text % "float e;").split("\n")[0], "h")


# ---- the tests that need a GPU ---------------------------------------------------------------------------------------

STUBS = {
    "nvidia-smi": 'case "$1" in *compute_cap*) echo 9.0 ;; *) echo a GPU ;; esac',
    "nproc": "echo 4",
    "nvcc": "echo release 13.0",
    "ninja": "",
    "cmake": """
        case "$1" in
            --build) mkdir -p "$2"; for p in liger_test harness_selftest liger_fuzz; do cp "$STUB_DRIVER" "$2/$p"; done ;;
            *) ;;
        esac""",
    "python3": """
        case "$*" in
            *pytest*) echo "SKIPPED [1] test_it.py: needs a second GPU"; echo "native $LIGER_NATIVE_DIR"; echo "5 passed" ;;
            *) echo 3.12 ;;
        esac""",
}
STUB_DRIVER = """
    case "$*" in
        *--list*) printf 'one_forward\\nfaulty\\n' ;;
        *faulty*) [ -z "$FAULTY" ] || kill -9 $$; echo "2 passed, 0 failed" ;;
        *) echo "amx: not here"; echo "3 passed, 0 failed" ;;
    esac"""


@pytest.fixture
def gpu_test(tree, tmp_path):
    """Runs gpu_test.sh of a copy of the tree, with programs that only say what they are asked."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in {**STUBS, "driver": STUB_DRIVER}.items():
        (programs / name).write_text("#!/bin/bash\n" + body + "\n")
        (programs / name).chmod(0o755)

    def call(**environment: str):
        path = f"{programs}:/usr/bin:/bin"
        environment = {"PATH": path, "STUB_DRIVER": str(programs / "driver"), "FAULTY": "", **environment}
        done = subprocess.run([tree / "tools/gpu_test.sh"], env=environment, capture_output=True, text=True, timeout=60)
        rows = re.findall(r"(?m)^([a-z-]+) +(passed|FAILED|not run) +(.*)$", done.stdout)
        return done, {name: (outcome, words) for name, outcome, words in rows}

    return call


def test_gpu_test_reports_what_ran(gpu_test, tree):
    done, rows = gpu_test()
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {name for name, (outcome, _) in rows.items() if outcome == "passed"}
    assert ran >= {"build", "harness-selftest", "fuzz", "driver-cpu", "driver-cuda", "driver-ptx", "pytest-cuda"}
    assert rows["driver-cpu"][1].endswith("11 passed, 0 failed")
    assert f"native {tree}/build/gpu\n" in (tree / "build/gpu/logs/pytest-cuda.log").read_text()
    assert rows["memcheck"] == ("not run", "no compute-sanitizer on PATH")
    for line in ("driver-cpu: amx: not here", "pytest-cuda: SKIPPED [1] test_it.py: needs a second GPU"):
        assert line in done.stdout
    done, rows = gpu_test(QUICK="1")
    assert done.returncode == 0 and rows["driver-ptx"] == ("not run", "not in the quick form")


def test_gpu_test_builds_anywhere(gpu_test, tmp_path):
    folder = tmp_path / "elsewhere"
    done, rows = gpu_test(BUILD=str(folder))
    assert done.returncode == 0 and rows["pytest-cuda"][1].endswith("5 passed"), done.stdout
    assert f"native {folder}\n" in (folder / "logs/pytest-cuda.log").read_text()


def test_gpu_test_by_stages(gpu_test):
    done, rows = gpu_test(STAGES="driver-cpu")
    assert done.returncode == 1 and "the stage build comes first" in rows["driver-cpu"][1]
    done, rows = gpu_test(STAGES="build driver-cuda")
    assert done.returncode == 0 and rows["driver-cuda"][0] == "passed"
    assert rows["driver-cpu"] == ("not run", "not among STAGES")
    done, rows = gpu_test(STAGES="driver-cpu")  # the build of the call before
    assert done.returncode == 0 and rows["driver-cpu"][0] == "passed" and rows["build"][0] == "not run"
    assert gpu_test(STAGES="build nonsense")[0].returncode == 2


def test_gpu_test_fails_with_a_stage(gpu_test, tree):
    done, rows = gpu_test(FAULTY="1")
    assert done.returncode == 1 and "SOMETHING FAILED" in done.stdout
    assert rows["driver-cuda"][0] == "FAILED" and "--op faulty --mode each: exit status 137" in done.stdout
    assert rows["pytest-cuda"][0] == "passed"
    (tree / "programs/cmake").write_text("#!/bin/bash\nexit 1\n")
    done, rows = gpu_test()
    assert done.returncode == 1 and rows["driver-cuda"] == ("not run", "the build failed")


def test_links_in_the_tree_are_ignored(tree):
    """A virtual environment or a build folder may be a link to another disk."""
    shutil.copy(ROOT / ".gitignore", tree)
    for name in (".venv", "build", "dist"):
        (tree / name).symlink_to(ROOT)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tree, capture_output=True, text=True).stdout
    assert "?? tools/" in status and not re.search(r"\?\? (\.venv|build|dist)", status), status
