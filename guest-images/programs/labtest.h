/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Tests from user space: of SVA, VFIO and iommufd, with the SMMUv3TestEngine as the device. */
#ifndef LABTEST_H
#define LABTEST_H

#include <stddef.h>
#include <stdint.h>

#include "../modules/engine.h"

/* What `labtest NAME ARGUMENTS…` runs. Weak: a program for a kernel without an interface is built without its test. */
typedef int test(int argc, char **argv);
test sva_main __attribute__((weak));
test vfio_main __attribute__((weak));
test iommufd_main __attribute__((weak));
test nested_main __attribute__((weak));
test map_benchmark_main __attribute__((weak));

/* Prints why, with errno's meaning if there is one, and exits with 1. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
#define demand(condition, ...) do { if (!(condition)) fail(__VA_ARGS__); } while (0)

/* Memory of zeroes that nobody has touched. */
void *fresh(size_t size);
void fill(void *memory, size_t size, uint64_t seed);
/* Fails unless the memory holds what fill() wrote. */
void check(const void *memory, size_t size, uint64_t seed, const char *what);

/* An engine that this process has from VFIO. */
struct engine {
	int device;
	volatile uint8_t *regs;
};

/* Maps the registers of a device file, and lets the device do DMA. */
void engine_open(struct engine *engine, int device);
void engine_start(struct engine *engine, int frame, uint32_t command, uint64_t begin, uint64_t size, uint64_t target,
		  uint32_t rate);
uint32_t engine_state(struct engine *engine, int frame);
/* Waits for the end, and gives the state. */
uint32_t engine_wait(struct engine *engine, int frame);
uint64_t engine_fault(struct engine *engine, int frame);

/* How a test maps memory for the device. */
struct mapper {
	void (*map)(void *self, void *memory, uint64_t size, uint64_t iova);
	void (*unmap)(void *self, uint64_t iova, uint64_t size);
	void *self;
};

/* Whether the last argument is "correct": then there is no DMA to what is not mapped. */
int correct(int argc, char **argv);

/*
 * Maps, copies, unmaps, again and again, while another frame does DMA all the time. The arguments are the device, the
 * number of rounds, and whether all is to be correct; otherwise at last DMA goes to what was unmapped.
 */
void map_under_dma(struct engine *engine, const struct mapper *mapper, int argc, char **argv);

/* An iommufd and a device bound to it. */
struct bound {
	int iommufd;
	struct engine engine;
	uint32_t device_id;
	uint32_t ioas;
};

void iommufd_open(struct bound *bound, const char *device);
void iommufd_attach(struct bound *bound, uint32_t page_table);
void iommufd_map(struct bound *bound, void *memory, uint64_t size, uint64_t iova);
void iommufd_unmap(struct bound *bound, uint64_t iova, uint64_t size);

#endif
