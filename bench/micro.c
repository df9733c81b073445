/* SPDX-License-Identifier: Apache-2.0 */
/* micro.c - what the pieces of a request cost: CPU time per call, in a loop without Python. Prints one "name ns" line per piece.
 *
 * stdin: the request to verify, as bench/micro.py signed it: now, access key id, day, region, signing key in hexadecimal, method,
 * path, number of headers, then name and value lines, then the body on one line.
 */
#include "xks_aes_gcm.h"
#include "xks_base64.h"
#include "xks_hex.h"
#include "xks_json.h"
#include "xks_local.h"
#include "xks_sigv4.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CALLS 200000

static char lines[80][8192];

static xks_span span_of(const char *text)
{
    return (xks_span){(const uint8_t *)text, strlen(text)};
}

static double cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

#define MEASURE(name, call)                                                                                                      \
    do {                                                                                                                         \
        double began = cpu_ns();                                                                                                 \
        for (int i_ = 0; i_ < CALLS; i_++) {                                                                                     \
            call;                                                                                                                \
        }                                                                                                                        \
        printf("%s %.1f\n", name, (cpu_ns() - began) / CALLS);                                                                   \
    } while (0)

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "wrong result: %s\n", what);
        exit(1);
    }
}

int main(void)
{
    int count = 0;
    while (count < 80 && fgets(lines[count], sizeof lines[count], stdin) != NULL) {
        lines[count][strcspn(lines[count], "\n")] = '\0';
        count++;
    }
    char error[XKS_ERROR_TEXT_BYTES];
    uint8_t key[32];
    xks_sigv4_keyring *ring;
    xks_secret_pages *pages;
    xks_header headers[XKS_SIGV4_MAX_HEADERS];
    size_t header_count = (size_t)atoi(lines[7]);
    int64_t now = atoll(lines[0]);
    require(xks_hex_decode(lines[4], 64, key) == XKS_OK, "key");
    require(xks_secret_pages_new(1, &pages, error) == XKS_OK && xks_secret_pages_write(pages, 0, key) == XKS_OK, "pages");
    require(xks_sigv4_keyring_new(lines[3], strlen(lines[3]), &ring) == XKS_OK, "keyring");
    require(xks_sigv4_keyring_put(ring, lines[1], strlen(lines[1]), lines[2], pages, 0) == XKS_OK, "credential");
    for (size_t i = 0; i < header_count; i++) {
        headers[i] = (xks_header){span_of(lines[8 + 2 * i]), span_of(lines[9 + 2 * i])};
    }
    const char *body = lines[8 + 2 * header_count];
    xks_sigv4_request request = {span_of(lines[5]), span_of(lines[6]), headers, header_count, span_of(body)};
    uint32_t credential;
    xks_sigv4_reason reason;
    xks_status status = xks_sigv4_verify(ring, &request, now, &credential, &reason);
    require(status == XKS_OK, "signature");
    MEASURE("sigv4_verify", status = xks_sigv4_verify(ring, &request, now, &credential, &reason));
    require(status == XKS_OK, "signature");

    MEASURE("json_check_members", status = xks_json_check_members(body, strlen(body)));
    require(status == XKS_OK, "members");

    char text[64];
    uint8_t data[48];
    size_t len;
    memset(data, 7, sizeof data);
    xks_base64_encode(data, sizeof data, text);
    MEASURE("base64_decode_48_bytes", status = xks_base64_decode(text, 64, data, sizeof data, &len));
    require(status == XKS_OK && len == 48, "base64");
    MEASURE("base64_encode_48_bytes", xks_base64_encode(data, sizeof data, text));

    xks_aes_gcm_key *gcm;
    xks_job_pool *pool;
    xks_random_pool random;
    require(xks_aes_gcm_key_new(key, &gcm) == XKS_OK && xks_job_pool_new(&pool) == XKS_OK, "key");
    xks_random_pool_init(&random);
    for (int cdiv = 0; cdiv < 2; cdiv++) {
        xks_job *job = NULL;
        MEASURE(cdiv ? "local_encrypt_with_cdiv" : "local_encrypt", {
            status = xks_job_take(pool, 64, 48, &job);
            job->operation = XKS_ENCRYPT;
            job->want_cdiv = (uint8_t)cdiv;
            job->input_len = 48;
            if (status == XKS_OK) {
                status = xks_job_compose_aad(job, 64);
            }
            xks_local_run(gcm, &random, job);
            require(job->status == XKS_OK, "encrypt");
            xks_job_release(pool, job);
        });
    }
    return 0;
}
