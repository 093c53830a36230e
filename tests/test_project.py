"""Rules about the repository itself."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MIB = 1 << 20


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_source_files_are_short() -> None:
    sources = [path for suffix in ("py", "cu", "cuh") for path in (ROOT / "src").rglob(f"*.{suffix}")]
    long = {str(path.relative_to(ROOT)): n for path in sources if (n := len(path.read_text().splitlines())) > 400}
    assert len(sources) > 30
    assert not long


def test_functions_are_short() -> None:
    """At most 60 lines after the docstring."""
    long = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
                if (node.end_lineno or 0) - (start or 0) > 60:
                    long.append(f"{path.name}:{node.name}")
    assert not long


def test_tracked_files_are_small_and_no_outputs() -> None:
    files = tracked_files()
    large = [str(p.relative_to(ROOT)) for p in files if p.stat().st_size > MIB and p.suffix != ".safetensors"]
    assert not large
    weights = [path.stat().st_size for path in files if path.suffix == ".safetensors"]
    assert max(weights) <= 20 * MIB and sum(weights) < 64 * MIB
    assert sum(path.stat().st_size for path in files) - sum(weights) < 12 * MIB
    goldens = [path for path in files if path.is_relative_to(ROOT / "tests" / "goldens")]
    assert sum(path.stat().st_size for path in goldens) < 8 * MIB
    outputs = re.compile(r"^(outputs|runs|rendered|build|dist)/|\.(pyc|part|ckpt|pt|pth|log)$|__pycache__|events\.out")
    names = [path.relative_to(ROOT).as_posix() for path in files]
    assert not [name for name in names if outputs.search(name)]


def test_no_unfinished_work_in_the_sources() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|\bbreakpoint\(|/work/|/tmp/")
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "src").rglob("*.py")
        for line in path.read_text().splitlines()
        if marks.search(line)
    ]
    assert not found


FLOORS = (
    {"errors", "cache", "choices"},
    {"device", "cameras", "gaussians", "mesh", "resampling"},
    {"views", "orbit_camera"},
    {"io", "contact_sheet"},
    {"raster", "weights", "preparation"},
    {"nn"},
    {"hub", "models", "surface", "data"},
    {"generators", "picture"},
    {"registry", "rendering", "conversion"},
    {"convert_checkpoint", "doctor", "pipelines", "training", "viewer"},
    {"generation", "direct_generation", "evaluation"},
    {"batch_generation", "app"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the ground up: each imports from floors below and from itself, not from its neighbours.

Modules `bench*` measure their room against others: they stand just below the command line, and only it imports them.
"""


def _imports(path: Path) -> set[str]:
    """Full names of what a file of maquette imports from maquette, types for checking included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("maquette.")}


def test_nothing_imports_upwards() -> None:
    package = ROOT / "src" / "maquette"
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    found = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert found - {"__init__"} == set(floor), "name the new room in FLOORS and in docs/architecture.md"
    wrong = []
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):  # the front door: it loads everything on demand
            continue
        bench_floor = floor["cli"] - 0.5
        mine = bench_floor if parts[-1].startswith("bench") else floor[parts[0]]
        for name in _imports(path):
            _, room, *rest = name.split(".")
            if any(part.startswith("bench") for part in rest[:1]):
                allowed = mine >= bench_floor
            elif room == parts[0]:
                allowed = room != "models" or rest[0] == parts[1]  # families do not know each other
            else:
                allowed = room not in floor or floor[room] < mine  # names of the front door are open to all
            if not allowed:
                wrong.append(f"{'/'.join(parts)} imports {name}")
    assert not wrong


def test_importing_maquette_is_light() -> None:
    code = (
        "import sys, maquette; print(sorted(m for m in ('torch', 'numpy', 'tyro') if m in sys.modules), dir(maquette))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("[] ")
    assert "generate" in shown


def test_every_public_name_can_be_imported() -> None:
    import maquette

    for name in maquette.__all__:
        assert getattr(maquette, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sculpt'"):
        _ = maquette.sculpt


def test_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    needed = (
        (ROOT / "examples").glob("*/transforms.json"),
        (ROOT / "src" / "maquette" / "weights").glob("*.safetensors"),
    )
    if not all(list(found) for found in needed):
        pytest.skip("this checkout has no example pictures or no embedded weights")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert target.startswith(("http", "mailto")) or (document.parent / target).exists(), (document, target)


def test_makefile_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"make {target}" in done.stdout for target in ("demo", "test", "test-full", "lint", "bench", "clean"))
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
