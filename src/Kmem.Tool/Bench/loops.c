/*
 * The single-threaded loops of `kmem bench`, in C: what an allocator costs where no language is in between.
 * Run with LD_PRELOAD for every allocator but the C library's own.
 *
 *   loops LIBRARY WORKLOAD SECONDS     prints the nanoseconds per operation of each round, one a line
 *
 * LIBRARY must be mapped into this process ("-" for none), so that a missing one cannot pass for another.
 * Exit codes: 0 done, 2 wrong use, 3 the library is not here.
 * SPDX-License-Identifier: MIT
 */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIZE = 64, BATCH = 100, BULK = 64, SLOTS = 1000, LENGTH = 4096 };

static int sizes[LENGTH], picks[LENGTH], order[BATCH];
static void *objects[SLOTS];
static volatile size_t size64 = SIZE;

static uint32_t state;

static uint32_t next(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void make_tables(void)
{
    state = 42;
    for (int i = 0; i < LENGTH; i++) sizes[i] = 16 + (int)(next() % 1009);
    state = 42;
    for (int i = 0; i < LENGTH; i++) picks[i] = (int)(next() % SLOTS);
    state = 7;
    for (int i = 0; i < BATCH; i++) order[i] = i;
    for (int i = BATCH - 1; i > 0; i--) {
        int other = (int)(next() % (uint32_t)(i + 1)), mine = order[i];
        order[i] = order[other];
        order[other] = mine;
    }
}

static long pair64c(long n)
{
    for (long i = 0; i < n; i++) free(malloc(SIZE));
    return n;
}

static long pair64(long n)
{
    for (long i = 0; i < n; i++) free(malloc(size64));
    return n;
}

static long lifo100(long n)
{
    long done = 0;
    for (; done < n; done += BATCH) {
        for (int i = 0; i < BATCH; i++) objects[i] = malloc(SIZE);
        for (int i = BATCH - 1; i >= 0; i--) free(objects[i]);
    }
    return done;
}

static long rand100(long n)
{
    long done = 0;
    for (; done < n; done += BATCH) {
        for (int i = 0; i < BATCH; i++) objects[i] = malloc(SIZE);
        for (int i = 0; i < BATCH; i++) free(objects[order[i]]);
    }
    return done;
}

static long bulk64(long n)
{
    long done = 0;
    for (; done < n; done += BULK) {
        for (int i = 0; i < BULK; i++) objects[i] = malloc(SIZE);
        for (int i = 0; i < BULK; i++) free(objects[i]);
    }
    return done;
}

static long rsize(long n)
{
    for (long i = 0; i < n; i++) free(malloc((size_t)sizes[i & (LENGTH - 1)]));
    return n;
}

static long slots1000(long n)
{
    for (long i = 0; i < n; i++) {
        void **slot = &objects[picks[i & (LENGTH - 1)]];
        if (*slot) free(*slot);
        *slot = malloc((size_t)sizes[(i * 7) & (LENGTH - 1)]);
    }
    return n;
}

static const struct {
    const char *name;
    long (*run)(long);
} workloads[] = {
    { "pair64c", pair64c }, { "pair64", pair64 }, { "scope64", pair64 }, { "lifo100", lifo100 },
    { "rand100", rand100 }, { "bulk64", bulk64 }, { "rsize", rsize }, { "slots1000", slots1000 },
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int mapped(const char *library)
{
    char line[4096];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) return 0;
    while (!found && fgets(line, sizeof line, maps)) found = strstr(line, library) != NULL;
    fclose(maps);
    return found;
}

int main(int argc, char **argv)
{
    if (argc != 4) return 2;
    if (strcmp(argv[1], "-") != 0 && !mapped(argv[1])) return 3;

    double seconds = atof(argv[3]);
    make_tables();
    for (size_t w = 0; w < sizeof workloads / sizeof *workloads; w++) {
        if (strcmp(workloads[w].name, argv[2]) != 0) continue;

        long n = 1000;
        double took = 0;
        while (took < 1e6) {
            double start = now();
            workloads[w].run(n *= 2);
            took = now() - start;
        }
        for (double end = now() + seconds * 1e9; now() < end;) {
            double start = now();
            long done = workloads[w].run(n);
            printf("%.4f\n", (now() - start) / (double)done);
        }
        return 0;
    }
    return 2;
}
