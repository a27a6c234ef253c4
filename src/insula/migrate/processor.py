# SPDX-License-Identifier: Apache-2.0
"""Which features of this host's processor a program may have come to rely on.

`/proc/cpuinfo` also names what no program can use or notice: words that Linux invents about processors (two kernels on one
machine differ in them: 6.12 says `xtopology` where 6.1 does not), and what serves kernels only.  They are left out; a word
that this file does not know counts.  Out of scope: CRIU's own check of the floating point state (`criu cpuinfo`).

Source: proc(5); arch/x86/include/asm/cpufeatures.h, words 3, 7, 8, 11 and 21 (Linux-defined), and the descriptions there.
"""

from pathlib import Path

_LINUX_WORDS = """
    acc_power amd_dcm amd_ibpb_ret aperfmperf apicv arch_perfmon art bts cat_l2 cat_l3 cdp_l2 cdp_l3 constant_tsc cpb cpuid
    cpuid_fault cqm_mbm_local cqm_mbm_total cqm_occup_llc cyc_acc eagerfpu epb ept ept_ad extd_apicid fence_swapgs_kernel
    flexpriority hw_pstate ibpb ibpb_exit_to_user ibrs ibrs_enhanced ida intel_ppin intel_pt invpcid_single k7 k8 lfence_rdtsc
    mba mfence_rdtsc nonstop_tsc nonstop_tsc_s3 nopl pebs per_thread_mba perfmon_v2 proc_feedback pti pvunlock
    rapl rep_good retpoline ring3mwait rsb_ctxsw rrsba sme sme_coherent sev sev_es sev_snp spec_ctrl split_lock_detect ssbd
    stibp tdx_host_platform tpr_shadow tsc_known_freq tsc_reliable up user_shstk vmcall vmmcall vnmi vpid vp_virt
    xtopology debug_swap bmec amd_lbr_v2 unret amd_hetero_cores workload_class overflow_recov_succor
""".split()
_KERNEL_WORDS = """
    apic arat arch_capabilities arch_lbr avic bus_lock_detect cid cr8_legacy dca de decodeassists ds_cpl dtes64 dtherm est
    extapic flush_l1d flushbyasid hfi hwp hwp_act_window hwp_epp hwp_notify hwp_pkg_req hypervisor ibs ibt invpcid
    irperf la57 lam lbrv mca mce md_clear monitor msr mtrr npt nrip_save nx osvw overflow_recov pae pat pausefilter pbe pcid
    pclk pconfig pcommit pdcm pdpe1gb perfctr_core perfctr_llc perfctr_nb pfthreshold pge pks pln pse pse36 pts sdbg skinit
    smap smca smep smx ss svm svm_lock succor tm tm2 topoext tsc_adjust tsc_deadline_timer tsc_scale umip vgif
    virt_ssbd vme vmcb_clean vmx v_vmsave_vmload v_spec_ctrl vnmi wbnoinvd wdt x2apic x2avic xtpr
    dts acpi ht
""".split()
IGNORED = frozenset(_LINUX_WORDS) | frozenset(_KERNEL_WORDS)


def processor_flags() -> tuple[str, ...]:
    """Return the features of the first processor that count, sorted."""
    return flags_in(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))


def flags_in(cpuinfo: str) -> tuple[str, ...]:
    """Return the features that count in the text of /proc/cpuinfo.  On Arm (`Features`) all do."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "flags":
                return tuple(sorted(set(value.split()) - IGNORED))
            case "Features":
                return tuple(sorted(value.split()))
    return ()
