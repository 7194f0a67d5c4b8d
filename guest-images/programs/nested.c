// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * Nested translation as a virtual machine monitor does it: stage 2 is an I/O address space of iommufd, stage 1 is a
 * context descriptor and tables that this program writes, and invalidates by commands for a virtual SMMU.
 *
 * Formats: Arm's SMMUv3 (IHI 0070) for STE, CD, commands and events; VMSAv8-64 (DDI 0487) for descriptors.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/iommufd.h>

#include "labtest.h"

#define PAGE		4096ull
#define SIZE		(16 * PAGE)
/* Where stage 2 maps this program's memory, and where stage 1 maps parts of that. */
#define IPA		0x80000000ull
#define VA		0x12340000ull
#define VIRTUAL_SID	0x77

/* Pages of the memory that stage 2 maps. */
enum { CD, LEVEL1, LEVEL2, LEVEL3, FROM, TO = FROM + SIZE / PAGE, OTHER = TO + SIZE / PAGE, PAGES = OTHER + 1 };

#define IPA_OF(page)	(IPA + (page) * PAGE)

#define TABLE		3ull
/* Attribute 0, unprivileged, read and write, inner shareable, accessed, not global. */
#define LEAF		(3ull | 1ull << 6 | 3ull << 8 | 1ull << 10 | 1ull << 11)

#define ASID		5ull

static uint64_t *page(uint8_t *memory, int index)
{
	return (uint64_t *)(memory + index * PAGE);
}

static int level3(uint64_t address)
{
	return address / PAGE % 512;
}

/* Stage 1: 39 bits, three levels, write-back. */
static void build(uint8_t *memory)
{
	uint64_t *cd = page(memory, CD);
	int i;

	cd[0] = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1ull << 30 | 1ull << 31 | 5ull << 32 | 1ull << 41 | 1ull << 45 |
		1ull << 46 | 1ull << 47 | ASID << 48;
	cd[1] = IPA_OF(LEVEL1);
	cd[3] = 0xff;
	page(memory, LEVEL1)[VA >> 30] = IPA_OF(LEVEL2) | TABLE;
	page(memory, LEVEL2)[VA >> 21 & 511] = IPA_OF(LEVEL3) | TABLE;
	for (i = 0; i < 2 * (int)(SIZE / PAGE); i++)
		page(memory, LEVEL3)[level3(VA) + i] = IPA_OF(FROM + i) | LEAF;
}

static uint32_t allocate_parent(struct bound *bound)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc), .flags = IOMMU_HWPT_ALLOC_NEST_PARENT, .dev_id = bound->device_id,
		.pt_id = bound->ioas,
	};

	demand(!ioctl(bound->iommufd, IOMMU_HWPT_ALLOC, &alloc), "the nesting parent");
	return alloc.out_hwpt_id;
}

static uint32_t allocate_virtual_smmu(struct bound *bound, uint32_t parent)
{
	struct iommu_viommu_alloc viommu = {
		.size = sizeof(viommu), .type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3, .dev_id = bound->device_id,
		.hwpt_id = parent,
	};
	struct iommu_vdevice_alloc vdevice = {
		.size = sizeof(vdevice), .dev_id = bound->device_id, .virt_id = VIRTUAL_SID,
	};

	demand(!ioctl(bound->iommufd, IOMMU_VIOMMU_ALLOC, &viommu), "IOMMU_VIOMMU_ALLOC");
	vdevice.viommu_id = viommu.out_viommu_id;
	demand(!ioctl(bound->iommufd, IOMMU_VDEVICE_ALLOC, &vdevice), "IOMMU_VDEVICE_ALLOC");
	return viommu.out_viommu_id;
}

static uint32_t allocate_nested(struct bound *bound, uint32_t viommu)
{
	/* Valid, stage 1 only; one CD, fetched write-back, inner shareable. */
	struct iommu_hwpt_arm_smmuv3 ste = {
		.ste = { 1 | 5 << 1 | IPA_OF(CD), 1 << 2 | 1 << 4 | 3 << 6 },
	};
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc), .dev_id = bound->device_id, .pt_id = viommu,
		.data_type = IOMMU_HWPT_DATA_ARM_SMMUV3, .data_len = sizeof(ste), .data_uptr = (uintptr_t)&ste,
	};

	demand(!ioctl(bound->iommufd, IOMMU_HWPT_ALLOC, &alloc), "the nested page table");
	return alloc.out_hwpt_id;
}

