/* SPDX-License-Identifier: Apache-2.0 */
/* shim_state.h - what the shim holds in one process: the real module, the mapped control file, real tokens, sessions.
 *
 * Layer:   shim, the lowest; every other file of csrc/shim includes it.
 * Memory:  one object of static duration, in shim_state.c and nowhere else. A PKCS#11 module is called through bare functions that
 *          get no handle of ours, so the house rule "state hangs from a handle" cannot hold here; one place for all of it can.
 * Threads: fields say what guards them: set under `mutex` before anybody calls, atomic, or under `mutex`. The mutex is never held
 *          during a call into the real module; `global_lock` is (that is what it imitates) and only when the control file asks.
 */
#ifndef SHIM_STATE_H
#define SHIM_STATE_H

#include "xks_pkcs11.h"
#include "xksfault_control.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define SHIM_MAX_NUMBERS 65536U
#define SHIM_MAX_REAL_SLOTS 256
#define SHIM_MAX_SESSIONS 16384
#define SHIM_TAG_BYTES 16

/* Words of the control file. Relaxed: each stands alone. */
static inline uint64_t word(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}

static inline void word_set(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}

static inline uint64_t word_add(uint64_t *at, uint64_t more)
{
    return __atomic_fetch_add(at, more, __ATOMIC_RELAXED);
}

/* A token of the real module. */
typedef struct shim_real_token {
    CK_SLOT_ID id;
    CK_FLAGS flags; /* of its CK_TOKEN_INFO */
    char label[XKS_FAULT_LABEL_BYTES + 1];
    CK_SESSION_HANDLE anchor; /* kept open while anybody is logged in: closing the last session would log out. 0: none */
    bool logged_in;
    uint64_t pin_print; /* keyed fingerprint of the PIN that was right, so that a wrong one is refused at the other virtual slots too */
} shim_real_token;

/* What one virtual slot is in this process. Under mutex but for the atomics. */
typedef struct shim_slot {
    _Atomic(uint32_t) real; /* index in real_tokens, plus one; 0: there is none */
    _Atomic(bool) real_needs_login;
    _Atomic(uint64_t) login;        /* 0: nobody; else 1 + a mix of epochs, see shim_slots.c */
    _Atomic(uint32_t) sessions;     /* open in this process */
    uint64_t seen_epoch;
    _Atomic(uint64_t) device_error_epoch; /* as it was at C_Initialize */
    bool hang_watched; /* a thread polls the hang flag for the others; under hang_mutex */
} shim_slot;

/* The operation that a session has begun: by whoever holds the session. */
typedef struct shim_operation {
    bool active;
    bool gcm;
    bool logged_in;          /* at its beginning */
    uint8_t appended_iv_len; /* bytes of IV to append to the output */
    uint8_t iv_len;
    uint8_t iv[16];
    uint64_t key; /* identity for the IV check */
} shim_operation;

typedef struct shim_session {
    _Atomic(uint64_t) handle; /* 0: free or retired */
    _Atomic(uint32_t) users; /* threads that look at the entry: it is not closed meanwhile */
    _Atomic(bool) busy;      /* a thread is in a call with it: a second one is misuse */
    _Atomic(uint32_t) retired; /* 1: to be closed by the last user, 2: somebody does */
    uint32_t slot;
    uint32_t generation;
    uint32_t next_free; /* index plus one; under mutex */
    bool find_empty;
    bool parts; /* C_EncryptUpdate or C_DecryptUpdate was called */
    uint64_t epoch;
    CK_SESSION_HANDLE real;
    shim_operation encrypt, decrypt, message_encrypt, message_decrypt;
} shim_session;

typedef struct shim_state {
    pthread_mutex_t mutex;
    pthread_mutex_t global_lock;
    pthread_mutex_t hang_mutex;
    pthread_cond_t hang_over;

    /* set once by shim_load */
    _Atomic(bool) loaded;
    const CK_FUNCTION_LIST *real;
    const CK_FUNCTION_LIST_3_0 *real_3_0; /* NULL: the module has no PKCS#11 3.0 */
    xksfault_control *control;
    uint64_t pin_key;

    _Atomic(bool) initialized;
    _Atomic(bool) changing;   /* a thread is in C_Finalize or C_Initialize */
    _Atomic(uint64_t) inside; /* threads in any other call on a slot or a session */
    _Atomic(bool) forked; /* this process is a child that has not called C_Initialize */
    _Atomic(uint64_t) thread_count;

    shim_slot slots[XKS_FAULT_SLOTS];
    shim_real_token real_tokens[SHIM_MAX_REAL_SLOTS]; /* under mutex; id and flags do not change while initialised */
    _Atomic(uint32_t) real_count;

    shim_session sessions[SHIM_MAX_SESSIONS];
    uint32_t session_high; /* under mutex: entries ever used */
    uint32_t session_free; /* under mutex: index plus one of the first free one */

    CK_OBJECT_HANDLE numbers[SHIM_MAX_NUMBERS]; /* under mutex: the real object of each number, from 1 on; 0: free */
    uint32_t number_high;                       /* under mutex: entries ever used */

    _Atomic(uint64_t) *_Atomic iv_table; /* 2^iv_table_bits fingerprints; mapped at the first use, kept */
    uint64_t iv_table_bits;              /* set before iv_table */
    _Atomic(uint64_t) iv_count;
} shim_state;

/* What a thread keeps between its calls. */
typedef struct shim_thread {
    uint64_t random;
    bool ready;
} shim_thread;

shim_state *shim(void);
shim_thread *shim_this_thread(void);

/* Loads XKSFAULT_MODULE and maps XKSFAULT_CONTROL, once. CKR_GENERAL_ERROR with a line on stderr that says what to mend. */
CK_RV shim_load(void);
/* One line on stderr, after "libxksfault: ". */
__attribute__((format(printf, 1, 2))) void shim_say(const char *format, ...);
/* Misuse by the caller: counted, and in strict mode the end of the process with `what` on stderr. */
void shim_misuse(uint64_t *counter, const char *what);
bool shim_flag(uint64_t flag);

static inline xksfault_slot *shim_settings(uint32_t slot)
{
    return &shim()->control->slots[slot];
}

static inline xksfault_counters *shim_counters(uint32_t slot)
{
    return &shim()->control->counters[slot];
}

#endif
