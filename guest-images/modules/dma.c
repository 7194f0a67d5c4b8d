// SPDX-License-Identifier: GPL-2.0
/* Tests of the DMA API, as drivers use it. */
#include <linux/gfp.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "lab.h"

void *lab_alloc(size_t size)
{
	return alloc_pages_exact(size, GFP_KERNEL | __GFP_ZERO);
}

void lab_free(void *memory, size_t size)
{
	if (memory)
		free_pages_exact(memory, size);
}

/* What lab_fill() puts at the word `index`. */
static u64 word(u64 seed, size_t index)
{
	return (seed + index + 1) * 0x9e3779b97f4a7c15ULL;
}

void lab_fill(void *memory, size_t size, u64 seed)
{
	u64 *words = memory;
	size_t i;

	for (i = 0; i < size / 8; i++)
		WRITE_ONCE(words[i], word(seed, i));
}

int lab_check(struct lab_file *file, const void *memory, size_t size, u64 seed)
{
	const u64 *words = memory;
	size_t i;

	for (i = 0; i < size / 8; i++) {
		u64 got = READ_ONCE(words[i]);

		if (got != word(seed, i)) {
			lab_say(file, "wrong data at byte %zu: %llx, not %llx\n", i * 8, got, word(seed, i));
			return -EBADMSG;
		}
	}
	return 0;
}

/* One of the two buffers of a copy. */
struct buffer {
	void *cpu;
	dma_addr_t dma;
	size_t size;
	enum dma_data_direction direction;
};

static int buffer_new(struct buffer *buffer, size_t size, enum dma_data_direction direction)
{
	*buffer = (struct buffer) { .cpu = lab_alloc(size), .size = size, .direction = direction };
	return buffer->cpu ? 0 : -ENOMEM;
}

static int buffer_map(struct device *dev, struct buffer *buffer)
{
	buffer->dma = dma_map_single(dev, buffer->cpu, buffer->size, buffer->direction);
	return dma_mapping_error(dev, buffer->dma) ? -ENOMEM : 0;
}

static void buffer_unmap(struct device *dev, struct buffer *buffer)
{
	dma_unmap_single(dev, buffer->dma, buffer->size, buffer->direction);
}

/* Copies by several frames at once, each a part. */
static int copy_in_parts(struct lab *lab, dma_addr_t from, dma_addr_t to, size_t size, unsigned long parts)
{
	size_t part = round_up(DIV_ROUND_UP(size, parts), 8), at;
	int frames[LAB_FRAMES], used = 0, ret = 0, i;

	for (at = 0; at < size && !ret; at += part) {
		struct lab_job job = lab_job(ENGINE_MEMCPY, from + at, min(part, size - at), to + at);

		frames[used] = lab_frame_get(lab);
		if (frames[used] < 0)
			ret = frames[used];
		else
			lab_start(lab, frames[used++], &job);
	}
	for (i = 0; i < used; i++) {
		int one = lab_wait(lab, frames[i], false);

		ret = ret ?: one;
		lab_frame_put(lab, frames[i]);
	}
	return ret;
}

static int copy_once(struct lab_file *file, const struct lab_args *args, struct buffer *from, struct buffer *to,
		     u64 seed)
{
	struct device *dev = file->lab->dev;
	int ret;

	lab_fill(from->cpu, args->size, seed);
	memset(to->cpu, 0, args->size);
	ret = buffer_map(dev, from);
	if (ret)
		return ret;
	ret = buffer_map(dev, to);
	if (!ret) {
		ret = copy_in_parts(file->lab, from->dma, to->dma, args->size, args->frames);
		buffer_unmap(dev, to);
	}
	buffer_unmap(dev, from);
	return ret ?: lab_check(file, to->cpu, args->size, seed);
}

static int copy_loop(struct lab_file *file, const struct lab_args *args, u64 seed)
{
	struct buffer from = { }, to = { };
	unsigned long i;
	int ret = buffer_new(&from, args->size, DMA_TO_DEVICE);

	ret = ret ?: buffer_new(&to, args->size, DMA_FROM_DEVICE);
	for (i = 0; i < args->loops && !ret; i++)
		ret = copy_once(file, args, &from, &to, seed + i);
	lab_free(from.cpu, args->size);
	lab_free(to.cpu, args->size);
	return ret;
}

int lab_copy(struct lab_file *file, const struct lab_args *args)
{
	return copy_loop(file, args, 1);
}

struct stress {
	struct lab_file *file;
	const struct lab_args *args;
};

static int stress_thread(void *data, unsigned long thread)
{
	struct stress *stress = data;

	return copy_loop(stress->file, stress->args, thread << 32);
}

int lab_stress(struct lab_file *file, const struct lab_args *args)
{
	struct stress stress = { file, args };

	return lab_parallel(args, args->threads, stress_thread, &stress);
}

int lab_coherent(struct lab_file *file, const struct lab_args *args)
{
	struct lab *lab = file->lab;
	u64 by_device = 0, by_cpu = 0, *words;
	struct lab_job job;
	dma_addr_t dma;
	size_t i;
	int ret;

	words = dma_alloc_coherent(lab->dev, args->size, &dma, GFP_KERNEL);
	if (!words)
		return -ENOMEM;
	job = lab_job(ENGINE_RAND48, dma, args->size, 0);
	job.seed = 42;
	ret = lab_run(lab, &job, NULL);
	for (i = 0; i < args->size / 8; i++)
		by_cpu += READ_ONCE(words[i]);
	job = lab_job(ENGINE_SUM64, dma, args->size, 0);
	job.stride = 8;
	ret = ret ?: lab_run(lab, &job, &by_device);
	lab_say(file, "sum by device %llx, by CPU %llx\n", by_device, by_cpu);
	dma_free_coherent(lab->dev, args->size, words, dma);
	return ret ?: by_device == by_cpu && by_cpu ? 0 : -EBADMSG;
}

