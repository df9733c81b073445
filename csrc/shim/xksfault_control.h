/* SPDX-License-Identifier: Apache-2.0 */
/* xksfault_control.h - the control file of libxksfault.so: what a rehearsal sets and what it reads, as words in a mapped file.
 *
 * Layer:   shim; also read by cffi (xksfast/native/builder.py), which is how Python knows the layout: it is written here only.
 * Layout:  one xksfault_control, mapped MAP_SHARED by the shim in every process and by whoever steers it. Every word is a u64 that is
 *          read and written whole, so a change holds from the next call on, without a lock and without a restart. A file of zeros
 *          behind its first three words is the default: as many slots as the real module has tokens, and no fault.
 * Threads: any thread and any process; each word alone is atomic, two words are not.
 * Source:  PKCS#11 v3.1 for CK_RV values and their meaning.
 */
#ifndef XKSFAULT_CONTROL_H
#define XKSFAULT_CONTROL_H

#include <stdint.h>

#define XKS_FAULT_MAGIC 8389209267075509112 /* the bytes "xksfault" on a little-endian machine */
#define XKS_FAULT_VERSION 1
#define XKS_FAULT_SLOTS 64
#define XKS_FAULT_LABEL_BYTES 32
#define XKS_FAULT_CLASSES 12
#define XKS_FAULT_SERVERS 128
#define XKS_FAULT_EVENTS 256
#define XKS_FAULT_HISTOGRAM_FIRST_BIT 10 /* the first bucket holds everything below 1024 ns */
#define XKS_FAULT_HISTOGRAM_STEPS 16 /* buckets per doubling: a quantile is at most 6.25 % off */
#define XKS_FAULT_HISTOGRAM_BUCKETS 416 /* 26 doublings: the last bucket ends at 2^36 ns = 68 s */

/* Classes of functions: what a latency, an error or a hang is set for. A mask has bit (1 << class). */
typedef enum xksfault_class {
    XKS_FAULT_OPEN_SESSION = 0,
    XKS_FAULT_LOGIN = 1,
    XKS_FAULT_FIND = 2, /* C_FindObjectsInit; C_FindObjects and Final are OTHER */
    XKS_FAULT_GET_ATTRIBUTE = 3,
    XKS_FAULT_ENCRYPT_INIT = 4, /* C_EncryptInit, C_MessageEncryptInit */
    XKS_FAULT_ENCRYPT = 5,
    XKS_FAULT_DECRYPT_INIT = 6, /* C_DecryptInit, C_MessageDecryptInit */
    XKS_FAULT_DECRYPT = 7,
    XKS_FAULT_MESSAGE_ENCRYPT = 8,
    XKS_FAULT_MESSAGE_DECRYPT = 9,
    XKS_FAULT_GENERATE = 10, /* keys and random bytes */
    XKS_FAULT_OTHER = 11,
} xksfault_class;

typedef enum xksfault_distribution {
    XKS_FAULT_NONE = 0,
    XKS_FAULT_FIXED = 1,     /* a_ns */
    XKS_FAULT_EXP = 2,       /* mean a_ns */
    XKS_FAULT_LOGNORMAL = 3, /* median a_ns, sigma b / 1,000,000 */
    XKS_FAULT_BIMODAL = 4,   /* a_ns, but c_ns in b of 1,000,000 calls */
} xksfault_distribution;

typedef enum xksfault_iv_mode {
    XKS_FAULT_IV_CALLER = 0,            /* as the real module does it */
    XKS_FAULT_IV_RETURNED_IN_PARAM = 1, /* AWS CloudHSM: 12 zero bytes are overwritten with the HSM's IV; any other IV is refused */
    XKS_FAULT_IV_APPENDED_16 = 2,       /* Luna in FIPS mode: no IV given, 16 bytes of it follow ciphertext and tag */
    XKS_FAULT_IV_APPENDED_12 = 3,
    XKS_FAULT_IV_ZERO_SILENTLY = 4, /* a bad token: no IV given means an IV of zeros, and CKR_OK */
} xksfault_iv_mode;

typedef enum xksfault_login_mode {
    XKS_FAULT_LOGIN_AS_REAL = 0,
    XKS_FAULT_LOGIN_ANY_PIN = 1, /* C_Login is needed even if the real token needs none, takes any PIN and does not reach it */
} xksfault_login_mode;

/* Bits of xksfault_control.flags. */
typedef enum xksfault_flag {
    XKS_FAULT_STRICT = 1,         /* misuse ends the process with a message; otherwise it is counted */
    XKS_FAULT_CHECK_IVS = 2,      /* remember (key, IV) of every encryption and find a repetition */
    XKS_FAULT_GLOBAL_LOCK = 4,    /* one lock around every call: a library that serialises */
    XKS_FAULT_HIDE_3_0 = 8,       /* offer PKCS#11 2.40 only */
    XKS_FAULT_STABLE_HANDLES = 16, /* object handles survive a restart of the slot */
    XKS_FAULT_REUSE_HANDLES = 32 /* numbers of sessions and objects are given out again at once: after a close, a restart of a slot and
                                    C_Initialize, to whichever slot asks first */
} xksfault_flag;

typedef struct xksfault_latency {
    uint64_t kind; /* xksfault_distribution */
    uint64_t a_ns;
    uint64_t b;
    uint64_t c_ns;
} xksfault_latency;

