# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the one table, and the packages and modules that have a single door.

Imports are read by ast, the lazy ones inside functions too.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from syntax import tree_of

SOURCE = Path(__file__).parent.parent / "src/insula"

#: Package → the packages of insula that it may import, besides itself.
MAY_IMPORT = {
    "model": "",
    "kernel": "",
    "boot": "kernel",
    "image": "kernel model",
    "network": "kernel model",
    "runtime": "boot image network kernel model",
    "tenant": "model",
    "cluster": "model",
    "monitor": "kernel model",
    "export": "kernel model",
    "migrate": "runtime image network kernel model",
    "api": "tenant cluster monitor migrate runtime image network model",
    "daemon": "api tenant cluster monitor export migrate runtime boot image network kernel model",
    "client": "model",
    "cli": "client model",
}

#: Commands that work without a daemon: module → packages it may import in addition.
EXCEPTIONS = {
    "cli.commands.setup": "daemon",  # makes the host ready before a daemon can run
    "cli.commands.doctor": "kernel",  # tells why a daemon cannot run
    "cli.commands.daemon": "daemon",  # is the daemon
}

#: Module → the packages that may import it although the table does not let them import its package.  Standard library only.
SHARED_MODULES = {
    "insula.model.stream": "boot",  # the frames whose two ends are the spawner and a client
    "insula.kernel.unix_peer": "api",  # who calls
}

#: Third-party package → the packages or modules of insula that may import it.
DOORS = {
    "aiohttp": "api client daemon migrate",
    "msgspec": "model api client daemon migrate runtime tenant cluster image network cli monitor export",
    "cryptography": "daemon migrate tenant runtime.seal",
    "isal": "image.decompress",
    "zstandard": "image.zstd",
    "typing_extensions": "image.decompress",  # for the type checker only
    "dns": "network.names",
    "prometheus_client": "monitor.metrics",
    "textual": "cli.top.app cli.top.overview cli.top.detail",
    "opentelemetry": "export.otlp",
    "google": "export.otlp",  # protobuf, which the messages are made of
}

#: Module of the standard library → the only module that may import it, and why.
SINGLE_DOORS = {
    "ctypes": "kernel.libc",  # every prototype is declared once, with one check of errno
}

#: Packages that run under `python -SI` or beside a container's start: standard library only.
STANDARD_LIBRARY_ONLY = ("kernel", "boot")


class Import(NamedTuple):
    """One import: by which module, of what, in which line, and whether at the module's top level."""

    by: str
    of: str
    line: int
    is_top_level: bool


def _modules() -> Iterator[tuple[str, ast.Module, bool]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        yield name, tree_of(path), is_package


def _imports() -> Iterator[Import]:
    for name, tree, is_package in _modules():
        top_level = {id(node) for node in _top_level(tree.body)}
        for node in ast.walk(tree):
            for target in _targets(node, name, is_package):
                yield Import(name, target, getattr(node, "lineno", 0), id(node) in top_level)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.Try):
            yield from _top_level(node.body)


def _targets(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom():
            yield from _targets_from(node, module, is_package)


def _targets_from(node: ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        parts = ("insula", *module.split("."))
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join((*parts, base)).rstrip(".")
    for alias in node.names:
        # `from insula.kernel import libc` imports a module, not a name of `insula.kernel`.
        yield f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base


def _is_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


IMPORTS = tuple(_imports())


def _package(module: str) -> str:
    return module.split(".")[0]


def test_every_package_stands_in_the_table() -> None:
    packages = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert packages <= set(MAY_IMPORT), "a new package needs a line in MAY_IMPORT"


def test_the_table_has_no_circle() -> None:
    done: set[str] = set()
    waiting = dict(MAY_IMPORT)
    while ready := [name for name, allowed in waiting.items() if set(allowed.split()) <= done]:
        done.update(ready)
        waiting = {name: allowed for name, allowed in waiting.items() if name not in done}
    assert not waiting


def test_packages_import_only_what_the_table_allows() -> None:
    wrong = []
    for each in IMPORTS:
        if not each.of.startswith("insula.") or not each.by:
            continue
        own, other = _package(each.by), _package(each.of.removeprefix("insula."))
        allowed = {own, *MAY_IMPORT.get(own, "").split(), *EXCEPTIONS.get(each.by, "").split()}
        is_shared = own in SHARED_MODULES.get(each.of, "").split()
        if other in MAY_IMPORT and other not in allowed and not is_shared:
            wrong.append(f"{each.by}:{each.line} imports {each.of}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", SHARED_MODULES)
def test_shared_module_imports_the_standard_library_only(module: str) -> None:
    own = module.removeprefix("insula.")
    wrong = [
        each.of for each in IMPORTS if each.by == own and _package(each.of) not in sys.stdlib_module_names
    ]
    assert not wrong


@pytest.mark.parametrize("package", STANDARD_LIBRARY_ONLY)
def test_package_imports_the_standard_library_only(package: str) -> None:
    doors = {
        name for name, allowed in DOORS.items() if package in {_package(door) for door in allowed.split()}
    }
    wrong = [
        f"{each.by}:{each.line} imports {each.of}"
        for each in IMPORTS
        if _package(each.by) == package
        and _package(each.of) not in {*sys.stdlib_module_names, "insula", *doors}
    ]
    assert not wrong, "\n".join(wrong)


def test_third_party_packages_are_imported_through_their_doors() -> None:
    wrong = []
    for each in IMPORTS:
        root = _package(each.of)
        if root in sys.stdlib_module_names or root == "insula":
            continue
        allowed = DOORS.get(root, "").split()
        if each.by not in allowed and _package(each.by) not in allowed:
            wrong.append(f"{each.by}:{each.line} imports {each.of}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("module", "door"), SINGLE_DOORS.items())
def test_module_has_one_importer(module: str, door: str) -> None:
    wrong = [f"{each.by}:{each.line}" for each in IMPORTS if _package(each.of) == module and each.by != door]
    assert not wrong, f"only {door} imports {module}: {wrong}"


def test_the_cli_imports_heavy_packages_lazily() -> None:
    heavy = ("aiohttp", "cryptography", "asyncio")
    wrong = [
        f"{each.by}:{each.line} imports {each.of} at its top level"
        for each in IMPORTS
        if each.is_top_level and _package(each.of) in heavy and _package(each.by) in ("cli", "client")
    ]
    assert not wrong, "\n".join(wrong)
