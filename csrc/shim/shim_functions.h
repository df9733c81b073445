/* SPDX-License-Identifier: Apache-2.0 */
/* shim_functions.h - every wrapped function, shim_C_..., with the prototype of the OASIS header: they cannot differ.
 *
 * Layer:   shim. Where they are: shim_module (library and slots), shim_objects (sessions, login, objects, keys), shim_crypt (encryption
 *          and decryption), shim_messages (message-based encryption and decryption), shim_forward (all that has no fault of its own).
 */
#ifndef SHIM_FUNCTIONS_H
#define SHIM_FUNCTIONS_H

#include "xks_pkcs11.h"

#define CK_NEED_ARG_LIST 1
#define CK_PKCS11_FUNCTION_INFO(name) extern CK_RV shim_##name
#include <pkcs11f.h>
#undef CK_NEED_ARG_LIST
#undef CK_PKCS11_FUNCTION_INFO

#endif
