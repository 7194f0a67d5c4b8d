// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Shared virtual addressing: the engine uses this process's addresses, by a PASID, and its page faults are served. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../modules/smmulab.h"
#include "labtest.h"

#define PAGE	4096
#define SIZE	(16 * PAGE)
#define HUGE	(2 << 20)

static int open_bound(const char *path, uint32_t *pasid)
{
	int file = open(path, O_RDWR);

	demand(file >= 0, "%s", path);
	demand(!ioctl(file, SMMULAB_BIND, pasid), "SMMULAB_BIND");
	return file;
}

static struct smmulab_job job(uint32_t command, const void *begin, size_t size, const void *target)
{
	return (struct smmulab_job) {
		.command = command,
		.begin = (uintptr_t)begin,
		.end_incl = (uintptr_t)begin + size - 1,
		.stride = command == ENGINE_SUM64 ? 8 : 1,
		.target = (uintptr_t)target,
	};
}

static uint32_t run(int file, struct smmulab_job *job)
{
	demand(!ioctl(file, SMMULAB_START, job), "SMMULAB_START");
	demand(!ioctl(file, SMMULAB_WAIT, job), "SMMULAB_WAIT");
	errno = 0;
	return job->state;
}

static void copy(int file, const void *from, size_t size, void *to, const char *what)
{
	struct smmulab_job copy = job(ENGINE_MEMCPY, from, size, to);
	uint32_t state = run(file, &copy);

	demand(state == ENGINE_HALTED, "%s: state %x, refused at %llx", what, state, (unsigned long long)copy.fault);
}

static void must_fault(int file, uint32_t command, void *at, const char *what)
{
	struct smmulab_job one = job(command, at, PAGE, at);
	uint32_t state = run(file, &one);

	demand(state == ENGINE_ERROR, "%s: state %x", what, state);
	demand(one.fault == (uintptr_t)at, "%s: refused at %llx", what, (unsigned long long)one.fault);
}

/* Memory that nobody has touched: each page that the engine wants is a fault that the kernel serves. */
static void untouched(int file)
{
	uint8_t *from = fresh(SIZE), *to = fresh(SIZE), *zero = fresh(SIZE);
	struct smmulab_job sum = job(ENGINE_SUM64, zero, SIZE, 0);

	fill(from, SIZE, 1);
	copy(file, from, SIZE, to, "a copy to untouched pages");
	check(to, SIZE, 1, "a copy to untouched pages");
	demand(run(file, &sum) == ENGINE_HALTED && sum.sum == 0, "untouched pages do not read as zeroes");
	/* Read before, written now: the zero page must not change. */
	copy(file, from, SIZE, zero, "a copy over the zero page");
	check(zero, SIZE, 1, "a copy over the zero page");
	munmap(to, SIZE);
	must_fault(file, ENGINE_RAND48, to, "a write to what was unmapped");
	must_fault(file, ENGINE_SUM64, to, "a read of what was unmapped");
	demand(!mprotect(from, SIZE, PROT_READ), "mprotect");
	must_fault(file, ENGINE_RAND48, from, "a write to what may only be read");
	check(from, SIZE, 1, "what may only be read");
	munmap(from, SIZE);
	munmap(zero, SIZE);
}

/* Pages that the process takes away and gives back between the engine's uses. */
static void discarded(int file)
{
	uint8_t *from = fresh(SIZE), *to = fresh(SIZE);

	for (int round = 0; round < 5; round++) {
		fill(from, SIZE, round);
		copy(file, from, SIZE, to, "a copy to discarded pages");
		check(to, SIZE, round, "a copy to discarded pages");
		demand(!madvise(to, SIZE, MADV_DONTNEED), "madvise");
		demand(!madvise(from, SIZE, MADV_DONTNEED), "madvise");
	}
	munmap(from, SIZE);
	munmap(to, SIZE);
}

static void huge(int file)
{
	uint8_t *memory = fresh(3 * HUGE), *at = (uint8_t *)(((uintptr_t)memory + HUGE - 1) & -(uintptr_t)HUGE);

	/* Without huge pages in the kernel this is the same test with small ones. */
	madvise(at, HUGE, MADV_HUGEPAGE);
	fill(at, HUGE / 2, 3);
	copy(file, at, HUGE / 2, at + HUGE / 2, "a copy in a huge page");
	check(at + HUGE / 2, HUGE / 2, 3, "a copy in a huge page");
	/* Half of it goes: a block becomes pages. */
	demand(!munmap(at, HUGE / 2), "munmap");
	must_fault(file, ENGINE_RAND48, at, "a write to what was unmapped of a huge page");
	check(at + HUGE / 2, HUGE / 2, 3, "the rest of a huge page");
	munmap(at + HUGE / 2, HUGE / 2);
}

/* Two processes with the same addresses and different contents. */
static void two_processes(int file, const char *path)
{
	uint8_t *from = fresh(SIZE), *to = fresh(SIZE);
	uint32_t pasid;
	int status;
	pid_t child;

	fill(from, SIZE, 10);
	child = fork();
	demand(child >= 0, "fork");
	if (!child) {
		int own = open_bound(path, &pasid);

		fill(from, SIZE, 20);
		copy(own, from, SIZE, to, "a copy in the child");
		check(to, SIZE, 20, "a copy in the child");
		_exit(0);
	}
	copy(file, from, SIZE, to, "a copy in the parent");
	demand(waitpid(child, &status, 0) == child && status == 0, "the child ended with %x", status);
	check(to, SIZE, 10, "a copy in the parent");
	munmap(from, SIZE);
	munmap(to, SIZE);
}

/* A process that ends while the engine writes to its memory. */
static void exit_in_flight(int file, const char *path)
{
	uint8_t *from = fresh(SIZE), *to = fresh(SIZE);
	uint32_t pasid;
	int status;
	pid_t child = fork();

	demand(child >= 0, "fork");
	if (!child) {
		int own = open_bound(path, &pasid);
		struct smmulab_job slow = job(ENGINE_RAND48, fresh(HUGE), HUGE, 0);

		slow.rate = 20000;
		demand(!ioctl(own, SMMULAB_START, &slow), "SMMULAB_START");
		_exit(0);
	}
	demand(waitpid(child, &status, 0) == child && status == 0, "the child ended with %x", status);
	fill(from, SIZE, 30);
	copy(file, from, SIZE, to, "a copy after a process has gone");
	check(to, SIZE, 30, "a copy after a process has gone");
	munmap(from, SIZE);
	munmap(to, SIZE);
}

int sva_main(int argc, char **argv)
{
	uint32_t pasid, again;
	int file;

	demand(argc > 1, "which engine?");
	file = open_bound(argv[1], &pasid);
	printf("PASID %u\n", pasid);
	untouched(file);
	discarded(file);
	huge(file);
	two_processes(file, argv[1]);
	exit_in_flight(file, argv[1]);
	demand(!ioctl(file, SMMULAB_UNBIND), "SMMULAB_UNBIND");
	demand(!ioctl(file, SMMULAB_BIND, &again), "SMMULAB_BIND");
	untouched(file);
	printf("bound again as PASID %u\n", again);
	return 0;
}
