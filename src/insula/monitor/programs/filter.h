/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a seccomp filter refused the call that ends now: the task's filters are asked once more, as the kernel did.
 *
 * The kernel keeps each filter as it was given (`orig_prog`, for CRIU), and which calls all filters of a task let pass
 * whatever the arguments (`cache`, since Linux 5.11): only for the others the filters run here, on the same number and
 * registers.  Exact for any filter, of whoever's making.  Not decided: what a filter leaves to a tracer or a supervisor,
 * who may have let it pass.
 *
 * Sources: kernel/seccomp.c (seccomp_run_filters, __seccomp_filter, seccomp_check_filter); net/core/filter.c
 * (bpf_convert_filter); kernel/entry/common.c.  bpf_loop: since Linux 5.17; before, filters of more than
 * FEW_STEPS are not decided.
 */
#ifndef INSULA_FILTER_H
#define INSULA_FILTER_H

#include <linux/filter.h>
#include <linux/seccomp.h>

#include "kernel.h"

#define PT_SUSPEND_SECCOMP (1u << 24)  /* include/linux/ptrace.h */
#define PT_TRACE_SECCOMP (1u << 10)    /* PT_EVENT_FLAG(PTRACE_EVENT_SECCOMP) */
#define MAX_STEPS 32768                /* MAX_INSNS_PER_PATH: of all filters of a task together */
#define FEW_STEPS 64
#define ENOSYS 38
#define MAX_ERRNO 4095
#define DATA_WORDS (sizeof(struct seccomp_data) / sizeof(__u32))

/* A classic BPF machine, that runs a task's filters one after the other. */
struct machine {
	union {
		struct seccomp_data data;
		__u32 words[DATA_WORDS];
	};
	__u32 scratch[BPF_MEMWORDS];
	__u32 a, x;
	__u32 next; /* instruction */
	__u32 length;
	const struct sock_filter *program;
	struct seccomp_filter *filter;
	__u32 answer; /* SECCOMP_RET_…, the strictest so far */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct machine);
} machines SEC(".maps");

static __always_inline void start_filter(struct machine *machine, struct seccomp_filter *filter)
{
	struct sock_fprog_kern *given = BPF_CORE_READ(filter, prog, orig_prog);

	machine->filter = filter;
	machine->program = BPF_CORE_READ(given, filter);
	machine->length = BPF_CORE_READ(given, len); /* 0: not kept, or no filter */
	machine->next = machine->a = machine->x = 0;
}

/* Go on with the filter that was there before this one.  Returns: whether there is none. */
static __always_inline int end_filter(struct machine *machine, __u32 answer)
{
	struct seccomp_filter *filter = machine->filter;

	if ((__s32)(answer & SECCOMP_RET_ACTION_FULL) < (__s32)(machine->answer & SECCOMP_RET_ACTION_FULL))
		machine->answer = answer;
	start_filter(machine, BPF_CORE_READ(filter, prev));
	return !machine->filter;
}

static __always_inline __u32 load(struct machine *machine, const struct sock_filter *instruction)
{
	switch (BPF_MODE(instruction->code)) {
	case BPF_IMM:
		return instruction->k;
	case BPF_MEM:
		return machine->scratch[instruction->k & (BPF_MEMWORDS - 1)];
	case BPF_ABS:
		return machine->words[instruction->k / sizeof(__u32) & (DATA_WORDS - 1)];
	default:
		return sizeof(struct seccomp_data); /* BPF_LEN */
	}
}

static __always_inline __u32 compute(__u32 operation, __u32 a, __u32 operand)
{
	switch (operation) {
	case BPF_ADD:
		return a + operand;
	case BPF_SUB:
		return a - operand;
	case BPF_MUL:
		return a * operand;
	case BPF_DIV:
		return operand ? a / operand : 0;
	case BPF_OR:
		return a | operand;
	case BPF_AND:
		return a & operand;
	case BPF_XOR:
		return a ^ operand;
	case BPF_LSH:
		return a << (operand & 31);
	case BPF_RSH:
		return a >> (operand & 31);
	default:
		return -a; /* BPF_NEG */
	}
}

static __always_inline __u32 distance(const struct sock_filter *instruction, __u32 a, __u32 operand)
{
	int is_true;

	switch (BPF_OP(instruction->code)) {
	case BPF_JA:
		return instruction->k;
	case BPF_JEQ:
		is_true = a == operand;
		break;
	case BPF_JGT:
		is_true = a > operand;
		break;
	case BPF_JGE:
		is_true = a >= operand;
		break;
	default: /* BPF_JSET */
		is_true = (a & operand) != 0;
	}
	return is_true ? instruction->jt : instruction->jf;
}

