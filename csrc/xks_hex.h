/* SPDX-License-Identifier: Apache-2.0 */
/* xks_hex.h - lower-case hexadecimal.
 *
 * Layer:   primitive.
 * Memory:  allocates nothing.
 * Threads: pure functions of their arguments.
 */
#ifndef XKS_HEX_H
#define XKS_HEX_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

/* Writes 2 * len characters, no NUL. */
void xks_hex_encode(const uint8_t *data, size_t len, char *out);

/* text_len must be even; lower-case digits only (SigV4 signatures are). Writes text_len / 2 bytes.
 * Time depends on text_len alone, so a signature may pass through it. */
XKS_MUST_CHECK xks_status xks_hex_decode(const char *text, size_t text_len, uint8_t *out);

#endif
