/* SPDX-License-Identifier: Apache-2.0 */
/* xks_json.h - the check that the typed decoder does not make: duplicate member names, and depth.
 *
 * Layer:   protocol (may include primitives).
 * Memory:  allocates nothing.
 * Threads: pure function of its arguments.
 * Two members are the same when their names are the same after escapes are resolved ("a" and "\u0061").
 */
#ifndef XKS_JSON_H
#define XKS_JSON_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_JSON_MAX_DEPTH 16
#define XKS_JSON_MAX_MEMBERS 128 /* over all objects of the document */

/* XKS_OK: no object of the document has a member twice. XKS_BAD_INPUT: one has, or the text is not JSON in a way this scan
 * notices. XKS_TOO_LONG: deeper or with more members than the limits. It is safe on any bytes, but proves well-formedness of
 * none: the typed decoder does that. */
XKS_MUST_CHECK xks_status xks_json_check_members(const char *text, size_t text_len);

#endif
