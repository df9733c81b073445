/* SPDX-License-Identifier: Apache-2.0 */
/* xks_secret.h - secrets in locked memory that only C reads.
 *
 * Layer:   primitive.
 * Memory:  a secret or a page set owns its memory: mlocked where the limit allows, excluded from core dumps, wiped when freed.
 * Threads: immutable after it was filled.
 *
 * xks_secret        one secret (a SigV4 secret access key, a PIN, a master key), read from a 0600 file or the environment.
 * xks_secret_pages  32-byte slots in a memfd: the way keys travel from the control process to a proxy worker. Python
 *                   passes the file descriptor and slot numbers and never sees a byte of them.
 */
#ifndef XKS_SECRET_H
#define XKS_SECRET_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_SECRET_MAX_BYTES 4096
#define XKS_SECRET_SLOT_BYTES 32

typedef struct xks_secret xks_secret;

/* Reads a regular file that nobody but its owner (us or root) can read; one trailing newline (LF or CRLF) is dropped.
 * XKS_CONFIG with a text that names the path, what is wrong and the command that mends it; error has XKS_ERROR_TEXT_BYTES. */
XKS_MUST_CHECK xks_status xks_secret_from_file(const char *path, xks_secret **out, char *error);
/* XKS_CONFIG when the variable is not set or empty. */
XKS_MUST_CHECK xks_status xks_secret_from_environment(const char *name, xks_secret **out, char *error);
XKS_MUST_CHECK xks_status xks_secret_from_bytes(const uint8_t *data, size_t len, xks_secret **out);
void xks_secret_free(xks_secret *secret);

/* Borrowed; valid until the secret is freed. */
const uint8_t *xks_secret_view(const xks_secret *secret, size_t *len);

typedef struct xks_secret_pages xks_secret_pages;

/* A new memfd with slot_count zeroed slots (1 .. 1,000,000), mapped writable. */
XKS_MUST_CHECK xks_status xks_secret_pages_new(uint32_t slot_count, xks_secret_pages **out, char *error);
/* Map, read only, the slots that another process filled. The descriptor stays the caller's. Refuses a file that could
 * shrink under us (it must carry F_SEAL_SHRINK). */
XKS_MUST_CHECK xks_status xks_secret_pages_open(int fd, xks_secret_pages **out, char *error);
/* Unmaps; the creator's copy is wiped first when wipe is non-zero (no reader may still need it then). */
void xks_secret_pages_free(xks_secret_pages *pages, int wipe);
/* Borrowed descriptor to pass on; closed by _free in the creator. */
int xks_secret_pages_fd(const xks_secret_pages *pages);
uint32_t xks_secret_pages_slots(const xks_secret_pages *pages);
XKS_MUST_CHECK xks_status xks_secret_pages_write(xks_secret_pages *pages, uint32_t slot, const uint8_t data[32]);
/* NULL when slot is out of range. */
const uint8_t *xks_secret_pages_view(const xks_secret_pages *pages, uint32_t slot);

/* No core dump, no ptrace by others of the same user: called once by each process that holds secrets. Best effort. */
void xks_process_harden(void);

#endif
