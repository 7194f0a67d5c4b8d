// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The engine's registers, from user space. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "labtest.h"

void engine_open(struct engine *engine, int device)
{
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX };
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	uint16_t command;
	void *regs;

	demand(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar), "BAR 0");
	demand(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config), "configuration space");
	demand(pread(device, &command, 2, config.offset + PCI_COMMAND) == 2, "PCI_COMMAND");
	command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	demand(pwrite(device, &command, 2, config.offset + PCI_COMMAND) == 2, "PCI_COMMAND");
	regs = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar.offset);
	demand(regs != MAP_FAILED, "mmap of BAR 0");
	engine->device = device;
	engine->regs = regs;
}

static volatile uint32_t *reg32(struct engine *engine, int frame, int offset)
{
	return (volatile uint32_t *)(engine->regs + frame * ENGINE_FRAME + offset);
}

static volatile uint64_t *reg64(struct engine *engine, int frame, int offset)
{
	return (volatile uint64_t *)(engine->regs + frame * ENGINE_FRAME + offset);
}

void engine_start(struct engine *engine, int frame, uint32_t command, uint64_t begin, uint64_t size, uint64_t target,
		  uint32_t rate)
{
	*reg32(engine, frame, ENGINE_PAGE + ENGINE_SUBSTREAMID) = ENGINE_NO_SUBSTREAM;
	*reg32(engine, frame, ENGINE_UCTRL) = rate << ENGINE_RATE_SHIFT;
	*reg64(engine, frame, ENGINE_MSIADDRESS) = 0;
	*reg32(engine, frame, ENGINE_ATTRIBUTES) = ENGINE_WRITE_BACK;
	*reg32(engine, frame, ENGINE_SEED) = 0;
	*reg64(engine, frame, ENGINE_BEGIN) = begin;
	*reg64(engine, frame, ENGINE_END_INCL) = begin + size - 1;
	*reg64(engine, frame, ENGINE_STRIDE) = 1;
	*reg64(engine, frame, ENGINE_TARGET) = target;
	/* What was written to memory has to be there before the engine starts. */
	__asm__ volatile("dsb st" ::: "memory");
	*reg32(engine, frame, ENGINE_CMD) = command;
}

uint32_t engine_state(struct engine *engine, int frame)
{
	uint32_t state = *reg32(engine, frame, ENGINE_CMD);

	/* What the engine wrote is read after its state. */
	__asm__ volatile("dmb ld" ::: "memory");
	return state;
}

uint32_t engine_wait(struct engine *engine, int frame)
{
	for (int i = 0; i < 100000; i++) {
		uint32_t state = engine_state(engine, frame);

		if (state < ENGINE_MEMCPY || state > ENGINE_SUM64)
			return state;
		usleep(10);
	}
	errno = 0;
	fail("frame %d never ends", frame);
}

uint64_t engine_fault(struct engine *engine, int frame)
{
	return *reg64(engine, frame, ENGINE_FAULT);
}

#define PART	(64 << 10)
#define ALWAYS	(256 << 10)

void map_under_dma(struct engine *engine, const struct mapper *mapper, int argc, char **argv)
{
	const int rounds = argc > 2 ? atoi(argv[2]) : 20;
	const uint64_t always_at = 0x40000000, at = 0x40200000;
	uint8_t *always = fresh(ALWAYS), *memory = fresh(2 * PART);
	int restarts = 0, round;
	uint32_t state;

	fill(always, ALWAYS / 2, 7);
	mapper->map(mapper->self, always, ALWAYS, always_at);
	engine_start(engine, 1, ENGINE_MEMCPY, always_at, ALWAYS / 2, always_at + ALWAYS / 2, 2000);
	for (round = 0; round < rounds; round++) {
		/* An address is used again soon, and a range lies across another 2 MiB now and then. */
		uint64_t iova = at + (round % 3) * (0x200000 - PART);

		fill(memory, PART, round);
		mapper->map(mapper->self, memory, 2 * PART, iova);
		engine_start(engine, 0, ENGINE_MEMCPY, iova, PART, iova + PART, 0);
		state = engine_wait(engine, 0);
		demand(state == ENGINE_HALTED, "round %d: state %x, refused at %llx", round, state,
		       (unsigned long long)engine_fault(engine, 0));
		check(memory + PART, PART, round, "a copy between maps and unmaps");
		mapper->unmap(mapper->self, iova, 2 * PART);
		state = engine_state(engine, 1);
		demand(state == ENGINE_MEMCPY || state == ENGINE_HALTED, "the engine that runs all the time: %x", state);
		if (state == ENGINE_HALTED) {
			restarts++;
			check(always + ALWAYS / 2, ALWAYS / 2, 7, "the copy that runs all the time");
			engine_start(engine, 1, ENGINE_MEMCPY, always_at, ALWAYS / 2, always_at + ALWAYS / 2, 2000);
		}
	}
	demand(engine_wait(engine, 1) == ENGINE_HALTED, "the engine that runs all the time");
	check(always + ALWAYS / 2, ALWAYS / 2, 7, "the copy that runs all the time");
	mapper->unmap(mapper->self, always_at, ALWAYS);
	printf("%d rounds, %d copies beside them\n", rounds, restarts + 1);
	if (correct(argc, argv))
		return;
	engine_start(engine, 0, ENGINE_RAND48, always_at, PART, 0, 0);
	errno = 0;
	demand(engine_wait(engine, 0) == ENGINE_ERROR, "DMA after the unmap went through");
	demand(engine_fault(engine, 0) == always_at, "refused at %llx", (unsigned long long)engine_fault(engine, 0));
	check(always + ALWAYS / 2, ALWAYS / 2, 7, "memory after its unmap");
	printf("then refused at %llx\n", (unsigned long long)always_at);
}
