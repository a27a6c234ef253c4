/* SPDX-License-Identifier: Apache-2.0 */
/* Who runs now: in which watched container, and what is remembered of the task. */
#ifndef INSULA_TASK_H
#define INSULA_TASK_H

#include "kernel.h"
#include "watch.h"

#define DEPTHS 16 /* how far below the root a container's group may lie */
#define STRANGERS 1024 /* a power of two */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} generation SEC(".maps"); /* counted up whenever a container comes into `watched` or goes */

/* Groups that are in no watched container, each at the place that its id gives: what nobody watches costs a look here.
 * An entry is the id and the generation that it is true of in one word, which is written at once. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STRANGERS);
	__type(key, __u32);
	__type(value, __u64);
} strangers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct watch);
} watched SEC(".maps");

/* What is remembered of a task: its container's watch as of `generation`, and what it is in the middle of. */
struct task {
	__u64 cgroup; /* of the watched container that it is in, or 0 */
	__u32 generation;
	struct watch watch;
	__u32 inside; /* it began a system call that has not ended: the number of the watch then, or 0 */
	__u64 began;  /* ns of CLOCK_MONOTONIC, or 0: not timed */
	__u32 told;   /* the call that was told at its own function: its number + 1, or 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task);
} tasks SEC(".maps");

const struct watch unwatched = { .slot = NO_SLOT };

static __always_inline __u64 find_watched(void)
{
	for (int level = 1; level < DEPTHS; level++) {
		__u64 cgroup = bpf_get_current_ancestor_cgroup_id(level);

		if (!cgroup)
			break;
		if (bpf_map_lookup_elem(&watched, &cgroup))
			return cgroup;
	}
	return 0;
}

static __always_inline __u64 stranger(__u64 cgroup, __u32 now)
{
	return cgroup ^ (__u64)now << 40; /* ids are counted up from 1: they stay far below */
}

static __always_inline void look_anew(struct task *task, __u32 now)
{
	__u64 own = bpf_get_current_cgroup_id();
	__u32 place = own & (STRANGERS - 1);
	__u64 *known_stranger = bpf_map_lookup_elem(&strangers, &place);
	__u64 cgroup = find_watched();
	struct watch *watch = bpf_map_lookup_elem(&watched, &cgroup);

	task->cgroup = watch ? cgroup : 0;
	task->watch = watch ? *watch : unwatched;
	task->generation = now;
	task->told = 0;
	if (!watch && known_stranger)
		*(volatile __u64 *)known_stranger = stranger(own, now);
}

static __always_inline int is_stranger(__u32 now)
{
	__u64 own = bpf_get_current_cgroup_id();
	__u32 place = own & (STRANGERS - 1);
	__u64 *known_stranger = bpf_map_lookup_elem(&strangers, &place);

	return known_stranger && *known_stranger == stranger(own, now);
}

static __always_inline __u32 current_generation(void)
{
	__u32 zero = 0, *now = bpf_map_lookup_elem(&generation, &zero);

	return now ? *now : 0;
}

/* What is remembered of the task that runs now; none in an interrupt of another program's look at it. */
static __always_inline struct task *current_task(__u32 now)
{
	struct task *task = bpf_task_storage_get(&tasks, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (task && task->generation != now)
		look_anew(task, now);
	return task;
}

/* As above, if it is in a watched container. */
static __always_inline struct task *watched_task(void)
{
	__u32 now = current_generation();
	struct task *task = is_stranger(now) ? 0 : current_task(now);

	return task && task->cgroup ? task : 0;
}

static __always_inline int is_left_out(const struct watch *watch)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return watch->flags & WATCH_CONFINED_ONLY && !BPF_CORE_READ(task, seccomp.mode);
}

/* The watched container that runs now, or 0. */
static __always_inline __u64 container(void)
{
	__u32 now = current_generation();
	struct task *task;

	if (is_stranger(now))
		return 0;
	task = current_task(now);
	return task ? task->cgroup : find_watched();
}

static __always_inline struct watch *wanted(__u64 cgroup, enum kind kind)
{
	struct watch *watch = cgroup ? bpf_map_lookup_elem(&watched, &cgroup) : 0;

	return watch && watch->kinds & 1u << kind && !is_left_out(watch) ? watch : 0;
}

/* The number that the innermost pid namespace gives, which is the container's. */
static __always_inline __u32 inner_pid(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	unsigned int level = BPF_CORE_READ(pid, level);
	struct upid upid = {};

	if (level > 32)
		return 0;
	bpf_core_read(&upid, sizeof(upid), &pid->numbers[level]);
	return upid.nr;
}

#endif
