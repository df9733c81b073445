/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: no input without knowledge of the secret is authentic, whatever its headers, path and body are. */
#include "xks_sigv4.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Takes the bytes up to the next 0x00 from the input. */
static xks_span take(const uint8_t **data, size_t *size)
{
    const uint8_t *end = *size > 0 ? memchr(*data, 0, *size) : NULL;
    xks_span part = {*data, end != NULL ? (size_t)(end - *data) : *size};
    size_t used = end != NULL ? part.len + 1 : part.len;
    *data += used;
    *size -= used;
    return part;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char DAY[8] = {'2', '0', '2', '6', '0', '3', '0', '4'};
    static const char *const KNOWN[] = {"host", "x-amz-date", "authorization"};
    xks_sigv4_keyring *ring;
    xks_secret_pages *pages;
    xks_header headers[XKS_SIGV4_MAX_HEADERS];
    char error[XKS_ERROR_TEXT_BYTES];
    uint8_t key[32];
    uint32_t credential;
    xks_sigv4_reason reason;
    memset(key, 7, sizeof key);
    if (xks_sigv4_keyring_new("us-east-1", 9, &ring) != XKS_OK || xks_secret_pages_new(1, &pages, error) != XKS_OK ||
        xks_secret_pages_write(pages, 0, key) != XKS_OK ||
        xks_sigv4_keyring_put(ring, "AKIDAAAAAAAAAAAAAAAA", 20, DAY, pages, 0) != XKS_OK) {
        abort();
    }
    xks_sigv4_request request = {.method = {(const uint8_t *)"POST", 4}, .headers = headers};
    request.path = take(&data, &size);
    request.body = take(&data, &size);
    /* Half of the work is done for the fuzzer: a header name of one letter stands for one that matters. */
    while (size > 0 && request.header_count < XKS_SIGV4_MAX_HEADERS) {
        xks_span name = take(&data, &size);
        if (name.len == 1 && name.data[0] >= 'a' && name.data[0] <= 'c') {
            const char *known = KNOWN[name.data[0] - 'a'];
            name = (xks_span){(const uint8_t *)known, strlen(known)};
        }
        headers[request.header_count].name = name;
        headers[request.header_count++].value = take(&data, &size);
    }
    if (xks_sigv4_verify(ring, &request, 1772600767, &credential, &reason) == XKS_OK) {
        abort();
    }
    xks_sigv4_keyring_free(ring);
    xks_secret_pages_free(pages, 1);
    return 0;
}
