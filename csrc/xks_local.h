/* SPDX-License-Identifier: Apache-2.0 */
/* xks_local.h - the `local` key source: a job run inline with a key in memory.
 *
 * Layer:   key source.
 * Memory:  borrows everything.
 * Threads: one at a time per key and pool.
 */
#ifndef XKS_LOCAL_H
#define XKS_LOCAL_H

#include "xks_aes_gcm.h"
#include "xks_job.h"
#include "xks_random.h"

/* Runs the job to its end and sets job->status and all results. The IV is 12 bytes from the pool. */
void xks_local_run(xks_aes_gcm_key *key, xks_random_pool *random, xks_job *job);

#endif
