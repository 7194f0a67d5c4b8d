// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The kernel's own benchmark of streaming mappings; the device is bound to its driver already. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include <linux/map_benchmark.h>

#include "labtest.h"

#define FILE_NAME	"/sys/kernel/debug/dma_map_benchmark"

int map_benchmark_main(int argc, char **argv)
{
	struct map_benchmark bench = {
		.node = -1, .dma_bits = 48, .dma_dir = DMA_MAP_BIDIRECTIONAL, .granule = 1,
	};
	int file;

	demand(argc > 2, "how many threads, how many seconds?");
	bench.threads = atoi(argv[1]);
	bench.seconds = atoi(argv[2]);
	if (argc > 3)
		bench.granule = atoi(argv[3]);
	file = open(FILE_NAME, O_RDWR);
	demand(file >= 0, FILE_NAME);
	demand(!ioctl(file, DMA_MAP_BENCHMARK, &bench), "DMA_MAP_BENCHMARK");
	errno = 0;
	demand(bench.avg_map_100ns + bench.avg_unmap_100ns > 0, "nothing was mapped");
	printf("%u threads, %u pages: map %llu.%llu us, unmap %llu.%llu us\n", bench.threads, bench.granule,
	       bench.avg_map_100ns / 10, bench.avg_map_100ns % 10, bench.avg_unmap_100ns / 10,
	       bench.avg_unmap_100ns % 10);
	return 0;
}
