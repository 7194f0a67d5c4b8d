// SPDX-License-Identifier: GPL-2.0
/* Written commands, their settings, and their answers. */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "lab.h"

#define ANSWER		4096
#define MOST_SIZE	(4UL << 20)
#define MOST_THREADS	16

static const struct {
	const char *name;
	lab_test *test;
	const char *what;
} commands[] = {
	{ "copy", lab_copy, "map two buffers, copy, unmap; frames at once" },
	{ "coherent", lab_coherent, "fill coherent memory, sum it by device and CPU" },
	{ "sync", lab_sync, "one mapping for many rounds, handed over by syncs" },
	{ "sg", lab_sg, "scattered pages as one range" },
	{ "msi", lab_msi, "frames that end with an interrupt each" },
	{ "fault", lab_fault_test, "an address that nobody mapped: the engine must say so" },
	{ "stress", lab_stress, "threads that map, copy and unmap" },
	{ "domain", lab_domain, "a domain of our own: pages and blocks, DMA, unmap, fault" },
	{ "domain-race", lab_domain_race, "threads map, unmap and look up in one domain under DMA" },
	{ "pasid", lab_pasid, "a domain of our own on a PASID" },
	{ "hand-over", lab_hand_over, "one CPU maps, another runs the engine and unmaps" },
	{ "crowd", lab_crowd, "threads that sync, and map and unmap, with bounce buffers short" },
	{ "bind", lab_bind_test, "bind this process, until the file is closed" },
	{ "bind-race", lab_bind_race, "threads bind and unbind this process" },
	{ "table-race", lab_table_race, "unmap under DMA, while interrupts take the pages that come free" },
	{ "fault-storm", lab_fault_storm, "commands that will fault, and that nobody waits for" },
	/* Mistakes; each is done as it should be with "correct". */
	{ "dma-after-unmap", lab_dma_after_unmap, "mistake: start on a mapping that has gone" },
	{ "unmap-in-flight", lab_unmap_in_flight, "mistake: unmap while the engine writes" },
	{ "free-before-unmap", lab_free_before_unmap, "mistake: free the memory first" },
	{ "cpu-writes", lab_cpu_writes, "mistake: the CPU writes what the device owns" },
	{ "early-doorbell", lab_early_doorbell, "mistake: start, then write the data" },
	{ "early-read", lab_early_read, "mistake: read before the sync (shows with swiotlb=force)" },
	{ "narrow-sync", lab_narrow_sync, "mistake: sync half of it (shows with swiotlb=force)" },
	{ "unmap-without-sync", lab_unmap_without_sync, "mistake: no iommu_iotlb_sync() before reuse" },
	{ "narrow-flush", lab_narrow_flush, "mistake: flush one page of several" },
	{ "stale-page", lab_stale_page, "mistake: free a page that a domain still maps, with DMA" },
	/* Mistakes that it takes a race to see. */
	{ "early-free", lab_early_free, "mistake: free, then unmap (shows with swiotlb=force)" },
	{ "early-refill", lab_early_refill, "mistake: write again after a time, without asking" },
	{ "early-done", lab_early_done, "mistake: say it is done, then sync (shows with swiotlb=force)" },
	{ "walk-race", lab_walk_race, "mistake: look up without a lock what is unmapped" },
	{ "block-race", lab_block_race, "mistake: map a block and a page of it without a lock" },
};

void lab_say(struct lab_file *file, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	file->length += vscnprintf(file->answer + file->length, ANSWER - file->length, format, arguments);
	va_end(arguments);
}

static int lab_setting(struct lab_args *args, char *word)
{
	static const char * const names[] = { "size", "loops", "frames", "threads", "rate" };
	unsigned long *values[] = { &args->size, &args->loops, &args->frames, &args->threads, &args->rate };
	static const unsigned long most[] = { MOST_SIZE, ULONG_MAX, LAB_FRAMES, MOST_THREADS, U16_MAX };
	char *value = strchr(word, '=');
	int i;

	if (!strcmp(word, "correct")) {
		args->correct = true;
		return 0;
	}
	if (!strcmp(word, "begin") || !strcmp(word, "mark")) {
		args->mark_begin = true;
		args->mark_end = *word == 'm';
		return 0;
	}
	if (!value)
		return -EINVAL;
	*value++ = 0;
	i = match_string(names, ARRAY_SIZE(names), word);
	if (i < 0 || kstrtoul(value, 0, values[i]) || *values[i] > most[i])
		return -EINVAL;
	return 0;
}

