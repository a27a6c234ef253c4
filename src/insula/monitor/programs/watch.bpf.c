// SPDX-License-Identifier: Apache-2.0
/* What containers ask of the kernel: counted by system call, and told as events.
 *
 *   sys_enter   the time, kept in the task             only while somebody counts, or asks for seccomp's answers
 *   sys_exit    counters; an event if the call's shape says what it is and somebody wants that kind
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
#include "kernel.h"
#include "watch.h"

char LICENSE[] SEC("license") = "GPL"; /* the helpers that read memory ask for it */

#define ERRNO_MAX 4095
#define AF_INET 2
#define AF_INET6 10
#define AT_FDCWD -100
#define CAP_SYS_ADMIN 21
#define O_CHANGES 01103 /* O_WRONLY, O_RDWR, O_CREAT, O_TRUNC */
#define FOLDERS 32 /* names of a folder's path that are told: the innermost */
#define PT_SUSPEND_SECCOMP (1u << 24) /* include/linux/ptrace.h */
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

/* Whether the reader sleeps until it is woken; else it looks by itself, soon. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} sleeping SEC(".maps");

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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct watch);
} watched SEC(".maps");

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

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct detail_key);
	__type(value, __u64);
} capabilities SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct detail_key);
	__type(value, __u64);
} losses SEC(".maps");

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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYSCALLS);
	__type(key, __u32);
	__type(value, struct shape);
} shapes SEC(".maps");

/* What is remembered of a task: its container's watch as of `generation`, and what it is in the middle of. */
struct task {
	__u64 cgroup; /* of the watched container that it is in, or 0 */
	__u32 generation;
	struct watch watch;
	__u32 inside; /* it began a system call that has not ended: the number of the watch then, or 0 */
	__u32 seen;   /* it has begun any: the number of the watch then */
	__u64 began;  /* ns of CLOCK_MONOTONIC, or 0: not timed */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task);
} tasks SEC(".maps");

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

const struct watch unwatched = { .slot = NO_SLOT };
const struct durations untimed = {};

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

static __always_inline struct event *begin(enum room room, enum kind kind, __u64 cgroup)
{
	__u32 key = room;
	struct event *event = bpf_map_lookup_elem(&rooms, &key);
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
	if (bpf_ringbuf_output(&ring, event, size, wake) && bpf_ringbuf_output(&ring, event, size, wake)) {
		struct detail_key key = { .cgroup = event->cgroup };

		add_one(&losses, &key);
	}
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_enter, struct pt_regs *regs, long number)
{
	struct task *task = watched_task();

	if (!task)
		return 0;
	task->inside = task->seen = task->watch.number;
	task->began = task->watch.slot < SLOTS ? bpf_ktime_get_ns() : 0;
	return 0;
}

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

/* Where an event has room for TEXT bytes at a place, or 0.  The compiler knows that the place is small, the verifier must be
 * shown.  By the mask too: that of Linux 6.1 also follows a comparison to where it cannot lead, and then knows nothing more
 * of the place. */
static __always_inline char *room_at(struct event *event, __u32 at)
{
	barrier_var(at);
	if (at >= ARGUMENTS)
		return 0;
	barrier_var(at);
	return event->text + (at & (ARGUMENTS - 1));
}

static __always_inline __u16 read_path(struct event *event, __u32 at, __u8 place)
{
	char *text = room_at(event, at);
	long bytes;

	if (!place || place > 6 || !text)
		return 0;
	bytes = bpf_probe_read_user_str(text, TEXT, (void *)event->arguments[(place - 1) & 7]);
	return bytes > 0 && bytes <= TEXT ? bytes : 0;
}

static __always_inline __u16 read_kernel_text(struct event *event, __u32 at, const char *from)
{
	char *text = room_at(event, at);
	long bytes = text ? bpf_probe_read_kernel_str(text, TEXT, from) : 0;

	return bytes > 0 && bytes <= TEXT ? bytes : 0;
}

static __always_inline __u16 read_address(struct event *event, struct shape *shape)
{
	struct { __u64 name; __u32 bytes; } head = {}; /* of struct msghdr */
	__u8 place = shape->address;
	__u64 size;

	if (!place || place > 5)
		return 0;
	head.name = event->arguments[(place - 1) & 7];
	head.bytes = event->arguments[place & 7];
	if (shape->is_behind && bpf_probe_read_user(&head, sizeof(head), (void *)head.name))
		return 0;
	size = head.bytes;
	if (size > 128)
		size = 128;
	if (!head.name || bpf_probe_read_user(event->text, size & 0xff, (void *)head.name))
		return 0;
	return size;
}

static __always_inline struct file *file_of(long descriptor)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd);
	struct file *file = 0;

	if (descriptor >= 0 && descriptor < BPF_CORE_READ(table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), slots + descriptor);
	return file;
}

