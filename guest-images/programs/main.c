// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "labtest.h"

static const struct {
	const char *name;
	test *run;
	const char *what;
} tests[] = {
	{ "sva", sva_main, "/dev/smmulabN: a process shares its address space with the engine" },
	{ "vfio", vfio_main, "PCI-ADDRESS [ROUNDS] [correct]: VFIO type 1, maps and unmaps while DMA runs" },
	{ "iommufd", iommufd_main, "PCI-ADDRESS [ROUNDS] [correct]: the same by iommufd" },
	{ "nested", nested_main, "PCI-ADDRESS [correct]: stage 1 from this program, stage 2 from iommufd" },
	{ "map-benchmark", map_benchmark_main, "THREADS SECONDS [PAGES]: the kernel's dma_map_benchmark" },
};

void fail(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf(error ? ": %s\n" : "\n", strerror(error));
	exit(1);
}

void *fresh(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	demand(memory != MAP_FAILED, "mmap");
	return memory;
}

static uint64_t word(uint64_t seed, size_t index)
{
	return (seed + index + 1) * 0x9e3779b97f4a7c15u;
}

void fill(void *memory, size_t size, uint64_t seed)
{
	volatile uint64_t *words = memory;

	for (size_t i = 0; i < size / 8; i++)
		words[i] = word(seed, i);
}

void check(const void *memory, size_t size, uint64_t seed, const char *what)
{
	const volatile uint64_t *words = memory;

	for (size_t i = 0; i < size / 8; i++) {
		uint64_t got = words[i];

		errno = 0;
		demand(got == word(seed, i), "%s: byte %zu is %llx, not %llx", what, i * 8, (unsigned long long)got,
		       (unsigned long long)word(seed, i));
	}
}

int correct(int argc, char **argv)
{
	return argc > 1 && !strcmp(argv[argc - 1], "correct");
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; argc > 1 && i < sizeof(tests) / sizeof(tests[0]); i++)
		if (!strcmp(argv[1], tests[i].name)) {
			if (tests[i].run)
				return tests[i].run(argc - 1, argv + 1);
			printf("%s: not built for this kernel\n", argv[1]);
			return 2;
		}
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
		printf("labtest %s %s\n", tests[i].name, tests[i].what);
	return 2;
}
