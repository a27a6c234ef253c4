# SPDX-License-Identifier: Apache-2.0
"""Compiled eBPF programs (an ELF object by clang): fitted to the kernel that runs, loaded, attached.

libbpf does it: it moves every access to a kernel structure to where this kernel has the member (CO-RE).  A program
whose tracepoint this kernel lacks is left out, and said so.  Out of scope: what the programs do (`monitor/programs/`).

Sources: libbpf.h of libbpf 1.1; https://docs.kernel.org/bpf/libbpf/; `Documentation/bpf/btf.rst`.
"""

import errno
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import MappingProxyType, TracebackType

from insula.kernel import libc

_LIBRARY = "libbpf.so.1"
_BPF_TRACE_RAW_TP = 23
"""enum bpf_attach_type, of tp_btf."""

_set_print = libc.foreign(_LIBRARY, "libbpf_set_print", "p", answer="v")
_find_btf_id = libc.foreign(_LIBRARY, "libbpf_find_vmlinux_btf_id", "su", answer="i")
_open_file = libc.foreign(_LIBRARY, "bpf_object__open_file", "sp", answer="p")
_close = libc.foreign(_LIBRARY, "bpf_object__close", "p", answer="v")
_load = libc.foreign(_LIBRARY, "bpf_object__load", "p", answer="i")
_find_map = libc.foreign(_LIBRARY, "bpf_object__find_map_by_name", "ps", answer="p")
_map_fd = libc.foreign(_LIBRARY, "bpf_map__fd", "p", answer="i")
_set_entries = libc.foreign(_LIBRARY, "bpf_map__set_max_entries", "pu", answer="i")
_find_program = libc.foreign(_LIBRARY, "bpf_object__find_program_by_name", "ps", answer="p")
_set_target = libc.foreign(_LIBRARY, "bpf_program__set_attach_target", "pis", answer="i")
_reuse_map = libc.foreign(_LIBRARY, "bpf_map__reuse_fd", "pi", answer="i")
_set_autoload = libc.foreign(_LIBRARY, "bpf_program__set_autoload", "pi", answer="i")
_attach = libc.foreign(_LIBRARY, "bpf_program__attach", "p", answer="p")
_link_fd = libc.foreign(_LIBRARY, "bpf_link__fd", "p", answer="i")
_destroy_link = libc.foreign(_LIBRARY, "bpf_link__destroy", "p", answer="i")


CAPABILITY_TRACEPOINT = "cap_capable"
"""Of each question for a capability; since Linux 6.14."""


def knows_tracepoint(name: str) -> bool:
    """Answer whether this kernel's BTF describes a raw tracepoint.  Raises: OSError: ENOSYS without libbpf."""
    _set_print(None)  # it would talk on our stderr
    try:
        _find_btf_id(name.encode(), _BPF_TRACE_RAW_TP)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise
        return False
    return True


class Object:
    """One loaded object.  Closing it detaches its programs and drops its maps."""

    def __init__(
        self,
        path: str,
        *,
        entries: Mapping[str, int] = MappingProxyType({}),
        left_out: Iterable[str] = (),
        shared: Mapping[str, int] = MappingProxyType({}),
        targets: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Load.  `entries`: sizes of maps other than compiled in.  `left_out`: programs that this kernel has no use for.

        shared: maps that are those of another object, by their descriptors, which stay the caller's.
        targets: program → function of the kernel that it is for, other than compiled in.

        Raises: OSError: naming the function of libbpf: ENOENT no such file, EPERM, EINVAL the verifier refused it.
        """
        _set_print(None)  # it would talk on our stderr; what failed is in the error
        with ExitStack() as undo:
            self._object = _open_file(path.encode(), None)
            undo.callback(self._drop)
            self._links: dict[str, int] = {}
            for name, count in entries.items():
                _set_entries(_find_map(self._object, name.encode()), count)
            for name, fd in shared.items():
                _reuse_map(_find_map(self._object, name.encode()), fd)
            for name, function in targets.items():
                _set_target(_find_program(self._object, name.encode()), 0, function.encode())
            for name in left_out:
                _set_autoload(_find_program(self._object, name.encode()), 0)
            _load(self._object)
            undo.pop_all()

    def map_fd(self, name: str) -> int:
        """Return a map's descriptor, which stays the object's.  Raises: OSError: ENOENT."""
        return _map_fd(_find_map(self._object, name.encode()))

    def attach(self, program: str) -> None:
        """Let a program run at its hook from now on; one that does already is left.  Undo: `detach`.  Raises: OSError."""
        if program not in self._links:
            self._links[program] = _attach(_find_program(self._object, program.encode()))

    def detach(self, program: str) -> None:
        """Take a program off its hook."""
        link = self._links.pop(program, None)
        if link is not None:
            _destroy_link(link)

    @property
    def attached(self) -> frozenset[str]:
        """The programs that run at their hooks."""
        return frozenset(self._links)

    @property
    def link_fds(self) -> list[int]:
        """Descriptors that hold programs at their hooks: who has a copy keeps them there.  They stay the object's."""
        return [_link_fd(link) for link in self._links.values()]

    def close(self) -> None:
        """Detach everything and unload."""
        for program in list(self._links):
            self.detach(program)
        self._drop()

    def _drop(self) -> None:
        _close(self._object)

    def __enter__(self) -> "Object":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
