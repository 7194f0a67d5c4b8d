// SPDX-License-Identifier: GPL-2.0
/*
 * Mistakes that drivers make, on purpose, one a function; with "correct" the same thing as it should be done.
 *
 * The answer says how the engine's command ended. The return value is an error if data are wrong, or if the test could
 * not be made; that the SMMU refused something is what a mistake is for, and no error.
 */
#include <linux/delay.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "lab.h"

/* Slow enough that the CPU does a lot between two pieces. */
#define SLOWLY		20000
#define IOVA		SZ_1G

/* Memory with one streaming mapping. */
struct mapped {
	struct lab *lab;
	void *cpu;
	dma_addr_t dma;
	size_t size;
	enum dma_data_direction direction;
};

static int map(struct lab_file *file, const struct lab_args *args, enum dma_data_direction direction,
	       struct mapped *mapped)
{
	*mapped = (struct mapped) { .lab = file->lab, .size = args->size, .direction = direction };
	mapped->cpu = lab_alloc(args->size);
	if (!mapped->cpu)
		return -ENOMEM;
	mapped->dma = dma_map_single(file->lab->dev, mapped->cpu, args->size, direction);
	if (!dma_mapping_error(file->lab->dev, mapped->dma))
		return 0;
	lab_free(mapped->cpu, args->size);
	return -ENOMEM;
}

static void unmap(struct mapped *mapped)
{
	dma_unmap_single(mapped->lab->dev, mapped->dma, mapped->size, mapped->direction);
}

/* Waits for the frame, says how it ended, and gives it back. */
static int finish(struct lab_file *file, int frame)
{
	struct lab *lab = file->lab;
	int ret = lab_wait(lab, frame, false);

	if (ret == -EIO)
		lab_say(file, "refused at %llx\n", lab_fault(lab, frame));
	else if (!ret)
		lab_say(file, "done\n");
	lab_frame_put(lab, frame);
	return ret == -EIO ? 0 : ret;
}

/* Starts a slow job and waits until it has begun to move data. */
static int start_slowly(struct lab_file *file, struct lab_job job)
{
	int frame = lab_frame_get(file->lab), i;

	if (frame < 0)
		return frame;
	job.rate = SLOWLY;
	lab_start(file->lab, frame, &job);
	for (i = 0; i < 1000 && !lab_moving(file->lab, frame); i++)
		udelay(1);
	return frame;
}

static int fill_by_device(struct lab_file *file, dma_addr_t dma, size_t size)
{
	struct lab_job job = lab_job(ENGINE_RAND48, dma, size, 0);
	int frame = lab_frame_get(file->lab);

	if (frame < 0)
		return frame;
	lab_start(file->lab, frame, &job);
	return finish(file, frame);
}

int lab_dma_after_unmap(struct lab_file *file, const struct lab_args *args)
{
	struct mapped buffer;
	int ret = map(file, args, DMA_FROM_DEVICE, &buffer);

	if (ret)
		return ret;
	if (!args->correct)
		unmap(&buffer);
	ret = fill_by_device(file, buffer.dma, buffer.size);
	if (args->correct)
		unmap(&buffer);
	lab_free(buffer.cpu, buffer.size);
	return ret;
}

int lab_unmap_in_flight(struct lab_file *file, const struct lab_args *args)
{
	struct mapped buffer;
	int ret = map(file, args, DMA_FROM_DEVICE, &buffer), frame;

	if (ret)
		return ret;
	frame = start_slowly(file, lab_job(ENGINE_RAND48, buffer.dma, buffer.size, 0));
	if (!args->correct)
		unmap(&buffer);
	ret = frame < 0 ? frame : finish(file, frame);
	if (args->correct)
		unmap(&buffer);
	lab_free(buffer.cpu, buffer.size);
	return ret;
}

int lab_free_before_unmap(struct lab_file *file, const struct lab_args *args)
{
	struct mapped buffer;
	int ret = map(file, args, DMA_FROM_DEVICE, &buffer);

	if (ret)
		return ret;
	if (!args->correct)
		lab_free(buffer.cpu, buffer.size);
	ret = fill_by_device(file, buffer.dma, buffer.size);
	unmap(&buffer);
	if (args->correct)
		lab_free(buffer.cpu, buffer.size);
	return ret;
}

int lab_cpu_writes(struct lab_file *file, const struct lab_args *args)
{
	struct mapped buffer;
	int ret = map(file, args, DMA_BIDIRECTIONAL, &buffer), frame;
	struct lab_job job;

	if (ret)
		return ret;
	job = lab_job(ENGINE_SUM64, buffer.dma, buffer.size, 0);
	job.stride = 8;
	frame = start_slowly(file, job);
	if (!args->correct)
		lab_fill(buffer.cpu, buffer.size, 1);
	ret = frame < 0 ? frame : finish(file, frame);
	unmap(&buffer);
	if (args->correct)
		lab_fill(buffer.cpu, buffer.size, 1);
	lab_free(buffer.cpu, buffer.size);
	return ret;
}

/* The engine copies the first half to the second; the doorbell belongs behind the data. */
int lab_early_doorbell(struct lab_file *file, const struct lab_args *args)
{
	size_t half = round_down(args->size / 2, 8);
	int frame = lab_frame_get(file->lab), ret = 0;
	struct lab_job job;
	dma_addr_t dma;
	void *memory;

	if (frame < 0)
		return frame;
	memory = dma_alloc_coherent(file->lab->dev, args->size, &dma, GFP_KERNEL);
	if (!memory || !half) {
		lab_frame_put(file->lab, frame);
		ret = -ENOMEM;
		goto out;
	}
	job = lab_job(ENGINE_MEMCPY, dma, half, dma + half);
	if (args->correct)
		lab_fill(memory, half, 1);
	lab_start(file->lab, frame, &job);
	if (!args->correct)
		lab_fill(memory, half, 1);
	ret = finish(file, frame) ?: lab_check(file, memory + half, half, 1);
out:
	if (memory)
		dma_free_coherent(file->lab->dev, args->size, memory, dma);
	return ret;
}

