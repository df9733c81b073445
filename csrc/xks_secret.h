/* SPDX-License-Identifier: Apache-2.0 */
/* xks_secret.h - secrets in locked memory that only C reads.
 *
 * Layer:   primitive.
 * Memory:  a secret or a page set owns its memory: mlocked where the limit allows, excluded from core dumps, wiped when freed.
 * Threads: immutable after it was filled.
 *
 * xks_secret        one secret (a SigV4 secret access key, a PIN, a master key), read from a 0600 file or the environment, or drawn.
 * xks_secret_pages  32-byte slots in a memfd: the way keys travel from the control process to a proxy worker. Python
 *                   passes the file descriptor and slot numbers and never sees a byte of them.
 */
#ifndef XKS_SECRET_H
#define XKS_SECRET_H

#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XKS_SECRET_MAX_BYTES 4096
#define XKS_SECRET_SLOT_BYTES 32
#define XKS_SECRET_MIN_TEXT_CHARS 43 /* 258 bits */
#define XKS_SECRET_MAX_TEXT_CHARS 64

typedef struct xks_secret xks_secret;

/* Reads a regular file that nobody but its owner (us or root) can read; one trailing newline (LF or CRLF) is dropped.
 * XKS_CONFIG with a text that names the path, what is wrong and the command that mends it; error has XKS_ERROR_TEXT_BYTES. */
XKS_MUST_CHECK xks_status xks_secret_from_file(const char *path, xks_secret **out, char *error);
/* XKS_CONFIG when the variable is not set or empty. */
XKS_MUST_CHECK xks_status xks_secret_from_environment(const char *name, xks_secret **out, char *error);
XKS_MUST_CHECK xks_status xks_secret_from_bytes(const uint8_t *data, size_t len, xks_secret **out);
/* A key of 32 bytes: from a file of exactly 32, or of 64 lower-case hexadecimal digits with or without a newline. The rules of
 * xks_secret_from_file hold, but group_may_read allows mode 0440: systemd lets a service read its credentials through an ACL, whose
 * mask shows as the group's bits. */
XKS_MUST_CHECK xks_status xks_secret_key_from_file(const char *path, bool group_may_read, xks_secret **out, char *error);
/* len zero bytes, for a library that writes a secret itself; *room is where, valid until the secret is freed. */
XKS_MUST_CHECK xks_status xks_secret_blank(size_t len, xks_secret **out, uint8_t **room);
/* len random bytes. */
XKS_MUST_CHECK xks_status xks_secret_random(size_t len, xks_secret **out);
/* A new secret access key: XKS_SECRET_MIN_TEXT_CHARS to _MAX_TEXT_CHARS random characters of A-Z a-z 0-9 + /, else XKS_BAD_INPUT.
 * Source of alphabet and lengths: XKS Proxy API spec v1.0.3, Authentication. */
XKS_MUST_CHECK xks_status xks_secret_random_text(size_t chars, xks_secret **out);
/* A text of ours that is to be handed out: like xks_secret_from_bytes, and it may be revealed once. */
XKS_MUST_CHECK xks_status xks_secret_text_from_bytes(const uint8_t *data, size_t len, xks_secret **out);
/* The text of a secret of the last two functions, once: no NUL, valid until the secret is freed. XKS_NOT_PERMITTED the second time,
 * and for every other secret. */
XKS_MUST_CHECK xks_status xks_secret_reveal(xks_secret *secret, const char **text, size_t *chars);
void xks_secret_free(xks_secret *secret);

/* Borrowed; valid until the secret is freed. */
const uint8_t *xks_secret_view(const xks_secret *secret, size_t *len);

typedef struct xks_secret_pages xks_secret_pages;

/* A new memfd with slot_count zeroed slots (1 .. 1,000,000), mapped writable. */
XKS_MUST_CHECK xks_status xks_secret_pages_new(uint32_t slot_count, xks_secret_pages **out, char *error);
/* Map, read only, the slots that another process filled. The descriptor stays the caller's. Refuses a file that could
 * shrink under us (it must carry F_SEAL_SHRINK). */
XKS_MUST_CHECK xks_status xks_secret_pages_open(int fd, xks_secret_pages **out, char *error);
/* The same, to read and write: for a tool's process that secrets are passed to and back from. */
XKS_MUST_CHECK xks_status xks_secret_pages_share(int fd, xks_secret_pages **out, char *error);
/* Unmaps; slots that we may write are wiped first when wipe is non-zero (no reader may still need them then). */
void xks_secret_pages_free(xks_secret_pages *pages, int wipe);
/* Borrowed descriptor to pass on, closed by _free; -1 in a reader. */
int xks_secret_pages_fd(const xks_secret_pages *pages);
uint32_t xks_secret_pages_slots(const xks_secret_pages *pages);
XKS_MUST_CHECK xks_status xks_secret_pages_write(xks_secret_pages *pages, uint32_t slot, const uint8_t data[32]);
/* NULL when slot is out of range. */
const uint8_t *xks_secret_pages_view(const xks_secret_pages *pages, uint32_t slot);
/* A secret of 32 bytes into a slot; XKS_BAD_INPUT for another length. */
XKS_MUST_CHECK xks_status xks_secret_pages_put(xks_secret_pages *pages, uint32_t slot, const xks_secret *secret);
/* What a slot holds as a secret; the slot is wiped. XKS_NOT_PERMITTED where we may not write. */
XKS_MUST_CHECK xks_status xks_secret_pages_take(xks_secret_pages *pages, uint32_t slot, xks_secret **out);

/* No core dump, no ptrace by others of the same user: called once by each process that holds secrets. Best effort. */
void xks_process_harden(void);

#endif
