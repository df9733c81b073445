/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - the C tests' few tools: checks that name their line, and buffers that end at an unmapped page. */
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(condition)                                                                                                         \
    do {                                                                                                                         \
        if (!(condition)) {                                                                                                      \
            fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);                                        \
            exit(1);                                                                                                             \
        }                                                                                                                        \
    } while (0)

#define CHECK_STATUS(expected, expression)                                                                                       \
    do {                                                                                                                         \
        int got_ = (int)(expression);                                                                                            \
        if (got_ != (int)(expected)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s is %d, expected %s\n", __FILE__, __LINE__, #expression, got_, #expected);                 \
            exit(1);                                                                                                             \
        }                                                                                                                        \
    } while (0)

#define RUN(test)                                                                                                                \
    do {                                                                                                                         \
        test();                                                                                                                  \
        printf("ok   %s\n", #test);                                                                                              \
    } while (0)

/* len bytes whose last one is the last before an unmapped page: an overread is a SIGSEGV. Never freed; tests are short. */
static inline uint8_t *guarded(size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t mapped = (len + page - 1) / page * page + page;
    uint8_t *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    CHECK(mprotect(base + mapped - page, page, PROT_NONE) == 0);
    return base + mapped - page - len;
}

static inline uint8_t *guarded_copy(const void *data, size_t len)
{
    uint8_t *copy = guarded(len);
    if (len > 0) {
        memcpy(copy, data, len);
    }
    return copy;
}

#endif
