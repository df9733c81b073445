/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_master.h - a master key that never leaves its token: data keys of 32 bytes under it. One blocking call each.
 *
 * Layer:   p11. Readable without the PKCS#11 headers, since cffi reads it.
 * Layout:  wrapped = IV (12 bytes, or 16 where the HSM makes them so) | 32 bytes ciphertext | 16 bytes tag, AES-256-GCM
 * AAD:     "XKST" | u8 1 | context: the name of what is wrapped.
 * Memory:  the data key is read from, or written to, a slot of secret pages; copies on the way are wiped.
 * Threads: one, in a process of its own: not while an engine of the same process uses the module.
 * Errors:  XKS_CONFIG the operator must mend it; XKS_UNAVAILABLE a call failed; error says what is wrong and what to do.
 */
#ifndef XKS_P11_MASTER_H
#define XKS_P11_MASTER_H

#include "xks_p11_provision.h"
#include "xks_secret.h"
#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_WRAPPED_DATA_KEY_MAX_BYTES 64

/* The token's one AES-256 key of this label must be allowed to encrypt and to decrypt. */
XKS_MUST_CHECK xks_status xks_master_wrap(const xks_provision_target *target, const char *label, size_t label_len,
                                          const char *context, size_t context_len, const xks_secret_pages *pages, uint32_t slot,
                                          uint8_t wrapped[64], size_t *wrapped_len, char *error);
/* XKS_NOT_AUTHENTIC: another key, another context, or edited bytes. A code by which tokens mean a fault as well counts as that only
 * when the token then opens what it wraps itself. XKS_BAD_INPUT for another length. */
XKS_MUST_CHECK xks_status xks_master_unwrap(const xks_provision_target *target, const char *label, size_t label_len,
                                            const char *context, size_t context_len, const uint8_t *wrapped, size_t wrapped_len,
                                            xks_secret_pages *pages, uint32_t slot, char *error);

#endif
