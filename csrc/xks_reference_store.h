/* SPDX-License-Identifier: Apache-2.0 */
/* xks_reference_store.h - what every key is proven against, in one file: kept over restarts, the same for all processes of a node.
 *
 * Layer:   p11 (over xks_p11_self_test, whose canary is what is kept, and the primitives).
 * Layout:  header[32]: text and version, padded with zeros; then records of 96 bytes, only ever appended:
 *          name[32] | iv[16] | tag[16] | ciphertext[16] | iv_len | zero[7] | first 8 bytes of the SHA-256 of the 88 bytes before
 * Memory:  a store holds all records; what is handed out is copied.
 * Threads: any; a lock of the store's own is held while it reads and writes the file, so never on a loop thread.
 * Nothing in it is secret: a public text, encrypted. The first reference of a name counts for ever: whoever offers another later, in
 * this process or another one, is given the first. A record that was being written when the machine stopped is ignored and written over.
 */
#ifndef XKS_REFERENCE_STORE_H
#define XKS_REFERENCE_STORE_H

#include "xks_p11_self_test.h"
#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XKS_REFERENCE_NAME_BYTES 32

typedef struct xks_reference_store xks_reference_store;

/* The file is made (0600) when it is not there. XKS_CONFIG or XKS_SYSTEM with the text in `error` (XKS_ERROR_TEXT_BYTES): it cannot be
 * opened, is of another kind or version, or is damaged; a damaged file is left as it is. */
XKS_MUST_CHECK xks_status xks_reference_store_open(const char *path, xks_reference_store **out, char *error);
void xks_reference_store_free(xks_reference_store *store);

/* The name of a key's reference: what stays the same over restarts. */
void xks_reference_name(const char *group, const char *label, size_t label_len, uint8_t name[XKS_REFERENCE_NAME_BYTES]);

/* XKS_OK with *reference (its key handle 0), XKS_NOT_FOUND, or XKS_CONFIG and XKS_SYSTEM as above. */
XKS_MUST_CHECK xks_status xks_reference_store_find(xks_reference_store *store, const uint8_t name[XKS_REFERENCE_NAME_BYTES],
                                                   xks_p11_canary *reference, char *error);

/* Record *reference, unless the name has one. *first: it was recorded, and counts once _sync has returned XKS_OK; else *reference is now
 * the one that was there. */
XKS_MUST_CHECK xks_status xks_reference_store_offer(xks_reference_store *store, const uint8_t name[XKS_REFERENCE_NAME_BYTES],
                                                    xks_p11_canary *reference, bool *first, char *error);

/* All that was recorded by this store is on the disk when this returns. */
XKS_MUST_CHECK xks_status xks_reference_store_sync(xks_reference_store *store, char *error);

#endif
