/* SPDX-License-Identifier: Apache-2.0 */
/* xks_ckr_name.h - the name of a CK_RV, for logs.
 *
 * Layer:   p11, but readable without the PKCS#11 headers, so that the function table and cffi can use it.
 * Threads: pure function.
 */
#ifndef XKS_CKR_NAME_H
#define XKS_CKR_NAME_H

/* "CKR_PIN_INCORRECT"; "CKR_VENDOR_DEFINED" for vendor codes, "CKR_UNKNOWN" for the rest. Static strings. */
const char *xks_ckr_name(unsigned long ckr);

#endif
