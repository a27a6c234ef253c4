# SPDX-License-Identifier: Apache-2.0
"""The one image of all programs: Debian's packages, and PyPI's below /opt/pypi, as a tar that is kept for the next run."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.matrix.program import Program

from insula.image.debian import command

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/matrix"
RELEASE = "bookworm"
PYTHON = "3.11"
"""Of that release."""
ALWAYS = ("python3", "procps")
DEADLINE_S = 1800.0
PYPI = "/opt/pypi"
_PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+")


class ImageFailed(Exception):
    """The image could not be built; the message ends with the last words of who failed."""


def get_image(programs: Iterable[Program]) -> Path:
    """Return the tar, built if these packages never were.  Raises: ImageFailed."""
    packages = sorted({*ALWAYS, *(word for each in programs for word in each.packages)})
    pypi = sorted({word for each in programs for word in each.pypi})
    key = hashlib.sha256(json.dumps([RELEASE, packages, pypi]).encode()).hexdigest()[:12]
    tar = FOLDER / f"{key}.tar"
    if not tar.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        print(f"matrix: building the image of {len(packages)} packages (some minutes, once)", flush=True)
        for old in FOLDER.glob("*.tar"):
            old.unlink()
        _build(tar, packages=packages, pypi=pypi)
    return tar


def _build(tar: Path, *, packages: list[str], pypi: list[str]) -> None:
    words = command(RELEASE, packages, mirror="")
    where = words.index("--")
    words[where:where] = [
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f"--customize-hook=copy-in {_download(pypi)} /opt",
    ]
    part = tar.with_suffix(".part")
    with open(part, "wb") as output:
        _run(words, output=output.fileno())
    os.rename(part, tar)


def _download(pins: list[str]) -> Path:
    """Fetch wheels for the image's Python, whichever runs this."""
    folder = FOLDER / "pypi"
    wrong = [pin for pin in pins if not _PIN.fullmatch(pin)]
    if wrong:
        raise ImageFailed(f"not pinned: {', '.join(wrong)}")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder)]
    words += ["--only-binary=:all:", "--python-version", PYTHON]
    _run([*words, *pins])
    return folder


def _run(words: list[str], *, output: int = subprocess.DEVNULL) -> None:
    try:
        done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageFailed(f"cannot run `{words[0]}`: {error}") from error
    if done.returncode:
        raise ImageFailed(f"`{words[0]}` failed:\n{done.stderr.decode(errors='replace')[-1500:]}")
