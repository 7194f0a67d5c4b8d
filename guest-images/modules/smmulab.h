/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/*
 * What /dev/smmulab* understands.
 *
 * A written line is a command with its settings, as in "copy size=65536 frames=4"; reads give its answer. "help" lists
 * them. These are tests that the kernel does with memory of its own.
 *
 * The ioctls run the engine on the memory of the calling process, by a PASID (SVA).
 */
#ifndef SMMULAB_H
#define SMMULAB_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct smmulab_job {
	__u32 command;		/* ENGINE_MEMCPY, ENGINE_RAND48, ENGINE_SUM64 */
	__u32 seed;		/* of RAND48, and of the order of transactions */
	__u64 begin;
	__u64 end_incl;
	__u64 stride;		/* 1, or a multiple of 8 */
	__u64 target;		/* of a copy */
	__u32 rate;		/* nanoseconds of pause between pieces, up to 65535 */
	/* Answers. */
	__u32 state;		/* ENGINE_HALTED, ENGINE_ERROR, ENGINE_MISCONFIGURED */
	__u64 sum;		/* of SUM64 */
	__u64 fault;		/* the address that was refused, after ENGINE_ERROR */
};

/* Binds the calling process's address space to the engine, and gives its PASID. */
#define SMMULAB_BIND	_IOR('S', 0, __u32)
#define SMMULAB_UNBIND	_IO('S', 1)
/* Starts a command in the bound address space; one at a time on each open file. */
#define SMMULAB_START	_IOW('S', 2, struct smmulab_job)
/* Waits for its end. */
#define SMMULAB_WAIT	_IOWR('S', 3, struct smmulab_job)

#endif
