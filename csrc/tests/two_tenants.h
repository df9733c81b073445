/* SPDX-License-Identifier: Apache-2.0 */
/* two_tenants.h - two SoftHSM tokens behind the shim, each a partition with its own tenant's key under its own label; the key's value is
 * known here, so that every ciphertext can be opened without the token. */
#ifndef TWO_TENANTS_H
#define TWO_TENANTS_H

#include "ha_fixture.h"
#include "xks_aes_gcm.h"
#include "xks_pkcs11.h"
#include <dlfcn.h>

#define TENANTS 2
#define INPUT_BYTES 48

static const char *const TENANT_KEYS[TENANTS] = {"tenant-0", "tenant-1"};
static const char *const TENANT_TOKENS[TENANTS] = {"t0", "t1"};

static inline void tenant_value(uint32_t tenant, uint8_t value[32])
{
    memset(value, 'A' + (int)tenant, 32);
}

/* In a child: a module must not be initialised twice in a process. */
static inline void import_key(const token *t, uint32_t tenant, const char *token_label)
{
    int status;
    pid_t pid = fork();
    if (pid != 0) {
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        return;
    }
    CK_FUNCTION_LIST *f = NULL;
    CK_C_GetFunctionList get_list;
    CK_C_INITIALIZE_ARGS arguments = {.flags = CKF_OS_LOCKING_OK};
    CK_SLOT_ID slots[8];
    CK_ULONG count = 8;
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE object;
    uint8_t value[32];
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_BBOOL yes = CK_TRUE;
    const char *label = TENANT_KEYS[tenant];
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class},       {CKA_KEY_TYPE, &type, sizeof type},
                               {CKA_TOKEN, &yes, sizeof yes},           {CKA_PRIVATE, &yes, sizeof yes},
                               {CKA_ENCRYPT, &yes, sizeof yes},         {CKA_DECRYPT, &yes, sizeof yes},
                               {CKA_VALUE, value, sizeof value},        {CKA_LABEL, (CK_VOID_PTR)(uintptr_t)label, strlen(label)}};
    tenant_value(tenant, value);
    void *symbol = dlsym(dlopen(t->path, RTLD_NOW), "C_GetFunctionList");
    memcpy(&get_list, &symbol, sizeof symbol);
    CHECK(get_list(&f) == CKR_OK && f->C_Initialize(&arguments) == CKR_OK && f->C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO info;
        CHECK(f->C_GetTokenInfo(slots[i], &info) == CKR_OK);
        if (memcmp(info.label, token_label, 2) == 0) {
            CHECK(f->C_OpenSession(slots[i], CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session) == CKR_OK);
            CHECK(f->C_Login(session, CKU_USER, (CK_UTF8CHAR_PTR) "1234", 4) == CKR_OK);
            CHECK(f->C_CreateObject(session, template, 8, &object) == CKR_OK);
            CHECK(f->C_Finalize(NULL) == CKR_OK);
            _exit(0);
        }
    }
    _exit(1);
}

static inline token make_two_tokens(void)
{
    token t = make_token("softhsm");
    run("softhsm2-util --init-token --free --label t1 --pin 1234 --so-pin 12345678 >/dev/null");
    import_key(&t, 0, "t0");
    import_key(&t, 1, "t1");
    return t;
}

typedef struct tenants {
    ha h; /* its counters are not used */
    uint32_t groups[TENANTS], keys[TENANTS];
    xks_aes_gcm_key *values[TENANTS];
    uint64_t answered, own, foreign_refused, out, sent;
} tenants;

static inline tenants start_tenants_on(xksfault_control *control, const token *t, uint64_t flags, uint32_t sessions)
{
    tenants s = {0};
    uint32_t module;
    s.h.control = control;
    s.h.control->flags = flags;
    s.h.count = TENANTS;
    xks_engine_config config = {.max_queued = 4096, .probe_interval_ns = MS(50), .retry_budget = 0.2, .hedge_budget = 0.05, .seed = 7,
                                .recovery_pause_ns = 300000};
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &s.h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(s.h.f.engine, XKS_SHIM, NULL, &module, error));
    for (uint32_t i = 0; i < TENANTS; i++) {
        uint8_t value[32];
        s.h.control->slots[i].login_mode = XKS_FAULT_LOGIN_AS_REAL;
        snprintf(s.h.control->slots[i].real_label, sizeof s.h.control->slots[i].real_label, "%s", TENANT_TOKENS[i]);
        snprintf(s.h.control->slots[i].label, sizeof s.h.control->slots[i].label, "%s", TENANT_TOKENS[i]);
        xks_partition_config partition = {.name = TENANT_TOKENS[i], .module = module, .token_label = TENANT_TOKENS[i],
                                          .slot = XKS_NO_SLOT, .pin = t->pin, .profile = t->profile, .sessions = sessions};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(s.h.f.engine, &partition, &s.h.partitions[i], error));
        CHECK_STATUS(XKS_OK, xks_engine_add_group(s.h.f.engine, &s.h.partitions[i], 1, XKS_VERIFY_SAME, &s.groups[i], error));
        tenant_value(i, value);
        CHECK_STATUS(XKS_OK, xks_aes_gcm_key_new(value, &s.values[i]));
    }
    CHECK_STATUS(XKS_OK, xks_engine_start(s.h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&s.h.f.pool));
    for (uint32_t i = 0; i < TENANTS; i++) {
        s.h.f.group = s.groups[i];
        s.keys[i] = add_key(&s.h.f, TENANT_KEYS[i]);
    }
    return s;
}

