"""The README's two examples, run as they stand there."""

import os
import pathlib
import re
import shutil
import subprocess

import own_process
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


EXAMPLE_PRINTS = re.compile(r"cpu-\w+: 0\.3651 0\.7303 1\.0954 1\.4606\n")  # the C example


def example(language: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1, f"README.md has {len(blocks)} {language} examples"
    return blocks[0]


def test_python_example(tmp_path):
    pytest.importorskip("transformers")
    program = tmp_path / "example.py"
    program.write_text(example("python"))
    loss = float(re.fullmatch(r"loss (\d+\.\d+)\n", own_process.output(program, timeout=300)).group(1))
    assert 6.5 < loss < 7.5  # ln 1000 = 6.9 before any training


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on PATH")
def test_c_example(tmp_path):
    build = os.environ.get("LIGER_NATIVE_DIR")
    if not build or not (pathlib.Path(build) / "libliger.so").exists():
        pytest.skip("LIGER_NATIVE_DIR does not point at a build with libliger.so")
    source, program = tmp_path / "example.c", tmp_path / "example"
    source.write_text(example("c"))
    command = ["cc", "-std=c99", "-Wall", "-Werror", f"-I{ROOT}", source, "-o", program]
    command += [f"-L{build}", "-lliger", f"-Wl,-rpath,{pathlib.Path(build).resolve()}"]
    subprocess.run(command, check=True, timeout=120)
    out = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stdout
    assert EXAMPLE_PRINTS.fullmatch(out.stdout)
