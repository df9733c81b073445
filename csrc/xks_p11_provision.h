/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_provision.h - making and listing keys in a token: one blocking call each, for the key tool's own process.
 *
 * Layer:   p11. Readable without the PKCS#11 headers, since cffi reads it.
 * Threads: not while an engine of the same process uses the module.
 */
#ifndef XKS_P11_PROVISION_H
#define XKS_P11_PROVISION_H

#include "xks_secret.h"
#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Which token, as in a partition: exactly one of label, serial and slot (UINT64_MAX: not used). */
typedef struct xks_provision_target {
    const char *module_path;
    const char *parameters; /* LibraryParameters or NULL */
    const char *token_label;
    const char *token_serial;
    uint64_t slot;
    const xks_secret *pin; /* NULL: no login */
    const char *profile;
} xks_provision_target;

/* Create an AES-256 token key: PRIVATE, SENSITIVE, not EXTRACTABLE. *created is false when exactly one such key is there already.
 * XKS_CONFIG with a text that names the token and what to do: several keys of that label, another type, a refused PIN. */
XKS_MUST_CHECK xks_status xks_provision_ensure_key(const xks_provision_target *target, const char *label, size_t label_len,
                                                   bool can_encrypt, bool can_decrypt, bool *created, char *error);

#endif
