/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_measure.h - how fast a partition is, how many sessions it gives, and whether it behaves: for `partition test`.
 *
 * Layer:   p11. Readable without the PKCS#11 headers, since cffi reads it.
 * Memory:  results are the caller's; samples are freed inside.
 * Threads: makes up to `sessions` threads of its own, each with a session of its own, and joins them. A token that hangs hangs the
 *          call: it belongs into a process of its own that may be killed.
 */
#ifndef XKS_P11_MEASURE_H
#define XKS_P11_MEASURE_H

#include "xks_p11_provision.h"
#include "xks_status.h"
#include <stdint.h>

#define XKS_MEASURE_MAX_SESSIONS 256

typedef struct xks_measure_options {
    uint32_t sessions;            /* 1..256: wanted, and the number of threads of the second throughput run */
    uint64_t run_ns;              /* of each throughput run, and the bound of the round-trip samples; at most 60 s */
    const char *health_check_key; /* CKA_LABEL of an AES-256 key that may encrypt and decrypt; NULL: a session key is made */
} xks_measure_options;

typedef struct xks_measure_latency {
    uint32_t samples;
    uint64_t median_ns;
    uint64_t p99_ns;
} xks_measure_latency;

typedef struct xks_measure_throughput {
    uint32_t threads;
    uint64_t operations; /* encryptions of 48 bytes that succeeded */
    uint64_t failures;
    uint64_t elapsed_ns;
    uint64_t median_ns;  /* of one operation, as its thread sees it */
    uint64_t p99_ns;
    unsigned long failure_ckr; /* of one that failed; 0: none */
} xks_measure_throughput;

typedef struct xks_measure_result {
    xks_measure_latency encrypt;      /* 16 bytes: C_EncryptInit and C_Encrypt */
    xks_measure_latency session_info; /* C_GetSessionInfo: many libraries answer it without asking the device */
    uint32_t sessions_opened;
    unsigned long sessions_ckr; /* why no more were opened; 0: all were */
    xks_measure_throughput single;
    xks_measure_throughput full;
    unsigned long tag_failure_ckr; /* learnt by the self-test */
    char iv_mode[24];
    bool message_api; /* the library offers PKCS#11 3.0 and C_MessageEncryptInit succeeds */
} xks_measure_result;

/* Log in, self-test, measure, log out. XKS_CONFIG: the token must not serve, or the operator must mend something: see the text. */
XKS_MUST_CHECK xks_status xks_measure_partition(const xks_provision_target *target, const xks_measure_options *options,
                                                xks_measure_result *out, char *error);

#endif
