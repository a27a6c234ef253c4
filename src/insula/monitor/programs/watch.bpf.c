// SPDX-License-Identifier: Apache-2.0
/* What containers ask of the kernel: counted by system call, and told as events.
 *
 *   sys_enter   the time, kept in the task             only while somebody has calls timed
 *   sys_exit    counters, drift; an event if the call's shape says what it is, somebody wants that kind, and it was not
 *               told at the call itself (`calls.bpf.c`)
 *   sched_process_exec, _fork, _exit; signal_generate; mark_victim; cap_capable: events as they happen
 *
 * Keyed by the container's cgroup v2 id; groups that a container makes below its own count as its own.  Which containers,
 * which kinds: the map `watched`.  Each task remembers whether it is in one of them, as long as `generation` stays the
 * same: a task that nobody watches pays one look at that.  Which programs are attached is user space's choice
 * (`monitor/probes.py`).
 *
 * Arguments in memory (paths, addresses) are read when the call returns: the program may have changed them since the
 * kernel looked.  An observer's view, not a fence.
 */
#include "call.h"
#include "count.h"
#include "drift.h"
#include "filter.h"

char LICENSE[] SEC("license") = "GPL"; /* the helpers that read memory ask for it */

#define CAP_SYS_ADMIN 21

/* Of a signal, in place of its siginfo (include/linux/sched/signal.h); how it was sent (asm-generic/siginfo.h). */
#define SEND_SIG_NOINFO 0
#define SEND_SIG_PRIV 1
#define SI_USER 0
#define SI_QUEUE (-1)
#define SI_TKILL (-6)

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct detail_key);
	__type(value, __u64);
} capabilities SEC(".maps");

/* Since when the end of calls is traced: a call that began before may have ended unseen.  ns of CLOCK_MONOTONIC. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} exits_since SEC(".maps");

static __always_inline int is_timed(struct task *task)
{
	__u32 zero = 0;
	__u64 *since = bpf_map_lookup_elem(&exits_since, &zero);

	return since && task->began > *since;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_enter, struct pt_regs *regs, long number)
{
	struct task *task = watched_task();

	if (!task)
		return 0;
	task->inside = task->watch.number;
	task->began = task->watch.slot < SLOTS ? bpf_ktime_get_ns() : 0;
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(on_exit, struct pt_regs *regs, long result)
{
	struct task *task = watched_task();
	__u32 kinds, number, told, was_inside, is_denied;
	struct event *room;
	struct shape *shape;
	enum kind kind;
	__u64 cgroup;

	if (!task)
		return 0;
	cgroup = task->cgroup;
	kinds = task->watch.kinds;
	was_inside = task->inside == task->watch.number;
	told = task->told;
	task->inside = task->told = 0;
	if (is_left_out(&task->watch))
		return 0;
	number = number_of(regs);
	if (task->watch.slot < SLOTS) {
		count(task, number, result);
		if (was_inside && is_timed(task))
			time_call(cgroup, number, bpf_ktime_get_ns() - task->began);
	}
	if (!(kinds & CALL_KINDS))
		return 0;
	shape = bpf_map_lookup_elem(&shapes, &number);
	room = room_of(ROOM_TASK);
	if (!shape || !room)
		return 0;
	if (kinds & 1u << KIND_DRIFT && is_strange(cgroup, number))
		tell(room, shape, regs, cgroup, number, result, KIND_DRIFT, 0);
	if (told == number + 1)
		return 0;
	is_denied = kinds & 1u << KIND_SECCOMP && is_refused(regs, result);
	kind = kind_of(shape, kinds, result, is_denied);
	if (kind)
		tell(room, shape, regs, cgroup, number, result, kind, task->watch.flags);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
	__u64 cgroup = container();
	struct watch *watch = wanted(cgroup, KIND_EXEC);
	struct event *event = watch ? begin(room_of(ROOM_TASK), KIND_EXEC, cgroup) : 0;
	const char *file, *interpreter;
	__u64 start, size;
	__u16 before;
	char *name;

	if (!event)
		return 0;
	start = BPF_CORE_READ(task, mm, arg_start);
	size = BPF_CORE_READ(task, mm, arg_end) - start;
	if (size > ARGUMENTS - 1)
		size = ARGUMENTS - 1;
	if (!bpf_probe_read_user(event->text, size & (ARGUMENTS - 1), (void *)start))
		event->text_bytes = size;
	file = BPF_CORE_READ(program, filename);
	interpreter = BPF_CORE_READ(program, interp);
	event->other_bytes = read_kernel_text(event, event->text_bytes, file);
	if (interpreter != file)
		event->folder_bytes = read_kernel_text(event, event->text_bytes + event->other_bytes, interpreter);
	name = room_at(event, event->text_bytes);
	if (name && event->other_bytes && *name != '/') {
		before = event->folder_bytes;
		read_folder(event, AT_FDCWD);
		event->other_folder_bytes = event->folder_bytes - before;
	}
	finish(event);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	__u64 cgroup = container();
	struct watch *watch = wanted(cgroup, KIND_FORK);
	struct event *event;

	if (!watch || BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0; /* a thread */
	event = begin(room_of(ROOM_TASK), KIND_FORK, cgroup);
	if (!event)
		return 0;
	event->arguments[0] = inner_pid(child);
	finish(event);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_process_exit, struct task_struct *task)
{
	__u64 cgroup = container();
	struct watch *watch = wanted(cgroup, KIND_EXIT);
	struct event *event;

	/* `live` has been counted down for this thread: 0 says that it is the last. */
	if (!watch || BPF_CORE_READ(task, signal, live.counter) != 0)
		return 0;
	event = begin(room_of(ROOM_TASK), KIND_EXIT, cgroup);
	if (!event)
		return 0;
	event->result = BPF_CORE_READ(task, exit_code);
	finish(event);
	return 0;
}

