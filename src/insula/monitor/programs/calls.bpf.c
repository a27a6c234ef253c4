// SPDX-License-Identifier: Apache-2.0
/* System calls that are events, told at their own functions: only these calls become slower, on all the host.
 *
 *   __x64_sys_openat ──► after_openat ──┐  a task that nobody watches goes no further
 *   __x64_sys_unlink ──► after_unlink ──┴─► tell_call
 *   __secure_computing ──► after_denial     who has no filter never comes here
 *
 * What tells a call takes the kernel 30 ms to check: it is loaded once, not for each of them.  A tail call leads there,
 * which since Linux 6.12 only goes between functions of the very same prototype (commit 28ead3eaabc1).  The kernel's
 * types have several that look alike, so user space loads this object once for each, with `tell_call` aimed at one of
 * its functions (`monitor/call_hooks.py`); maps are those of `watch.bpf.c`.
 *
 * Unlike at a tracepoint, another task may run in the middle of a program: what an event is built in is the task's own.
 * Sources: kernel/bpf/trampoline.c; kernel/bpf/core.c, bpf_prog_map_compatible; kernel/seccomp.c.
 */
#include "call.h"

char LICENSE[] SEC("license") = "GPL"; /* the helpers that read memory ask for it */

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct event);
} own_rooms SEC(".maps");

static __always_inline void tell_returned(long result, int is_denied)
{
	struct task_struct *self = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(self);
	__u32 number = number_of(regs);
	__u64 cgroup = container();
	struct watch *watch = cgroup ? bpf_map_lookup_elem(&watched, &cgroup) : 0;
	struct shape *shape = bpf_map_lookup_elem(&shapes, &number);
	struct event *room;
	struct task *task;
	enum kind kind;

	if (!watch || !shape || is_left_out(watch))
		return;
	kind = kind_of(shape, watch->kinds, result, is_denied);
	if (!kind)
		return;
	room = bpf_task_storage_get(&own_rooms, self, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (room)
		tell(room, shape, regs, cgroup, number, result, kind, watch->flags);
	else
		lose(cgroup);
	task = bpf_task_storage_get(&tasks, self, 0, 0);
	if (task)
		task->told = number + 1;
}

SEC("fexit/" SYSCALL_FUNCTION "openat")
int tell_call(__u64 *context)
{
	tell_returned(context[1], 0);
	return 0;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} bodies SEC(".maps") = { .values = { (void *)&tell_call } };

/* Who has a filter comes here with each call: what it was answered is looked at first. */
SEC("fexit/__secure_computing")
int after_denial(void *context)
{
	struct task_struct *self = bpf_get_current_task_btf();
	__u64 answer = 0; /* Linux before 6.3 has it written first */

	/* By this, since the function has no arguments any more (Linux 6.16) and had one before. */
	if (bpf_get_func_ret(context, &answer) || (int)answer != -1 || is_stranger(current_generation()))
		return 0;
	tell_returned(SYSCALL_RESULT((struct pt_regs *)bpf_task_pt_regs(self)), 1);
	return 0;
}

#define CALL_AS(call, function)                                              \
	SEC("fexit/" SYSCALL_FUNCTION #function)                             \
	int after_##call(void *context)                                      \
	{                                                                    \
		if (!is_stranger(current_generation()))                      \
			bpf_tail_call(context, &bodies, 0);                  \
		return 0;                                                    \
	}
#define CALL(call) CALL_AS(call, call)

/* As in `monitor/shapes.py`. */
/* clang-format off */
CALL(open) CALL(openat) CALL(openat2) CALL(creat) CALL(unlink) CALL(unlinkat) CALL(rmdir) CALL(rename)
CALL(renameat) CALL(renameat2) CALL(mkdir) CALL(mkdirat) CALL(link) CALL(linkat) CALL(symlink) CALL(symlinkat)
CALL(mknod) CALL(mknodat) CALL(truncate) CALL(chmod) CALL(fchmodat) CALL(fchmodat2) CALL(chown) CALL(lchown)
CALL(fchownat) CALL(utimensat) CALL(setxattr) CALL(lsetxattr) CALL(removexattr) CALL(lremovexattr)
CALL(execve) CALL(execveat) CALL(connect) CALL(bind) CALL(sendto) CALL(sendmsg) CALL(sendmmsg) CALL(accept)
CALL(accept4) CALL(mount) CALL_AS(umount2, umount) CALL(move_mount) CALL(open_tree) CALL(mount_setattr)
CALL(fsopen) CALL(pivot_root) CALL(chroot) CALL(setuid) CALL(setgid) CALL(setreuid) CALL(setregid)
CALL(setresuid) CALL(setresgid) CALL(setfsuid) CALL(setfsgid) CALL(setgroups) CALL(capset) CALL(unshare)
CALL(setns) CALL(ptrace) CALL(process_vm_readv) CALL(process_vm_writev) CALL(pidfd_getfd)
CALL(process_madvise) CALL(bpf) CALL(perf_event_open) CALL(userfaultfd) CALL(io_uring_setup) CALL(add_key)
CALL(keyctl) CALL(request_key) CALL(init_module) CALL(finit_module) CALL(delete_module) CALL(kexec_load)
CALL(kexec_file_load) CALL(reboot) CALL(swapon) CALL(swapoff) CALL(settimeofday) CALL(clock_settime)
CALL(syslog) CALL(iopl) CALL(ioperm) CALL(open_by_handle_at) CALL(acct) CALL(quotactl)
/* clang-format on */
