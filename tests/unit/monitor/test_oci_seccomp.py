# SPDX-License-Identifier: Apache-2.0
"""The allow-list for other managers holds what was recorded, what is always needed, and no more."""

import errno

import msgspec
import pytest

from insula.kernel.seccomp_policy import ALWAYS_NEEDED
from insula.monitor.oci_seccomp import OciRuntime, SeccompList, SeccompRule, seccomp_list


def rules_of(made: SeccompList, name: str) -> list[SeccompRule]:
    return [each for each in made.syscalls if name in each.names]


def test_it_allows_what_was_recorded_and_what_never_comes_back() -> None:
    (rule, _) = seccomp_list({"flock"}, runtime=OciRuntime.NONE).syscalls
    assert set(rule.names) == {"flock"} | ALWAYS_NEEDED


def test_it_allows_other_forms_of_what_was_recorded_unless_they_were_refused() -> None:
    (rule, _) = seccomp_list({"pwritev", "openat"}, refused={"open"}, runtime=OciRuntime.NONE).syscalls
    assert set(rule.names) - ALWAYS_NEEDED == {"pwritev", "pwrite64", "openat", "creat"}


@pytest.mark.parametrize(
    ("machine", "architectures"),
    [("x86_64", ("SCMP_ARCH_X86_64",)), ("aarch64", ("SCMP_ARCH_AARCH64",)), ("riscv64", ())],
)
def test_it_is_of_the_native_architecture_only(machine: str, architectures: tuple[str, ...]) -> None:
    made = seccomp_list({"read"}, runtime=OciRuntime.ANY, machine=machine)
    assert made.architectures == architectures


def test_it_looks_at_the_arguments_that_our_own_filter_looks_at() -> None:
    made = seccomp_list({"clone", "socket"}, runtime=OciRuntime.NONE)
    (clone,) = rules_of(made, "clone")
    assert msgspec.json.encode(clone.args) == b'[{"index":0,"value":2114060288,"op":"SCMP_CMP_MASKED_EQ"}]'
    families = {argument.value for each in rules_of(made, "socket") for argument in each.args}
    assert families == {1, 2, 10, 16, 17}


def test_who_made_namespaces_still_may() -> None:
    (clone,) = rules_of(seccomp_list({"clone", "unshare"}, runtime=OciRuntime.NONE), "clone")
    assert clone.args == ()


def test_clone3_is_answered_so_that_threads_are_made_by_clone() -> None:
    (rule,) = rules_of(seccomp_list({"clone"}, runtime=OciRuntime.ANY), "clone3")
    assert (rule.action, rule.errno_ret) == ("SCMP_ACT_ERRNO", errno.ENOSYS)
    (rule,) = rules_of(seccomp_list({"clone3"}, runtime=OciRuntime.ANY), "clone3")
    assert rule.action == "SCMP_ACT_ALLOW"


def test_a_runtime_gets_what_its_own_start_needs() -> None:
    assert rules_of(seccomp_list({"read"}, runtime=OciRuntime.RUNC), "setgroups")
    assert not rules_of(seccomp_list({"read"}, runtime=OciRuntime.CRUN), "getdents64")
    assert not rules_of(seccomp_list({"read"}, runtime=OciRuntime.NONE), "setgroups")
