/* SPDX-License-Identifier: Apache-2.0 */
/* What of the kernel's own structures is read: the members we use, no more.  The loader (libbpf) moves every access to
 * where the member lies in the kernel that runs (CO-RE, by the kernel's BTF), so order and size here mean nothing.
 * Sources: include/linux/sched.h, sched/signal.h, signal_types.h, pid.h, mm_types.h, binfmts.h, fdtable.h, dcache.h, fs/mount.h, net/sock.h,
 * cgroup-defs.h, kernfs.h, user_namespace.h, filter.h, trace/events/oom.h; kernel/seccomp.c; arch/x86/include/asm/thread_info.h.
 */
#ifndef INSULA_KERNEL_H
#define INSULA_KERNEL_H

#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pid_namespace;
struct cred;

struct upid {
	int nr;
	struct pid_namespace *ns; /* not read; but `numbers` is indexed, which takes the true size */
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct atomic_word {
	int counter;
};

struct signal_struct {
	struct atomic_word live;
};

struct mm_struct {
	unsigned long arg_start, arg_end;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct fs_struct {
	struct path root, pwd;
};

struct file {
	void *private_data;
	struct path f_path;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct sock_fprog_kern {
	__u16 len;
	struct sock_filter *filter;
};

struct bpf_prog {
	struct sock_fprog_kern *orig_prog;
};

struct action_cache {
	unsigned long allow_native[1];
};

struct seccomp_filter {
	struct action_cache cache;
	struct seccomp_filter *prev;
	struct bpf_prog *prog;
};

struct seccomp {
	int mode;
	struct seccomp_filter *filter;
};

struct user_namespace {
	int level;
};

struct thread_info {
	__u32 status;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
	int level;
	struct cgroup *ancestors[1]; /* by level, itself the last */
};

struct cgroup___before_6_1 {
	__u64 ancestor_ids[1];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct task_struct {
	struct thread_info thread_info;
	int exit_code;
	unsigned int ptrace;
	int pid, tgid;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct signal_struct *signal;
	struct mm_struct *mm;
	struct fs_struct *fs;
	struct files_struct *files;
	struct css_set *cgroups;
	char comm[16];
	struct seccomp seccomp;
	const struct cred *real_cred;
};

struct kernel_siginfo {
	int si_code;
};

/* Since Linux 6.10, when mark_victim came to be given the task; before, a pid. */
struct trace_event_raw_mark_victim {
	__u32 uid;
};

struct linux_binprm {
	const char *filename;
	const char *interp;
};

struct net_address {
	__u8 bytes[16];
};

struct sock_common {
	unsigned short skc_family;
	__u32 skc_daddr;
	__u16 skc_dport;
	__u16 skc_num;
	struct net_address skc_v6_daddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct socket {
	struct sock *sk;
};

#if defined(__TARGET_ARCH_x86)
#define IS_FOREIGN(task) ((task)->thread_info.status & 2) /* TS_COMPAT: in a call of the 32-bit ABI */
struct pt_regs {
	unsigned long bp, bx, cx, di, si, dx, r10, r8, r9, ax, orig_ax, ip;
};
#define SYSCALL_NUMBER(regs) ((regs)->orig_ax)
#define SYSCALL_RESULT(regs) ((long)(regs)->ax)
#define SYSCALL_FUNCTION "__x64_sys_" /* before the call's name */
#define SYSCALL_ARGUMENTS(regs, a)                                                        \
	do {                                                                              \
		(a)[0] = (regs)->di, (a)[1] = (regs)->si, (a)[2] = (regs)->dx;            \
		(a)[3] = (regs)->r10, (a)[4] = (regs)->r8, (a)[5] = (regs)->r9;           \
	} while (0)
#define FOREIGN_ARGUMENTS(regs, a)                                                        \
	do {                                                                              \
		(a)[0] = (regs)->bx, (a)[1] = (regs)->cx, (a)[2] = (regs)->dx;            \
		(a)[3] = (regs)->si, (a)[4] = (regs)->di, (a)[5] = (regs)->bp;            \
	} while (0)
#define SYSCALL_NEXT(regs) ((regs)->ip)
#define SYSCALL_ROLLED_BACK(regs) ((long)(regs)->orig_ax) /* the result of a call that was undone for a signal */
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#define FOREIGN_ARCH AUDIT_ARCH_I386
#elif defined(__TARGET_ARCH_arm64)
#define IS_FOREIGN(task) 0
struct pt_regs {
	__u64 regs[31];
	__u64 pc;
	__u64 orig_x0;
	int syscallno;
};
#define SYSCALL_NUMBER(registers) ((registers)->syscallno)
#define SYSCALL_RESULT(registers) ((long)(registers)->regs[0])
#define SYSCALL_FUNCTION "__arm64_sys_"
#define SYSCALL_ARGUMENTS(registers, a)                                                   \
	do {                                                                              \
		(a)[0] = (registers)->orig_x0;                                            \
		(a)[1] = (registers)->regs[1], (a)[2] = (registers)->regs[2];             \
		(a)[3] = (registers)->regs[3], (a)[4] = (registers)->regs[4];             \
		(a)[5] = (registers)->regs[5];                                            \
	} while (0)
#define FOREIGN_ARGUMENTS SYSCALL_ARGUMENTS
#define SYSCALL_NEXT(registers) ((registers)->pc)
#define SYSCALL_ROLLED_BACK(registers) ((long)(registers)->orig_x0)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#define FOREIGN_ARCH NATIVE_ARCH
#else
#error "this processor's registers are not described here"
#endif

#pragma clang attribute pop

#endif