int lab_sync(struct lab_file *file, const struct lab_args *args)
{
	struct lab *lab = file->lab;
	size_t half = round_down(args->size / 2, 8);
	struct buffer buffer = { };
	unsigned long i;
	int ret;

	if (!half)
		return -EINVAL;
	ret = buffer_new(&buffer, args->size, DMA_BIDIRECTIONAL);
	if (ret)
		return ret;
	ret = buffer_map(lab->dev, &buffer);
	if (ret)
		goto out;
	for (i = 0; i < args->loops && !ret; i++) {
		struct lab_job job = lab_job(ENGINE_MEMCPY, buffer.dma, half, buffer.dma + half);

		dma_sync_single_for_cpu(lab->dev, buffer.dma, args->size, DMA_BIDIRECTIONAL);
		lab_fill(buffer.cpu, half, i);
		dma_sync_single_for_device(lab->dev, buffer.dma, args->size, DMA_BIDIRECTIONAL);
		ret = lab_run(lab, &job, NULL);
		dma_sync_single_for_cpu(lab->dev, buffer.dma, args->size, DMA_BIDIRECTIONAL);
		ret = ret ?: lab_check(file, buffer.cpu + half, half, i);
		dma_sync_single_for_device(lab->dev, buffer.dma, args->size, DMA_BIDIRECTIONAL);
	}
	buffer_unmap(lab->dev, &buffer);
out:
	lab_free(buffer.cpu, args->size);
	return ret;
}

/* A list of single pages, each allocated on its own. */
static int sg_pages(struct sg_table *table, unsigned int pages)
{
	struct scatterlist *sg;
	unsigned int i;
	int ret = sg_alloc_table(table, pages, GFP_KERNEL);

	if (ret)
		return ret;
	for_each_sgtable_sg(table, sg, i) {
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);

		sg_set_page(sg, page, PAGE_SIZE, 0);
		if (!page)
			return -ENOMEM;
	}
	return 0;
}

static void sg_pages_free(struct sg_table *table)
{
	struct scatterlist *sg;
	unsigned int i;

	for_each_sgtable_sg(table, sg, i)
		if (sg_page(sg))
			__free_page(sg_page(sg));
	sg_free_table(table);
}

/* The second half of the list becomes a copy of the first, as the device sees it: one range, if there is an IOMMU. */
int lab_sg(struct lab_file *file, const struct lab_args *args)
{
	struct lab *lab = file->lab;
	unsigned int half = DIV_ROUND_UP(args->size, PAGE_SIZE), i;
	struct sg_table table = { };
	struct scatterlist *sg;
	dma_addr_t dma;
	int ret = sg_pages(&table, 2 * half);

	if (ret)
		goto out;
	for_each_sgtable_sg(&table, sg, i)
		if (i < half)
			lab_fill(sg_virt(sg), PAGE_SIZE, i * 1000);
	ret = dma_map_sgtable(lab->dev, &table, DMA_BIDIRECTIONAL, 0);
	if (ret)
		goto out;
	lab_say(file, "%u pages in %u ranges\n", 2 * half, table.nents);
	dma = sg_dma_address(table.sgl);
	ret = -EOPNOTSUPP;
	if (table.nents == 1)
		ret = copy_in_parts(lab, dma, dma + half * PAGE_SIZE, half * PAGE_SIZE, args->frames);
	dma_unmap_sgtable(lab->dev, &table, DMA_BIDIRECTIONAL, 0);
	for_each_sgtable_sg(&table, sg, i)
		if (i >= half && !ret)
			ret = lab_check(file, sg_virt(sg), PAGE_SIZE, (i - half) * 1000);
out:
	sg_pages_free(&table);
	return ret;
}

int lab_msi(struct lab_file *file, const struct lab_args *args)
{
	struct lab *lab = file->lab;
	unsigned long i;
	dma_addr_t dma;
	void *memory;
	int ret = 0;

	if (!lab->vectors)
		return -EOPNOTSUPP;
	memory = dma_alloc_coherent(lab->dev, args->size, &dma, GFP_KERNEL);
	if (!memory)
		return -ENOMEM;
	for (i = 0; i < args->loops && !ret; i++) {
		struct lab_job job = lab_job(ENGINE_RAND48, dma, args->size, 0);

		job.interrupt = true;
		ret = lab_run(lab, &job, NULL);
	}
	lab_say(file, "%lu interrupts\n", i);
	dma_free_coherent(lab->dev, args->size, memory, dma);
	return ret;
}

int lab_fault_test(struct lab_file *file, const struct lab_args *args)
{
	/* The DMA API hands out addresses from the top of 32 bits down: nobody has been given this one. */
	const u64 nowhere = 0x123456000;
	struct lab_job job = lab_job(ENGINE_SUM64, nowhere, args->size, 0);
	struct lab *lab = file->lab;
	int frame = lab_frame_get(lab), ret;

	if (frame < 0)
		return frame;
	job.stride = 8;
	lab_start(lab, frame, &job);
	ret = lab_wait(lab, frame, false);
	lab_say(file, "refused at %llx\n", lab_fault(lab, frame));
	if (ret == -EIO)
		ret = lab_fault(lab, frame) == nowhere ? 0 : -EBADMSG;
	else
		ret = ret ?: -EBADMSG;
	lab_frame_put(lab, frame);
	return ret;
}
