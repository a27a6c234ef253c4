# SPDX-License-Identifier: Apache-2.0
"""Bring Debian's newest CRIU into a private prefix: apt resolves, fetches and verifies it; nothing of the system changes.

Debian 12's CRIU is too old for kernels of today, and the new one needs a newer C library.  So the whole closure of the
package (about 25 packages, 8 MB) is unpacked into a folder of its own and run by its own loader.  apt works with its own
state, cache and sources list; the signatures are checked with Debian's keyring; no package is *installed*.

Out of scope: whether the result works on this kernel (`criu_trial`).  Source: apt.conf(5), sources.list(5), dpkg-deb(1).
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from insula.kernel.criu_find import CriuProgram, in_prefix
from insula.model.errors import Unsupported

#: Debian's own name for its archive, for machines whose apt sources do not tell of a mirror.
FALLBACK_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = ("sid", "testing")
_APT_SECONDS = 600.0
_PART_PREFIX = "part-"

_APT_CONF = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::Retries "3";
"""

Report = Callable[[str], None]


def mirror_uris(text: str) -> list[str]:
    """Return the archive addresses that one apt sources file names, in its order: deb822 or one-line form."""
    found: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if match := re.match(r"URIs:\s*(.+)", stripped, re.IGNORECASE):
            found += match[1].split()
        elif match := re.match(r"deb(?:-src)?\s+(?:\[[^]]*]\s+)?(\S+)", stripped):
            found.append(match[1])
    return found


def choose_mirror(texts: Iterable[str]) -> str:
    """Choose the machine's own mirror of Debian's main archive: its path ends in `debian`, never `debian-security`."""
    for text in texts:
        for uri in mirror_uris(text):
            if urlsplit(uri).path.rstrip("/").endswith("/debian"):
                return uri
    return FALLBACK_MIRROR


def find_mirror(apt: Path = Path("/etc/apt")) -> str:
    """Read this machine's apt sources and return its mirror of Debian."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    kept = [file for file in files if file.suffix in (".list", ".sources") and file.is_file()]
    return choose_mirror(file.read_text(encoding="utf-8", errors="replace") for file in kept)


def fetch_criu(prefix: Path, report: Report) -> CriuProgram:
    """Unpack Debian's newest CRIU below `prefix` and return it.

    Raises: Unsupported if no suite of Debian has a CRIU for this processor or the archive cannot be reached.
    """
    if not KEYRING.is_file():
        raise Unsupported(
            f"cannot verify packages: `{KEYRING}` is missing", hint="apt-get install debian-archive-keyring"
        )
    reasons = []
    with tempfile.TemporaryDirectory(prefix="insula-apt-", dir="/var/tmp") as name:
        for suite in SUITES:
            folder = Path(name) / suite
            report(f"criu: fetching Debian {suite}'s criu and the libraries it needs, by apt")
            reason = _download(folder, suite)
            if not reason:
                return _unpack(folder / "cache/archives", prefix, report=report)
            reasons.append(f"{suite}: {reason}")
    raise Unsupported(
        f"cannot fetch `criu` from Debian: {'; '.join(reasons)}", hint="check the apt sources and the network"
    )


def _download(folder: Path, suite: str) -> str:
    # Returns "" or the reason; the folder is apt's whole world.
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(_APT_CONF.format(folder=folder), encoding="utf-8")
    source = f"deb [signed-by={KEYRING}] {find_mirror()} {suite} main\n"
    (folder / "sources.list").write_text(source, encoding="utf-8")
    for command in (("update", "-q"), ("install", "-q", "--yes", "--download-only", "criu")):
        reason = _apt_get(folder, command)
        if reason:
            return reason
    return ""


def _apt_get(folder: Path, arguments: tuple[str, ...]) -> str:
    environment = {
        **os.environ,
        "APT_CONFIG": str(folder / "apt.conf"),
        "DEBIAN_FRONTEND": "noninteractive",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(
            ("apt-get", *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_APT_SECONDS,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        return "`apt-get` is not installed on this machine"
    except subprocess.TimeoutExpired:
        return f"apt-get did not end within {_APT_SECONDS:.0f} s"
    # `apt-get update` reports an unreachable archive as a warning only; the install that follows then fails.
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    return (errors or done.stderr.splitlines() or [f"apt-get ended with {done.returncode}"])[0]


def _unpack(archives: Path, prefix: Path, *, report: Report) -> CriuProgram:
    # Beside the final place, made durable, then one rename: a killed set-up leaves only a `part-` folder.
    prefix.mkdir(parents=True, exist_ok=True)
    _remove_parts(prefix)
    packages = sorted(archives.glob("*.deb"))
    version = _version_of(packages)
    part = Path(tempfile.mkdtemp(prefix=_PART_PREFIX, dir=prefix))
    for package in packages:
        subprocess.run(("dpkg-deb", "-x", str(package), str(part)), check=True, stdin=subprocess.DEVNULL)
    part.chmod(0o755)
    _drop_unused(part)
    subprocess.run(("sync", "--file-system", str(part)), check=True)
    final = prefix / version
    if final.exists():
        final.rename(prefix / f"{_PART_PREFIX}old-{version}")
    part.rename(final)
    _remove_parts(prefix)
    report(f"criu: unpacked {len(packages)} packages into {final}")
    program = in_prefix(final, version)
    if program is None:
        raise Unsupported(f"cannot run `{final}`: it has no loader for this processor")
    return program


def _version_of(packages: list[Path]) -> str:
    for package in packages:
        if package.name.startswith("criu_"):
            return package.name.split("_")[1].replace("%3a", ":").split(":")[-1]
    raise Unsupported("cannot fetch `criu` from Debian: apt brought no such package")


def _drop_unused(part: Path) -> None:
    # Manuals and character set tables are two thirds of the closure's files.
    for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
        shutil.rmtree(part / unused, ignore_errors=True)


def _remove_parts(prefix: Path) -> None:
    for part in prefix.glob(f"{_PART_PREFIX}*"):
        shutil.rmtree(part, ignore_errors=True)
