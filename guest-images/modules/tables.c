// SPDX-License-Identifier: GPL-2.0
/*
 * Callers of the IOMMU API that use the same addresses at the same time, which nobody may: io-pgtable has no lock for
 * its tables. With "correct" they take one of their own.
 */
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "lab.h"

#define BASE		SZ_1G
/* A descriptor of a page, as io-pgtable writes them: valid, accessed, inner shareable. */
#define LEAF		0xf43ULL

struct tables {
	const struct lab_args *args;
	struct iommu_domain *domain;
	/* What blocks are mapped to, aligned as they are. No DMA goes there: it need not be ours. */
	void *block;
	/* A page of ours. */
	void *page;
	struct rw_semaphore lock;
	bool done;
};

static int tables_begin(struct lab_file *file, const struct lab_args *args, struct tables *tables)
{
	*tables = (struct tables) { .args = args };
	init_rwsem(&tables->lock);
	tables->domain = lab_domain_new(file->lab->dev);
	if (IS_ERR(tables->domain))
		return PTR_ERR(tables->domain);
	tables->page = lab_alloc(PAGE_SIZE);
	tables->block = PTR_ALIGN_DOWN(tables->page, SZ_2M);
	return tables->page ? iommu_attach_device(tables->domain, file->lab->dev) : -ENOMEM;
}

static int tables_end(struct lab_file *file, struct tables *tables, int ret)
{
	if (IS_ERR(tables->domain))
		return ret;
	if (iommu_get_domain_for_dev(file->lab->dev) == tables->domain)
		iommu_detach_device(tables->domain, file->lab->dev);
	iommu_domain_free(tables->domain);
	lab_free(tables->page, PAGE_SIZE);
	return ret;
}

static void lock(struct tables *tables)
{
	if (tables->args->correct)
		down_write(&tables->lock);
}

static void unlock(struct tables *tables)
{
	if (tables->args->correct)
		up_write(&tables->lock);
}

/* What was a table is somebody else's page now, with contents that look like descriptors. */
static u64 *reuse_page(struct tables *tables, gfp_t how)
{
	u64 *page = (u64 *)__get_free_page(how);
	int i;

	for (i = 0; page && i < PAGE_SIZE / 8; i++)
		WRITE_ONCE(page[i], virt_to_phys(tables->page) | LEAF);
	return page;
}

/* Maps pages where a block would fit, and unmaps them at once, by which their table goes. */
static int map_and_unmap(struct tables *tables)
{
	u64 *reused = NULL;
	unsigned long i;
	int ret = 0;

	for (i = 0; i < tables->args->loops && !ret; i++) {
		lock(tables);
		ret = lab_iommu_map(tables->domain, BASE, tables->block + PAGE_SIZE, SZ_2M);
		unlock(tables);
		if (ret)
			break;
		lock(tables);
		if (iommu_unmap(tables->domain, BASE, SZ_2M) != SZ_2M)
			ret = -EIO;
		unlock(tables);
		lab_free(reused, PAGE_SIZE);
		reused = reuse_page(tables, GFP_KERNEL | __GFP_ZERO);
	}
	smp_store_release(&tables->done, true);
	lab_free(reused, PAGE_SIZE);
	return ret;
}

/* Sees each page where it is mapped, or not at all. */
static int look(struct tables *tables, struct lab_file *file)
{
	unsigned long i;

	for (i = 0; !smp_load_acquire(&tables->done); i++) {
		unsigned long offset = i % 512 * PAGE_SIZE;
		phys_addr_t is = virt_to_phys(tables->block) + PAGE_SIZE + offset, seen;

		if (tables->args->correct)
			down_read(&tables->lock);
		seen = iommu_iova_to_phys(tables->domain, BASE + offset);
		if (tables->args->correct)
			up_read(&tables->lock);
		if (seen && seen != is) {
			lab_say(file, "mapped to %pa, not %pa\n", &seen, &is);
			return -EBADMSG;
		}
		cond_resched();
	}
	return 0;
}

struct tables_race {
	struct tables tables;
	struct lab_file *file;
};

static int walk_thread(void *data, unsigned long thread)
{
	struct tables_race *race = data;

	return thread ? look(&race->tables, race->file) : map_and_unmap(&race->tables);
}

int lab_walk_race(struct lab_file *file, const struct lab_args *args)
{
	struct tables_race race = { .file = file };
	int ret = tables_begin(file, args, &race.tables);

	ret = ret ?: lab_parallel(args, 2, walk_thread, &race);
	return tables_end(file, &race.tables, ret);
}

