/* SPDX-License-Identifier: Apache-2.0 */
/* xks_clock.h - the two clocks.
 *
 * Layer:   primitive.
 * Threads: any.
 * Deadlines and durations use the monotonic clock; X-Amz-Date uses the wall clock. They are never mixed.
 */
#ifndef XKS_CLOCK_H
#define XKS_CLOCK_H

#include "xks_status.h"
#include <stdbool.h>
#include <stdint.h>

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t xks_monotonic_ns(void);

/* CLOCK_REALTIME in whole seconds since 1970-01-01T00:00:00Z. */
int64_t xks_unix_seconds(void);

/* "YYYYMMDDTHHMMSSZ" (16 characters, no NUL) to seconds since 1970.
 * XKS_BAD_INPUT for anything else: month 13, 30 February, second 60, other separators. Years 1970..9999. */
XKS_MUST_CHECK xks_status xks_parse_amz_date(const char text[16], int64_t *unix_seconds);

/* The UTC day of unix_seconds (>= 0, before the year 10000) as "YYYYMMDD", no NUL. */
void xks_format_utc_day(int64_t unix_seconds, char day[8]);

#endif
