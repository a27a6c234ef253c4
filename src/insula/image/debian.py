# SPDX-License-Identifier: Apache-2.0
"""Build a layer from Debian's packages, by mmdebstrap, streamed into a folder.

The machine's own apt configuration (proxies, keys) is used, and its mirror unless another is named.  The words of a
caller are checked against what Debian allows, so none can become an option.  Out of scope: other distributions; where and as whom
mmdebstrap runs (`runtime/building.py`).
Source: mmdebstrap(1); Debian policy 5.6.1 (package names).
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from insula.image.layers import Filler, Layers, fill
from insula.image.tarball import Limits
from insula.kernel.readable import wait_readable
from insula.model.errors import (
    Cancelled,
    DiskFull,
    ImageTooLarge,
    InsulaError,
    InvalidImage,
    InvalidSpec,
    TookTooLong,
    Unsupported,
)
from insula.model.record import LayerRecord, Progress

DEADLINE_S = 1800.0
_STALL_CHECK_S = 0.5  # how soon a cancel is seen; progress is told as often
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_RELEASE = re.compile(r"[a-z][a-z0-9-]{1,30}")
_MIRROR = re.compile(r"https?://[A-Za-z0-9._~:/%\[\]-]+")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_MACHINE_SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
_UNKNOWN_PACKAGE = re.compile(
    r"Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation candidate"
)
_NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|You don't have enough free space")
_ERROR_LINES = 12

#: SOURCE_DATE_EPOCH bounds the times of files: two builds of the same packages are nearly the same.
_ENVIRONMENT = {
    "SOURCE_DATE_EPOCH": "1700000000",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

#: What a build leaves behind and no container needs.
_DROPPED = ("/var/lib/apt/lists/*", "/var/cache/apt/*", "/var/log/*", "/var/cache/ldconfig/*")


def check_words(release: str, packages: Sequence[str], *, mirror: str = "") -> None:
    """Refuse what is no release, package or mirror.  Raises: InvalidSpec."""
    if not _RELEASE.fullmatch(release):
        raise InvalidSpec(
            f"cannot build from Debian `{release[:80]}`: not a release's name", hint="such as bookworm"
        )
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise InvalidSpec(f"cannot install `{package[:80]}`: not a package's name")
    if mirror and not _MIRROR.fullmatch(mirror):
        raise InvalidSpec(f"cannot use mirror `{mirror[:80]}`: not an http or https address")


def machine_mirror() -> str:
    """Return the Debian mirror of this machine's apt sources."""
    for path in _MACHINE_SOURCES:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"^(?:URIs:\s*|deb\s+(?:\[[^\]]*\]\s+)?)(https?://\S+)", text, re.MULTILINE)
        if found and "debian" in found[1]:
            return found[1]
    return _DEFAULT_MIRROR


def command(release: str, packages: Sequence[str], *, mirror: str) -> list[str]:
    """Return the words of the build's command; its standard output is the tar."""
    words = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar"]
    words.append('--aptopt=Acquire::Languages "none"')
    words.append('--aptopt=APT::Install-Recommends "false"')
    if packages:
        words.append("--include=" + ",".join(packages))
    words += [
        f"--dpkgopt=path-exclude={path}"
        for path in ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*")
    ]
    words.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
    words += [f'--customize-hook=rm -rf -- "$1"{path}' for path in _DROPPED]
    return [*words, "--", release, "-", mirror or machine_mirror()]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a build may go on."""

    deadline: float
    """Monotonic seconds."""
    is_cancelled: Callable[[], bool] = lambda: False

    def check(self) -> None:
        """Raises: Cancelled, TookTooLong."""
        if self.is_cancelled():
            raise Cancelled("cannot finish the build: it was cancelled")
        if time.monotonic() > self.deadline:
            raise TookTooLong("cannot finish the build: it took too long", hint="try a nearer --mirror")


class Starter(Protocol):
    """Starts the program of a build; at the end of the block it has ended, with all that it has started and written.

    environment: beside the starter's own.  log: gets its standard error.
    """

    def __call__(
        self, words: Sequence[str], *, environment: Mapping[str, str], log: IO[bytes]
    ) -> AbstractContextManager[subprocess.Popen[bytes]]: ...


def build_debian(
    release: str,
    packages: Sequence[str],
    *,
    layers: Layers,
    start: Starter,
    patience: Patience,
    filler: Filler = fill,
    mirror: str = "",
    progress: Callable[[Progress], None] = lambda _: None,
    limits: Limits | None = None,
) -> LayerRecord:
    """Build a layer.  start: where mmdebstrap runs, as root.  filler: what unpacks.  limits: of what the build may put into it.

    Raises: InvalidSpec for a word that is none or a package that Debian has not, Cancelled, TookTooLong, InvalidImage with
    mmdebstrap's last words, Unsupported without mmdebstrap, DiskFull.  Nothing stays then.
    """
    check_words(release, packages, mirror=mirror)
    if shutil.which("mmdebstrap") is None:
        raise Unsupported(
            "cannot build a Debian image: `mmdebstrap` is not installed", hint="apt install mmdebstrap"
        )
    words = command(release, packages, mirror=mirror)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log, start(words, environment=_ENVIRONMENT, log=log) as process:
        source = _Output(process, patience=patience, progress=progress)
        try:
            record = layers.unpack(source, media=f"debian {release}", limits=limits, filler=filler)
        except ImageTooLarge:
            raise
        except InvalidImage as error:
            # An archive that ends early is mmdebstrap's failure; its words say more.
            raise _explain(log, release) from error
    progress(Progress(phase="done", message=f"{time.monotonic() - started:.1f} s"))
    return record


class _Output:
    """The build's tar; reading it watches deadline, cancel and exit."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        patience: Patience,
        progress: Callable[[Progress], None],
    ) -> None:
        self._process = process
        self._patience = patience
        self._progress = progress
        self._done = 0

    def read(self, size: int, /) -> bytes:
        pipe = self._process.stdout
        if pipe is None:
            return b""
        self._patience.check()
        while not wait_readable(pipe.fileno(), seconds=_STALL_CHECK_S):
            self._progress(Progress(phase="unpack" if self._done else "packages", done=self._done))
            self._patience.check()
        piece = os.read(pipe.fileno(), size)
        if not piece and self._wait() != 0:
            raise InvalidImage("cannot build: mmdebstrap failed")
        self._done += len(piece)
        return piece

    def _wait(self) -> int:
        while True:
            try:
                return self._process.wait(_STALL_CHECK_S)
            except subprocess.TimeoutExpired:
                self._patience.check()


def _explain(log: IO[bytes], release: str) -> InsulaError:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    for line in lines:
        if match := _UNKNOWN_PACKAGE.search(line):
            name = match[1] or match[2]
            return InvalidSpec(f"cannot install `{name}`: Debian {release} has no such package")
    if any(_NO_ROOM.search(line) for line in lines):
        return DiskFull(
            f"cannot build Debian `{release}`: there is no room for it", hint="give the tenant a larger disk"
        )
    errors = [line for line in lines if line.startswith(("E:", "W: Failed", "Err:"))] or lines
    return InvalidImage(f"cannot build Debian `{release}`: " + "; ".join(errors[-_ERROR_LINES:])[:2000])