/* Take one step.  Returns: 1: there are no more. */
static __always_inline int take_step(struct machine *machine)
{
	struct sock_filter now;
	__u32 operand;

	if (machine->next >= machine->length || bpf_probe_read_kernel(&now, sizeof(now), machine->program + machine->next)) {
		machine->answer = SECCOMP_RET_ALLOW; /* nobody can say */
		return 1;
	}
	machine->next++;
	operand = BPF_SRC(now.code) == BPF_X ? machine->x : now.k;
	switch (BPF_CLASS(now.code)) {
	case BPF_LD:
		machine->a = load(machine, &now);
		break;
	case BPF_LDX:
		machine->x = load(machine, &now);
		break;
	case BPF_ST:
		machine->scratch[now.k & (BPF_MEMWORDS - 1)] = machine->a;
		break;
	case BPF_STX:
		machine->scratch[now.k & (BPF_MEMWORDS - 1)] = machine->x;
		break;
	case BPF_ALU:
		if (BPF_OP(now.code) == BPF_DIV && !operand)
			return end_filter(machine, 0);
		machine->a = compute(BPF_OP(now.code), machine->a, operand);
		break;
	case BPF_JMP:
		machine->next += distance(&now, machine->a, operand);
		break;
	case BPF_RET:
		return end_filter(machine, BPF_RVAL(now.code) == BPF_A ? machine->a : now.k);
	default: /* BPF_MISC */
		if (BPF_MISCOP(now.code) == BPF_TAX)
			machine->x = machine->a;
		else
			machine->a = machine->x;
	}
	return 0;
}

static long step(__u32 count, struct machine **place)
{
	return take_step(*place);
}

/* Before Linux 5.17: as far as its verifier follows. */
static __always_inline void run_shortly(struct machine *machine)
{
	for (int count = 0; count < FEW_STEPS; count++)
		if (take_step(machine))
			return;
	machine->answer = SECCOMP_RET_ALLOW;
}

/* Whether all filters let a call pass whatever its arguments are: the kernel knows that of most. */
static __always_inline int always_passes(struct seccomp_filter *filter, __u32 number)
{
	unsigned long word;

	if (!bpf_core_field_exists(filter->cache) || number >= 8 * bpf_core_field_size(filter->cache.allow_native))
		return 0;
	if (bpf_core_read(&word, sizeof(word), &filter->cache.allow_native[number / 64]))
		return 0;
	return word >> (number & 63) & 1;
}

/* Whether a call that had this answer ended as calls do that never began. */
static __always_inline int is_refusal(__u32 answer, struct pt_regs *regs, long result, __u32 ptrace)
{
	__u32 data = answer & SECCOMP_RET_DATA;

	switch (answer & SECCOMP_RET_ACTION_FULL) {
	case SECCOMP_RET_ALLOW:
	case SECCOMP_RET_LOG:
	case SECCOMP_RET_USER_NOTIF:
		return 0;
	case SECCOMP_RET_TRACE:
		return !(ptrace & PT_TRACE_SECCOMP) && result == -ENOSYS;
	case SECCOMP_RET_ERRNO:
		return result == -(long)(data < MAX_ERRNO ? data : MAX_ERRNO);
	default:
		return result == SYSCALL_ROLLED_BACK(regs); /* a signal follows */
	}
}

/* Whether a filter refused the call that has this result.  Of the number -1 nothing is known: rt_sigreturn(2), or a
 * tracer had the call left out. */
static __always_inline int is_refused(struct pt_regs *regs, long result)
{
	struct task_struct *self = bpf_get_current_task_btf();
	struct seccomp_filter *filter = self->seccomp.filter;
	__u32 zero = 0, number = SYSCALL_NUMBER(regs);
	struct machine *machine;

	if (!filter || number == -1u || (result > 0 && result != SYSCALL_ROLLED_BACK(regs)) ||
	    self->ptrace & PT_SUSPEND_SECCOMP || (!IS_FOREIGN(self) && always_passes(filter, number)))
		return 0;
	machine = bpf_map_lookup_elem(&machines, &zero);
	if (!machine)
		return 0;
	machine->data.nr = number;
	machine->data.arch = IS_FOREIGN(self) ? FOREIGN_ARCH : NATIVE_ARCH;
	machine->data.instruction_pointer = SYSCALL_NEXT(regs);
	if (IS_FOREIGN(self))
		FOREIGN_ARGUMENTS(regs, machine->data.args);
	else
		SYSCALL_ARGUMENTS(regs, machine->data.args);
	machine->answer = SECCOMP_RET_ALLOW;
	start_filter(machine, filter);
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_loop))
		bpf_loop(MAX_STEPS, step, &machine, 0); /* takes what lies on the stack only */
	else
		run_shortly(machine);
	return is_refusal(machine->answer, regs, result, self->ptrace);
}

#endif
