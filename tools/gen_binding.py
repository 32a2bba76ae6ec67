#!/usr/bin/env python3
"""Writes the operators' part of the Python binding from ops.def and the public headers of the rooms.

The args struct is the argument list: `liger_rms_norm_forward_args` becomes `rms_norm_forward(x, weight, y, ...)`, one
positional argument per field in the struct's order, without `size` and what is reserved; the pair workspace,
workspace_bytes is one argument. A field of a type that is not in CONVERTERS is an error here, not a surprise there.

usage: gen_binding.py OUTPUT.c     (run by the build)
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONVERTERS = {
    "liger_tensor": "tensor",
    "float": "float",
    "double": "double",
    "int32_t": "int32",
    "int64_t": "int64",
}


@dataclass(frozen=True)
class Row:
    kind: str
    name: str
    room: str


@dataclass(frozen=True)
class Field:
    name: str
    kind: str


@dataclass(frozen=True)
class Function:
    name: str
    header: str
    fields: list[Field]
    queries: list[str]  # suffixes of the functions that answer a size for the same arguments


def read_rows(root: Path = ROOT) -> list[Row]:
    pattern = re.compile(r"^LIGER_(OP|KERNEL|COMPOSITE)\(\s*(\w+)\s*,\s*(\w+)\s*\)", re.MULTILINE)
    return [Row(*match) for match in pattern.findall((root / "liger/ops/ops.def").read_text())]


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)


def parse_fields(body: str, where: str) -> list[Field]:
    """The fields of one args struct; `size` first, workspace and workspace_bytes together."""
    fields: list[Field] = []
    for declaration in (part.strip() for part in body.split(";")):
        if not declaration:
            continue
        match = re.fullmatch(r"(const\s+)?(\w+)\s*(\*?)\s*([\w\s,]+)", declaration)
        if not match:
            raise SystemExit(f"{where}: cannot read the field `{declaration}`")
        kind, pointer, names = match[2], match[3], [name.strip() for name in match[4].split(",")]
        for name in names:
            if kind == "size_t" and name in ("size", "workspace_bytes") or name.startswith("reserved"):
                continue  # reserved bytes stay zero
            if kind == "void" and pointer and name == "workspace":
                fields.append(Field(name, "workspace"))
            elif not pointer and kind in CONVERTERS:
                fields.append(Field(name, CONVERTERS[kind]))
            else:
                raise SystemExit(f"{where}: the binding has no converter for `{declaration}`; see CONVERTERS")
    if not body.strip().startswith("size_t size"):
        raise SystemExit(f"{where}: an args struct begins with `size_t size`")
    return fields


def parse_header(text: str, where: str) -> list[Function]:
    text = without_comments(text)
    functions = []
    for name, body in re.findall(r"typedef struct liger_(\w+)_args \{(.*?)\}\s*liger_\1_args\s*;", text, re.DOTALL):
        prototype = (
            rf"liger_status\s+liger_{name}%s\s*\(\s*liger_context\s*\*\s*\w*\s*,\s*const\s+liger_{name}_args\s*\*"
        )
        if not re.search(prototype % "", text):
            raise SystemExit(f"{where}: liger_{name}_args has no function liger_{name}")
        fields = parse_fields(body, f"{where}: liger_{name}_args")
        queries = [suffix for suffix in QUERIES if re.search(prototype % suffix, text)]
        if "_workspace" in queries and not any(field.kind == "workspace" for field in fields):
            raise SystemExit(f"{where}: liger_{name}_workspace exists, but liger_{name}_args has no workspace field")
        functions.append(Function(name, where, fields, queries))
    return functions


def read_functions(root: Path = ROOT) -> list[Function]:
    """Every public operator function, in the order of ops.def; the rows' promises are checked."""
    rows = read_rows(root)
    functions: list[Function] = []
    for room in dict.fromkeys(row.room for row in rows):
        header = root / "liger/ops" / room / f"{room}.h"
        if header.exists():
            functions += parse_header(header.read_text(), str(header.relative_to(root)))
    names = {function.name for function in functions}
    for row in rows:
        wanted = {"OP": (f"{row.name}_forward", f"{row.name}_backward"), "COMPOSITE": (f"{row.name}_forward",)}
        for name in wanted.get(row.kind, ()):
            if name not in names:
                raise SystemExit(
                    f"liger/ops/ops.def: the row of {row.name} promises liger_{name}, but "
                    f"liger/ops/{row.room}/{row.room}.h has no liger_{name}_args"
                )
    return functions


