# SPDX-License-Identifier: Apache-2.0
"""Which mounts CRIU packs in the pause."""

from insula.migrate.packed import tmpfs_places

MOUNTINFO = """\
214 213 0:43 / / rw,relatime - overlay insula rw,lowerdir+=/
218 214 0:50 / /dev rw,nosuid,noexec - tmpfs dev rw,mode=755
224 218 0:55 / /dev/shm rw,nosuid,nodev - tmpfs shm rw
230 214 0:56 / /srv/a\\040b rw,nosuid,nodev shared:3 - tmpfs tmpfs rw,size=4k
231 214 0:50 /.empty /proc/kcore rw,nosuid - tmpfs dev rw,mode=755
233 214 0:61 / /sys/firmware ro,nosuid - tmpfs tmpfs ro
232 214 0:60 / /proc rw,nosuid - proc proc rw
"""


def test_own_tmpfs_that_can_be_written_to_are_found() -> None:
    assert tmpfs_places(MOUNTINFO) == ("/dev/shm", "/srv/a b")
