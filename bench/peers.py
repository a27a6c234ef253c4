# SPDX-License-Identifier: Apache-2.0
"""The peers that insula is measured beside: crun, runc, bwrap and podman, each with the same program and namespaces.

A peer that is not installed is brought by apt if that works; one that does not run here is reported with its own words.
Their root file system is a folder with /bin/true and its libraries.  Namespaces: user, pid, mount, net, ipc, uts, cgroup
(podman run by root has no user namespace by default).  No network is configured anywhere.
Sources: OCI runtime specification, config.md; bwrap(1); containers.conf(5).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from insula.kernel import libc

PACKAGES = {
    "crun": ("crun",),
    "runc": ("runc",),
    "bwrap": ("bubblewrap",),
    "podman": ("podman", "conmon", "netavark", "aardvark-dns", "runc", "uidmap", "iptables"),
}
PROGRAM = "/bin/true"
APT_SECONDS = 240
RUN_SECONDS = 60
MAPPED = 65536
UNIFIED = Path("/sys/fs/cgroup/unified")
CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 0x4000, 1 << 18, 2
FIRST_UID = 1 << 24
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")
#: This machine gives no more to a process without CAP_SYS_RESOURCE; podman asks for a million otherwise.
PODMAN_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
"""


@dataclass(kw_only=True)
class Peer:
    """One peer.  `run` does create + start + exit + delete once, and raises PeerFailed."""

    name: str
    run: Callable[[], None]
    end: Callable[[], None] = lambda: None
    words: str = ""
    """Why it cannot be measured here; empty: it can."""


class PeerFailed(Exception):
    """A peer's own words about its failure."""


def install() -> None:
    """Bring the peers that are missing, as far as this machine's package sources have them."""
    wanted = sorted(
        {package for name, all_ in PACKAGES.items() if not shutil.which(name) for package in all_}
    )
    if not wanted or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    print(f"bench: bringing {' '.join(wanted)} by apt", flush=True)
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(
            command,
            env=environment,
            capture_output=True,
            timeout=APT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        print("bench: apt did not end in time", flush=True)


def prepare(folder: Path) -> list[Peer]:
    """Return all peers, tried once; those that failed say why."""
    root = folder / "rootfs"
    _make_root(root)
    makers = {"crun": _crun, "runc": _runc, "bwrap": _bwrap, "podman": _podman}
    return [_tried(name, make, folder=folder, root=root) for name, make in makers.items()]


def _tried(name: str, make: Callable[[Path, Path], Peer], *, folder: Path, root: Path) -> Peer:
    if shutil.which(name) is None:
        return Peer(name=name, run=_nothing, words="not installed")
    place = folder / name
    place.mkdir(mode=0o755)
    try:
        peer = make(place, root)
        peer.run()
    except (PeerFailed, OSError, subprocess.TimeoutExpired) as error:
        return Peer(name=name, run=_nothing, words=str(error)[:300])
    return peer


def _nothing() -> None:
    return


def command(*words: str, environment: dict[str, str] | None = None) -> None:
    """Run a peer's command.  Raises: PeerFailed with its last words."""
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        timeout=RUN_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"ended with {done.returncode}"]
        raise PeerFailed(said[-1])


def libraries(listing: str) -> list[str]:
    """Return the files that a listing of ldd(1) names."""
    words = (word for line in listing.splitlines() for word in line.split())
    return sorted({word for word in words if word.startswith("/")})


def _make_root(root: Path) -> None:
    listing = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    for file in (PROGRAM, *libraries(listing)):
        target = root / file.lstrip("/")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(file), target)
    for name in ("proc", "dev", "sys", "tmp"):
        (root / name).mkdir(mode=0o755, exist_ok=True)
    root.chmod(0o755)


def configuration(root: Path) -> dict[str, object]:
    """Return an OCI config.json for the program."""
    mapping = [{"containerID": 0, "hostID": FIRST_UID, "size": MAPPED}]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [PROGRAM],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "namespaces": [{"type": name} for name in NAMESPACES],
            "uidMappings": mapping,
            "gidMappings": mapping,
        },
    }


def _bundle(place: Path, root: Path) -> Path:
    (place / "config.json").write_text(json.dumps(configuration(root)), encoding="utf-8")
    return place


def _crun(place: Path, root: Path) -> Peer:
    words = [
        *("crun", f"--root={place}/state", "--cgroup-manager=disabled", "run"),
        *("--bundle", str(_bundle(place, root)), "insula-bench-crun"),
    ]
    # One thread with a view of its own; what it starts inherits the view.
    thread = ThreadPoolExecutor(max_workers=1, initializer=hide_hybrid)
    return Peer(name="crun", run=lambda: thread.submit(command, *words).result(), end=thread.shutdown)


def hide_hybrid() -> None:
    """Have the calling thread see no cgroup v2 beside v1: crun refuses such a host, though it is told to use neither."""
    libc.unshare(CLONE_NEWNS)
    libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    if UNIFIED.is_dir() and os.path.ismount(UNIFIED):
        libc.umount2(str(UNIFIED).encode(), MNT_DETACH)


def _runc(place: Path, root: Path) -> Peer:
    words = ["runc", "--root", f"{place}/state", "run", "--bundle", str(_bundle(place, root))]
    return Peer(name="runc", run=lambda: command(*words, "insula-bench-runc"))


def _bwrap(place: Path, root: Path) -> Peer:
    words = [
        "bwrap",
        "--unshare-all",
        "--bind",
        str(root),
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--uid",
        "0",
    ]
    return Peer(name="bwrap", run=lambda: command(*words, PROGRAM))


def _podman(place: Path, root: Path) -> Peer:
    (place / "containers.conf").write_text(PODMAN_CONFIGURATION, encoding="utf-8")
    environment = {"CONTAINERS_CONF": str(place / "containers.conf")}
    base = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp"]
    archive = place / "root.tar"
    command("tar", "-C", str(root), "-cf", str(archive), ".")
    command(*base, "import", str(archive), "localhost/true", environment=environment)
    words = [*base, "run", "--rm", "--network", "none", "localhost/true", PROGRAM]

    def end() -> None:
        try:
            command(*base, "system", "reset", "--force", environment=environment)
        except (PeerFailed, subprocess.TimeoutExpired) as error:
            print(f"bench: podman left its store: {error}", flush=True)

    return Peer(name="podman", run=lambda: command(*words, environment=environment), end=end)
