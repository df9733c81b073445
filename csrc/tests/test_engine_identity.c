/* SPDX-License-Identifier: Apache-2.0 */
/* The engine and keys that change behind its back, on one SoftHSM token: what is used, what is refused, and what a caller is told. */
#include "engine_fixture.h"
#include "xks_pkcs11.h"
#include <dlfcn.h>
#include <sys/stat.h>

#define RECORD_BYTES 96
#define HEADER_BYTES 32

/* test scaffolding, not product code */
static char references[96];

static fixture start_kept(const token *t, const char *group)
{
    fixture f;
    uint32_t module;
    xks_engine_config config = {.max_queued = 1000, .probe_interval_ns = SECONDS(1) / 5, .retry_budget = 0.2, .hedge_budget = 0.05};
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_keep_references(f.engine, references, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(f.engine, t->path, NULL, &module, error));
    xks_partition_config partition = {.name = "p0", .module = module, .token_label = t->label, .slot = XKS_NO_SLOT, .pin = t->pin,
                                      .profile = t->profile, .sessions = 2};
    CHECK_STATUS(XKS_OK, xks_engine_add_partition(f.engine, &partition, &f.partition, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_group(f.engine, &f.partition, 1, XKS_VERIFY_SAME, &f.group, error));
    CHECK_STATUS(XKS_OK, xks_engine_name_group(f.engine, f.group, group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(f.engine, error));
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&f.pool));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(f.engine, SECONDS(20)));
    return f;
}

/* --- the token, by the module that the engine has loaded and logged in */

typedef struct other_program {
    CK_FUNCTION_LIST *f;
    CK_SESSION_HANDLE session;
} other_program;

static other_program open_other(const token *t)
{
    other_program o = {0};
    CK_SLOT_ID slots[16];
    CK_ULONG count = 16;
    void *library = dlopen(t->path, RTLD_NOW | RTLD_NOLOAD);
    CHECK(library != NULL);
    CK_C_GetFunctionList get;
    *(void **)&get = dlsym(library, "C_GetFunctionList");
    CHECK(get(&o.f) == CKR_OK && o.f->C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK && count > 0);
    CHECK(o.f->C_OpenSession(slots[0], CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &o.session) == CKR_OK);
    return o;
}

static CK_OBJECT_HANDLE object_of(const other_program *o, const char *label)
{
    CK_BBOOL yes = CK_TRUE;
    CK_ATTRIBUTE template[] = {{CKA_LABEL, (void *)(uintptr_t)label, strlen(label)}, {CKA_TOKEN, &yes, 1}};
    CK_OBJECT_HANDLE found = CK_INVALID_HANDLE;
    CK_ULONG count = 0;
    CHECK(o->f->C_FindObjectsInit(o->session, template, 2) == CKR_OK && o->f->C_FindObjects(o->session, &found, 1, &count) == CKR_OK &&
          o->f->C_FindObjectsFinal(o->session) == CKR_OK && count == 1);
    return found;
}

static void destroy(const other_program *o, const char *label)
{
    CHECK(o->f->C_DestroyObject(o->session, object_of(o, label)) == CKR_OK);
}

static void rename_key(const other_program *o, const char *label, const char *to)
{
    CK_ATTRIBUTE attribute = {CKA_LABEL, (void *)(uintptr_t)to, strlen(to)};
    CHECK(o->f->C_SetAttributeValue(o->session, object_of(o, label), &attribute, 1) == CKR_OK);
}

/* A key whose bytes are all `byte`. */
static void put(const other_program *o, const char *label, uint8_t byte, CK_BBOOL encrypt, CK_BBOOL decrypt)
{
    CK_BBOOL yes = CK_TRUE;
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_OBJECT_HANDLE made;
    uint8_t value[32];
    memset(value, byte, sizeof value);
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class}, {CKA_KEY_TYPE, &type, sizeof type},
                               {CKA_TOKEN, &yes, 1}, {CKA_PRIVATE, &yes, 1}, {CKA_SENSITIVE, &yes, 1},
                               {CKA_ENCRYPT, &encrypt, 1}, {CKA_DECRYPT, &decrypt, 1},
                               {CKA_LABEL, (void *)(uintptr_t)label, strlen(label)}, {CKA_VALUE, value, sizeof value}};
    CHECK(o->f->C_CreateObject(o->session, template, 9, &made) == CKR_OK);
}

static void replace(const other_program *o, const char *label, uint8_t byte, CK_BBOOL encrypt, CK_BBOOL decrypt)
{
    destroy(o, label);
    put(o, label, byte, encrypt, decrypt);
}

/* --- the engine */

static xks_key_status status_of(fixture *f, uint32_t key)
{
    xks_key_status status;
    CHECK_STATUS(XKS_OK, xks_engine_key_status(f->engine, key, f->partition, &status));
    return status;
}

static void wait_for(fixture *f, uint32_t key, xks_key_state state)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30);
    while (status_of(f, key).state != state) {
        CHECK(xks_monotonic_ns() < give_up);
        usleep(2000);
    }
}

