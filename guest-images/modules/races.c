// SPDX-License-Identifier: GPL-2.0
/*
 * Mistakes that go unnoticed unless two CPUs, or a CPU and the engine, meet at the wrong moment; with "correct" the same
 * thing as it should be done. And what a correct driver does, for kernels with a mistake of their own.
 *
 * In the default order of steps nothing is wrong: it takes a search for schedules to see them.
 */
#include <linux/delay.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "lab.h"

/* How long a driver waits that believes the engine to be done then. */
#define LONG_ENOUGH	50
/* The largest bounce buffer there is. */
#define HOG		SZ_256K
#define MOST_HOGS	16
/* The engine writes no more than this, however large the mapping. */
#define PART		((size_t)512)

/* What the threads of one race share. */
struct race {
	struct lab_file *file;
	const struct lab_args *args;
	void *memory;
	dma_addr_t dma;
	bool ready;
};

/* Waits until the other thread says so. */
static int wait_until_ready(struct race *race)
{
	unsigned long end = jiffies + HZ;

	while (!smp_load_acquire(&race->ready)) {
		if (time_after(jiffies, end))
			return -ETIMEDOUT;
		cpu_relax();
	}
	return 0;
}

static int fill_by_device(struct lab *lab, dma_addr_t dma, size_t size)
{
	struct lab_job job = lab_job(ENGINE_RAND48, dma, size, 0);

	return lab_run(lab, &job, NULL);
}

/* A pool with one piece of memory, for whoever comes first: takes it, if it is there. */
static void *pool_take(struct race *race)
{
	return xchg(&race->memory, NULL);
}

static void pool_give(struct race *race, void *memory)
{
	smp_store_release(&race->memory, memory);
}

/* One CPU gives the memory back, then unmaps it, and with bounce buffers that still writes to it. */
static int give_away(struct race *race)
{
	struct device *dev = race->file->lab->dev;
	size_t size = race->args->size;
	dma_addr_t dma;
	void *memory;
	int ret;

	while (!(memory = pool_take(race)))
		cpu_relax();
	dma = dma_map_single(dev, memory, size, DMA_FROM_DEVICE);
	if (dma_mapping_error(dev, dma)) {
		pool_give(race, memory);
		return -ENOMEM;
	}
	ret = fill_by_device(race->file->lab, dma, size);
	if (!race->args->correct)
		pool_give(race, memory);
	dma_unmap_single(dev, dma, size, DMA_FROM_DEVICE);
	if (race->args->correct)
		pool_give(race, memory);
	return ret;
}

/* The other CPU uses it too, and what it has written has to stay there. */
static int take(struct race *race)
{
	void *memory = pool_take(race);
	int ret;

	if (!memory)
		return 0;
	lab_fill(memory, race->args->size, 1);
	ret = lab_check(race->file, memory, race->args->size, 1);
	pool_give(race, memory);
	/* The other one's turn. */
	udelay(1);
	return ret;
}

static int early_free_thread(void *data, unsigned long thread)
{
	struct race *race = data;
	unsigned long i;
	int ret = 0;

	if (thread) {
		while (!ret && !smp_load_acquire(&race->ready))
			ret = take(race);
		return ret;
	}
	for (i = 0; i < race->args->loops && !ret; i++)
		ret = give_away(race);
	smp_store_release(&race->ready, true);
	return ret;
}

int lab_early_free(struct lab_file *file, const struct lab_args *args)
{
	void *memory = lab_alloc(args->size);
	struct race race = { .file = file, .args = args, .memory = memory };
	int ret;

	if (!memory)
		return -ENOMEM;
	ret = lab_parallel(args, 2, early_free_thread, &race);
	lab_free(memory, args->size);
	return ret;
}

