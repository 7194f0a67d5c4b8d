// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * pmu TYPE CPU STREAM COMMAND: runs a shell command, and says how many transactions, TLB misses and fetches of descriptors
 * (events 1, 2 and 4 of the SMMU's PMU) perf counted meanwhile: of a StreamID, or with "-" of all. Freestanding, so that it
 * is small enough to be handed to a guest in its command.
 */
#include <linux/perf_event.h>
#include <asm/unistd.h>

static long call(long number, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
		 x3 __asm__("x3") = d, x4 __asm__("x4") = e;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}

static unsigned long number(const char *text)
{
	unsigned long value = 0;

	while (*text >= '0' && *text <= '9')
		value = 10 * value + (*text++ - '0');
	return value;
}

static void say(unsigned long value, char end)
{
	char text[24];
	char *at = text + sizeof(text);

	*--at = end;
	do
		*--at = '0' + value % 10;
	while (value /= 10);
	call(__NR_write, 1, (long)at, text + sizeof(text) - at, 0, 0);
}

static int run(char **argv)
{
	static const unsigned char events[] = { 1, 2, 4 };
	/* Static, since GCC would clear them by calling memset(). */
	static struct perf_event_attr attr = { .size = sizeof(attr) };
	static char *arguments[] = { "/bin/sh", "-c", 0, 0 };
	static unsigned long counts[sizeof(events)];
	long counters[sizeof(events)], child;
	unsigned long i;

	attr.type = number(argv[1]);
	if (*argv[3] != '-')
		attr.config1 = 1ul << 33 | number(argv[3]);
	for (i = 0; i < sizeof(events); i++) {
		attr.config = events[i];
		counters[i] = call(__NR_perf_event_open, (long)&attr, -1, number(argv[2]), -1, 0);
		if (counters[i] < 0)
			return 1;
	}
	/* fork() */
	child = call(__NR_clone, 17, 0, 0, 0, 0);
	if (!child) {
		arguments[2] = argv[4];
		call(__NR_execve, (long)arguments[0], (long)arguments, 0, 0, 0);
		return 2;
	}
	call(__NR_wait4, child, 0, 0, 0, 0);
	/* All of them before anything is said: the console is a device behind the SMMU, too. */
	for (i = 0; i < sizeof(events); i++)
		if (call(__NR_read, counters[i], (long)&counts[i], sizeof(counts[i]), 0, 0) != sizeof(counts[i]))
			return 3;
	for (i = 0; i < sizeof(events); i++)
		say(counts[i], i + 1 < sizeof(events) ? ' ' : '\n');
	return 0;
}

void begin(long *stack)
{
	call(__NR_exit, *stack < 5 ? 4 : run((char **)(stack + 1)), 0, 0, 0, 0);
}

__asm__(".global _start\n_start: mov x0, sp\n b begin");
