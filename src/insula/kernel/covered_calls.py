# SPDX-License-Identifier: Apache-2.0
"""System calls that can do nothing which another cannot, too: who has the one is not harmed by the other.

A list of what an application has used, and may use, holds these as well.  Which form of a call is made hangs on things
that no recording brings up twice: whether a request comes in one piece or two (`pwrite64`, `pwritev`), which C library,
processor or start of a child it is (`open`, `openat`; `vfork`, `clone`).

Sources: the calls' own pages in section 2 of the manual.
"""

from collections.abc import Iterable

#: A call, and those that it can stand in for; a line holds for what stands in another line's list, too.
_TEXT = """
    read: readv
    readv: read
    pread64: preadv
    preadv: pread64
    preadv2: readv preadv
    write: writev
    writev: write
    pwrite64: pwritev
    pwritev: pwrite64
    pwritev2: writev pwritev
    recvmmsg: recvmsg
    recvmsg: recvfrom
    sendmmsg: sendmsg
    sendmsg: sendto
    clone: fork vfork
    fork: vfork
    vfork: fork
    epoll_pwait2: epoll_pwait
    epoll_pwait: epoll_wait
    ppoll: poll
    pselect6: select
    accept4: accept
    dup3: dup2
    epoll_create1: epoll_create
    eventfd2: eventfd
    inotify_init1: inotify_init
    pipe2: pipe
    signalfd4: signalfd
    openat2: openat
    openat: open
    open: creat
    faccessat2: faccessat
    faccessat: access
    statx: newfstatat
    newfstatat: stat lstat fstat
    getdents64: getdents
    readlinkat: readlink
    mkdirat: mkdir
    mknodat: mknod
    unlinkat: unlink rmdir
    linkat: link
    symlinkat: symlink
    renameat2: renameat
    renameat: rename
    fchmodat2: fchmodat
    fchmodat: chmod
    fchownat: chown lchown fchown
    utimensat: futimesat
    futimesat: utimes
    utimes: utime
    clock_nanosleep: nanosleep
    clock_gettime: gettimeofday time
    prlimit64: getrlimit setrlimit
    semtimedop: semop
"""
_COVERED = {
    call: tuple(others.split())
    for call, others in (line.strip().split(":") for line in _TEXT.strip().splitlines())
}


def allowed_by(used: Iterable[str], *, refused: Iterable[str] = ()) -> frozenset[str]:
    """Return what may be called by who has used some calls and was refused others, by name: the used, and what they cover."""
    seen = frozenset(used)
    found, left = set(seen), list(seen)
    while left:
        new = set(_COVERED.get(left.pop(), ())) - found
        found |= new
        left += new
    return frozenset(found - (frozenset(refused) - seen))
