/* SPDX-License-Identifier: Apache-2.0 */
/* Paths and folders of a call's arguments, as the task sees them. */
#ifndef INSULA_PATH_H
#define INSULA_PATH_H

#include "event.h"

#define AT_FDCWD -100
#define FOLDERS 32 /* names of a folder's path that are told: the innermost */

/* Where an event has room for TEXT bytes at a place, or 0.  The compiler knows that the place is small, the verifier must be
 * shown.  By the mask too: that of Linux 6.1 also follows a comparison to where it cannot lead, and then knows nothing more
 * of the place. */
static __always_inline char *room_at(struct event *event, __u32 at)
{
	barrier_var(at);
	if (at >= PLACES)
		return 0;
	barrier_var(at);
	return event->text + (at & (PLACES - 1));
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

#endif
