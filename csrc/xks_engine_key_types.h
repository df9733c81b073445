/* SPDX-License-Identifier: Apache-2.0 */
/* xks_engine_key_types.h - a key as the engine and each of its partitions know it.
 *
 * Layer:   engine (beside xks_engine_internal.h, which includes it).
 * Memory:  types only; tables and labels belong to the engine.
 * Threads: each type says which lock guards it.
 */
#ifndef XKS_ENGINE_KEY_TYPES_H
#define XKS_ENGINE_KEY_TYPES_H

#include "xks_engine.h"
#include "xks_p11_key.h"
#include "xks_p11_self_test.h"
#include <stdatomic.h>

#define XKS_MAX_LABEL_BYTES 255
#define XKS_NO_KEY UINT32_MAX
#define XKS_KEY_STATES 7 /* of xks_key_state */
/* Keys whose new references go to the disk together. */
#define XKS_MAX_HELD_KEYS 256U
/* In place of a CK_RV: the reference of the key could not be read or kept, and reference_problem says why. */
#define XKS_CKR_NO_REFERENCE 0xFFFFFFFEU
/* Key tables grow by chunks that never move, so that the loop thread reads them without a lock. */
#define XKS_KEYS_PER_CHUNK 4096U
#define XKS_MAX_KEY_CHUNKS 1024U

/* What a partition must be able to decrypt with a key to prove that it is the right one: see xks_engine_identity.c. */
typedef struct key_reference {
    xks_p11_canary canary;
    bool made;
} key_reference;

/* A key of the engine: what to look for. Guarded by engine->lock, but for what is atomic. */
typedef struct engine_key {
    char *label;
    size_t label_len;
    uint32_t references; /* 0: free */
    uint32_t next;       /* with references: the next key of the bucket; without: the next retired index */
    uint32_t hash;
    _Atomic uint32_t group_plus_one; /* 0: free */
    _Atomic uint32_t generation;     /* odd while in use */
    key_reference reference;
} engine_key;

/* The lists of keys that a keeper shall look at; RETRIED_KEYS are those that could not be read, each when it is due. */
typedef enum key_list_name { URGENT_KEYS = 0, /* a job waits for it */ LISTED_KEYS = 1, RETRIED_KEYS = 2 } key_list_name;
#define XKS_KEY_LISTS 3

typedef struct key_list {
    uint32_t head, tail; /* XKS_NO_KEY: empty */
} key_list;

/* The same key as one partition knows it. Guarded by partition->lock; state is also read without it, as a hint. */
typedef struct partition_key {
    CK_OBJECT_HANDLE source, use;
    uint32_t rv; /* for XKS_KEY_FAILED */
    uint32_t generation;
    uint32_t next[XKS_KEY_LISTS]; /* by key_list_name */
    uint64_t due_ns;              /* of RETRIED_KEYS */
    _Atomic uint8_t state;
    uint8_t counted_as; /* 1 + the state that it is counted under in keys_by_state; 0: not wanted */
    uint8_t told;       /* the last state that news were made of */
    uint8_t failed;     /* times in a row */
    bool listed[XKS_KEY_LISTS];
    bool wanted; /* the partition belongs to the key's group */
    bool copied, can_encrypt, can_decrypt, extractable, proven;
} partition_key;

/* A key that is looked for. */
typedef struct wanted_key {
    uint32_t index, generation, group;
    size_t label_len;
    char label[XKS_MAX_LABEL_BYTES + 1];
} wanted_key;

/* What a keeper found out about a key. rv: for XKS_KEY_FAILED. */
typedef struct key_finding {
    xks_key_state state;
    bool proven;
    CK_RV rv;
} key_finding;

typedef struct held_key {
    wanted_key wanted;
    xks_p11_key key;
} held_key;

#endif
