#!/usr/bin/env python3
"""Makes the room of a new operator: its files, with the places to fill in, and its row in ops.def.

usage: new_op.py NAME [--root ROOT]        e.g. new_op.py layer_norm

What it writes compiles and answers UNSUPPORTED; the contract comes first, then the reference and the cases, then the two
backends. liger.h gets the include. Nothing that exists is overwritten.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

HEADER = """\
/* @op@.h - TODO: what the operator is, in one line, and the paper it is from. */
#ifndef LIGER_OPS_@OP@_H
#define LIGER_OPS_@OP@_H

#include "liger/core/context.h"
#include "liger/core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* liger_@op@_forward     y = TODO: the formula
 *
 *   x        in    [..., cols]   T         last dimension contiguous; leading ones fold into at most two row strides
 *   y        out   [..., cols]   T         may be x itself; any other overlap is LIGER_ERR_LAYOUT
 *
 *   T is f32, f16 or bf16. Arithmetic in f32, rounded once at the store.
 *   Edges: rows == 0 succeeds and does nothing; cols == 0 is LIGER_ERR_SHAPE; NaN and Inf propagate.
 *   Errors: SHAPE, DTYPE, LAYOUT.  Workspace: none.  Same inputs, same bits.  Graph-capturable.  Since TODO. */
typedef struct liger_@op@_forward_args {
    size_t size;
    liger_tensor x;
    liger_tensor y;
} liger_@op@_forward_args;

#define LIGER_@OP@_FORWARD_ARGS_INIT {.size = sizeof(liger_@op@_forward_args)}

LIGER_API liger_status liger_@op@_forward(liger_context *context, const liger_@op@_forward_args *args,
                                          liger_stream stream);

/* liger_@op@_backward    dx = TODO: the gradient
 *
 *   dy       in    [..., cols]   T
 *   x        in    [..., cols]   T         forward's input
 *   dx       out   [..., cols]   T         may be dy itself
 *
 *   Everything else as liger_@op@_forward. */
typedef struct liger_@op@_backward_args {
    size_t size;
    liger_tensor dy;
    liger_tensor x;
    liger_tensor dx;
} liger_@op@_backward_args;

#define LIGER_@OP@_BACKWARD_ARGS_INIT {.size = sizeof(liger_@op@_backward_args)}

LIGER_API liger_status liger_@op@_backward(liger_context *context, const liger_@op@_backward_args *args,
                                           liger_stream stream);

#ifdef __cplusplus
}
#endif
#endif
"""

PROBLEM = """\
/* @op@_problem.h - what a backend sees: flat, checked, no views. */
#ifndef LIGER_OPS_@OP@_PROBLEM_H
#define LIGER_OPS_@OP@_PROBLEM_H

#include "liger/core/rows.h"

struct @op@_forward_problem {
    liger_dtype dtype;
    int64_t rows, cols;
    liger_rows x, y;
};

struct @op@_backward_problem {
    liger_dtype dtype;
    int64_t rows, cols;
    liger_rows dy, x, dx;
};

#endif
"""

DOOR = """\
/* @op@.c - the door: checks in the order of the contract, then a problem for the table. */
#include "liger/ops/@op@/@op@.h"

#include "liger/core/args.h"
#include "liger/core/context_state.h"
#include "liger/ops/@op@/@op@_problem.h"

liger_status liger_@op@_forward(liger_context *context, const liger_@op@_forward_args *given, liger_stream stream) {
    liger_@op@_forward_args args;
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "@op@_forward"));
    LIGER_REQUIRE(args.x.data != NULL, LIGER_ERR_ARGUMENT, "@op@_forward: x is absent");
    LIGER_REQUIRE(liger_same_shape(&args.x, &args.y), LIGER_ERR_SHAPE, "@op@_forward: y must have the shape of x");
    struct @op@_forward_problem problem = {
        .dtype = (liger_dtype)args.x.dtype,
        .rows = liger_tensor_rows(&args.x),
        .cols = liger_tensor_cols(&args.x),
    };
    LIGER_TRY(liger_fold_rows(&args.x, "@op@_forward: x", &problem.x));
    LIGER_TRY(liger_fold_rows(&args.y, "@op@_forward: y", &problem.y));
    if (problem.rows == 0) return LIGER_OK;
    return context->kernels->@op@_forward(context, &problem, stream);
}

