// SPDX-License-Identifier: GPL-2.0
/* Frames of the engine: each runs one command at a time. */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/jiffies.h>

#include "lab.h"

#define PATIENCE	(20 * HZ)

static void __iomem *user(struct lab *lab, int frame)
{
	return lab->regs + frame * ENGINE_FRAME;
}

static void __iomem *privileged(struct lab *lab, int frame)
{
	return lab->regs + ENGINE_PAGE + frame * ENGINE_FRAME;
}

struct lab_job lab_job(u32 command, u64 begin, size_t size, u64 target)
{
	return (struct lab_job) {
		.command = command,
		.substream = ENGINE_NO_SUBSTREAM,
		.begin = begin,
		.size = size,
		.stride = 1,
		.target = target,
	};
}

int lab_frame_get(struct lab *lab)
{
	int frame;

	spin_lock(&lab->lock);
	frame = find_first_zero_bit(lab->busy, LAB_FRAMES);
	if (frame < LAB_FRAMES)
		__set_bit(frame, lab->busy);
	spin_unlock(&lab->lock);
	return frame < LAB_FRAMES ? frame : -EBUSY;
}

void lab_frame_put(struct lab *lab, int frame)
{
	/* One that never ends cannot be used again. */
	if (lab_state(lab, frame) >= ENGINE_MEMCPY && lab_state(lab, frame) <= ENGINE_SUM64)
		return;
	spin_lock(&lab->lock);
	__clear_bit(frame, lab->busy);
	spin_unlock(&lab->lock);
}

void lab_start(struct lab *lab, int frame, const struct lab_job *job)
{
	void __iomem *regs = user(lab, frame);
	bool interrupt = job->interrupt && frame < lab->vectors;

	if (interrupt)
		reinit_completion(&lab->done[frame]);
	writel(job->substream, privileged(lab, frame) + ENGINE_SUBSTREAMID);
	writel(job->rate << ENGINE_RATE_SHIFT, regs + ENGINE_UCTRL);
	writeq(interrupt, regs + ENGINE_MSIADDRESS);
	writel(frame, regs + ENGINE_MSIDATA);
	writel(ENGINE_WRITE_BACK, regs + ENGINE_ATTRIBUTES);
	writel(job->seed, regs + ENGINE_SEED);
	writeq(job->begin, regs + ENGINE_BEGIN);
	writeq(job->begin + job->size - 1, regs + ENGINE_END_INCL);
	writeq(job->stride, regs + ENGINE_STRIDE);
	writeq(job->target, regs + ENGINE_TARGET);
	/* writel() orders this behind what the CPU has written to memory. */
	writel(job->command, regs + ENGINE_CMD);
}

u32 lab_state(struct lab *lab, int frame)
{
	return readl(user(lab, frame) + ENGINE_CMD);
}

u64 lab_sum(struct lab *lab, int frame)
{
	return readq(user(lab, frame) + ENGINE_SUM);
}

u64 lab_fault(struct lab *lab, int frame)
{
	return readq(user(lab, frame) + ENGINE_FAULT);
}

bool lab_moving(struct lab *lab, int frame)
{
	return readl(user(lab, frame) + ENGINE_RETURNED) > 0;
}

int lab_wait(struct lab *lab, int frame, bool interrupt)
{
	unsigned long end = jiffies + PATIENCE;

	if (interrupt && frame < lab->vectors &&
	    !wait_for_completion_timeout(&lab->done[frame], PATIENCE))
		return -ETIMEDOUT;
	for (;;) {
		switch (lab_state(lab, frame)) {
		case ENGINE_HALTED:
			return 0;
		case ENGINE_ERROR:
			return -EIO;
		case ENGINE_MEMCPY:
		case ENGINE_RAND48:
		case ENGINE_SUM64:
			break;
		default:
			return -EINVAL;
		}
		if (time_after(jiffies, end))
			return -ETIMEDOUT;
		usleep_range(5, 20);
	}
}

int lab_run(struct lab *lab, const struct lab_job *job, u64 *sum)
{
	int frame = lab_frame_get(lab), ret;

	if (frame < 0)
		return frame;
	lab_start(lab, frame, job);
	ret = lab_wait(lab, frame, job->interrupt);
	if (sum)
		*sum = lab_sum(lab, frame);
	lab_frame_put(lab, frame);
	return ret;
}
