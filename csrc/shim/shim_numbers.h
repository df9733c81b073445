/* SPDX-License-Identifier: Apache-2.0 */
/* shim_numbers.h - small numbers for objects, for XKS_FAULT_REUSE_HANDLES: the least one that is free, so that the number of a destroyed
 * object goes to the next one that is made or found, of whichever slot.
 *
 * Layer:   shim, above shim_state.
 * Memory:  the table is in shim_state.
 * Threads: any; under the state's mutex.
 */
#ifndef SHIM_NUMBERS_H
#define SHIM_NUMBERS_H

#include "shim_state.h"

/* The number of a real object, a new one if it has none; CK_INVALID_HANDLE when the table is full. */
CK_OBJECT_HANDLE shim_number_of(CK_OBJECT_HANDLE real);
/* The opposite; CK_INVALID_HANDLE for a number that nobody has. */
CK_OBJECT_HANDLE shim_number_real(CK_OBJECT_HANDLE number);
void shim_number_free(CK_OBJECT_HANDLE number);
/* All of them: the library was initialised. */
void shim_numbers_forget(void);

#endif
