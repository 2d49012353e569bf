"""The build: what each RECURVE_BUILD does where the compiler fails, and where nothing is asked for."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    """A copy of all that a build reads, without anything built."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "recurve", "ablations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.npz"))
    return tmp_path


def build(checkout, mode, compiler="/bin/false"):
    environment = os.environ | {"RECURVE_BUILD": mode, "CXX": compiler, "CC": compiler}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_a_failed_build_in_mode_auto_succeeds_loudly_and_leaves_no_stale_extension(checkout):
    stale = checkout / "recurve" / "_C.stale.so"
    stale.touch()
    result = build(checkout, "auto")
    assert result.returncode == 0
    assert "could not be built" in result.stderr
    assert "native ops" in result.stderr
    assert not stale.exists()


def test_mode_cpu_fails_where_the_compiler_does(checkout):
    assert build(checkout, "cpu").returncode != 0


def test_mode_cuda_fails_with_its_reason(checkout):
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    result = build(checkout, "cuda", compiler="g++")
    assert result.returncode != 0
    assert "built without CUDA" in result.stderr


def test_an_unknown_mode_names_the_allowed_ones(checkout):
    result = build(checkout, "fast")
    assert result.returncode != 0
    assert "auto, cpu, cuda, none" in result.stderr


def test_mode_none_builds_nothing(checkout):
    assert build(checkout, "none").returncode == 0
    assert not list((checkout / "recurve").glob("*.so"))


def test_the_tree_of_make_sanitize_holds_all_that_its_tests_need(checkout):
    makefile = (ROOT / "Makefile").read_text()
    suites = re.search(r"^SANITIZED := (.*)$", makefile, re.MULTILINE)[1].split()
    for name in re.search(r"cp -R (.*) build/sanitize$", makefile, re.MULTILINE)[1].split():
        path = ROOT / name
        shutil.copytree(path, checkout / name) if path.is_dir() else shutil.copy(path, checkout)
    files = [str(checkout / "tests/recurve" / f"test_{suite}.py") for suite in suites]
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *files]
    found = subprocess.run(command, env=environment, cwd=checkout.parent, capture_output=True, text=True)
    assert found.returncode == 0, f"{found.stdout[-1000:]}{found.stderr[-1000:]}"