/* What a caller's job ends with, be it refused at once or answered. */
static xks_status outcome(fixture *f, uint32_t key, xks_operation operation)
{
    xks_job *job = job_for(f, key, operation, 8, 48);
    job->iv_len = 12;
    xks_status status = xks_engine_submit(f->engine, job);
    if (status == XKS_OK) {
        xks_engine_flush(f->engine);
        job = await(f, 1);
        status = (xks_status)job->status;
    }
    xks_job_release(f->pool, job);
    return status;
}

static bool has_news(fixture *f, xks_key_state state, const char *text)
{
    xks_key_news news[XKS_KEY_NEWS];
    uint32_t lost;
    bool found = false;
    size_t count = xks_engine_take_key_news(f->engine, news, &lost);
    for (size_t i = 0; i < count; i++) {
        found = found || (news[i].state == state && news[i].partition == f->partition && strstr(news[i].text, text) != NULL);
    }
    return found;
}

/* --- cases */

/* Rights of the key, and whether what is under its label can be shown to be another one. */
static void a_replaced_key_is_refused_until_it_is_back(const token *t, CK_BBOOL encrypt, CK_BBOOL decrypt)
{
    fixture f = start_kept(t, "main");
    other_program o = open_other(t);
    xks_operation operation = encrypt == CK_TRUE ? XKS_ENCRYPT : XKS_DECRYPT;
    put(&o, "k", 1, encrypt, decrypt);
    uint32_t key = add_key(&f, "k");
    xks_status usual = outcome(&f, key, operation);
    CHECK(status_of(&f, key).state == XKS_KEY_USABLE && status_of(&f, key).proven);
    CHECK_STATUS(XKS_OK, xks_engine_key_verdict(f.engine, key));
    replace(&o, "k", 2, encrypt, decrypt);
    wait_for(&f, key, XKS_KEY_DIFFERENT);
    CHECK(strstr(status_of(&f, key).reason, "'k' on token 't0' is another key") != NULL);
    CHECK_STATUS(XKS_CONFIG, outcome(&f, key, operation));
    CHECK_STATUS(XKS_CONFIG, xks_engine_key_verdict(f.engine, key));
    CHECK(has_news(&f, XKS_KEY_DIFFERENT, "'k'"));
    xks_partition_status partition;
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(f.engine, f.partition, &partition));
    CHECK(partition.keys_refused == 1 && strstr(partition.key_problem, "'k'") != NULL);
    replace(&o, "k", 1, encrypt, decrypt);
    wait_for(&f, key, XKS_KEY_USABLE);
    CHECK_STATUS(usual, outcome(&f, key, operation));
    CHECK(has_news(&f, XKS_KEY_USABLE, "'k'"));
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(f.engine, f.partition, &partition));
    CHECK(partition.keys_refused == 0 && partition.key_problem[0] == '\0');
    destroy(&o, "k");
    stop(&f);
}

static void a_key_replaced_on_the_token_is_refused_until_it_is_back(const token *t)
{
    a_replaced_key_is_refused_until_it_is_back(t, CK_TRUE, CK_TRUE);
}

static void a_key_that_may_only_encrypt_is_refused_when_it_was_replaced(const token *t)
{
    a_replaced_key_is_refused_until_it_is_back(t, CK_TRUE, CK_FALSE);
}

static void a_key_that_may_only_decrypt_is_held_against_what_it_once_encrypted(const token *t)
{
    fixture f = start_kept(t, "main");
    other_program o = open_other(t);
    put(&o, "k", 1, CK_FALSE, CK_TRUE);
    uint32_t key = add_key(&f, "k");
    CHECK(status_of(&f, key).state == XKS_KEY_USABLE && !status_of(&f, key).proven); /* there is nothing to show it by */
    replace(&o, "k", 1, CK_TRUE, CK_TRUE);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30);
    while (!status_of(&f, key).proven) {
        CHECK(xks_monotonic_ns() < give_up);
        usleep(2000);
    }
    replace(&o, "k", 2, CK_FALSE, CK_TRUE);
    wait_for(&f, key, XKS_KEY_DIFFERENT);
    CHECK_STATUS(XKS_CONFIG, outcome(&f, key, XKS_DECRYPT)); /* and not "bad ciphertext" */
    replace(&o, "k", 1, CK_FALSE, CK_TRUE);
    wait_for(&f, key, XKS_KEY_USABLE);
    CHECK(status_of(&f, key).proven);
    destroy(&o, "k");
    stop(&f);
}

static void a_renamed_key_is_not_used_on(const token *t)
{
    fixture f = start_kept(t, "main");
    other_program o = open_other(t);
    put(&o, "k", 1, CK_TRUE, CK_TRUE);
    uint32_t key = add_key(&f, "k");
    CHECK_STATUS(XKS_OK, outcome(&f, key, XKS_ENCRYPT));
    rename_key(&o, "k", "retired");
    wait_for(&f, key, XKS_KEY_ABSENT);
    CHECK_STATUS(XKS_NOT_FOUND, outcome(&f, key, XKS_ENCRYPT));
    CHECK_STATUS(XKS_NOT_FOUND, xks_engine_key_verdict(f.engine, key));
    rename_key(&o, "retired", "k");
    wait_for(&f, key, XKS_KEY_USABLE);
    CHECK_STATUS(XKS_OK, outcome(&f, key, XKS_ENCRYPT));
    destroy(&o, "k");
    stop(&f);
}

