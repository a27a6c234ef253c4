/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that a container is not known to make. */
#ifndef INSULA_DRIFT_H
#define INSULA_DRIFT_H

#include "event.h"
#include "filter.h"
#include "task.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct known);
} known SEC(".maps"); /* of containers that are held to a profile */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct detail_key);
	__type(value, __u64);
} strange SEC(".maps"); /* calls that are not known: how often */

/* A call that the container is not known to make, for the first time: those that follow are counted only. */
static __always_inline int is_strange(__u64 cgroup, __u32 number)
{
	struct known *calls = bpf_map_lookup_elem(&known, &cgroup);
	struct detail_key key = { .cgroup = cgroup, .number = number };
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	int is_first;

	/* Who has its filter suspended is led by CRIU, or by who looks for its memory: by the host's root. */
	if (!calls || BPF_CORE_READ(task, ptrace) & PT_SUSPEND_SECCOMP || calls->words[(number >> 6) & (SYSCALLS / 64 - 1)] >> (number & 63) & 1)
		return 0;
	is_first = !bpf_map_lookup_elem(&strange, &key);
	add_one(&strange, &key);
	return is_first;
}

#endif