/* Settings of one virtual slot. */
typedef struct xksfault_slot {
    char label[XKS_FAULT_LABEL_BYTES];      /* token label, ends at a NUL; empty: p<number>, or the real one if slot_count is 0 */
    char real_label[XKS_FAULT_LABEL_BYTES]; /* label of the real token behind it; empty: the token number real_slot */
    uint64_t real_slot;  /* number among the real tokens, initialized ones first; ignored if slot_count is 0 */
    uint64_t login_mode; /* xksfault_login_mode */

    uint64_t multiplier_permille; /* of every latency; 0: 1000 */
    uint64_t servers;             /* calls worked on at a time, the others wait first in, first out; 0: no limit */
    uint64_t network_ns;          /* added to every call that has a latency; takes no server */
    xksfault_latency latency[XKS_FAULT_CLASSES]; /* by xksfault_class */

    uint64_t hang; /* not 0: calls do not return until it is 0 again or hang_max_ms are over */
    uint64_t hang_classes; /* mask; 0: all */
    uint64_t hang_max_ms;  /* 0: no limit */
    uint64_t hang_rv;      /* CK_RV after hang_max_ms; 0: the call goes on */
    uint64_t dead_rv;      /* not 0: everything fails with it at once */
    uint64_t error_rv;     /* CK_RV of failing calls */
    uint64_t error_ppm;    /* how many of 1,000,000 calls fail */
    uint64_t error_classes; /* mask; 0: all */
    uint64_t error_times;   /* not 0: after so many failures error_rv becomes 0 */
    uint64_t error_at_once; /* not 0: the failing call takes no time */
    uint64_t epoch;         /* changed: the HSM restarted; its sessions are invalid, its logins lost, its object handles others */
    uint64_t login_epoch;   /* changed: logins lost, sessions and handles stay */
    uint64_t device_error_epoch; /* changed: CKR_DEVICE_ERROR until the process calls C_Finalize and C_Initialize */
    uint64_t max_sessions;       /* of one process; more give CKR_SESSION_COUNT; 0: no limit */
    uint64_t login_rv;           /* not 0: what C_Login returns, the real token is not asked */
    uint64_t tag_rv;             /* not 0: what a decryption that is not authentic returns instead */
    uint64_t iv_mode;            /* xksfault_iv_mode */
    uint64_t flip_encrypt_ppm;   /* how many of 1,000,000 outputs have one bit changed */
    uint64_t flip_decrypt_ppm;
    uint64_t wrong_length_ppm; /* how many of 1,000,000 outputs have a length one too short (0: one too long) */
    uint64_t spare[9];         /* keeps settings, which are read, and counters, which are written, in different cache lines */
} xksfault_slot;

/* What happened at one virtual slot, all processes together. A process that is killed leaves its gauges behind. */
typedef struct xksfault_counters {
    uint64_t calls[XKS_FAULT_CLASSES]; /* by xksfault_class */
    uint64_t errors[XKS_FAULT_CLASSES]; /* calls that did not return CKR_OK, injected or real */
    uint64_t sessions_open;   /* gauge */
    uint64_t sessions_opened;
    uint64_t in_flight; /* gauge: encryptions and decryptions */
    uint64_t max_in_flight;
    uint64_t hung; /* gauge */
    uint64_t logins; /* C_Login that succeeded */
    uint64_t histogram[XKS_FAULT_HISTOGRAM_BUCKETS];      /* time of encryptions and decryptions, see XKS_FAULT_HISTOGRAM_STEPS */
    uint64_t server_free_ns[XKS_FAULT_SERVERS]; /* CLOCK_MONOTONIC at which each server is free; the queue is this and nothing else */
    uint64_t spare[10];
} xksfault_counters;

/* One step of a timeline: at start + at_ns the word number `word` of a slot's settings takes a value. */
typedef struct xksfault_event {
    uint64_t at_ns;
    uint64_t slot; /* XKS_FAULT_SLOTS: every slot */
    uint64_t word; /* offset in xksfault_slot / 8 */
    uint64_t value;
} xksfault_event;

typedef struct xksfault_control {
    uint64_t magic;
    uint64_t version;
    uint64_t size; /* sizeof(xksfault_control) of who made the file */
    uint64_t slot_count; /* virtual slots, 1..64; 0: one for each real token, with its label and serial number */
    uint64_t flags;      /* xksfault_flag */
    uint64_t seed;       /* of every random choice but an IV; 0: from the system */
    uint64_t iv_table_bits; /* room for 2^bits IVs a process, 8 bytes each; 0: 22 */

    uint64_t event_count;
    uint64_t event_next;
    uint64_t timeline_start_ns; /* CLOCK_MONOTONIC; 0: not started */
    xksfault_event events[XKS_FAULT_EVENTS]; /* by at_ns */

    uint64_t initialized;              /* C_Initialize calls that succeeded */
    uint64_t unlocked_initializations; /* without CKF_OS_LOCKING_OK */
    uint64_t forked_calls;             /* in a child that did not call C_Initialize */
    uint64_t shared_sessions;          /* calls on a session that another thread was in */
    uint64_t small_buffers;            /* outputs smaller than ciphertext and tag */
    uint64_t length_queries;
    uint64_t iv_repeats;
    uint64_t ivs_untracked; /* the table was full */
    uint64_t calls_in_reset; /* C_Finalize while a call was inside, calls while C_Finalize or C_Initialize was */
    uint64_t finalize_ns;    /* setting: how long C_Finalize takes */
    uint64_t initialize_rv;  /* setting: not 0: what C_Initialize returns */
    uint64_t spare[3];

    xksfault_slot slots[XKS_FAULT_SLOTS];
    xksfault_counters counters[XKS_FAULT_SLOTS];
} xksfault_control;

#endif