static __always_inline __u64 ancestor_of(struct cgroup *group, int level)
{
	struct cgroup___before_6_1 *before = (void *)group;
	struct cgroup *above;
	__u64 cgroup = 0;

	if (!bpf_core_field_exists(group->ancestors)) {
		bpf_core_read(&cgroup, sizeof(cgroup), &before->ancestor_ids[level]);
		return cgroup;
	}
	return bpf_core_read(&above, sizeof(above), &group->ancestors[level]) ? 0 : BPF_CORE_READ(above, kn, id);
}

/* The watched container that a task is in, or 0. */
static __always_inline __u64 container_of_task(struct task_struct *task)
{
	struct cgroup *group = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	int level = BPF_CORE_READ(group, level);

	for (int i = 1; i < DEPTHS && i <= level; i++) {
		__u64 cgroup = ancestor_of(group, i);

		if (bpf_map_lookup_elem(&watched, &cgroup))
			return cgroup;
	}
	return 0;
}

/* Whether it is a signal that the process which runs now has sent: those of timers and descriptors come in interrupts,
 * beside whoever runs then. */
static __always_inline int is_sent(__u64 info)
{
	int code;

	if (info == SEND_SIG_NOINFO || info == SEND_SIG_PRIV)
		return info == SEND_SIG_NOINFO;
	code = BPF_CORE_READ((struct kernel_siginfo *)info, si_code);
	return code == SI_USER || code == SI_QUEUE || code == SI_TKILL;
}

/* Untyped: what stands for no `info` is no pointer. */
SEC("raw_tp/signal_generate")
int on_signal(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *target = (struct task_struct *)context->args[2];
	__u64 cgroup = container();
	struct watch *watch = wanted(cgroup, KIND_SIGNAL);
	struct event *event;

	/* Of what the kernel sends, that within the container alone: a child's end, a timer, a fault. */
	if (!watch || (!is_sent(context->args[1]) && container_of_task(target) != cgroup))
		return 0;
	event = begin(room_of(ROOM_INTERRUPT), KIND_SIGNAL, cgroup);
	if (!event)
		return 0;
	event->arguments[0] = (int)context->args[0];
	event->arguments[1] = inner_pid(BPF_CORE_READ(target, group_leader));
	event->result = (int)context->args[4];
	finish(event);
	return 0;
}

/* Untyped: what it is given differs between kernels. */
SEC("raw_tp/mark_victim")
int on_oom(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *victim = (struct task_struct *)context->args[0];
	int is_told = bpf_core_field_exists(struct trace_event_raw_mark_victim, uid);
	__u64 cgroup = is_told ? container_of_task(victim) : container();
	struct watch *watch = cgroup ? bpf_map_lookup_elem(&watched, &cgroup) : 0;
	struct event *event;

	if (!watch || !(watch->kinds & 1u << KIND_OOM))
		return 0;
	event = begin(room_of(ROOM_TASK), KIND_OOM, cgroup);
	if (!event)
		return 0;
	if (is_told) {
		event->pid = inner_pid(BPF_CORE_READ(victim, group_leader));
		event->thread = inner_pid(victim);
		BPF_CORE_READ_INTO(&event->command, victim, comm);
	}
	finish(event);
	return 0;
}

SEC("tp_btf/cap_capable")
int BPF_PROG(on_capability, const struct cred *cred, struct user_namespace *target, void *namespace, int capability,
	     int result)
{
	struct task_struct *self = (struct task_struct *)bpf_get_current_task();
	__u64 cgroup = container();
	struct watch *watch = wanted(cgroup, KIND_CAP);
	struct detail_key key = { .cgroup = cgroup, .number = result == 0, .detail = capability };
	struct event *event;

	if (!watch || cred != BPF_CORE_READ(self, real_cred))
		return 0; /* asked of somebody else's: overlayfs looks below with those of who mounted it */
	if (capability == CAP_SYS_ADMIN && result && !BPF_CORE_READ(target, level))
		return 0; /* towards the host: each growth of a memory asks, may it have the last reserve (vm_enough_memory) */
	if (bpf_map_lookup_elem(&capabilities, &key)) {
		add_one(&capabilities, &key);
		return 0;
	}
	add_one(&capabilities, &key);
	event = begin(room_of(ROOM_INTERRUPT), KIND_CAP, cgroup);
	if (!event)
		return 0;
	event->arguments[0] = capability;
	event->result = result;
	finish(event);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_move, void *to, const char *path, struct task_struct *task, int threadgroup)
{
	bpf_task_storage_delete(&tasks, task);
	return 0;
}
