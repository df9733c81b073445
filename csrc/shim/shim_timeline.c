/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_timeline.h"

#include "shim_latency.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_MS 1000000U

typedef struct setting {
    const char *name;
    size_t offset;
} setting;

#define SETTING(field) {#field, offsetof(xksfault_slot, field)}
static const setting SETTINGS[] = {
    SETTING(real_slot),     SETTING(login_mode),       SETTING(multiplier_permille), SETTING(servers),
    SETTING(network_ns),    SETTING(hang),             SETTING(hang_classes),        SETTING(hang_max_ms),
    SETTING(hang_rv),       SETTING(dead_rv),          SETTING(error_rv),            SETTING(error_ppm),
    SETTING(error_classes), SETTING(error_times),      SETTING(error_at_once),       SETTING(epoch),
    SETTING(login_epoch),   SETTING(device_error_epoch), SETTING(max_sessions),      SETTING(login_rv),
    SETTING(tag_rv),        SETTING(iv_mode),          SETTING(flip_encrypt_ppm),    SETTING(flip_decrypt_ppm),
    SETTING(wrong_length_ppm),
};
static const setting LATENCY_PARTS[] = {
    {"kind", offsetof(xksfault_latency, kind)},
    {"a_ns", offsetof(xksfault_latency, a_ns)},
    {"b", offsetof(xksfault_latency, b)},
    {"c_ns", offsetof(xksfault_latency, c_ns)},
};
static const char *const CLASSES[XKS_FAULT_CLASSES] = {
    "open_session", "login",   "find",           "get_attribute",   "encrypt_init", "encrypt",
    "decrypt_init", "decrypt", "message_encrypt", "message_decrypt", "generate",     "other",
};

/* The word number of a setting's name, or UINT64_MAX. */
static uint64_t word_of(const char *name)
{
    for (size_t i = 0; i < sizeof SETTINGS / sizeof SETTINGS[0]; i++) {
        if (strcmp(SETTINGS[i].name, name) == 0) {
            return SETTINGS[i].offset / sizeof(uint64_t);
        }
    }
    for (size_t c = 0; c < XKS_FAULT_CLASSES; c++) {
        for (size_t p = 0; p < sizeof LATENCY_PARTS / sizeof LATENCY_PARTS[0]; p++) {
            char full[64];
            snprintf(full, sizeof full, "latency.%s.%s", CLASSES[c], LATENCY_PARTS[p].name);
            if (strcmp(full, name) == 0) {
                size_t offset = offsetof(xksfault_slot, latency) + c * sizeof(xksfault_latency) + LATENCY_PARTS[p].offset;
                return offset / sizeof(uint64_t);
            }
        }
    }
    return UINT64_MAX;
}

/* NULL, or what is wrong with the line. */
static const char *parse(const char *line, uint64_t not_before_ns, xksfault_event *event)
{
    char slot[16], name[64], value[32], rest, *end;
    unsigned long long at_ms;
    if (sscanf(line, "%llu %15s %63s %31s %c", &at_ms, slot, name, value, &rest) != 4 || at_ms > UINT64_MAX / NS_PER_MS / 2) {
        return "a line is: MILLISECONDS SLOT SETTING VALUE";
    }
    event->at_ns = (uint64_t)at_ms * NS_PER_MS;
    event->slot = strcmp(slot, "*") == 0 ? XKS_FAULT_SLOTS : strtoull(slot, &end, 10);
    if (strcmp(slot, "*") != 0 && (*end != '\0' || event->slot >= XKS_FAULT_SLOTS)) {
        return "the slot is a number below 64, or *";
    }
    event->word = word_of(name);
    event->value = strtoull(value, &end, 0);
    if (event->word == UINT64_MAX) {
        return "there is no such setting";
    }
    return *end != '\0' ? "the value is not a number" : event->at_ns < not_before_ns ? "times must not fall" : NULL;
}

static CK_RV read_script(const char *path)
{
    xksfault_control *control = shim()->control;
    char line[256];
    uint64_t count = 0, last_ns = 0, number = 0;
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        shim_say("XKSFAULT_SCRIPT: %s: %s", path, strerror(errno));
        return CKR_GENERAL_ERROR;
    }
    const char *problem = NULL;
    while (problem == NULL && fgets(line, sizeof line, file) != NULL) {
        number++;
        line[strcspn(line, "#\n")] = '\0';
        if (line[strspn(line, " \t")] == '\0') {
            continue;
        }
        xksfault_event event;
        problem = count < XKS_FAULT_EVENTS ? parse(line, last_ns, &event) : "there are more than 256 events";
        if (problem == NULL) {
            last_ns = event.at_ns;
            word_set(&control->events[count].at_ns, event.at_ns);
            word_set(&control->events[count].slot, event.slot);
            word_set(&control->events[count].word, event.word);
            word_set(&control->events[count].value, event.value);
            count++;
        }
    }
    fclose(file);
    if (problem != NULL) {
        shim_say("XKSFAULT_SCRIPT: %s:%llu: %s", path, (unsigned long long)number, problem);
        return CKR_GENERAL_ERROR;
    }
    __atomic_store_n(&control->event_count, count, __ATOMIC_RELEASE);
    return CKR_OK;
}

CK_RV shim_timeline_start(void)
{
    xksfault_control *control = shim()->control;
    const char *path = getenv("XKSFAULT_SCRIPT");
    uint64_t not_started = 0;
    if ((path == NULL || path[0] == '\0') && word(&control->event_count) == 0) {
        return CKR_OK;
    }
    /* Of many processes with the same control file the first reads and starts. */
    if (!__atomic_compare_exchange_n(&control->timeline_start_ns, &not_started, shim_now_ns(), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        return CKR_OK;
    }
    CK_RV rv = path != NULL && path[0] != '\0' ? read_script(path) : CKR_OK;
    if (rv == CKR_OK) {
        shim_timeline_run(shim_now_ns());
    } else {
        word_set(&control->timeline_start_ns, 0);
    }
    return rv;
}

bool shim_timeline_pending(void)
{
    xksfault_control *control = shim()->control;
    return word(&control->event_next) < __atomic_load_n(&control->event_count, __ATOMIC_ACQUIRE) && word(&control->timeline_start_ns) != 0;
}

static void apply(const xksfault_event *event)
{
    uint64_t slot = word(&event->slot), at = word(&event->word);
    if (at >= sizeof(xksfault_slot) / sizeof(uint64_t)) {
        return;
    }
    for (uint32_t s = 0; s < XKS_FAULT_SLOTS; s++) {
        if (slot == XKS_FAULT_SLOTS || slot == s) {
            word_set((uint64_t *)(void *)((char *)shim_settings(s) + at * sizeof(uint64_t)), word(&event->value));
        }
    }
}

void shim_timeline_run(uint64_t now_ns)
{
    xksfault_control *control = shim()->control;
    while (shim_timeline_pending()) {
        uint64_t next = word(&control->event_next);
        if (next >= XKS_FAULT_EVENTS || now_ns < word(&control->timeline_start_ns) + word(&control->events[next].at_ns)) {
            return;
        }
        if (__atomic_compare_exchange_n(&control->event_next, &next, next + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            apply(&control->events[next]);
        }
    }
}
