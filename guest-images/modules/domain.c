// SPDX-License-Identifier: GPL-2.0
/* Tests of the IOMMU API: domains of our own, for the whole device or for a PASID. */
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "lab.h"

#define PROT		(IOMMU_READ | IOMMU_WRITE | IOMMU_CACHE)
/* Where our domains begin to map. */
#define BASE		SZ_1G

struct iommu_domain *lab_domain_new(struct device *dev)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	return iommu_paging_domain_alloc(dev);
#else
	return iommu_domain_alloc(dev->bus) ?: ERR_PTR(-ENOMEM);
#endif
}

int lab_iommu_map(struct iommu_domain *domain, unsigned long iova, void *memory, size_t size)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	return iommu_map(domain, iova, virt_to_phys(memory), size, PROT, GFP_KERNEL);
#else
	return iommu_map(domain, iova, virt_to_phys(memory), size, PROT);
#endif
}

static int lab_unmap(struct iommu_domain *domain, unsigned long iova, size_t size)
{
	return iommu_unmap(domain, iova, size) == size ? 0 : -EIO;
}

/* A job on an address that is not mapped any more has to be refused there. */
static int must_fault(struct lab_file *file, struct lab_job job)
{
	struct lab *lab = file->lab;
	int frame = lab_frame_get(lab), ret;
	u64 fault;

	if (frame < 0)
		return frame;
	lab_start(lab, frame, &job);
	ret = lab_wait(lab, frame, false);
	fault = lab_fault(lab, frame);
	lab_frame_put(lab, frame);
	if (ret == -EIO && fault == job.begin) {
		lab_say(file, "refused at %llx\n", fault);
		return 0;
	}
	lab_say(file, "not refused at %llx\n", job.begin);
	return ret == 0 || ret == -EIO ? -EBADMSG : ret;
}

/*
 * Memory of 2 MiB, mapped twice: as a block, and one page further as pages. The engine copies from the first half of
 * the one to the second half of the other. Then, unless all is to be correct, DMA goes to what was unmapped.
 */
static int domain_round(struct lab_file *file, const struct lab_args *args, struct iommu_domain *domain, u32 substream,
			void *memory, u64 seed)
{
	const unsigned long block = BASE, pages = BASE + SZ_4M + PAGE_SIZE;
	struct lab_job job = lab_job(ENGINE_MEMCPY, block, SZ_1M, pages + SZ_1M);
	int ret = lab_iommu_map(domain, block, memory, SZ_2M), again;

	if (ret)
		return ret;
	ret = lab_iommu_map(domain, pages, memory, SZ_2M);
	if (ret)
		goto no_pages;
	if (iommu_iova_to_phys(domain, pages + SZ_1M + 8) != virt_to_phys(memory) + SZ_1M + 8)
		ret = -EBADMSG;
	lab_fill(memory, SZ_1M, seed);
	memset(memory + SZ_1M, 0, SZ_1M);
	job.substream = substream;
	ret = ret ?: lab_run(file->lab, &job, NULL);
	ret = ret ?: lab_check(file, memory + SZ_1M, SZ_1M, seed);
	again = lab_unmap(domain, pages, SZ_2M);
	ret = ret ?: again;
no_pages:
	again = lab_unmap(domain, block, SZ_2M);
	job.begin = pages;
	ret = ret ?: again;
	return ret || args->correct ? ret : must_fault(file, job);
}

static int domain_rounds(struct lab_file *file, const struct lab_args *args, struct iommu_domain *domain,
			 u32 substream)
{
	void *memory = lab_alloc(SZ_2M);
	unsigned long i;
	int ret = 0;

	if (!memory)
		return -ENOMEM;
	for (i = 0; i < args->loops && !ret; i++)
		ret = domain_round(file, args, domain, substream, memory, i);
	lab_free(memory, SZ_2M);
	return ret;
}

int lab_domain(struct lab_file *file, const struct lab_args *args)
{
	struct device *dev = file->lab->dev;
	struct iommu_domain *domain = lab_domain_new(dev);
	int ret;

	if (IS_ERR(domain))
		return PTR_ERR(domain);
	ret = iommu_attach_device(domain, dev);
	if (!ret) {
		ret = domain_rounds(file, args, domain, ENGINE_NO_SUBSTREAM);
		iommu_detach_device(domain, dev);
	}
	iommu_domain_free(domain);
	return ret;
}

