/* SPDX-License-Identifier: Apache-2.0 */
/* The fault shim before real tokens: timelines by script, and control files and modules that it refuses. */
#include "shim_fixture.h"
#include <sched.h>

static void write_script(fixture *t, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/script", t->directory);
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
    setenv("XKSFAULT_SCRIPT", path, 1);
}

static void a_script_sets_faults_by_the_clock(bool softhsm)
{
    fixture t;
    prepare(&t, softhsm, 2);
    write_script(&t, "# a rehearsal\n0 * error_ppm 1000000\n\n150 1 dead_rv 0x30  # then\n300 0 latency.other.kind 1\n300 1 dead_rv 0\n");
    load(&t);
    CHECK_RV(CKR_OK, initialize(&t));
    uint64_t begin = get(&t.control->timeline_start_ns);
    CK_SESSION_HANDLE session = open_session(&t, 1);
    CK_SESSION_INFO info;
    CHECK(get(&t.control->slots[0].error_ppm) == 1000000 && get(&t.control->slots[1].error_ppm) == 1000000);
    bool died = false;
    for (uint64_t now = now_ns(); now < begin + 280 * MS; now = now_ns()) {
        CK_RV rv = t.f->C_GetSessionInfo(session, &info);
        CHECK(rv == CKR_OK || (rv == CKR_DEVICE_ERROR && now_ns() >= begin + 150 * MS));
        died = died || rv == CKR_DEVICE_ERROR;
    }
    while (now_ns() < begin + 300 * MS) {
        sched_yield();
    }
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(session, &info));
    CHECK(died && get(&t.control->slots[0].latency[XKS_FAULT_OTHER].kind) == 1 && get(&t.control->event_next) == 4);
    stop(&t);
}

static void a_script_releases_a_hang(bool softhsm)
{
    fixture t;
    prepare(&t, softhsm, 1);
    write_script(&t, "0 0 hang_classes 0x800\n0 0 hang 1\n200 0 hang 0\n");
    load(&t);
    CHECK_RV(CKR_OK, initialize(&t));
    CK_SESSION_INFO info;
    CK_SESSION_HANDLE session = open_session(&t, 0);
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(session, &info));
    CHECK(now_ns() >= get(&t.control->timeline_start_ns) + 200 * MS);
    stop(&t);
}

static void a_wrong_script_is_refused(bool softhsm)
{
    const char *wrong[] = {"x\n", "0 64 hang 1\n", "0 0 hanging 1\n", "0 0 hang one\n", "5 0 hang 1\n4 0 hang 0\n", "0 0 hang\n", "0 0 hang 1 1\n"};
    fixture t;
    fclose(stderr);
    prepare(&t, softhsm, 1);
    load(&t);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        write_script(&t, wrong[i]);
        CHECK_RV(CKR_GENERAL_ERROR, initialize(&t));
    }
    write_script(&t, "0 0 hang 0\n");
    CHECK_RV(CKR_OK, initialize(&t));
    stop(&t);
}

static CK_RV load_only(fixture *t)
{
    CK_C_GetFunctionList get_list;
    t->library = dlopen(XKS_SHIM, RTLD_NOW | RTLD_LOCAL);
    CHECK(t->library != NULL);
    void *symbol = dlsym(t->library, "C_GetFunctionList");
    memcpy(&get_list, &symbol, sizeof symbol);
    return get_list(&t->f);
}

static void another_layout_or_a_missing_module_is_refused(bool softhsm)
{
    fixture t;
    prepare(&t, softhsm, 1);
    fclose(stderr);
    set(&t.control->version, XKS_FAULT_VERSION + 1);
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    set(&t.control->version, XKS_FAULT_VERSION);
    set(&t.control->size, sizeof *t.control + 8);
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    set(&t.control->size, sizeof *t.control);
    setenv("XKSFAULT_MODULE", "/nowhere.so", 1);
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    unsetenv("XKSFAULT_MODULE");
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    setenv("XKSFAULT_MODULE", softhsm ? SOFTHSM : NSS, 1);
    CHECK_RV(CKR_OK, load_only(&t));
    CHECK_RV(CKR_OK, initialize(&t));
    stop(&t);
}

int main(void)
{
    ON_BOTH(a_script_sets_faults_by_the_clock);
    ON_BOTH(a_script_releases_a_hang);
    ON_BOTH(a_wrong_script_is_refused);
    ON("nss", another_layout_or_a_missing_module_is_refused);
    return 0;
}