/* The folder that a path begins in, as the task sees it: its names, from the innermost to the root, which
 * has an empty one.  A function of its own,
 * and how far it is kept in the event, so that the verifier looks at each level once and not at each way to it. */
__noinline int read_folder(struct event *event, int descriptor)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct file *file = descriptor == AT_FDCWD ? 0 : file_of(descriptor);
	struct dentry *dentry = file ? BPF_CORE_READ(file, f_path.dentry) : BPF_CORE_READ(task, fs, pwd.dentry);
	struct vfsmount *inner = file ? BPF_CORE_READ(file, f_path.mnt) : BPF_CORE_READ(task, fs, pwd.mnt);
	struct dentry *root = BPF_CORE_READ(task, fs, root.dentry);
	struct vfsmount *root_mount = BPF_CORE_READ(task, fs, root.mnt);
	volatile __u16 *told;

	if (!event)
		return 0;
	told = &event->folder_bytes;
	for (int level = 0; level < FOLDERS; level++) {
		struct mount *mount = (void *)inner - bpf_core_field_offset(struct mount, mnt);
		int is_root = dentry == root && inner == root_mount;
		__u32 end = event->text_bytes + event->other_bytes + *told;
		char *text;
		long bytes;

		if (!is_root && dentry == BPF_CORE_READ(inner, mnt_root)) {
			struct mount *parent = BPF_CORE_READ(mount, mnt_parent);

			if (parent != mount) {
				dentry = BPF_CORE_READ(mount, mnt_mountpoint);
				inner = (void *)parent + bpf_core_field_offset(struct mount, mnt);
				continue;
			}
			is_root = 1;
		}
		text = room_at(event, end);
		if (!text)
			break;
		if (is_root) {
			*text = 0;
			*told += 1;
			break;
		}
		bytes = bpf_probe_read_kernel_str(text, TEXT, BPF_CORE_READ(dentry, d_name.name));
		if (bytes <= 0)
			break;
		*told += bytes;
		dentry = BPF_CORE_READ(dentry, d_parent);
	}
	return 0;
}

/* The descriptor of the folder that a path at a place of the text begins in, or -1 if it needs none. */
static __always_inline long folder_at(struct event *event, __u32 at, __u8 place, int is_told_empty)
{
	char *text = room_at(event, at);

	if (!place || !text || *text == '/' || (!*text && !is_told_empty))
		return -1;
	return place == WORKING_FOLDER ? AT_FDCWD : (int)event->arguments[(place - 1) & 7];
}

static __always_inline void read_folders(struct event *event, struct shape *shape)
{
	/* Who names a file by a descriptor alone is told its path; a mount that is nowhere yet has none. */
	long folder = folder_at(event, 0, shape->folder, shape->kind == KIND_FILE);
	long other = event->other_bytes ? folder_at(event, event->text_bytes, shape->other_folder, 0) : -1;
	__u16 before;

	if (folder != -1)
		read_folder(event, folder);
	before = event->folder_bytes;
	if (other != -1 && other != folder) {
		read_folder(event, other);
		event->other_folder_bytes = event->folder_bytes - before;
	}
}

static __always_inline void read_socket(struct event *event)
{
	struct file *file = file_of((int)event->arguments[0]);
	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct sock *sock = BPF_CORE_READ(socket, sk);

	event->protocol = BPF_CORE_READ(sock, sk_protocol);
	event->port = BPF_CORE_READ(sock, __sk_common.skc_num);
}

/* Whether a call that succeeds changes files; puts the flags of openat2(2) where openat(2) has them. */
static __always_inline int is_change(struct event *event, struct shape *shape)
{
	__u64 *flags = &event->arguments[(shape->flags - 1) & 7];

	if (!shape->flags)
		return shape->form != FORM_ACCEPT;
	return (*flags & O_CHANGES) != 0;
}

/* Whom an accepted connection comes from: the program need not have asked, the socket knows.  As a struct sockaddr. */
static __always_inline __u16 read_peer(struct event *event, long descriptor)
{
	struct file *file = file_of(descriptor);
	struct socket *socket;
	struct sock *sock;
	__u16 family, port;

	if (!file)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sock = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sock, __sk_common.skc_family);
	port = BPF_CORE_READ(sock, __sk_common.skc_dport);
	__builtin_memset(event->text, 0, 28);
	__builtin_memcpy(event->text, &family, 2);
	__builtin_memcpy(event->text + 2, &port, 2);
	if (family == AF_INET)
		BPF_CORE_READ_INTO((__u32 *)(event->text + 4), sock, __sk_common.skc_daddr);
	else if (family == AF_INET6)
		BPF_CORE_READ_INTO((struct net_address *)(event->text + 8), sock, __sk_common.skc_v6_daddr);
	return family == AF_INET ? 16 : family == AF_INET6 ? 28 : 2;
}