/* PASIDs of our own choice lie above those that the kernel gives to processes first. */
#define OUR_PASID	0x55

int lab_pasid(struct lab_file *file, const struct lab_args *args)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	struct device *dev = file->lab->dev;
	struct iommu_domain *domain = lab_domain_new(dev);
	struct lab_job job;
	int ret;

	if (IS_ERR(domain))
		return PTR_ERR(domain);
	ret = iommu_attach_device_pasid(domain, dev, OUR_PASID, NULL);
	if (!ret) {
		ret = domain_rounds(file, args, domain, OUR_PASID);
		/* The device's own domain goes on to work beside it. */
		ret = ret ?: lab_copy(file, args);
		iommu_detach_device_pasid(domain, dev, OUR_PASID);
		job = lab_job(ENGINE_MEMCPY, BASE, PAGE_SIZE, BASE);
		job.substream = OUR_PASID;
		if (!ret && !args->correct)
			ret = must_fault(file, job);
	}
	iommu_domain_free(domain);
	return ret;
#else
	return -EOPNOTSUPP;
#endif
}

struct race {
	struct lab_file *file;
	const struct lab_args *args;
	struct iommu_domain *domain;
	void *memory;
};

/* All threads map in the same 2 MiB, which is new in each round: they race for its table. */
static unsigned long race_iova(unsigned long round, unsigned long thread)
{
	return BASE + (round % 256 + 1) * SZ_2M + thread * PAGE_SIZE;
}

static int race_map(struct race *race, unsigned long thread)
{
	void *page = race->memory + thread * PAGE_SIZE;
	unsigned long i, iova;
	int ret = 0;

	for (i = 0; i < race->args->loops && !ret; i++) {
		struct lab_job job;

		iova = race_iova(i, thread);
		ret = lab_iommu_map(race->domain, iova, page, PAGE_SIZE);
		if (ret)
			break;
		lab_fill(page, PAGE_SIZE / 2, i);
		job = lab_job(ENGINE_MEMCPY, iova, PAGE_SIZE / 2, iova + PAGE_SIZE / 2);
		ret = lab_run(race->file->lab, &job, NULL);
		ret = ret ?: lab_check(race->file, page + PAGE_SIZE / 2, PAGE_SIZE / 2, i);
		if (lab_unmap(race->domain, iova, PAGE_SIZE))
			ret = -EIO;
	}
	return ret;
}

/* Sees each page mapped where it is, or not at all. */
static int race_look(struct race *race)
{
	unsigned long i, thread;

	for (i = 0; i < race->args->loops; i++)
		for (thread = 0; thread + 1 < race->args->threads; thread++) {
			phys_addr_t is = virt_to_phys(race->memory + thread * PAGE_SIZE), seen;

			seen = iommu_iova_to_phys(race->domain, race_iova(i, thread));
			if (seen && seen != is)
				return -EBADMSG;
			cond_resched();
		}
	return 0;
}

static int race_thread(void *data, unsigned long thread)
{
	struct race *race = data;

	return thread + 1 < race->args->threads ? race_map(race, thread) : race_look(race);
}

int lab_domain_race(struct lab_file *file, const struct lab_args *args)
{
	struct race race = { .file = file, .args = args };
	struct device *dev = file->lab->dev;
	size_t size = args->threads * PAGE_SIZE;
	int ret = -ENOMEM;

	if (args->threads < 2)
		return -EINVAL;
	race.memory = lab_alloc(size);
	if (!race.memory)
		return -ENOMEM;
	race.domain = lab_domain_new(dev);
	if (IS_ERR(race.domain)) {
		ret = PTR_ERR(race.domain);
		goto no_domain;
	}
	ret = iommu_attach_device(race.domain, dev);
	if (!ret) {
		ret = lab_parallel(args, args->threads, race_thread, &race);
		iommu_detach_device(race.domain, dev);
	}
	iommu_domain_free(race.domain);
no_domain:
	lab_free(race.memory, size);
	return ret;
}
