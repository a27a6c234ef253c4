/* SPDX-License-Identifier: Apache-2.0 */
/* What kernel and user space share: the maps' keys and values, and an event.  `monitor/layout.py` is its twin.
 * Fixed sizes, no holes, native byte order.
 */
#ifndef INSULA_WATCH_H
#define INSULA_WATCH_H

#define SYSCALLS 512   /* numbers at or above, and those of another ABI, are not told apart */
#define STEPS 24       /* of a histogram: step i counts calls that took less than 2^i * 256 ns, the last all others */
#define TEXT 1024      /* longest path, with its NUL; one that takes as much may have been cut */
#define ARGUMENTS 1024 /* most of a program's argument list */
#define PLACES 2048    /* where in an event a text may begin */

#define SLOTS 4096     /* containers that can be counted at once */
#define NO_SLOT SLOTS

/* What a container's watchers want; bit i of `kinds` is enum kind i. */
struct watch {
	__u32 kinds;
	__u32 slot;   /* of the map `counts`, or NO_SLOT */
	__u32 number; /* of the watch: no other has it */
	__u32 flags;  /* WATCH_… */
};

#define WATCH_CONFINED_ONLY 1 /* leave out what a task does before it has its seccomp filter: its making, not its own */
#define WATCH_CHANGES_ONLY 2  /* of files: only what changes them; of the network: not what was accepted */

/* The system calls that a container is known to make: bit n of them is number n. */
struct known {
	__u64 words[SYSCALLS / 64];
};

/* By number of the system call, in a map of the container's own. */
struct count {
	__u64 calls;
	__u64 failures;
};

struct call_key {
	__u64 cgroup;
	__u32 number;
	__u32 zero;
};

struct durations {
	__u64 calls; /* that were timed */
	__u64 nanoseconds;
	__u32 steps[STEPS];
};

/* Of failures: which errno how often.  Of capabilities: which was granted (number 1) or refused (0) how often.  Of
 * losses: how many events found the ring full. */
struct detail_key {
	__u64 cgroup;
	__u32 number;
	__u32 detail;
};

enum kind {
	KIND_NONE,
	KIND_EXEC,    /* text: the argument list, NUL between arguments */
	KIND_FORK,    /* arguments[0]: the child's pid */
	KIND_EXIT,    /* result: as wait(2) tells it */
	KIND_SIGNAL,  /* arguments: signal, target's pid; result: 0 delivered */
	KIND_OOM,     /* of the victim, where the kernel tells which it is (since 6.10); else of who asked for memory */
	KIND_CAP,     /* arguments[0]: capability; result: 0 granted; the first of each alone */
	KIND_SECCOMP, /* a system call that a filter answered: it never began */
	KIND_FILE,
	KIND_NETWORK,
	KIND_MOUNT,
	KIND_IDENTITY, /* setuid and its like */
	KIND_KERNEL,   /* modules, bpf, ptrace, keys, clocks: what servers do not need */
	KIND_DRIFT,    /* a system call that is not in `known`; the first of each alone */
};

#define CALL_KINDS                                                                                \
	(1u << KIND_SECCOMP | 1u << KIND_FILE | 1u << KIND_NETWORK | 1u << KIND_MOUNT |           \
	 1u << KIND_IDENTITY | 1u << KIND_KERNEL | 1u << KIND_DRIFT)

/* Which argument of a system call is what; 0 none, else its place counted from 1. */
enum form {
	FORM_PLAIN,
	FORM_ACCEPT,  /* whom a connection comes from: the socket knows */
	FORM_FAILURE, /* only what failed: success has a hook of its own */
};

#define WORKING_FOLDER 7 /* in place of an argument: the folder is that which the task works in */

struct shape {
	__u8 kind;
	__u8 path;
	__u8 other_path;
	__u8 address; /* a struct sockaddr; its length is the next argument */
	__u8 form;      /* enum form */
	__u8 folder;    /* a descriptor of the folder that `path` begins in; 0: it begins in none */
	__u8 other_folder; /* the same of `other_path` */
	__u8 flags;     /* of open(2) */
	__u8 is_behind; /* the place of `address` or `flags` leads to a struct that begins with them */
};

struct event {
	__u64 nanoseconds; /* CLOCK_BOOTTIME */
	__u64 cgroup;
	__u64 arguments[6];
	__s64 result;
	__u32 pid; /* as the container counts */
	__u32 thread;
	__u32 user; /* as the host counts */
	__u16 kind;
	__u16 number; /* of the system call, if it is one */
	__u16 text_bytes;
	__u16 other_bytes;
	char command[16];
	__u16 folder_bytes;
	__u16 protocol; /* IPPROTO_…, of a socket */
	__u16 port;     /* its own */
	__u16 other_folder_bytes; /* the last of `folder_bytes`: they are of a folder of the other path's own */
	__u16 zero[2];
	char text[PLACES + TEXT]; /* `text_bytes`, `other_bytes`, then `folder_bytes`: names, innermost first;
				      * of a program that was started: a script's interpreter, then the names of
				      * the folder that a relative path begins in (`other_folder_bytes`) */
};

#define EVENT_HEAD (sizeof(struct event) - (PLACES + TEXT))

#endif
