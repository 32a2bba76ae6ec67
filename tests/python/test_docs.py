"""The documentation: its snippets run, its links lead somewhere, and every warning and variable is explained.

A block that opens with ```python is run; with ```python needs=PACKAGE only where that package is installed. The blocks of
a page are one program, in a process of its own.
"""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import re
import runpy
import string

import own_process
import pytest

from liger_kernel._exports import FAMILIES
from liger_kernel.transformers.messages import MESSAGES

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "python" / "liger_kernel"
PAGES = sorted((ROOT / "docs").glob("*.md"))

# ---- snippets --------------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"^```python(?: needs=(\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def packages(page: pathlib.Path) -> dict[str | None, bool]:
    """What blocks of the page need, None among it, and whether it is installed."""
    needs = dict.fromkeys(block[1] for block in BLOCK.finditer(page.read_text()))
    return {name: name is None or importlib.util.find_spec(name) is not None for name in needs}


def program(page: pathlib.Path) -> str:
    """All blocks whose package is installed, each on its lines of the page."""
    text, lines, here = page.read_text(), [], packages(page)
    for block in BLOCK.finditer(text):
        if here[block[1]]:
            first = text.count("\n", 0, block.start(2))
            lines += [""] * (first - len(lines)) + block[2].splitlines()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", [page for page in PAGES if packages(page)], ids=lambda page: page.name)
def test_snippets(page, tmp_path):
    pytest.importorskip("transformers", reason="needs transformers")
    file = tmp_path / f"{page.stem}.py"
    file.write_text(program(page))
    own_process.output(file, timeout=600)


@pytest.mark.parametrize("package", sorted({name for page in PAGES for name in packages(page) if name is not None}))
def test_snippets_of_a_package(package):
    """They are part of the page's program, or are left out by name."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    for page in PAGES:
        assert all(block[2] in program(page) for block in BLOCK.finditer(page.read_text()) if block[1] == package)


def test_no_block_is_forgotten():
    """A block is either run or in another language."""
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^ *```+ *py", text, re.MULTILINE)) == len(BLOCK.findall(text)), page.name


def test_the_demo_has_the_families_that_are_named():
    demo = runpy.run_path(str(ROOT / "examples" / "train.py"))
    assert "MODEL=" + ", ".join(demo["MODELS"]) + ";" in (ROOT / "Makefile").read_text()
    for _, _, family, _ in demo["MODELS"].values():
        assert family in FAMILIES


# ---- links -----------------------------------------------------------------------------------------------------------

HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: pathlib.Path) -> set[str]:
    """As they are made of headings on the pages that show Markdown."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(re.sub("`[^`]*`", "", page.read_text())):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if place.startswith("http"):
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# ---- warnings --------------------------------------------------------------------------------------------------------

TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()


def plain(markdown: str) -> str:
    return markdown.replace("*", "")


QUOTED = {  # heading -> the warning below it
    heading: plain(text) for heading, text in re.findall(r"^### ([\w-]+)\n\n> (.*)$", TROUBLESHOOTING, re.MULTILINE)
}
FIRST_CELLS = [plain(cell) for cell in re.findall(r"^\| (.*?) \|", TROUBLESHOOTING, re.MULTILINE)]


def of_format(text: str) -> str:
    """A pattern of what `text.format(...)` may become."""
    parts = string.Formatter().parse(text)
    return "".join(re.escape(literal) + ("" if field is None else ".+") for literal, field, _, _ in parts)


def of_expression(node: ast.expr) -> str:
    """A pattern of what a string or f-string in the source may become."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in parts)


def trees():
    return ((path, ast.parse(path.read_text())) for path in sorted(SOURCES.rglob("*.py")))


def is_text(node: object) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_warning_of_patching_has_its_paragraph(name):
    assert name in QUOTED, f"docs/troubleshooting.md has no '### {name}' with the text as a quotation below"
    assert re.fullmatch(of_format(MESSAGES[name]), QUOTED[name])


def other_warnings() -> list[str]:
    calls = (
        node
        for path, tree in trees()
        for node in ast.walk(tree)
        if path.name != "messages.py" and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    )
    return [
        of_expression(call.args[0]) for call in calls if ast.unparse(call.func) in ("warnings.warn", "logger.warning")
    ]


def test_every_other_warning_has_its_paragraph():
    found = other_warnings()
    assert found
    for pattern in found:
        assert any(re.fullmatch(pattern, text) for text in QUOTED.values()), pattern


def test_no_paragraph_is_left_over():
    patterns = [of_format(text) for text in MESSAGES.values()] + other_warnings()
    for heading, text in QUOTED.items():
        assert any(re.fullmatch(pattern, text) for pattern in patterns), heading


def reasons():
    """What may stand in a warning as the reason why a loss is not fused, or a forward not replaced."""
    for _, tree in trees():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and re.search("obstacle$|^cause_of_", function.name):
                values = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
                yield from (of_expression(value) for value in values if is_text(value))


def test_every_reason_has_its_row():
    found = list(reasons())
    assert len(found) > 10
    for pattern in found:
        assert any(re.fullmatch(pattern, cell) for cell in FIRST_CELLS), pattern


def test_a_warning_ends_with_its_paragraph(caplog, unpatched):
    unpatched._apply_liger_kernel("no-such-type")
    assert caplog.messages[-1].endswith("(docs/troubleshooting.md#unknown-model-type)")
    assert "unknown-model-type" in anchors(ROOT / "docs" / "troubleshooting.md")


# ---- options ---------------------------------------------------------------------------------------------------------

READ = re.compile(r'(?:getenv|environment_flag|environ\w*\.get)\(\s*b?"(LIGER_\w+)"')


def test_every_variable_is_explained():
    files = [*SOURCES.rglob("*.py"), *SOURCES.rglob("*.c"), *(ROOT / "liger").rglob("*.c")]
    read = {name for file in files for name in READ.findall(file.read_text())}
    options, architecture = (ROOT / "docs" / "options.md").read_text(), (ROOT / "ARCHITECTURE.md").read_text()
    assert len(read) > 5
    for page in (options, architecture):
        assert set(re.findall(r"^\| `(LIGER_\w+)` \|", page, re.MULTILINE)) == read
