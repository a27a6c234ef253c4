# SPDX-License-Identifier: Apache-2.0
"""The house rules that a machine can check: layout, types, sizes, heads of files, and banned calls with their reasons."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syntax import tree_of

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/insula"
FILE_LINES = 500
FUNCTION_LINES = 60
SPDX = "# SPDX-License-Identifier: Apache-2.0"
CHECKED_FOLDERS = ("src", "tests", "bench", "demo")

#: Dotted call → why it is banned in src.
BANNED_CALLS = {
    "os.system": "a shell resolves words twice; give a list of arguments",
    "os.popen": "a shell resolves words twice; give a list of arguments",
    "subprocess.getoutput": "a shell resolves words twice; give a list of arguments",
    "eval": "input is decoded, never executed",
    "exec": "input is decoded, never executed",
    "yaml.load": "builds any object that the text names",
    "pickle.load": "builds any object that the bytes name",
    "pickle.loads": "builds any object that the bytes name",
    "time.sleep": "wait for a condition with a deadline",
    "tempfile.mktemp": "the name can be taken by somebody else in between",
}
#: Module → why it is banned in src.
BANNED_MODULES = {
    "pickle": "builds any object that the bytes name",
    "marshal": "builds any object that the bytes name",
    "shelve": "is pickle",
}
#: Method, on whatever object → why it is banned in src.
BANNED_METHODS = {"extractall": "a tar may name paths outside: unpack beneath a directory descriptor"}
#: Keyword argument → why it is banned in src.
BANNED_KEYWORDS = {
    "preexec_fn": "runs Python between fork and exec of a threaded process; ask the spawner",
}
#: These follow or change whatever a path leads to; a container's own links lead anywhere.  Call → modules that use it on
#: folders that only root can change.
PATH_CALLS = {
    "shutil.rmtree": {
        "daemon.criu_fetch": "private prefix and apt's own folder",
        "kernel.trials.files": "the probe's own folder",
        "image.layers": "the store of layers, below a folder that only root enters",
    },
    "os.chown": {
        "boot.program": "inside the container's own root, after pivot_root",
        "daemon.main": "the daemon's own socket",
        "image.host": "a copy made in a folder that only root enters",
    },
    "shutil.chown": {},
}
#: The three doors at which any error is caught, logged and answered (a request, an operation, the daemon's loop), as
#: module names, and the child processes, which send their error as data.
BROAD_EXCEPT_DOORS = {
    "api.server": "a request: logged, answered with `internal`",
    "daemon.operations": "an operation: logged, its end is the error",
    "daemon.main": "the daemon's loop: logged",
    "boot.child": "a child sends its error as data",
    "boot.engine": "a child sends its error as data",
    "boot.spawner": "a request: answered with the step that failed",
    "boot.loop": "a callback: logged, the loop goes on",
    "kernel.criu": "raised again once CRIU has undone its work",
}


def _python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _c_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.[ch]"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def _nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in _python_files("src"):
        for node in ast.walk(tree_of(path)):
            yield _module(path), node


NODES = tuple(_nodes())


def _calls() -> Iterator[tuple[str, ast.Call, str]]:
    for module, node in NODES:
        if isinstance(node, ast.Call):
            yield module, node, ast.unparse(node.func)


def _run(*command: str) -> None:
    done = subprocess.run(
        (sys.executable, "-m", *command), capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}", pytrace=False)


def test_layout_is_ruffs() -> None:
    _run("ruff", "format", "--check", "--quiet", ".")


def test_lint_finds_nothing() -> None:
    _run("ruff", "check", "--quiet", "--output-format=concise", ".")


def test_types_are_strict() -> None:
    _run("mypy", "--strict")


def test_every_file_has_a_licence_line_and_a_docstring() -> None:
    wrong = []
    for path in _python_files(*CHECKED_FOLDERS):
        text = path.read_text(encoding="utf-8")
        is_empty_package = path.name == "__init__.py" and text.strip() == SPDX
        if text.splitlines()[:1] != [SPDX] or not (is_empty_package or ast.get_docstring(tree_of(path))):
            wrong.append(str(path.relative_to(ROOT)))
    for path in _c_files():
        first, second = path.read_text(encoding="utf-8").splitlines()[:2]
        if SPDX.removeprefix("# ") not in first or not second.startswith("/* "):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong, f"no SPDX line or no docstring: {wrong}"


def test_no_file_is_too_long() -> None:
    sizes = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in (*_python_files(*CHECKED_FOLDERS), *_c_files())
    }
    wrong = [
        f"{path.relative_to(ROOT)}: {lines} lines" for path, lines in sizes.items() if lines > FILE_LINES
    ]
    assert not wrong, "\n".join(wrong)


def test_no_function_is_too_long() -> None:
    wrong = []
    for module, node in NODES:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                wrong.append(f"{module}.{node.name}: {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_banned_calls() -> None:
    wrong = [
        f"{module}:{node.lineno} {name}: {BANNED_CALLS[name]}"
        for module, node, name in _calls()
        if name in BANNED_CALLS
    ]
    assert not wrong, "\n".join(wrong)


def test_banned_methods_and_keywords() -> None:
    wrong = []
    for module, node, name in _calls():
        method = name.rsplit(".", 1)[-1]
        if method in BANNED_METHODS:
            wrong.append(f"{module}:{node.lineno} {name}: {BANNED_METHODS[method]}")
        for keyword in node.keywords:
            if keyword.arg in BANNED_KEYWORDS:
                wrong.append(f"{module}:{node.lineno} {keyword.arg}=: {BANNED_KEYWORDS[keyword.arg]}")
            if keyword.arg == "shell" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                wrong.append(
                    f"{module}:{node.lineno} shell=: a shell resolves words twice; give a list of arguments"
                )
    assert not wrong, "\n".join(wrong)


def test_banned_modules() -> None:
    wrong = []
    for module, node in NODES:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        wrong += [
            f"{module} imports {name}: {BANNED_MODULES[name]}" for name in names if name in BANNED_MODULES
        ]
    assert not wrong, "\n".join(wrong)


def test_calls_that_follow_paths_stand_in_named_modules_only() -> None:
    wrong = [
        f"{module}:{node.lineno} {name}: a path of a container may lead anywhere; use a directory descriptor"
        for module, node, name in _calls()
        if name in PATH_CALLS and module not in PATH_CALLS[name] and not _is_beneath_descriptor(node)
    ]
    assert not wrong, "\n".join(wrong)


def _is_beneath_descriptor(call: ast.Call) -> bool:
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return "dir_fd" in keywords and keywords.get("follow_symlinks") == "False"


def test_no_assert_in_the_source() -> None:
    wrong = [f"{module}:{node.lineno}" for module, node in NODES if isinstance(node, ast.Assert)]
    assert not wrong, f"assert vanishes with -O; raise an error: {wrong}"


def test_broad_excepts_stand_at_the_doors_only() -> None:
    wrong = []
    for module, node in NODES:
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            wrong.append(f"{module}:{node.lineno} bare except")
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        is_broad = any(ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)
        if is_broad and module not in BROAD_EXCEPT_DOORS and not _raises_again(node):
            wrong.append(f"{module}:{node.lineno} except {ast.unparse(node.type)}")
    assert not wrong, "\n".join(wrong)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    # Undoing a step and passing the error on hides nothing.
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_what_a_log_line_tells_is_told_as_fields() -> None:
    """Anything else in `extra` is never written (`daemon/log.py`)."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if "extra={" in line and 'extra={"fields"' not in line
    ]
    assert not found, "\n".join(found)
