/* SPDX-License-Identifier: Apache-2.0 */
/* How often each call was made and failed, and how long it took, by container. */
#ifndef INSULA_COUNT_H
#define INSULA_COUNT_H

#include "event.h"
#include "task.h"

#define ERRNO_MAX 4095

/* By slot of `counts`: something was counted since user space wrote 0 here.  Most containers rest, and are not read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} touched SEC(".maps");

/* By slot, a bit for each number that was ever counted: few are, and the others need not be read. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS * (SYSCALLS / 64));
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} used SEC(".maps");

/* A container's own counters, one map for each that is counted: a look into two arrays is the cheapest there is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
			__uint(max_entries, SYSCALLS);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, sizeof(struct count));
		});
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct call_key);
	__type(value, struct durations);
} timed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct detail_key);
	__type(value, __u64);
} errors SEC(".maps");

const struct durations untimed = {};

static __always_inline int step_of(__u64 nanoseconds)
{
	int step = 0;

	nanoseconds >>= 8;
#pragma unroll
	for (int bits = 16; bits; bits >>= 1) {
		if (nanoseconds >> bits) {
			nanoseconds >>= bits;
			step += bits;
		}
	}
	step += nanoseconds != 0;
	return step < STEPS ? step : STEPS - 1;
}

static __always_inline void time_call(__u64 cgroup, __u32 number, __u64 took)
{
	struct call_key key = { .cgroup = cgroup, .number = number };
	struct durations *durations = bpf_map_lookup_elem(&timed, &key);

	if (!durations) {
		bpf_map_update_elem(&timed, &key, &untimed, BPF_NOEXIST);
		durations = bpf_map_lookup_elem(&timed, &key);
		if (!durations)
			return; /* no room: this call is not among those that were timed */
	}
	durations->calls++;
	durations->nanoseconds += took;
	durations->steps[step_of(took)]++;
}

static __always_inline void count(struct task *task, __u32 number, long result)
{
	__u32 slot = task->watch.slot;
	void *own = bpf_map_lookup_elem(&counts, &slot);
	struct count *count = own ? bpf_map_lookup_elem(own, &number) : 0;
	__u64 *is_touched = bpf_map_lookup_elem(&touched, &slot);
	__u32 word = slot * (SYSCALLS / 64) + number / 64;
	__u64 *used_word = bpf_map_lookup_elem(&used, &word), used_bit = 1ull << (number & 63);

	if (!count)
		return;
	if (used_word && !(*used_word & used_bit))
		__sync_fetch_and_or(used_word, used_bit);
	count->calls++;
	if (result < 0 && result >= -ERRNO_MAX) {
		struct detail_key detail = { .cgroup = task->cgroup, .number = number, .detail = -result };

		count->failures++;
		add_one(&errors, &detail);
	}
	if (is_touched && !*is_touched)
		*is_touched = 1; /* last: who reads has all that was counted before */
}

#endif
