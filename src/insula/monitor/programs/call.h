/* SPDX-License-Identifier: Apache-2.0 */
/* A system call that has returned, told as its shape says: `monitor/shapes.py`. */
#ifndef INSULA_CALL_H
#define INSULA_CALL_H

#include "event.h"
#include "path.h"

#define AF_INET 2
#define AF_INET6 10
#define O_CHANGES 01103 /* O_WRONLY, O_RDWR, O_CREAT, O_TRUNC */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYSCALLS);
	__type(key, __u32);
	__type(value, struct shape);
} shapes SEC(".maps");

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

/* The number that a call is told by: the last for those of another ABI. */
static __always_inline __u32 number_of(struct pt_regs *regs)
{
	__u64 number = SYSCALL_NUMBER(regs);

	return number >= SYSCALLS || IS_FOREIGN(bpf_get_current_task_btf()) ? SYSCALLS - 1 : number;
}

/* What a call that has returned is told as, if a watch wants it: an enum kind, or 0. */
static __always_inline enum kind kind_of(const struct shape *shape, __u32 kinds, long result, int is_denied)
{
	if (is_denied && kinds & 1u << KIND_SECCOMP)
		return KIND_SECCOMP;
	if (!(kinds & 1u << (shape->kind & 31)) || (shape->form == FORM_FAILURE && result >= 0))
		return KIND_NONE;
	return shape->kind;
}

static __always_inline void tell(struct event *room, struct shape *shape, struct pt_regs *regs, __u64 cgroup,
				 __u32 number, long result, enum kind kind, __u32 flags)
{
	struct event *event = begin(room, kind, cgroup);

	if (!event)
		return;
	event->number = number;
	event->result = result;
	SYSCALL_ARGUMENTS(regs, event->arguments);
	if (shape->flags && shape->is_behind)
		bpf_probe_read_user(&event->arguments[(shape->flags - 1) & 7], sizeof(__u64),
				    (void *)event->arguments[(shape->flags - 1) & 7]);
	if (flags & WATCH_CHANGES_ONLY && kind != KIND_DRIFT && kind != KIND_SECCOMP && !is_change(event, shape))
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

#endif