/* A block and a page in it by turns: what was mapped has to be there, and to be all that is unmapped. */
static int block_thread(void *data, unsigned long thread)
{
	struct tables_race *race = data;
	struct tables *tables = &race->tables;
	size_t size = thread ? PAGE_SIZE : SZ_2M;
	void *memory = thread ? tables->page : tables->block;
	/* Where the block would not map that page. */
	unsigned long iova = BASE + (thread && tables->page == tables->block ? SZ_64K : 0), i;
	int ret = 0;

	for (i = 0; i < tables->args->loops && !ret; i++) {
		lock(tables);
		ret = lab_iommu_map(tables->domain, iova, memory, size);
		if (!ret && iommu_iova_to_phys(tables->domain, iova) != virt_to_phys(memory)) {
			lab_say(race->file, "what was mapped is not there\n");
			ret = -EBADMSG;
		}
		if (!ret && iommu_unmap(tables->domain, iova, size) != size)
			ret = -EIO;
		unlock(tables);
	}
	return ret;
}

int lab_block_race(struct lab_file *file, const struct lab_args *args)
{
	struct tables_race race = { .file = file };
	int ret = tables_begin(file, args, &race.tables);

	ret = ret ?: lab_parallel(args, 2, block_thread, &race);
	return tables_end(file, &race.tables, ret);
}

/* How often an interrupt takes a page, and how many of them it keeps. */
#define REFILL_NS	20000
#define REFILLED	4

/* A CPU on which interrupts take pages, as drivers do that fill their rings again. */
struct refill {
	struct hrtimer timer;
	struct tables *tables;
	u64 *pages[REFILLED];
	unsigned long next;
};

static enum hrtimer_restart refill_page(struct hrtimer *timer)
{
	struct refill *refill = container_of(timer, struct refill, timer);
	u64 **page = &refill->pages[refill->next++ % REFILLED];
	u64 *old = *page;

	*page = reuse_page(refill->tables, GFP_ATOMIC);
	lab_free(old, PAGE_SIZE);
	hrtimer_forward_now(timer, ns_to_ktime(REFILL_NS));
	return HRTIMER_RESTART;
}

static void refill_begin(struct refill *refill, struct tables *tables)
{
	*refill = (struct refill) { .tables = tables };
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&refill->timer, refill_page, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
#else
	hrtimer_init(&refill->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	refill->timer.function = refill_page;
#endif
	hrtimer_start(&refill->timer, ns_to_ktime(REFILL_NS), HRTIMER_MODE_REL_PINNED_HARD);
}

static void refill_end(struct refill *refill)
{
	int i;

	hrtimer_cancel(&refill->timer);
	for (i = 0; i < REFILLED; i++)
		lab_free(refill->pages[i], PAGE_SIZE);
}

/* The engine writes all over what is mapped, and on when it is not any more, which has to be refused. */
static int unmap_under_dma(struct tables_race *race)
{
	struct iommu_domain *domain = race->tables.domain;
	struct lab *lab = race->file->lab;
	struct lab_job job = lab_job(ENGINE_RAND48, BASE, SZ_2M, 0);
	int frame = lab_frame_get(lab), ret;

	if (frame < 0)
		return frame;
	job.stride = PAGE_SIZE;
	/* As pages, since it is not aligned as a block is: with a table, which goes with them. */
	ret = lab_iommu_map(domain, BASE, race->tables.block + PAGE_SIZE, SZ_2M);
	if (!ret) {
		lab_start(lab, frame, &job);
		udelay(REFILL_NS / NSEC_PER_USEC);
		if (iommu_unmap(domain, BASE, SZ_2M) != SZ_2M)
			ret = -EIO;
		lab_wait(lab, frame, false);
	}
	lab_frame_put(lab, frame);
	return ret;
}

/* On one CPU, so that a table that goes is the first page that the next interrupt gets. */
static int table_thread(void *data, unsigned long thread)
{
	struct tables_race *race = data;
	const u64 *words = race->tables.page;
	struct refill refill;
	unsigned long i;
	int ret = 0;

	refill_begin(&refill, &race->tables);
	for (i = 0; i < race->tables.args->loops && !ret; i++)
		ret = unmap_under_dma(race);
	refill_end(&refill);
	for (i = 0; i < PAGE_SIZE / sizeof(*words) && !ret; i++)
		if (READ_ONCE(words[i])) {
			lab_say(race->file, "the engine wrote to a page that was never mapped\n");
			ret = -EBADMSG;
		}
	return ret;
}

int lab_table_race(struct lab_file *file, const struct lab_args *args)
{
	struct tables_race race = { .file = file };
	int ret = tables_begin(file, args, &race.tables);

	if (!ret) {
		race.tables.block = lab_alloc(SZ_2M + PAGE_SIZE);
		ret = race.tables.block ? lab_parallel(args, 1, table_thread, &race) : -ENOMEM;
		lab_free(race.tables.block, SZ_2M + PAGE_SIZE);
	}
	return tables_end(file, &race.tables, ret);
}