liger_status liger_@op@_backward(liger_context *context, const liger_@op@_backward_args *given, liger_stream stream) {
    liger_@op@_backward_args args;
    LIGER_TRY(liger_args_import(&args, sizeof args, given, "@op@_backward"));
    LIGER_REQUIRE(args.dy.data != NULL, LIGER_ERR_ARGUMENT, "@op@_backward: dy is absent");
    LIGER_REQUIRE(liger_same_shape(&args.dy, &args.x), LIGER_ERR_SHAPE, "@op@_backward: x must have the shape of dy");
    LIGER_REQUIRE(liger_same_shape(&args.dy, &args.dx), LIGER_ERR_SHAPE, "@op@_backward: dx must have the shape of dy");
    struct @op@_backward_problem problem = {
        .dtype = (liger_dtype)args.dy.dtype,
        .rows = liger_tensor_rows(&args.dy),
        .cols = liger_tensor_cols(&args.dy),
    };
    LIGER_TRY(liger_fold_rows(&args.dy, "@op@_backward: dy", &problem.dy));
    LIGER_TRY(liger_fold_rows(&args.x, "@op@_backward: x", &problem.x));
    LIGER_TRY(liger_fold_rows(&args.dx, "@op@_backward: dx", &problem.dx));
    if (problem.rows == 0) return LIGER_OK;
    return context->kernels->@op@_backward(context, &problem, stream);
}
"""

CPU = """\
/* @op@_cpu.c - CPU kernels; compiled once per instruction set. TODO: how the work is split, and why. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/cpu/isa.h"
#include "liger/ops/@op@/@op@_problem.h"

@op@_forward_kernel LIGER_CPU(@op@_forward);
@op@_backward_kernel LIGER_CPU(@op@_backward);

liger_status LIGER_CPU(@op@_forward)(liger_context *context, const struct @op@_forward_problem *problem,
                                     liger_stream stream) {
    (void)context, (void)problem, (void)stream;
    return liger_fail(LIGER_ERR_UNSUPPORTED, "@op@_forward: the CPU kernel is not written yet");
}

liger_status LIGER_CPU(@op@_backward)(liger_context *context, const struct @op@_backward_problem *problem,
                                      liger_stream stream) {
    (void)context, (void)problem, (void)stream;
    return liger_fail(LIGER_ERR_UNSUPPORTED, "@op@_backward: the CPU kernel is not written yet");
}
"""

CUDA = """\
/* @op@_cuda.cu - CUDA kernels and their launches. TODO: which bound it should reach. */
#include "liger/core/fail.h"
#include "liger/core/kernel_table.h"
#include "liger/ops/@op@/@op@_problem.h"

extern "C" liger_status @op@_forward_cuda(liger_context *, const struct @op@_forward_problem *, liger_stream) {
    return liger_fail(LIGER_ERR_UNSUPPORTED, "@op@_forward: the CUDA kernel is not written yet");
}

extern "C" liger_status @op@_backward_cuda(liger_context *, const struct @op@_backward_problem *, liger_stream) {
    return liger_fail(LIGER_ERR_UNSUPPORTED, "@op@_backward: the CUDA kernel is not written yet");
}
"""

REF = """\
/* @op@_ref.c - what the operator is: double precision, three loops, never optimised. */
#include "tests/harness/op_cases.h"

void @op@_forward_reference(const struct op_case *c, const struct op_types *types, double *const *t);
void @op@_backward_reference(const struct op_case *c, const struct op_types *types, double *const *t);

void @op@_forward_reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)c, (void)types, (void)t; /* TODO */
}

void @op@_backward_reference(const struct op_case *c, const struct op_types *types, double *const *t) {
    (void)c, (void)types, (void)t; /* TODO */
}
"""

CASES = """\
/* @op@_cases.c - shapes, tolerances, properties and bench points of @op@. TODO: describe, call, cases, provocations; see
 * tests/harness/op_cases.h, and rms_norm_cases.c for one that is whole. */
#include "tests/harness/op_cases.h"

extern const struct op_cases @op@_forward_cases, @op@_backward_cases;
const struct op_cases @op@_forward_cases = {.name = "@op@_forward"};
const struct op_cases @op@_backward_cases = {.name = "@op@_backward"};
"""

FILES = {
    ".h": HEADER,
    ".c": DOOR,
    "_problem.h": PROBLEM,
    "_cpu.c": CPU,
    "_cuda.cu": CUDA,
    "_ref.c": REF,
    "_cases.c": CASES,
}


def add_row(ops_def: Path, op: str) -> None:
    """After the last LIGER_OP row, aligned as the others."""
    lines = ops_def.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("LIGER_OP("))
    lines.insert(last + 1, f"LIGER_OP(       {op + ',':<23}{op:<21})")
    ops_def.write_text("\n".join(lines) + "\n")


def add_include(umbrella: Path, op: str) -> None:
    text = umbrella.read_text()
    includes = re.findall(r'#include "liger/ops/[^"]+"\n', text)
    block = "".join(includes)
    text = text.replace(block, "".join(sorted([*includes, f'#include "liger/ops/{op}/{op}.h"\n'])))
    umbrella.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args()
    op, root = options.name, options.root
    if not re.fullmatch(r"[a-z][a-z0-9_]*", op):
        raise SystemExit(f"new_op: `{op}` is not a name: lower-case letters, digits and underscores")
    room = root / "liger/ops" / op
    if room.exists():
        raise SystemExit(f"new_op: there is a room {room} already")
    room.mkdir()
    for ending, text in FILES.items():
        (room / f"{op}{ending}").write_text(text.replace("@op@", op).replace("@OP@", op.upper()))
    if shutil.which("clang-format"):
        subprocess.run(["clang-format", "-i", *map(str, room.iterdir())], check=True)
    add_row(root / "liger/ops/ops.def", op)
    add_include(root / "liger/liger.h", op)
    print(f"liger/ops/{op}: {', '.join(op + ending for ending in FILES)}; a row in ops.def; an include in liger.h")
    print("Next: the contract, the reference and the cases, both kernels, then tests/abi/check_abi.py --update.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