/* More than go to the disk together. */
#define MANY 270
#define REPLACED 3

static void label_of(unsigned number, char label[16])
{
    snprintf(label, 16, "many-%u", number % 1000U);
}

/* One process: all keys are made known at once, after the first few were replaced (`byte`; 0: they stay). */
static void look_at_many(const token *t, uint8_t byte, const char *group, xks_key_state first, off_t records)
{
    char label[16];
    uint32_t keys[MANY];
    struct stat about;
    fixture f = start_kept(t, group);
    other_program o = open_other(t);
    for (unsigned i = 0; i < REPLACED && byte != 0; i++) {
        label_of(i, label);
        replace(&o, label, byte, CK_TRUE, CK_TRUE);
    }
    for (unsigned i = 0; i < MANY; i++) {
        label_of(i, label);
        CHECK_STATUS(XKS_OK, xks_engine_key_add(f.engine, f.group, label, strlen(label), &keys[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(f.engine, SECONDS(60)));
    for (unsigned i = 0; i < MANY; i++) {
        xks_key_state expected = i < REPLACED ? first : XKS_KEY_USABLE;
        CHECK_STATUS(expected, status_of(&f, keys[i]).state);
        CHECK(status_of(&f, keys[i]).proven == (expected == XKS_KEY_USABLE));
    }
    CHECK(stat(references, &about) == 0 && about.st_size == HEADER_BYTES + records * RECORD_BYTES);
    stop(&f);
}

static void make_many(const token *t)
{
    char label[16];
    fixture f = start_kept(t, "main");
    other_program o = open_other(t);
    for (unsigned i = 0; i < MANY; i++) {
        label_of(i, label);
        put(&o, label, 1, CK_TRUE, CK_TRUE);
    }
    stop(&f);
}

/* The references outlive the engine: another process knows by them which key each label stands for, in each group for itself. */
static void many_keys_are_recorded_and_known_again_by_the_next_process(const token *t)
{
    struct {
        uint8_t byte;
        const char *group;
        xks_key_state first;
        off_t records;
    } runs[] = {{0, "", XKS_KEY_PENDING, 0},
                {0, "main", XKS_KEY_USABLE, MANY},
                {0, "main", XKS_KEY_USABLE, MANY},
                {2, "main", XKS_KEY_DIFFERENT, MANY},
                {0, "other", XKS_KEY_USABLE, 2 * MANY},
                {1, "main", XKS_KEY_USABLE, 2 * MANY}};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        int status;
        fflush(NULL);
        pid_t pid = fork(); /* a module is initialised once in each process */
        if (pid == 0) {
            if (i == 0) {
                make_many(t);
            } else {
                look_at_many(t, runs[i].byte, runs[i].group, runs[i].first, runs[i].records);
            }
            exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
}

static void a_key_whose_reference_cannot_be_kept_is_not_used_and_the_reason_is_told(const token *t)
{
    fixture f = start_kept(t, "main");
    other_program o = open_other(t);
    put(&o, "before", 1, CK_TRUE, CK_TRUE);
    put(&o, "after", 1, CK_TRUE, CK_TRUE);
    uint32_t before = add_key(&f, "before");
    CHECK(unlink(references) == 0);
    uint32_t after = add_key(&f, "after");
    CHECK(status_of(&f, before).state == XKS_KEY_USABLE && status_of(&f, after).state == XKS_KEY_FAILED);
    CHECK(strstr(status_of(&f, after).reason, "was removed or replaced while it was in use") != NULL);
    CHECK_STATUS(XKS_UNAVAILABLE, outcome(&f, after, XKS_ENCRYPT));
    CHECK_STATUS(XKS_OK, outcome(&f, before, XKS_ENCRYPT));
    destroy(&o, "before");
    destroy(&o, "after");
    stop(&f);
}

#define FRESH(test)                                                                                                              \
    do {                                                                                                                         \
        (void)unlink(references);                                                                                                \
        CASE(test);                                                                                                              \
    } while (0)

int main(void)
{
    const char *kind = "softhsm";
    char command[96];
    token t = make_token(kind);
    snprintf(references, sizeof references, "%s/key-references", t.directory);
    FRESH(a_key_replaced_on_the_token_is_refused_until_it_is_back);
    FRESH(a_key_that_may_only_encrypt_is_refused_when_it_was_replaced);
    FRESH(a_key_that_may_only_decrypt_is_held_against_what_it_once_encrypted);
    FRESH(a_renamed_key_is_not_used_on);
    FRESH(many_keys_are_recorded_and_known_again_by_the_next_process);
    FRESH(a_key_whose_reference_cannot_be_kept_is_not_used_and_the_reason_is_told);
    xks_secret_free(t.pin);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);
    return 0;
}