static __always_inline void tell(struct shape *shape, struct pt_regs *regs, __u64 cgroup,
				 __u32 number, long result, enum kind kind, __u32 flags)
{
	struct event *event = begin(ROOM_TASK, kind, cgroup);

	if (!event)
		return;
	event->number = number;
	event->result = result;
	SYSCALL_ARGUMENTS(regs, event->arguments);
	if (shape->flags && shape->is_behind)
		bpf_probe_read_user(&event->arguments[(shape->flags - 1) & 7], sizeof(__u64),
				    (void *)event->arguments[(shape->flags - 1) & 7]);
	if (flags & WATCH_CHANGES_ONLY && kind != KIND_DRIFT && !is_change(event, shape))
		return;
	if (shape->form == FORM_ACCEPT && result >= 0)
		event->text_bytes = read_peer(event, result);
	else if (shape->address)
		event->text_bytes = read_address(event, shape);
	else
		event->text_bytes = read_path(event, 0, shape->path);
	if (shape->address && !event->text_bytes && kind == KIND_NETWORK)
		return; /* sent to whom it is connected */
	if (shape->address)
		read_socket(event);
	event->other_bytes = read_path(event, event->text_bytes, shape->other_path);
	read_folders(event, shape);
	finish(event);
}

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

SEC("tp_btf/sys_exit")
int BPF_PROG(on_exit, struct pt_regs *regs, long result)
{
	struct task *task = watched_task();
	__u32 kinds, number, was_inside;
	struct shape *shape;
	__u64 cgroup;

	if (!task)
		return 0;
	cgroup = task->cgroup;
	kinds = task->watch.kinds;
	was_inside = task->inside == task->watch.number;
	task->inside = 0;
	if (is_left_out(&task->watch))
		return 0;
	number = SYSCALL_NUMBER(regs);
	if (number >= SYSCALLS || IS_FOREIGN(bpf_get_current_task_btf()))
		number = SYSCALLS - 1;
	if (task->watch.slot < SLOTS) {
		count(task, number, result);
		if (was_inside && task->began)
			time_call(cgroup, number, bpf_ktime_get_ns() - task->began);
	}
	if (!(kinds & CALL_KINDS))
		return 0;
	shape = bpf_map_lookup_elem(&shapes, &number);
	if (!shape)
		return 0;
	if (kinds & 1u << KIND_DRIFT && is_strange(cgroup, number))
		tell(shape, regs, cgroup, number, result, KIND_DRIFT, 0);
	/* seccomp answers before the entry is traced: an exit without an entry, of a task whose entries are. */
	if (kinds & 1u << KIND_SECCOMP && !was_inside && task->seen == task->watch.number)
		tell(shape, regs, cgroup, number, result, KIND_SECCOMP, 0);
	else if (shape->kind && kinds & 1u << (shape->kind & 31) && (shape->form != FORM_FAILURE || result < 0))
		tell(shape, regs, cgroup, number, result, shape->kind, task->watch.flags);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
	__u64 cgroup = container();
	struct watch *watch = wanted(cgroup, KIND_EXEC);
	struct event *event = watch ? begin(ROOM_TASK, KIND_EXEC, cgroup) : 0;
	const char *file, *interpreter;
	__u64 start, size;

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
	event = begin(ROOM_TASK, KIND_FORK, cgroup);
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
	event = begin(ROOM_TASK, KIND_EXIT, cgroup);
	if (!event)
		return 0;
	event->result = BPF_CORE_READ(task, exit_code);
	finish(event);
	return 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(on_signal, int signal, void *info, struct task_struct *task, int group, int result)
{
	__u64 cgroup = container();
	struct watch *watch = wanted(cgroup, KIND_SIGNAL);
	struct event *event = watch ? begin(ROOM_INTERRUPT, KIND_SIGNAL, cgroup) : 0;

	if (!event)
		return 0;
	event->arguments[0] = signal;
	event->arguments[1] = inner_pid(BPF_CORE_READ(task, group_leader));
	event->result = result;
	finish(event);
	return 0;
}

/* The watched container that a task is in, or 0. */
static __always_inline __u64 container_of_task(struct task_struct *task)
{
	struct cgroup *group = BPF_CORE_READ(task, cgroups, dfl_cgrp), *above;
	int level = BPF_CORE_READ(group, level);
	__u64 cgroup;

	for (int i = 1; i < DEPTHS && i <= level; i++) {
		if (bpf_core_read(&above, sizeof(above), &group->ancestors[i]))
			break;
		cgroup = BPF_CORE_READ(above, kn, id);
		if (bpf_map_lookup_elem(&watched, &cgroup))
			return cgroup;
	}
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
	event = begin(ROOM_TASK, KIND_OOM, cgroup);
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
	event = begin(ROOM_INTERRUPT, KIND_CAP, cgroup);
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