QUERIES = ("_workspace", "_chunk_rows", "_slice_cols")
FUNCTION = """
static PyObject *py_{name}(PyObject *self, PyObject *const *argv, Py_ssize_t argc) {{
    (void)self;
    binding_call call = {{.function = "{op}", .names = names_{op}, .argv = argv}};
    liger_{op}_args args = {{.size = sizeof args}};
    if (!binding_begin(&call, argc, {fewest}, {most}){conversions} ||
        !binding_enter(&call))
        return binding_abandon(&call);
{body}}}
"""
# The lock is released for every device, as torch's own operators do: a launch may wait for a full queue, and the first one
# loads a module or a library.
CALL = """{scratch}    liger_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = liger_{op}(call.context, &args, call.stream);
    Py_END_ALLOW_THREADS;
    return binding_finish(&call, status);
"""
SCRATCH = """    if (call.wants_scratch) {{
        size_t needed = 0;
        const liger_status asked = liger_{op}_workspace(call.context, &args, &needed);
        if (asked != LIGER_OK) return binding_fail(&call, asked);
        if (!binding_scratch(&call, needed, &args.workspace, &args.workspace_bytes)) return binding_abandon(&call);
    }}
"""
QUERY = """    size_t bytes = 0;
    const liger_status status = liger_{op}{query}(call.context, &args, &bytes);
    return binding_finish_bytes(&call, status, bytes);
"""


def converter(index: int, field: Field, optional: bool) -> str:
    target = f"&args.{field.name}"
    if field.kind == "workspace":
        target += ", &args.workspace_bytes"
    call = f"!binding_{field.kind}(&call, {index}, {target})"
    return f"(argc > {index} && {call})" if optional else call


def emit_function(function: Function, query: str) -> str:
    """A query takes the same arguments as its function; the workspace may be left out."""
    most = len(function.fields)
    optional = [bool(query) and field.kind == "workspace" and i == most - 1 for i, field in enumerate(function.fields)]
    conversions = "".join(f" ||\n        {converter(i, f, optional[i])}" for i, f in enumerate(function.fields))
    return FUNCTION.format(
        name=function.name + query,
        op=function.name,
        fewest=most - sum(optional),
        most=most,
        conversions=conversions,
        body=(QUERY if query else CALL).format(
            op=function.name,
            query=query,
            scratch=SCRATCH.format(op=function.name) if "_workspace" in function.queries else "",
        ),
    )


def emit(functions: list[Function]) -> str:
    parts = ["/* Generated by tools/gen_binding.py from ops.def and the public headers; not to be edited. */\n"]
    parts.append('#include "binding.h"\n')
    parts += [f'#include "{header}"\n' for header in dict.fromkeys(function.header for function in functions)]
    table = []
    for function in functions:
        names = "".join(f'"{field.name}", ' for field in function.fields)
        parts.append(f"\nstatic const char *const names_{function.name}[] = {{{names}NULL}};\n")
        for query in ["", *function.queries]:
            parts.append(emit_function(function, query))
            name = function.name + query
            signature = ", ".join(field.name for field in function.fields)
            table.append(
                f'    {{"{name}", (PyCFunction)(void (*)(void))py_{name}, METH_FASTCALL, "{name}({signature})"}},\n'
            )
    parts.append("\nPyMethodDef binding_operators[] = {\n" + "".join(table) + "    {NULL, NULL, 0, NULL},\n};\n")
    return "".join(parts)


def main() -> None:
    output = Path(sys.argv[1])
    text = emit(read_functions())
    if not output.exists() or output.read_text() != text:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)


if __name__ == "__main__":
    main()
