/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of this module share. */
#ifndef SMMULAB_LAB_H
#define SMMULAB_LAB_H

#include <linux/completion.h>
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/iommu.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/version.h>

#include "engine.h"
#include "smmulab.h"

/* Frames that this module uses; the first of them have an interrupt each. */
#define LAB_FRAMES	64
#define LAB_VECTORS	8

/* One engine. */
struct lab {
	struct device *dev;
	void __iomem *regs;
	struct miscdevice misc;
	char name[16];
	int index;
	struct kref refs;
	/* Taken for reading by whoever uses the device; for writing when it goes. */
	struct rw_semaphore life;
	bool gone;
	spinlock_t lock;
	DECLARE_BITMAP(busy, LAB_FRAMES);
	/* What the IOMMU has enabled for us. */
	bool iopf, sva;
	int vectors;
	struct completion done[LAB_VECTORS];
};

/* Settings of a written command. */
struct lab_args {
	char name[24];
	unsigned long size, loops, frames, threads, rate;
	/* Whether everything is done as a correct driver would do it. */
	bool correct;
	/* Whether to mark where a scenario begins, and how it ends. */
	bool mark_begin, mark_end;
};

/* An open file. */
struct lab_file {
	struct lab *lab;
	struct mutex lock;
	char *answer;
	size_t length;
	/* The bond with a process, and its frame. */
	struct iommu_sva *bond;
	u32 pasid;
	int frame;
	bool running;
};

/* frame.c */

/* What a frame is to do. */
struct lab_job {
	u32 command, seed, rate, substream;
	u64 begin, size, stride, target;
	bool interrupt;
};

/* A plain job: no PASID, no pauses. */
struct lab_job lab_job(u32 command, u64 begin, size_t size, u64 target);
int lab_frame_get(struct lab *lab);
void lab_frame_put(struct lab *lab, int frame);
void lab_start(struct lab *lab, int frame, const struct lab_job *job);
u32 lab_state(struct lab *lab, int frame);
u64 lab_sum(struct lab *lab, int frame);
u64 lab_fault(struct lab *lab, int frame);
/* Bytes moved so far are unknown to software; this says only whether the frame has begun to move any. */
bool lab_moving(struct lab *lab, int frame);
/* 0, or -EIO after a refused transaction, -EINVAL for an impossible job, -ETIMEDOUT. */
int lab_wait(struct lab *lab, int frame, bool interrupt);
/* Gets a frame, runs a job, waits. */
int lab_run(struct lab *lab, const struct lab_job *job, u64 *sum);

/* dma.c: memory */

void *lab_alloc(size_t size);
void lab_free(void *memory, size_t size);
void lab_fill(void *memory, size_t size, u64 seed);
/* 0, or -EBADMSG and a line in the answer if the memory does not hold what lab_fill() wrote. */
int lab_check(struct lab_file *file, const void *memory, size_t size, u64 seed);

/* commands.c */

/* Marks the beginning, if that is asked for. */
void lab_begin(const struct lab_args *args);
ssize_t lab_command(struct lab_file *file, char *line);
__printf(2, 3) void lab_say(struct lab_file *file, const char *format, ...);

typedef int lab_test(struct lab_file *file, const struct lab_args *args);
lab_test lab_copy, lab_coherent, lab_sync, lab_sg, lab_msi, lab_fault_test, lab_stress;
lab_test lab_domain, lab_pasid, lab_domain_race;
lab_test lab_dma_after_unmap, lab_unmap_in_flight, lab_free_before_unmap, lab_early_doorbell, lab_early_read;
lab_test lab_cpu_writes, lab_narrow_sync, lab_unmap_without_sync, lab_narrow_flush, lab_stale_page;
lab_test lab_early_free, lab_early_refill, lab_early_done, lab_hand_over, lab_crowd, lab_fault_storm;
lab_test lab_walk_race, lab_block_race, lab_table_race, lab_bind_race, lab_bind_test;

/*
 * Starts `threads` kernel threads of `work`, on one CPU after the other, and waits; gives the first error. If the command
 * is to mark a scenario, that begins when all of them are ready to go.
 */
int lab_parallel(const struct lab_args *args, unsigned long threads, int (*work)(void *data, unsigned long thread),
		 void *data);

/* domain.c: a domain of our own, that the device is attached to */

struct iommu_domain *lab_domain_new(struct device *dev);
int lab_iommu_map(struct iommu_domain *domain, unsigned long iova, void *memory, size_t size);

/* sva.c */

int lab_bind(struct lab_file *file);
void lab_unbind(struct lab_file *file);
void lab_sva_enable(struct lab *lab);
void lab_sva_disable(struct lab *lab);

/* untrusted.c */

void lab_untrust(void);

#endif