/* The engine copies the first half to the second; that half is written again as soon as the engine is thought to be done. */
int lab_early_refill(struct lab_file *file, const struct lab_args *args)
{
	size_t half = round_down(args->size / 2, 8);
	struct lab *lab = file->lab;
	struct lab_job job;
	int frame, ret = 0;
	dma_addr_t dma;
	void *memory;

	if (!half)
		return -EINVAL;
	frame = lab_frame_get(lab);
	if (frame < 0)
		return frame;
	memory = dma_alloc_coherent(lab->dev, args->size, &dma, GFP_KERNEL);
	if (!memory) {
		lab_frame_put(lab, frame);
		return -ENOMEM;
	}
	job = lab_job(ENGINE_MEMCPY, dma, half, dma + half);
	lab_fill(memory, half, 1);
	lab_start(lab, frame, &job);
	if (args->correct)
		ret = lab_wait(lab, frame, false);
	else
		udelay(LONG_ENOUGH);
	lab_fill(memory, half, 2);
	ret = ret ?: lab_wait(lab, frame, false);
	lab_frame_put(lab, frame);
	ret = ret ?: lab_check(file, memory + half, half, 1);
	dma_free_coherent(lab->dev, args->size, memory, dma);
	return ret;
}

/* One CPU runs the engine and says that it is done; the other looks at the data, which a sync has to bring first. */
static int early_done_thread(void *data, unsigned long thread)
{
	struct race *race = data;
	size_t half = race->args->size / 2;
	struct lab *lab = race->file->lab;
	struct lab_job job;
	int ret;

	if (thread)
		return wait_until_ready(race) ?: lab_check(race->file, race->memory + half, half, 1);
	job = lab_job(ENGINE_MEMCPY, race->dma, half, race->dma + half);
	ret = lab_run(lab, &job, NULL);
	if (!race->args->correct)
		smp_store_release(&race->ready, true);
	dma_sync_single_for_cpu(lab->dev, race->dma, race->args->size, DMA_BIDIRECTIONAL);
	smp_store_release(&race->ready, true);
	return ret;
}

int lab_early_done(struct lab_file *file, const struct lab_args *args)
{
	struct race race = { .file = file, .args = args };
	struct device *dev = file->lab->dev;
	int ret = -ENOMEM;

	if (args->size % 16)
		return -EINVAL;
	race.memory = lab_alloc(args->size);
	if (!race.memory)
		return ret;
	lab_fill(race.memory, args->size / 2, 1);
	race.dma = dma_map_single(dev, race.memory, args->size, DMA_BIDIRECTIONAL);
	if (!dma_mapping_error(dev, race.dma)) {
		ret = lab_parallel(args, 2, early_done_thread, &race);
		dma_unmap_single(dev, race.dma, args->size, DMA_BIDIRECTIONAL);
	}
	lab_free(race.memory, args->size);
	return ret;
}

/* Mappings that leave no room for bounce buffers in the pools that there are: as many as `frames` says. */
struct hogs {
	struct device *dev;
	void *memory;
	dma_addr_t dma[MOST_HOGS];
	unsigned long count;
};

static void hogs_end(struct hogs *hogs)
{
	while (hogs->count--)
		dma_unmap_single(hogs->dev, hogs->dma[hogs->count], HOG, DMA_TO_DEVICE);
	lab_free(hogs->memory, HOG);
}

static int hogs_begin(struct lab_file *file, const struct lab_args *args, struct hogs *hogs)
{
	*hogs = (struct hogs) { .dev = file->lab->dev, .memory = lab_alloc(HOG) };
	if (!hogs->memory)
		return -ENOMEM;
	while (hogs->count + 1 < args->frames && hogs->count < MOST_HOGS) {
		dma_addr_t dma = dma_map_single(hogs->dev, hogs->memory, HOG, DMA_TO_DEVICE);

		if (dma_mapping_error(hogs->dev, dma)) {
			hogs_end(hogs);
			return -ENOMEM;
		}
		hogs->dma[hogs->count++] = dma;
	}
	return 0;
}

/* Whether what the engine wrote is there; there was nothing before. */
static int lab_came(struct lab_file *file, const u64 *words)
{
	if (READ_ONCE(words[0]))
		return 0;
	lab_say(file, "what the engine wrote never came\n");
	return -EBADMSG;
}

