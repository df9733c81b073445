/* SPDX-License-Identifier: Apache-2.0 */
/* shim_timeline.h - faults by the clock: (time, slot, setting, value), from the control file or from the text in XKSFAULT_SCRIPT.
 *
 * Layer:   shim, above shim_state.
 * Layout:  text, a line each: MILLISECONDS SLOT SETTING VALUE; SLOT a number or *, SETTING a name of xksfault_slot ("hang",
 *          "latency.encrypt.kind"), VALUE decimal or 0x; # begins a comment. Times count from the first C_Initialize and do not fall.
 * Memory:  allocates nothing; the events live in the control file.
 * Threads: any process and thread; each event is applied once. No thread of its own: a call (or a hung one) that finds an event due
 *          applies it, and nothing but a call can notice.
 */
#ifndef SHIM_TIMELINE_H
#define SHIM_TIMELINE_H

#include "shim_state.h"

/* At C_Initialize: reads XKSFAULT_SCRIPT if it is set, and starts the timeline if it is not started. */
CK_RV shim_timeline_start(void);
/* Applies what is due. */
void shim_timeline_run(uint64_t now_ns);
/* Whether there is anything to apply: then, and only then, a call needs the time. */
bool shim_timeline_pending(void);

#endif
