# SPDX-License-Identifier: Apache-2.0
"""Which words of /proc/cpuinfo are features that a program can rely on."""

from insula.migrate.processor import IGNORED, flags_in, processor_flags


def test_words_that_a_newer_linux_invents_do_not_count() -> None:
    old = "processor\t: 0\nflags\t\t: fpu sse2 avx2 hypervisor rep_good\nbugs\t\t:\n"
    new = "processor\t: 0\nflags\t\t: fpu sse2 avx2 hypervisor rep_good xtopology tsc_known_freq ibrs_enhanced\nbugs\t\t:\n"
    assert flags_in(old) == flags_in(new) == ("avx2", "fpu", "sse2")


def test_unknown_words_count() -> None:
    assert flags_in("flags\t: sse2 invented\n") == ("invented", "sse2")


def test_all_of_arms_count() -> None:
    assert flags_in("Features\t: fp asimd cpuid\n") == ("asimd", "cpuid", "fp")


def test_instruction_sets_are_never_ignored() -> None:
    used = "fpu cx8 cmov mmx fxsr sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm"
    more = "fsgsbase bmi1 avx2 bmi2 erms rtm rdseed adx sha_ni avx512f xsaveopt xsavec xgetbv1 pku ospke rdtscp rdpid fsrm lm"
    assert not IGNORED & set((used + " " + more).split())


def test_this_machine_has_some() -> None:
    assert processor_flags()
