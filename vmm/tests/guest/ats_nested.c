// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * labtest's nested test with DMA that goes on while a page is moved, for devices with and without ATS: with it the virtual STE has
 * EATS, and what stage 1 takes away is invalidated in the device's cache, too.
 */
#define nested_main nested_main_without_ats
#include "../../../guest-images/programs/nested.c"
#undef nested_main

#include <string.h>

test nested_main;

#define EATS_FULL	(1ull << 28)
#define ROUNDS		20

static uint32_t allocate_nested_with_ats(struct bound *bound, uint32_t viommu)
{
	/* As without, and EATS. */
	struct iommu_hwpt_arm_smmuv3 ste = {
		.ste = { 1 | 5 << 1 | IPA_OF(CD), 1 << 2 | 1 << 4 | 3 << 6 | EATS_FULL },
	};
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc), .dev_id = bound->device_id, .pt_id = viommu,
		.data_type = IOMMU_HWPT_DATA_ARM_SMMUV3, .data_len = sizeof(ste), .data_uptr = (uintptr_t)&ste,
	};

	demand(!ioctl(bound->iommufd, IOMMU_HWPT_ALLOC, &alloc), "the nested page table");
	return alloc.out_hwpt_id;
}

/* TLBI_NH_VA of a leaf, ATC_INV of its page; the kernel puts VMID and StreamID in, and a CMD_SYNC behind them. */
#define TLBI(address)		{ { 0x12 | ASID << 48, ((address) & -PAGE) | 1 } }
#define ATC_INV(address)	{ { 0x40 | (uint64_t)VIRTUAL_SID << 32, (address) & -PAGE } }

static void send(struct bound *bound, uint32_t viommu, struct iommu_viommu_arm_smmuv3_invalidate *commands,
		 uint32_t count)
{
	struct iommu_hwpt_invalidate invalidate = {
		.size = sizeof(invalidate), .hwpt_id = viommu, .data_uptr = (uintptr_t)commands,
		.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, .entry_len = sizeof(*commands),
		.entry_num = count,
	};

	demand(!ioctl(bound->iommufd, IOMMU_HWPT_INVALIDATE, &invalidate), "IOMMU_HWPT_INVALIDATE");
}

/* What a page's going takes. The second command is for the device's cache, which may ask anew until the first is complete. */
static void invalidate_both(struct bound *bound, uint32_t viommu, uint64_t address, const char *how)
{
	struct iommu_viommu_arm_smmuv3_invalidate commands[] = { TLBI(address), ATC_INV(address) };

	if (!strcmp(how, "hasty")) {
		send(bound, viommu, commands, 2);
		return;
	}
	send(bound, viommu, commands, 1);
	if (strcmp(how, "plain") && strcmp(how, "forgetful"))
		send(bound, viommu, commands + 1, 1);
}

/*
 * Arguments: the device, and how: "plain" (no ATS), "forgetful" (no ATC_INV), "hasty" (no CMD_SYNC before it), "greedy" (ATS, and at
 * last DMA to what was taken away).
 */
int nested_main(int argc, char **argv)
{
	const uint64_t last = VA + 2 * SIZE - PAGE;
	uint8_t *memory = fresh(PAGES * PAGE);
	int moving = 0, round;
	struct bound bound;
	uint32_t viommu;
	uint64_t *entry;

	demand(argc > 2, "which device, and how?");
	build(memory);
	iommufd_open(&bound, argv[1]);
	iommufd_map(&bound, memory, PAGES * PAGE, IPA);
	viommu = allocate_virtual_smmu(&bound, allocate_parent(&bound));
	iommufd_attach(&bound, strcmp(argv[2], "plain") ? allocate_nested_with_ats(&bound, viommu) :
							  allocate_nested(&bound, viommu));

	entry = &page(memory, LEVEL3)[level3(last)];
	for (round = 0; round < ROUNDS; round++) {
		int where = round % 2 ? OTHER : TO + SIZE / PAGE - 1;
		uint32_t state = engine_state(&bound.engine, 1);

		moving += state == ENGINE_SUM64;
		if (state != ENGINE_SUM64)
			engine_start(&bound.engine, 1, ENGINE_SUM64, VA, SIZE, 0, 10000);
		*(volatile uint64_t *)entry = 0;
		invalidate_both(&bound, viommu, last, argv[2]);
		*(volatile uint64_t *)entry = IPA_OF(where) | LEAF;
		fill(page(memory, FROM), SIZE, round);
		copy(&bound.engine, "a copy after a page was moved");
		check(page(memory, TO), SIZE - PAGE, round, "what was not moved");
		demand(!memcmp(page(memory, where), page(memory, FROM + SIZE / PAGE - 1), PAGE), "the page that was moved");
	}
	demand(engine_wait(&bound.engine, 1) == ENGINE_HALTED, "the frame that runs all the time");
	errno = 0;
	demand(moving > ROUNDS / 2, "DMA went on in %d rounds", moving);
	if (!strcmp(argv[2], "greedy")) {
		*(volatile uint64_t *)entry = 0;
		invalidate_both(&bound, viommu, last, argv[2]);
		engine_start(&bound.engine, 0, ENGINE_RAND48, last, PAGE, 0, 0);
		demand(engine_wait(&bound.engine, 0) == ENGINE_ERROR, "DMA to what stage 1 does not map went through");
		printf("then refused at %llx\n", (unsigned long long)engine_fault(&bound.engine, 0));
	}
	printf("nested: %d rounds\n", ROUNDS);
	return 0;
}
