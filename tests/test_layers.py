"""Imports run one way: eiexport core <- targets <- eitrain <- command lines."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# the command line's own modules may import downwards, and only when they run
COMMANDS = {"eiexport/cli.py", "eiexport/session.py", "eiexport/lossy.py"}
FORBIDDEN = {"eiexport": {"targets", "eitrain", "torch", "norse"}, "targets": {"eitrain", "norse"}, "eitrain": set()}
FILES = sorted(p.relative_to(ROOT).as_posix() for package in FORBIDDEN for p in (ROOT / package).rglob("*.py"))


def imports(tree: ast.AST) -> set[str]:
    """Top-level packages that are imported anywhere below a syntax node."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES)
def test_imports_run_one_way(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    if path in COMMANDS:
        # lazily: inside functions, never when the module is loaded
        tree.body = [n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert not imports(tree) & FORBIDDEN[path.split("/")[0]]


def test_the_rule_covers_every_package() -> None:
    assert {f.split("/")[0] for f in FILES} == set(FORBIDDEN) and len(FILES) > 30


def test_the_core_loads_without_torch() -> None:
    """The Lava environment holds no torch; reading, checking and running a step must not ask for it."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import eiexport.graph, eiexport.check, eiexport.passes, eiexport.trace, targets.loop, targets.reference\n"
        "assert 'norse' not in sys.modules and 'eitrain' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_file_is_too_long() -> None:
    long = {f: n for f in FILES if (n := len((ROOT / f).read_text().splitlines())) > 500}
    assert not long