/* The machine's lab device, where scenarios are marked. */
enum lab_mark { MARK_BEGIN = 1, MARK_PASS = 3, MARK_FAIL = 4 };
#define LAB_MARK	0x8
#define LAB_CODE	0xc

static void lab_mark(enum lab_mark mark, u32 code)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, "smmulab,lab");
	void __iomem *regs = of_iomap(node, 0);

	of_node_put(node);
	if (!regs)
		return;
	writel(code, regs + LAB_CODE);
	writel(mark, regs + LAB_MARK);
	iounmap(regs);
}

void lab_begin(const struct lab_args *args)
{
	if (args->mark_begin)
		lab_mark(MARK_BEGIN, 0);
}

static int lab_test_run(struct lab_file *file, const struct lab_args *args, lab_test *test)
{
	int ret = test(file, args);

	if (args->mark_end)
		lab_mark(ret ? MARK_FAIL : MARK_PASS, -ret);
	return ret;
}

ssize_t lab_command(struct lab_file *file, char *line)
{
	struct lab_args args = { .size = PAGE_SIZE, .loops = 1, .frames = 1, .threads = 1 };
	char *name = strsep(&line, " "), *word;
	int i;

	if (!file->answer)
		file->answer = kmalloc(ANSWER, GFP_KERNEL);
	if (!file->answer)
		return -ENOMEM;
	file->length = 0;
	while ((word = strsep(&line, " ")))
		if (*word && lab_setting(&args, word))
			return -EINVAL;
	/* Whole words for SUM64, and something to copy. */
	args.size = max(round_down(args.size, 8), 8UL);
	args.frames = max(args.frames, 1UL);
	args.threads = max(args.threads, 1UL);
	strscpy(args.name, name, sizeof(args.name));
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(name, commands[i].name))
			return lab_test_run(file, &args, commands[i].test);
	if (strcmp(name, "help"))
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		lab_say(file, "%-20s%s\n", commands[i].name, commands[i].what);
	return 0;
}

struct lab_thread {
	struct completion *go, done;
	unsigned long number;
	int (*work)(void *data, unsigned long thread);
	void *data;
	int ret;
};

static int lab_thread(void *data)
{
	struct lab_thread *thread = data;

	wait_for_completion(thread->go);
	thread->ret = thread->work(thread->data, thread->number);
	kthread_complete_and_exit(&thread->done, 0);
}

int lab_parallel(const struct lab_args *args, unsigned long threads, int (*work)(void *data, unsigned long thread),
		 void *data)
{
	struct lab_thread *thread = kcalloc(threads, sizeof(*thread), GFP_KERNEL);
	int cpu = cpumask_first(cpu_online_mask), ret = 0;
	DECLARE_COMPLETION_ONSTACK(go);
	unsigned long i, started;

	if (!thread)
		return -ENOMEM;
	for (started = 0; started < threads; started++) {
		struct lab_thread *one = &thread[started];
		struct task_struct *task;

		init_completion(&one->done);
		one->go = &go;
		one->number = started;
		one->work = work;
		one->data = data;
		task = kthread_create(lab_thread, one, "smmulab/%lu", started);
		if (IS_ERR(task)) {
			ret = PTR_ERR(task);
			break;
		}
		kthread_bind(task, cpu);
		wake_up_process(task);
		cpu = cpumask_next(cpu, cpu_online_mask);
		if (cpu >= nr_cpu_ids)
			cpu = cpumask_first(cpu_online_mask);
	}
	if (args->mark_begin)
		/* Until they wait for it. */
		msleep(1);
	lab_begin(args);
	complete_all(&go);
	for (i = 0; i < started; i++) {
		wait_for_completion(&thread[i].done);
		ret = ret ?: thread[i].ret;
	}
	kfree(thread);
	return ret;
}
