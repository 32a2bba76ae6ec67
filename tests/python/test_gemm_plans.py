"""How the library asks cuBLASLt for a product, with a stand-in for it: needs a C compiler and no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

STAND_IN = """
#include <stddef.h>
#include <stdlib.h>
#define MAKE(name, ...) int name(void **made, ##__VA_ARGS__) { *made = malloc(1); return 0; }
#define END(name) int name(void *it) { free(it); return 0; }
MAKE(cublasLtCreate) END(cublasLtDestroy)
MAKE(cublasLtMatmulDescCreate, int a, int b) END(cublasLtMatmulDescDestroy)
MAKE(cublasLtMatrixLayoutCreate, int a, unsigned long long b, unsigned long long c, long long d)
END(cublasLtMatrixLayoutDestroy)
MAKE(cublasLtMatmulPreferenceCreate) END(cublasLtMatmulPreferenceDestroy)
size_t cublasLtGetVersion(void) { return 1; }
int cublasLtMatmulDescSetAttribute(void *it, int which, const void *value, size_t bytes) { return 0; }
int cublasLtMatmulPreferenceSetAttribute(void *it, int which, const void *value, size_t bytes) { return 0; }
int stand_in_status, stand_in_products;
int cublasLtMatmulAlgoGetHeuristic(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int wanted, void *found,
                                   int *count) {
    *count = 1;
    return stand_in_status;
}
int cublasLtMatmul(void) { return stand_in_products++, 0; }
"""

# Of each status: what the product answers, whether it is left to the plain kernel, how many cuBLASLt has made; and once
# more when all is well again.
PROGRAM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include "liger/core/context_state.h"
#include "liger/cuda/cuda_state.h"
#include "liger/ops/gemm/gemm_cublaslt.h"
#include "liger/ops/gemm/gemm_problem.h"

int main(int count, char **arguments) {
    void *library = dlopen("libcublasLt.so.13", RTLD_NOW);
    int *status = dlsym(library, "stand_in_status"), *products = dlsym(library, "stand_in_products");
    struct cuda_state state = {0};
    liger_context context = {.cuda = &state};
    float memory[4] = {0};
    struct gemm_problem p = {.dtype = LIGER_F32, .c_dtype = LIGER_F32, .m = 2, .n = 2, .k = 2, .lda = 2, .ldb = 2,
                             .ldc = 2, .a = memory, .b = memory, .c = memory};
    for (int i = 1; i < count; i++) {
        bool refused = false;
        *status = atoi(arguments[i]);
        const liger_status answer = cublaslt_gemm(&context, &p, NULL, &refused);
        printf("%s %d %d;", answer == LIGER_OK ? "ok" : "error", refused, *products);
    }
}
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """The answers to one product after another, in a process of its own, while the stand-in answers with these statuses."""
    folder = tmp_path_factory.mktemp("cublaslt")
    (folder / "stand_in.c").write_text(STAND_IN)
    (folder / "program.c").write_text(PROGRAM)
    core = [ROOT / "liger/core" / name for name in ("status.c", "tensor.c", "check.c", "overlap.c")]
    sources = [folder / "program.c", ROOT / "liger/ops/gemm/gemm_cublaslt.c", *core]
    build = [COMPILER, "-std=gnu11", "-I", ROOT]
    made = ["-shared", "-fPIC", "-o", folder / "libcublasLt.so.13", folder / "stand_in.c"]
    subprocess.run([*build, *made], check=True, capture_output=True)
    subprocess.run([*build, "-o", folder / "program", *sources, "-ldl", "-lpthread"], check=True, capture_output=True)

    def run(*statuses):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        given = [str(status) for status in statuses]
        done = subprocess.run([folder / "program", *given], env=environment, check=True, capture_output=True, text=True)
        return done.stdout.split(";")[:-1]

    return run


@pytest.mark.parametrize("status", [7, 8, 15])
def test_what_cublaslt_does_not_have_goes_to_the_plain_kernel(ask, status):
    assert ask(status, 0) == ["ok 1 0", "ok 1 0"]


@pytest.mark.parametrize("status", [1, 3, 13, 14])
def test_what_has_failed_once_is_said_and_asked_again(ask, status):
    """A shape would otherwise have other bits from then on."""
    assert ask(0, status) == ["ok 0 1", "ok 0 2"]  # the plan is there
    assert ask(status, 0, 0) == ["error 0 0", "ok 0 1", "ok 0 2"]
