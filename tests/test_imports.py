"""The house's rules: who may import whom, what a verifier loads, what no file may name."""

import ast
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import guard

ROOT = Path(__file__).parents[1]

# From the top of the house down: a part imports itself and what stands below it.
ORDER = ["flows", "tasks", "blocks", "aicert.agent", "aicert"]

VERIFIER = {"cryptography", "rfc8785", "click"}
LAZY = {
    "yaml": {"aicert/policy.py", "aicert/marked.py"},
    "rfc3161_client": {"aicert/timestamp.py"},
    "segno": {"aicert/views/page.py"},
}


def sources(part: str) -> Iterator[Path]:
    for path in sorted((ROOT / part.replace(".", "/")).rglob("*.py")):
        if part != "aicert" or not path.is_relative_to(ROOT / "aicert" / "agent"):
            yield path


def imports(path: Path, *, module_level: bool = False) -> Iterator[str]:
    """The modules that a file imports; at module level only, where asked."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if module_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        nodes.append(node)
        pending.extend(ast.iter_child_nodes(node))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str | None:
    for part in ORDER:
        if module == part or module.startswith(f"{part}."):
            return part
    return None


@pytest.mark.parametrize("part", ORDER)
def test_imports_run_one_way(part: str) -> None:
    allowed = ORDER[ORDER.index(part) :]
    found = 0
    for path in sources(part):
        found += 1
        for module in imports(path, module_level=part == "aicert"):
            target = part_of(module)
            assert target is None or target in allowed, f"{path} imports {module}"
    assert found


@pytest.mark.parametrize("path", list(sources("aicert")), ids=lambda p: p.name)
def test_the_verifier_imports_three_packages_and_no_others(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    for module in imports(path):
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top in VERIFIER or top in ORDER:
            continue
        assert name in LAZY.get(top, ()), f"{name} imports {module}"
    for module in imports(path, module_level=True):
        assert module.partition(".")[0] not in LAZY, f"{name} imports {module} when it is loaded"


@pytest.mark.parametrize("module", ["aicert.verify", "aicert.cli"])
def test_loading_the_verifier_loads_nothing_heavy(module: str) -> None:
    heavy = "prefect tpm2_pytss pydantic yaml fsspec httpx starlette rfc3161_client aicert.agent"
    heavy += " logging asyncio concurrent.futures"  # of the standard library, and not needed
    code = f"import sys, {module}; print(*(set({heavy.split()!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a git checkout")
def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    # In pieces, so that this file does not hold them.
    forbidden = [
        "pypi" + ".org",
        "python" + "hosted",
        "deb.debian" + ".org",
        "registry.npmjs" + ".org",
        "download.py" + "torch",
        "index" + "-url",
        "find" + "-links",
        "/work" + "/main",
        "/work" + "/shared",
        "/root" + "/.",
    ]
    files = tracked()
    assert files
    for path in files:
        if path.is_symlink() or not path.is_file():
            continue
        text = path.read_bytes()
        for word in forbidden:
            assert word.encode() not in text, f"{path.relative_to(ROOT)} holds {word!r}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a git checkout")
def test_nobody_is_told_to_install_aicert_from_an_index() -> None:
    # There the name is another project's: whoever followed the advice would run its code.
    by_name = re.compile(rb"pip3? install [^\n.]*['\" ]aicert\b")
    assert by_name.search(b"pip install 'AICERT[azure]'".lower())
    for path in tracked():
        if path.is_file() and path.parts[-2:] != ("decisions", "0008-not-on-an-index.md"):
            told = by_name.search(path.read_bytes())
            assert told is None, f"{path.relative_to(ROOT)} says {told[0]!r}"


@pytest.mark.tries_outside
def test_a_test_cannot_leave_this_machine() -> None:
    with pytest.raises(ConnectionRefusedError), socket.socket() as outside:
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(ConnectionRefusedError):
        socket.getaddrinfo("example.invalid", 80)


def test_the_guard_holds_in_a_process_of_its_own(tmp_path: Path) -> None:
    tries = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"
    command = [
        sys.executable,
        "-I",
        guard.__file__,
        str(tmp_path / "tried"),
        "timeit",
        "-n1",
        "-r1",
    ]
    done = subprocess.run([*command, tries], capture_output=True, text=True)
    assert "tests may not leave this machine" in done.stderr
    assert (tmp_path / "tried").read_text() == "a connection to ('192.0.2.1', 9)\n"
    done = subprocess.run([*command, "import socket"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
