"""The README's two examples, run as they stand there."""

import re

import c_program
import own_process
import pytest

EXAMPLE_PRINTS = re.compile(r"cpu-\w+: 0\.3651 0\.7303 1\.0954 1\.4606\n")  # the C example


def example(language: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", (c_program.ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1, f"README.md has {len(blocks)} {language} examples"
    return blocks[0]


def test_python_example(tmp_path):
    pytest.importorskip("transformers")
    program = tmp_path / "example.py"
    program.write_text(example("python"))
    loss = float(re.fullmatch(r"loss (\d+\.\d+)\n", own_process.output(program, timeout=300)).group(1))
    assert 6.5 < loss < 7.5  # ln 1000 = 6.9 before any training


def test_c_example(tmp_path):
    source = tmp_path / "example.c"
    source.write_text(example("c"))
    assert EXAMPLE_PRINTS.fullmatch(c_program.output(source, tmp_path / "example"))
