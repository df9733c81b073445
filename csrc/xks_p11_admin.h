/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_admin.h - managing the AES keys of one token: find, make, wrap, unwrap, prove, rename, lock down, destroy.
 *
 * Layer:   p11. Readable without the PKCS#11 headers, since cffi reads it.
 * Memory:  an xks_admin owns its login. Outputs are the caller's.
 * Threads: one, in a process of its own: not while an engine of the same process uses the module.
 * Secrets: no key leaves a token in the clear; blobs are ciphertexts under a key that only the tokens hold. A proof encrypts a
 *          public constant.
 * Errors:  XKS_CONFIG the operator must mend it; XKS_UNAVAILABLE a call failed. error names the call and its CKR, and what to do.
 *
 * Why not python-pkcs11: it cannot pass LibraryParameters, take IVs over 12 bytes or encrypt on NSS (it asks for lengths).
 */
#ifndef XKS_P11_ADMIN_H
#define XKS_P11_ADMIN_H

#include "xks_p11_provision.h"
#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XKS_ADMIN_BLOB_BYTES 1024
#define XKS_ADMIN_LABEL_BYTES 256
#define XKS_ADMIN_PROOF_BYTES 16

typedef struct xks_admin xks_admin;

XKS_MUST_CHECK xks_status xks_admin_open(const xks_provision_target *target, xks_admin **out, char *error);
void xks_admin_close(xks_admin *admin);

/* What C_GetInfo and C_GetTokenInfo say. Counts: UINT64_MAX = the token does not tell; max 0 = no limit. */
typedef struct xks_admin_token {
    char label[33];
    char manufacturer[33];
    char model[17];
    char serial[17];
    char library[33];
    uint8_t firmware_major;
    uint8_t firmware_minor;
    uint8_t hardware_major;
    uint8_t hardware_minor;
    uint8_t library_major;
    uint8_t library_minor;
    uint64_t sessions;
    uint64_t max_sessions;
    uint64_t rw_sessions;
    uint64_t max_rw_sessions;
    unsigned long flags; /* CKF_ of CK_TOKEN_INFO */
} xks_admin_token;

/* Without a login: target's PIN is not looked at, so that looking costs no try. */
XKS_MUST_CHECK xks_status xks_admin_describe(const xks_provision_target *target, xks_admin_token *out, char *error);

typedef struct xks_admin_key {
    uint64_t handle;
    uint64_t value_len; /* bytes; 0 when the token does not tell (SoftHSM, of a key that it unwrapped) */
    bool is_aes;
    bool can_encrypt;
    bool can_decrypt;
    bool can_wrap;
    bool can_unwrap;
    bool sensitive;
    bool extractable; /* true when the token does not tell */
} xks_admin_key;

/* The secret keys on the token with this label: count is how many there are, of which the first `capacity` (1..16) are described. */
XKS_MUST_CHECK xks_status xks_admin_find(xks_admin *admin, const char *label, size_t label_len, xks_admin_key *out, size_t capacity,
                                         size_t *count, char *error);

/* An AES-256 key to be. on_token: false makes a session object, gone with the process. */
typedef struct xks_admin_template {
    const char *label;
    size_t label_len;
    bool on_token;
    bool can_encrypt;
    bool can_decrypt;
    bool can_wrap;
    bool can_unwrap;
    bool extractable;
} xks_admin_template;

XKS_MUST_CHECK xks_status xks_admin_generate(xks_admin *admin, const xks_admin_template *wanted, uint64_t *key, char *error);

/* The key under the wrapping key. mechanism: 0x2109 (RFC 3394), 0x210B (RFC 5649) or a vendor's number for one of them. */
XKS_MUST_CHECK xks_status xks_admin_wrap(xks_admin *admin, uint64_t wrapping_key, uint64_t key, unsigned long mechanism,
                                         uint8_t blob[XKS_ADMIN_BLOB_BYTES], size_t *blob_len, char *error);
/* The opposite. What came out must be AES with 32 bytes, else it is destroyed at once and XKS_CONFIG says so: some pairs of mechanisms
 * "unwrap" each other's blobs into a wrong key with CKR_OK. SoftHSM never tells the length of an unwrapped key: there one that may
 * encrypt must do so, and the caller compares it with its source by a proof. */
XKS_MUST_CHECK xks_status xks_admin_unwrap(xks_admin *admin, uint64_t unwrapping_key, unsigned long mechanism, const uint8_t *blob,
                                           size_t blob_len, const xks_admin_template *wanted, uint64_t *key, char *error);

/* A transport key's way from one token into another: the receiver makes an RSA pair that lives as long as its session, the sender
 * wraps under its public half (RSA-OAEP, SHA-1, MGF1-SHA-1: what every token has). modulus is big endian; the exponent is 65537. */
XKS_MUST_CHECK xks_status xks_admin_receiver(xks_admin *admin, uint64_t *private_key, uint8_t modulus[XKS_ADMIN_BLOB_BYTES],
                                             size_t *modulus_len, char *error);
XKS_MUST_CHECK xks_status xks_admin_wrap_for(xks_admin *admin, const uint8_t *modulus, size_t modulus_len, uint64_t key,
                                             uint8_t blob[XKS_ADMIN_BLOB_BYTES], size_t *blob_len, char *error);
XKS_MUST_CHECK xks_status xks_admin_unwrap_received(xks_admin *admin, uint64_t private_key, const uint8_t *blob, size_t blob_len,
                                                    const xks_admin_template *wanted, uint64_t *key, char *error);

/* A known public text under a key: whoever opens it has the same key. */
typedef struct xks_admin_proof {
    uint8_t iv[16];
    uint8_t iv_len;
    uint8_t tag[16];
    uint8_t ciphertext[XKS_ADMIN_PROOF_BYTES];
} xks_admin_proof;

XKS_MUST_CHECK xks_status xks_admin_prove(xks_admin *admin, uint64_t key, xks_admin_proof *out, char *error);
/* XKS_NOT_AUTHENTIC: another key. A code by which tokens mean a wrong tag as well as a fault counts as that only when the token then
 * opens a proof of its own; can_encrypt says whether the key may make one. */
XKS_MUST_CHECK xks_status xks_admin_check(xks_admin *admin, uint64_t key, bool can_encrypt, const xks_admin_proof *proof, char *error);

XKS_MUST_CHECK xks_status xks_admin_rename(xks_admin *admin, uint64_t key, const char *label, size_t label_len, char *error);
/* CKA_EXTRACTABLE = false, read back. */
XKS_MUST_CHECK xks_status xks_admin_lock_down(xks_admin *admin, uint64_t key, char *error);
XKS_MUST_CHECK xks_status xks_admin_destroy(xks_admin *admin, uint64_t key, char *error);

#endif
