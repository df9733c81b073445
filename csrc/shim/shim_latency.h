/* SPDX-License-Identifier: Apache-2.0 */
/* shim_latency.h - how long a call takes: distributions, FIFO servers in virtual time, precise sleeping, the histogram.
 *
 * Layer:   shim.
 * Memory:  allocates nothing.
 * Threads: any. The queue of a slot is server_free_ns in the control file, moved by compare-and-swap: no lock that a killed process
 *          could keep, and one queue for all processes, as an HSM has.
 */
#ifndef SHIM_LATENCY_H
#define SHIM_LATENCY_H

#include "shim_state.h"

uint64_t shim_now_ns(void);
/* The thread's next random word; xksfault_control.seed makes it repeatable per thread. Never used for an IV. */
uint64_t shim_random(void);
/* True in ppm of 1,000,000 cases. */
bool shim_chance(uint64_t ppm);

/* When a call that begins at now_ns ends; now_ns itself if its class has no latency. Takes a place in the slot's queue. */
uint64_t shim_end_of_call(uint32_t slot, xksfault_class class, uint64_t now_ns);
/* Sleeps until CLOCK_MONOTONIC is at_ns, with the least timer slack. */
void shim_sleep_until(uint64_t at_ns);

void shim_histogram_add(uint32_t slot, uint64_t elapsed_ns);
/* The bucket of a time; its lower bound is what xksfast/rehearsal/control.py turns it back into. */
uint32_t shim_histogram_bucket(uint64_t elapsed_ns);

#endif
