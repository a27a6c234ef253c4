# SPDX-License-Identifier: Apache-2.0
"""That nobody watched a container while insulad was down is told, to whom what it does is told."""

from pathlib import Path

from hosted import Host, wait_until
from told import lines_of


def unwatched(path: Path) -> list[str]:
    return [each["name"] for each in lines_of(path) if each.get("event") == "unwatched"]


def test_a_gap_is_told_once_for_each_container_that_is_watched_and_lived_on(
    host: Host, tmp_path: Path
) -> None:
    sink = tmp_path / "sink"
    (host.folder / "export.toml").write_text(
        f'[[file]]\npath = "{sink}"\nkinds = ["exec"]\ncontainers = ["web", "gone", "later"]\n'
    )
    try:
        host.root("export", "reload")
        for name in ("web", "gone", "other"):
            host.root("run", "-d", "--name", name, "box", "sleep", "1000")
        host.root("kill", "gone")
        host.kill()
        host.start()
        host.root("run", "-d", "--name", "later", "box", "sleep", "1000")
        wait_until(lambda: sink.exists() and "later" in sink.read_text(), what="the next container")
        assert unwatched(sink) == ["web"]
    finally:
        (host.folder / "export.toml").unlink()
        host.root("export", "reload")
