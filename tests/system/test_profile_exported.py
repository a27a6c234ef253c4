# SPDX-License-Identifier: Apache-2.0
"""`insula profile export --seccomp`: with the exported file the same program runs under runc and crun, and no more does."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bench import peers

from hosted import DEADLINE_S, Host

#: Makes a thread, which needs clone(2), and ends by exit_group(2), which never comes back.
PROGRAM = """
import threading
thread = threading.Thread(target=print, args=("done",))
thread.start()
thread.join()
"""
MORE = 'import os\ntry: os.mkfifo("/tmp/f")\nexcept OSError as error: print(error.strerror)'
RUNTIMES = ("runc", "crun")


@pytest.fixture(scope="module")
def seccomp_of(module_host: Host) -> Iterator[Any]:
    """The exported list for a runtime."""
    root = module_host.root
    root("create", "--name", "c", "--network", "none", "host", "/usr/bin/python3", "-Suc", PROGRAM)
    root("profile", "record", "c")
    assert root("start", "-a", "c") == "done"
    root("profile", "stop", "c", "p")
    yield lambda runtime: root.json("profile", "export", "--seccomp", "--for", runtime, "p")
    root("profile", "rm", "p")
    module_host.remove_all()


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that users of a user namespace reach."""
    with tempfile.TemporaryDirectory(prefix="insula-test-bundle-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.parametrize("no_new_privs", [True, False], ids=["no_new_privs", "privs"])
@pytest.mark.parametrize("meant", ["same", "any"])
def test_an_exported_list_is_enough_for_the_program_and_its_start(
    seccomp_of: Any, runtime: str, place: Path, no_new_privs: bool, meant: str
) -> None:
    bundle = Bundle(place, runtime, seccomp=seccomp_of(runtime if meant == "same" else meant))
    assert bundle.run(PROGRAM, no_new_privs=no_new_privs) == "done\n"


def test_what_was_not_recorded_is_refused(seccomp_of: Any, runtime: str, place: Path) -> None:
    bundle = Bundle(place, runtime, seccomp=seccomp_of("any"))
    assert bundle.run(MORE, no_new_privs=True) == "Operation not permitted\n"


def test_wrong_wishes_are_explained(module_host: Host) -> None:
    assert "cannot export for `x`" in module_host.root.fails(
        "profile", "export", "--seccomp", "--for", "x", "p", code=125
    )
    assert "it is about --seccomp" in module_host.root.fails(
        "profile", "export", "--for", "runc", "p", code=125
    )


class Bundle:
    """What a runtime runs: this host's /usr under a seccomp list."""

    def __init__(self, folder: Path, runtime: str, *, seccomp: Any) -> None:
        self._folder, self._runtime, self._seccomp = folder, runtime, seccomp
        self._root = folder / "rootfs"
        for name in ("proc", "dev", "tmp", "usr"):
            (self._root / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64"):
            (self._root / name).symlink_to(f"usr/{name}")

    def run(self, program: str, *, no_new_privs: bool) -> str:
        configuration: Any = peers.configuration(self._root)
        configuration["process"] |= {
            "args": ["/usr/bin/python3", "-Suc", program],
            "noNewPrivileges": no_new_privs,
        }
        configuration["mounts"] += [
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        ]
        configuration["linux"]["seccomp"] = self._seccomp
        (self._folder / "config.json").write_text(json.dumps(configuration))
        words = [self._runtime, f"--root={self._folder}/state"]
        words += ["--cgroup-manager=disabled"] if self._runtime == "crun" else []
        words += ["run", "--bundle", str(self._folder), f"insula-test-{self._runtime}"]
        # A thread with a view of its own, in which crun sees no cgroup v2 beside v1.
        with ThreadPoolExecutor(max_workers=1, initializer=peers.hide_hybrid) as thread:
            done = thread.submit(_run, words).result()
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout


def _run(words: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=DEADLINE_S, stdin=subprocess.DEVNULL
    )