/* TLBI_NH_VA of a leaf; the kernel puts the VMID in. */
static void invalidate(struct bound *bound, uint32_t viommu, uint64_t address)
{
	struct iommu_viommu_arm_smmuv3_invalidate command = {
		.cmd = { 0x12 | ASID << 48, (address & -PAGE) | 1 },
	};
	struct iommu_hwpt_invalidate invalidate = {
		.size = sizeof(invalidate), .hwpt_id = viommu, .data_uptr = (uintptr_t)&command,
		.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, .entry_len = sizeof(command), .entry_num = 1,
	};

	demand(!ioctl(bound->iommufd, IOMMU_HWPT_INVALIDATE, &invalidate), "IOMMU_HWPT_INVALIDATE");
}

static int allocate_events(struct bound *bound, uint32_t viommu)
{
	struct iommu_veventq_alloc alloc = {
		.size = sizeof(alloc), .viommu_id = viommu, .type = IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
		.veventq_depth = 16,
	};

	demand(!ioctl(bound->iommufd, IOMMU_VEVENTQ_ALLOC, &alloc), "IOMMU_VEVENTQ_ALLOC");
	return alloc.out_veventq_fd;
}

/* The event of a translation fault, as the virtual machine would see it. */
static void must_report(int events, uint64_t address)
{
	struct pollfd ready = { .fd = events, .events = POLLIN };
	struct {
		struct iommufd_vevent_header header;
		uint64_t event[4];
	} record;

	demand(poll(&ready, 1, 5000) == 1, "no event");
	demand(read(events, &record, sizeof(record)) == sizeof(record), "reading an event");
	errno = 0;
	demand((record.event[0] & 0xff) == 0x10 && record.event[0] >> 32 == VIRTUAL_SID && record.event[2] == address,
	       "event %llx %llx %llx", (unsigned long long)record.event[0], (unsigned long long)record.event[1],
	       (unsigned long long)record.event[2]);
	printf("event 0x10 of stream %x at %llx\n", VIRTUAL_SID, (unsigned long long)address);
}

static void copy(struct engine *engine, const char *what)
{
	engine_start(engine, 0, ENGINE_MEMCPY, VA, SIZE, VA + SIZE, 0);
	errno = 0;
	demand(engine_wait(engine, 0) == ENGINE_HALTED, "%s: refused at %llx", what,
	       (unsigned long long)engine_fault(engine, 0));
}

int nested_main(int argc, char **argv)
{
	uint8_t *memory = fresh(PAGES * PAGE);
	struct bound bound;
	uint32_t parent, viommu;
	uint64_t *entry;
	int events;

	demand(argc > 1, "which device?");
	build(memory);
	iommufd_open(&bound, argv[1]);
	iommufd_map(&bound, memory, PAGES * PAGE, IPA);
	parent = allocate_parent(&bound);
	viommu = allocate_virtual_smmu(&bound, parent);
	events = allocate_events(&bound, viommu);
	iommufd_attach(&bound, allocate_nested(&bound, viommu));

	fill(page(memory, FROM), SIZE, 1);
	copy(&bound.engine, "a copy through both stages");
	check(page(memory, TO), SIZE, 1, "a copy through both stages");

	/* The last page of the target moves: break, invalidate, make. */
	entry = &page(memory, LEVEL3)[level3(VA + 2 * SIZE - PAGE)];
	*(volatile uint64_t *)entry = 0;
	invalidate(&bound, viommu, VA + 2 * SIZE - PAGE);
	*(volatile uint64_t *)entry = IPA_OF(OTHER) | LEAF;
	fill(page(memory, FROM), SIZE, 2);
	copy(&bound.engine, "a copy after a page was moved");
	check(page(memory, TO), SIZE - PAGE, 2, "what was not moved");
	demand(page(memory, OTHER)[0] == page(memory, FROM + SIZE / PAGE - 1)[0], "the page that was moved");

	if (correct(argc, argv)) {
		printf("nested: done\n");
		return 0;
	}
	/* It goes: a fault of stage 1, which is the virtual machine's business. */
	*(volatile uint64_t *)entry = 0;
	invalidate(&bound, viommu, VA + 2 * SIZE - PAGE);
	engine_start(&bound.engine, 0, ENGINE_RAND48, VA + 2 * SIZE - PAGE, PAGE, 0, 0);
	errno = 0;
	demand(engine_wait(&bound.engine, 0) == ENGINE_ERROR, "DMA to what stage 1 does not map went through");
	must_report(events, VA + 2 * SIZE - PAGE);

	/* Stage 2 goes: nothing can be reached, the tables of stage 1 neither. */
	iommufd_unmap(&bound, IPA, PAGES * PAGE);
	engine_start(&bound.engine, 0, ENGINE_RAND48, VA, PAGE, 0, 0);
	demand(engine_wait(&bound.engine, 0) == ENGINE_ERROR, "DMA to what stage 2 does not map went through");
	printf("nested: done\n");
	return 0;
}