static inline tenants start_tenants(const token *t, uint64_t flags, uint32_t sessions)
{
    return start_tenants_on(make_control(t, TENANTS), t, flags, sessions);
}

/* Three jobs in turn for a tenant: an encryption, a decryption of what its key made, a decryption of what the other's key made. */
static inline void send_job(tenants *s, uint32_t tenant)
{
    uint32_t kind = (uint32_t)(s->sent++ % 3);
    xks_job *job = job_for(&s->h.f, s->keys[tenant], kind == 0 ? XKS_ENCRYPT : XKS_DECRYPT, 8, INPUT_BYTES);
    job->owner = s;
    job->want_cdiv = s->sent % 4 == 0;
    job->deadline_ns = xks_monotonic_ns() + MS(300);
    if (kind != 0) {
        uint32_t sealed_by = kind == 1 ? tenant : 1 - tenant;
        job->iv_len = 12;
        memset(job->iv, (int)(s->sent % 251), 12);
        CHECK_STATUS(XKS_OK, xks_aes_gcm_encrypt(s->values[sealed_by], (xks_span){job->iv, 12}, (xks_span){job->aad, job->aad_len},
                                                 (xks_span){job->input, INPUT_BYTES}, job->input, job->tag));
    }
    if (xks_engine_submit(s->h.f.engine, job) != XKS_OK) {
        xks_job_release(s->h.f.pool, job);
        return;
    }
    s->out++;
    xks_engine_flush(s->h.f.engine);
}

/* Whether these bytes are what the tenant's key makes of plaintext 'p'. */
static inline bool opens(tenants *s, uint32_t tenant, const xks_job *job, const uint8_t *ciphertext)
{
    uint8_t plaintext[INPUT_BYTES], expected[INPUT_BYTES];
    memset(expected, 'p', sizeof expected);
    return xks_aes_gcm_decrypt(s->values[tenant], (xks_span){job->iv, job->iv_len}, (xks_span){job->aad, job->aad_len},
                               (xks_span){ciphertext, INPUT_BYTES}, (xks_span){job->tag, 16}, plaintext) == XKS_OK &&
           memcmp(plaintext, expected, sizeof expected) == 0;
}

static inline void check_answer(tenants *s, const xks_job *job)
{
    uint32_t tenant = job->key == s->keys[0] ? 0 : 1;
    s->answered++;
    CHECK(job->owner == s && job->status != XKS_NOT_FOUND);
    if (job->status == XKS_OK && job->operation == XKS_ENCRYPT) {
        CHECK(job->output_len == INPUT_BYTES);
        CHECK(opens(s, tenant, job, job->output)); /* under the tenant's own key */
        CHECK(!opens(s, 1 - tenant, job, job->output));
        s->own++;
    } else if (job->operation == XKS_DECRYPT && job->input_len > 0 && (job->status == XKS_OK || job->status == XKS_NOT_AUTHENTIC)) {
        bool own = opens(s, tenant, job, job->input);
        CHECK(own == (job->status == XKS_OK)); /* the own key opens it exactly if it was made with it */
        s->own += own ? 1 : 0;
        s->foreign_refused += own ? 0 : 1;
    }
}

static inline void take_answers(tenants *s)
{
    for (xks_job *job = xks_engine_drain(s->h.f.engine), *next; job != NULL; job = next) {
        next = job->next;
        s->out--;
        check_answer(s, job);
        xks_job_release(s->h.f.pool, job);
    }
}

/* A job for each tenant, if not many are out, and what is answered. */
static inline void turn(tenants *s)
{
    for (uint32_t i = 0; i < TENANTS && s->out < 16; i++) {
        send_job(s, i);
    }
    struct pollfd wait = {.fd = xks_engine_eventfd(s->h.f.engine), .events = POLLIN};
    (void)poll(&wait, 1, 1);
    take_answers(s);
}

static inline bool is_ready(tenants *s, uint32_t tenant)
{
    return status_of(&s->h, tenant).state == XKS_PARTITION_READY;
}

static inline void turn_until_ready(tenants *s)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(60);
    while (!is_ready(s, 0) || !is_ready(s, 1)) {
        CHECK(xks_monotonic_ns() < give_up);
        turn(s);
    }
}

static inline void stop_tenants(tenants *s)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30), own = s->own;
    turn_until_ready(s);
    while (s->own < own + 20) { /* both serve in the end */
        CHECK(xks_monotonic_ns() < give_up);
        turn(s);
    }
    while (s->out > 0 || xks_engine_outstanding(s->h.f.engine) > 0) {
        CHECK(xks_monotonic_ns() < give_up);
        (void)poll(NULL, 0, 1);
        take_answers(s);
    }
    CHECK(s->foreign_refused > 0);
    stop(&s->h.f);
    CHECK(get(&s->h.control->calls_in_reset) == 0);
}

#endif