/* One CPU maps and hands the address to the other, which runs the engine, unmaps, and looks at the data. */
static int hand_over_thread(void *data, unsigned long thread)
{
	struct race *race = data;
	size_t size = race->args->size;
	struct lab *lab = race->file->lab;
	int ret;

	if (!thread) {
		race->dma = dma_map_single(lab->dev, race->memory, size, DMA_FROM_DEVICE);
		smp_store_release(&race->ready, true);
		return dma_mapping_error(lab->dev, race->dma);
	}
	ret = wait_until_ready(race);
	if (ret || dma_mapping_error(lab->dev, race->dma))
		return ret;
	ret = fill_by_device(lab, race->dma, min(size, PART));
	dma_unmap_single(lab->dev, race->dma, size, DMA_FROM_DEVICE);
	return ret ?: lab_came(race->file, race->memory);
}

int lab_hand_over(struct lab_file *file, const struct lab_args *args)
{
	struct race race = { .file = file, .args = args };
	struct hogs hogs;
	int ret;

	race.memory = lab_alloc(args->size);
	if (!race.memory)
		return -ENOMEM;
	ret = hogs_begin(file, args, &hogs);
	if (!ret) {
		ret = lab_parallel(args, 2, hand_over_thread, &race);
		hogs_end(&hogs);
	}
	lab_free(race.memory, args->size);
	return ret;
}

/* One thread keeps its buffer and syncs it over and over; */
static int crowd_keeps(struct race *race, struct device *dev, void *memory, size_t size)
{
	dma_addr_t dma = dma_map_single(dev, memory, size, DMA_FROM_DEVICE);

	if (dma_mapping_error(dev, dma))
		return -ENOMEM;
	while (!smp_load_acquire(&race->ready))
		dma_sync_single_for_cpu(dev, dma, min(size, PART), DMA_FROM_DEVICE);
	dma_unmap_single(dev, dma, size, DMA_FROM_DEVICE);
	return 0;
}

/* the other maps and unmaps. Nobody sleeps, so what would make the pool larger waits until they are done. */
static int crowd_passes(struct race *race, struct device *dev, void *memory, size_t size)
{
	unsigned long i;
	int ret = 0;

	for (i = 0; i < race->args->loops && !ret; i++) {
		dma_addr_t dma = dma_map_single(dev, memory, size, DMA_TO_DEVICE);

		ret = dma_mapping_error(dev, dma);
		if (!ret)
			dma_unmap_single(dev, dma, size, DMA_TO_DEVICE);
	}
	smp_store_release(&race->ready, true);
	return ret;
}

static int crowd_thread(void *data, unsigned long thread)
{
	struct race *race = data;
	struct device *dev = race->file->lab->dev;
	size_t size = race->args->size;
	void *memory = lab_alloc(size);
	int ret;

	if (!memory) {
		smp_store_release(&race->ready, true);
		return -ENOMEM;
	}
	ret = thread ? crowd_passes(race, dev, memory, size) : crowd_keeps(race, dev, memory, size);
	lab_free(memory, size);
	return ret;
}

/* Two threads use bounce buffers while these are short. */
int lab_crowd(struct lab_file *file, const struct lab_args *args)
{
	struct race race = { .file = file, .args = args };
	struct hogs hogs;
	int ret = hogs_begin(file, args, &hogs);

	if (ret)
		return ret;
	ret = lab_parallel(args, 2, crowd_thread, &race);
	hogs_end(&hogs);
	return ret;
}

/* Starts as many commands as there are frames, on an address that nobody has mapped, and waits for none of them. */
int lab_fault_storm(struct lab_file *file, const struct lab_args *args)
{
	const u64 nowhere = 0x123456000;
	unsigned long i;

	lab_begin(args);
	for (i = 0; i < args->frames; i++) {
		struct lab_job job = lab_job(ENGINE_SUM64, nowhere + i * PAGE_SIZE, PAGE_SIZE, 0);
		int frame = lab_frame_get(file->lab);

		if (frame < 0)
			return frame;
		job.stride = 8;
		lab_start(file->lab, frame, &job);
	}
	return 0;
}
