/* SPDX-License-Identifier: Apache-2.0 */
/* An event: where it is built, and the ring that it is handed over in; what found no room is counted. */
#ifndef INSULA_EVENT_H
#define INSULA_EVENT_H

#include "task.h"

/* Whether the reader sleeps until it is woken; else it looks by itself, soon. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} sleeping SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct detail_key);
	__type(value, __u64);
} losses SEC(".maps");

/* Room to build an event in.  A signal may interrupt a system call's program on the same processor: it has its own. */
enum room { ROOM_TASK, ROOM_INTERRUPT, ROOMS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ROOMS);
	__type(key, __u32);
	__type(value, struct event);
} rooms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* the loader makes it as large as it is told to */
} ring SEC(".maps");

static __always_inline struct event *room_of(enum room room)
{
	__u32 key = room;

	return bpf_map_lookup_elem(&rooms, &key);
}

static __always_inline struct event *begin(struct event *event, enum kind kind, __u64 cgroup)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (!event)
		return 0;
	event->nanoseconds = bpf_ktime_get_boot_ns();
	event->cgroup = cgroup;
	__builtin_memset(event->arguments, 0, sizeof(event->arguments));
	event->result = 0;
	event->pid = inner_pid(BPF_CORE_READ(task, group_leader));
	event->thread = inner_pid(task);
	event->user = bpf_get_current_uid_gid();
	event->kind = kind;
	event->number = 0;
	event->text_bytes = 0;
	event->other_bytes = 0;
	event->folder_bytes = 0;
	event->other_folder_bytes = 0;
	event->protocol = 0;
	event->port = 0;
	bpf_get_current_comm(event->command, sizeof(event->command));
	return event;
}

static __always_inline void add_one(void *map, struct detail_key *key)
{
	__u64 one = 1;
	__u64 *count = bpf_map_lookup_elem(map, key);

	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(map, key, &one, BPF_NOEXIST);
}

static __always_inline void lose(__u64 cgroup)
{
	struct detail_key key = { .cgroup = cgroup };

	add_one(&losses, &key);
}

/* Hand an event over.  To wake the reader would cost more than all the rest: it is woken only if it sleeps. */
static __always_inline void finish(struct event *event)
{
	__u64 size = EVENT_HEAD + event->text_bytes + event->other_bytes + event->folder_bytes;
	__u32 zero = 0;
	__u64 *is_sleeping = bpf_map_lookup_elem(&sleeping, &zero);
	__u64 wake = BPF_RB_NO_WAKEUP;

	if (size > sizeof(*event))
		size = sizeof(*event);
	if (is_sleeping && *is_sleeping) {
		*is_sleeping = 0;
		wake = BPF_RB_FORCE_WAKEUP;
	}
	/* Twice: it also refuses when the lock cannot be had in time. */
	if (bpf_ringbuf_output(&ring, event, size, wake) && bpf_ringbuf_output(&ring, event, size, wake))
		lose(event->cgroup);
}

#endif