/* A round by a streaming mapping that stays: what the CPU sees has to be synced, all of it, before it looks. */
static int streaming(struct lab_file *file, const struct lab_args *args, size_t synced)
{
	size_t half = round_down(args->size / 2, 8);
	struct mapped buffer;
	struct lab_job job;
	int ret = half ? map(file, args, DMA_BIDIRECTIONAL, &buffer) : -EINVAL;

	if (ret)
		return ret;
	job = lab_job(ENGINE_MEMCPY, buffer.dma, half, buffer.dma + half);
	dma_sync_single_for_cpu(file->lab->dev, buffer.dma, buffer.size, DMA_BIDIRECTIONAL);
	lab_fill(buffer.cpu, half, 1);
	dma_sync_single_for_device(file->lab->dev, buffer.dma, buffer.size, DMA_BIDIRECTIONAL);
	ret = lab_run(file->lab, &job, NULL);
	if (synced)
		dma_sync_single_for_cpu(file->lab->dev, buffer.dma, synced, DMA_BIDIRECTIONAL);
	ret = ret ?: lab_check(file, buffer.cpu + half, half, 1);
	unmap(&buffer);
	lab_free(buffer.cpu, buffer.size);
	return ret;
}

int lab_early_read(struct lab_file *file, const struct lab_args *args)
{
	return streaming(file, args, args->correct ? args->size : 0);
}

int lab_narrow_sync(struct lab_file *file, const struct lab_args *args)
{
	return streaming(file, args, args->correct ? args->size : args->size / 2);
}

/* A domain that maps memory at IOVA, all of which the device has used. */
struct own {
	struct device *dev;
	struct iommu_domain *domain;
	void *old, *new;
	size_t size;
};

static void own_end(struct own *own)
{
	if (own->domain) {
		iommu_detach_device(own->domain, own->dev);
		iommu_domain_free(own->domain);
	}
	lab_free(own->old, own->size);
	lab_free(own->new, PAGE_SIZE);
}

static int own_begin(struct lab_file *file, size_t size, struct own *own)
{
	struct iommu_domain *domain = lab_domain_new(file->lab->dev);
	int ret;

	if (IS_ERR(domain))
		return PTR_ERR(domain);
	*own = (struct own) { .dev = file->lab->dev, .size = size };
	ret = iommu_attach_device(domain, own->dev);
	if (ret) {
		iommu_domain_free(domain);
		return ret;
	}
	own->domain = domain;
	own->old = lab_alloc(size);
	own->new = lab_alloc(PAGE_SIZE);
	ret = own->old && own->new ? lab_iommu_map(domain, IOVA, own->old, size) : -ENOMEM;
	ret = ret ?: fill_by_device(file, IOVA, size);
	if (ret)
		own_end(own);
	return ret;
}

/* Maps another page at `iova` and lets the engine write: only that page may change. */
static int reuse(struct lab_file *file, struct own *own, unsigned long iova)
{
	u64 *was = own->old + (iova - IOVA);
	int ret = lab_iommu_map(own->domain, iova, own->new, PAGE_SIZE);

	if (ret)
		return ret;
	memset(was, 0, PAGE_SIZE);
	ret = fill_by_device(file, iova, PAGE_SIZE);
	iommu_unmap(own->domain, iova, PAGE_SIZE);
	if (!ret && memchr_inv(was, 0, PAGE_SIZE)) {
		lab_say(file, "the engine wrote to the page that was there before\n");
		ret = -EBADMSG;
	}
	return ret;
}

int lab_unmap_without_sync(struct lab_file *file, const struct lab_args *args)
{
	struct iommu_iotlb_gather gather;
	struct own own;
	int ret = own_begin(file, PAGE_SIZE, &own);

	if (ret)
		return ret;
	iommu_iotlb_gather_init(&gather);
	iommu_unmap_fast(own.domain, IOVA, PAGE_SIZE, &gather);
	if (args->correct)
		iommu_iotlb_sync(own.domain, &gather);
	ret = reuse(file, &own, IOVA);
	own_end(&own);
	return ret;
}

int lab_narrow_flush(struct lab_file *file, const struct lab_args *args)
{
	const size_t size = 8 * PAGE_SIZE;
	struct iommu_iotlb_gather gather;
	struct own own;
	int ret = own_begin(file, size, &own);

	if (ret)
		return ret;
	iommu_iotlb_gather_init(&gather);
	iommu_unmap_fast(own.domain, IOVA, size, &gather);
	if (!args->correct)
		gather.end = gather.start + PAGE_SIZE - 1;
	iommu_iotlb_sync(own.domain, &gather);
	ret = reuse(file, &own, IOVA + 5 * PAGE_SIZE);
	own_end(&own);
	return ret;
}

int lab_stale_page(struct lab_file *file, const struct lab_args *args)
{
	struct own own;
	int ret = own_begin(file, PAGE_SIZE, &own);

	if (ret)
		return ret;
	if (args->correct)
		iommu_unmap(own.domain, IOVA, PAGE_SIZE);
	lab_free(own.old, own.size);
	own.old = NULL;
	if (!args->correct) {
		ret = fill_by_device(file, IOVA, PAGE_SIZE);
		iommu_unmap(own.domain, IOVA, PAGE_SIZE);
	}
	own_end(&own);
	return ret;
}
