# SPDX-License-Identifier: Apache-2.0
"""Which system calls a container may make: an allow-list, as data.

What is in no list here is refused with EPERM; what has no number on the architecture, with ENOSYS.  Out of scope: how it
becomes a program (`seccomp`).  The list follows what docker and podman users can rely on.
"""

from enum import IntEnum
from typing import NamedTuple

CLONE_NEW_MASK = 0x7E020000  #: NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET
#: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET: those that programs use and CRIU can carry.  For any other the kernel
#: may load a module (net-pf-N), whose code is seldom looked at, and AF_ALG and AF_VSOCK are no namespace's.
FAMILIES = (1, 2, 10, 16, 17)

#: PER_LINUX, PER_LINUX32, UNAME26, both, and the question "which is it": nothing that weakens address randomization.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

#: With every set of capabilities.
_ALWAYS_TEXT = """
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat
    dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
    execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod
    fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr file_getattr file_setattr flistxattr flock
    fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid
    getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
    getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
    io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr
    listxattrat llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr lstat madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap
    modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
    prctl pread64 preadv preadv2 prlimit64 process_madvise process_mrelease process_vm_readv process_vm_writev
    pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg
    recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg
    sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer
    setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
    timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
    times tkill truncate umask uname unlink unlinkat uprobe uretprobe utime utimensat utimes vfork vmsplice
    wait4 waitid write writev
"""
ALWAYS = frozenset(_ALWAYS_TEXT.split())

#: With one of these capabilities: in its own user namespace it cannot reach the host's, but the code behind it is large.
BY_CAPABILITY = {
    "SYS_ADMIN": "bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime settimeofday",
    "SYS_TTY_CONFIG": "vhangup",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYSLOG": "syslog",
    "BPF": "bpf",
    "PERFMON": "perf_event_open",
    "DAC_READ_SEARCH": "open_by_handle_at",
}

#: What a system inside a container needs to make containers itself; its user namespace is what holds it.
_NESTED_TEXT = (
    "clone clone3 fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr pivot_root"
    " setdomainname sethostname setns umount2 unshare"
)
NESTED = frozenset(_NESTED_TEXT.split())


#: What our own child still has to do behind its filter, what the init before the program does until its end (wait, pass
#: signals on), and what the kernel does in a program's name: in every profile.
ALWAYS_NEEDED = frozenset(
    "brk close_range execve execveat exit exit_group kill mmap munmap restart_syscall rt_sigreturn rt_sigtimedwait wait4"
    " waitid write".split()
)


class Verdict(IntEnum):
    """What happens to a call; the last three look at its first argument."""

    ALLOW = 0
    EPERM = 1
    ENOSYS = 2
    WITHOUT_NEW_NAMESPACES = 3
    LIMITED_PERSONALITY = 4
    LIMITED_FAMILY = 5
    LOG = 6
    """Made, and told in the kernel's log."""


class Policy(NamedTuple):
    """The calls that are allowed, wholly or by a look at their arguments.  All others are refused."""

    allowed: frozenset[str]
    profile: frozenset[str] | None = None
    """Of what is allowed, only this; None: all of it."""
    is_logged: bool = False
    """What the profile lacks is made all the same, and logged."""

    def judge(self, name: str) -> Verdict:
        """Return the verdict on a system call that exists."""
        verdict = self._judge_without_profile(name)
        is_known = self.profile is None or name in self.profile or name in ALWAYS_NEEDED
        if is_known or verdict is Verdict.ENOSYS:
            return verdict
        if not self.is_logged:
            return Verdict.EPERM
        return Verdict.LOG if verdict is Verdict.ALLOW else verdict

    def _judge_without_profile(self, name: str) -> Verdict:
        if name in self.allowed:
            return Verdict.ALLOW
        # A C library that gets ENOSYS for clone3, whose flags a filter cannot read, goes on with clone.
        fixed = {
            "clone": Verdict.WITHOUT_NEW_NAMESPACES,
            "clone3": Verdict.ENOSYS,
            "personality": Verdict.LIMITED_PERSONALITY,
            "socket": Verdict.LIMITED_FAMILY,
            "socketpair": Verdict.LIMITED_FAMILY,
        }
        return fixed.get(name, Verdict.EPERM)


def for_capabilities(
    capabilities: frozenset[str],
    *,
    nested: bool = False,
    profile: frozenset[str] | None = None,
    is_logged: bool = False,
) -> Policy:
    """Return the policy for a container's bounding set."""
    allowed = set(ALWAYS)
    for capability, names in BY_CAPABILITY.items():
        if capability in capabilities:
            allowed.update(names.split())
    if nested:
        allowed |= NESTED
    if "SYS_ADMIN" in capabilities:
        allowed |= {"clone", "clone3"}
    return Policy(frozenset(allowed), profile, is_logged)
