/* SPDX-License-Identifier: Apache-2.0 */
/* shim_crypt.h - what single-part and message-based encryption share.
 *
 * Layer:   shim, above shim_call.
 */
#ifndef SHIM_CRYPT_H
#define SHIM_CRYPT_H

#include "shim_call.h"

/* The real key handle for an operation, or why it cannot begin: invalid, or private and nobody is logged in. */
CK_RV shim_key_for_operation(const shim_call *call, CK_OBJECT_HANDLE handle, CK_OBJECT_HANDLE *real);
/* CKR_USER_NOT_LOGGED_IN if the login with which the operation began has been lost. */
CK_RV shim_operation_login(const shim_call *call, const shim_operation *operation);
/* Fills an IV as an HSM would. CKR_FUNCTION_FAILED without random bytes. */
CK_RV shim_make_iv(CK_BYTE *iv, CK_ULONG len);

#endif
