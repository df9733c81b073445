/* SPDX-License-Identifier: Apache-2.0 */
/* xks_pkcs11.h - the OASIS headers with the five macros they ask for, for Unix.
 *
 * Layer:   p11 (for xks_ckr, xks_p11_* and the engine only).
 */
#ifndef XKS_PKCS11_H
#define XKS_PKCS11_H

#define CK_PTR *
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif

#include <pkcs11.h>

#endif
