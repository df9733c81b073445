/* SPDX-License-Identifier: Apache-2.0 */
/* The file of key references: what is in it counts for every process and for ever, and what is wrong with it is said. */
#include "check.h"
#include "xks_reference_store.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define HEADER_BYTES 32
#define RECORD_BYTES 96
#define PROCESSES 8
#define NAMES 300

/* test scaffolding, not product code */
static char directory[64];
static char path[96];
static char error[XKS_ERROR_TEXT_BYTES];

static void fresh(void)
{
    (void)unlink(path);
}

static xks_reference_store *open_store(void)
{
    xks_reference_store *store;
    error[0] = '\0';
    xks_status status = xks_reference_store_open(path, &store, error);
    if (status != XKS_OK) {
        fprintf(stderr, "%s\n", error);
    }
    CHECK_STATUS(XKS_OK, status);
    return store;
}

static xks_p11_canary reference_of(uint8_t byte)
{
    xks_p11_canary reference = {.iv_len = 12};
    memset(reference.iv, byte, 12);
    memset(reference.tag, byte, sizeof reference.tag);
    memset(reference.ciphertext, byte, sizeof reference.ciphertext);
    return reference;
}

static void name_of(unsigned number, uint8_t name[XKS_REFERENCE_NAME_BYTES])
{
    char label[16];
    int len = snprintf(label, sizeof label, "key-%u", number);
    xks_reference_name("main", label, (size_t)len, name);
}

static bool offer(xks_reference_store *store, unsigned number, uint8_t byte, xks_p11_canary *reference)
{
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    bool first;
    name_of(number, name);
    *reference = reference_of(byte);
    CHECK_STATUS(XKS_OK, xks_reference_store_offer(store, name, reference, &first, error));
    return first;
}

static uint8_t found(xks_reference_store *store, unsigned number)
{
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    xks_p11_canary reference;
    name_of(number, name);
    xks_status status = xks_reference_store_find(store, name, &reference, error);
    CHECK(status == XKS_OK || status == XKS_NOT_FOUND);
    return status == XKS_OK ? reference.ciphertext[0] : 0;
}

static off_t size_of_file(void)
{
    struct stat about;
    CHECK(stat(path, &about) == 0);
    return about.st_size;
}

static void write_byte(off_t at, char byte)
{
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, &byte, 1, at) == 1 && close(fd) == 0);
}

/* --- */

static void a_reference_is_there_after_the_store_was_opened_again(void)
{
    xks_p11_canary reference;
    fresh();
    xks_reference_store *store = open_store();
    CHECK(found(store, 1) == 0);
    CHECK(offer(store, 1, 7, &reference));
    CHECK_STATUS(XKS_OK, xks_reference_store_sync(store, error));
    xks_reference_store_free(store);
    store = open_store();
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    name_of(1, name);
    CHECK_STATUS(XKS_OK, xks_reference_store_find(store, name, &reference, error));
    xks_p11_canary expected = reference_of(7);
    CHECK(memcmp(&reference, &expected, sizeof expected) == 0);
    CHECK(found(store, 2) == 0);
    xks_reference_store_free(store);
}

static void the_first_reference_counts_and_a_later_one_is_given_the_first(void)
{
    xks_p11_canary reference;
    fresh();
    xks_reference_store *one = open_store(), *two = open_store();
    CHECK(offer(one, 1, 7, &reference));
    CHECK(!offer(two, 1, 8, &reference) && reference.ciphertext[0] == 7);
    CHECK(!offer(one, 1, 9, &reference) && reference.ciphertext[0] == 7);
    CHECK(size_of_file() == HEADER_BYTES + RECORD_BYTES);
    xks_reference_store_free(one);
    xks_reference_store_free(two);
}

static void what_another_process_recorded_is_found_without_opening_again(void)
{
    xks_p11_canary reference;
    fresh();
    xks_reference_store *one = open_store(), *two = open_store();
    CHECK(found(one, 1) == 0);
    CHECK(offer(two, 1, 7, &reference));
    CHECK(found(one, 1) == 7);
    xks_reference_store_free(one);
    xks_reference_store_free(two);
}

static void processes_that_start_at_once_end_up_with_the_same_references(void)
{
    int status;
    fresh();
    for (int p = 1; p <= PROCESSES; p++) {
        if (fork() == 0) {
            xks_p11_canary reference;
            xks_reference_store *store = open_store();
            for (unsigned i = 0; i < NAMES; i++) {
                (void)offer(store, i, (uint8_t)p, &reference);
            }
            _exit(0);
        }
    }
    for (int p = 0; p < PROCESSES; p++) {
        CHECK(wait(&status) > 0 && status == 0);
    }
    CHECK(size_of_file() == HEADER_BYTES + NAMES * RECORD_BYTES);
    xks_reference_store *store = open_store();
    for (unsigned i = 0; i < NAMES; i++) {
        CHECK(found(store, i) >= 1 && found(store, i) <= PROCESSES);
    }
    xks_reference_store_free(store);
}

static void *offer_all(void *store)
{
    xks_p11_canary reference;
    for (unsigned i = 0; i < NAMES; i++) {
        (void)offer(store, i, 1, &reference);
    }
    return NULL;
}

static void keepers_of_one_process_share_a_store(void)
{
    pthread_t threads[4];
    fresh();
    xks_reference_store *store = open_store();
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, offer_all, store) == 0);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(size_of_file() == HEADER_BYTES + NAMES * RECORD_BYTES);
    xks_reference_store_free(store);
}

static void two_thousand_references_are_found_again(void)
{
    xks_p11_canary reference;
    fresh();
    xks_reference_store *store = open_store();
    for (unsigned i = 0; i < 2000; i++) {
        CHECK(offer(store, i, (uint8_t)(i % 250 + 1), &reference));
    }
    xks_reference_store_free(store);
    store = open_store();
    for (unsigned i = 0; i < 2000; i++) {
        CHECK(found(store, i) == i % 250 + 1);
    }
    CHECK(found(store, 2000) == 0);
    xks_reference_store_free(store);
}

static void names_differ_by_group_and_by_label(void)
{
    uint8_t a[XKS_REFERENCE_NAME_BYTES], b[XKS_REFERENCE_NAME_BYTES], c[XKS_REFERENCE_NAME_BYTES];
    xks_reference_name("main", "k", 1, a);
    xks_reference_name("mai", "nk", 2, b);
    xks_reference_name("main", "kk", 2, c);
    CHECK(memcmp(a, b, sizeof a) != 0 && memcmp(a, c, sizeof a) != 0 && memcmp(b, c, sizeof b) != 0);
}

/* --- a file that is not as it should be */

static void three_references(void)
{
    xks_p11_canary reference;
    fresh();
    xks_reference_store *store = open_store();
    for (unsigned i = 1; i <= 3; i++) {
        CHECK(offer(store, i, (uint8_t)i, &reference));
    }
    xks_reference_store_free(store);
}

static void a_record_that_was_being_written_is_ignored_and_written_over(void)
{
    xks_p11_canary reference;
    for (off_t cut = 1; cut < RECORD_BYTES; cut += 19) {
        three_references();
        CHECK(truncate(path, size_of_file() - cut) == 0);
        xks_reference_store *store = open_store();
        CHECK(found(store, 1) == 1 && found(store, 2) == 2 && found(store, 3) == 0);
        CHECK(offer(store, 4, 4, &reference));
        CHECK(size_of_file() == HEADER_BYTES + 3 * RECORD_BYTES);
        xks_reference_store_free(store);
        store = open_store();
        CHECK(found(store, 2) == 2 && found(store, 4) == 4);
        xks_reference_store_free(store);
    }
    three_references();
    CHECK(truncate(path, size_of_file() - RECORD_BYTES) == 0 && truncate(path, size_of_file() + 3 * RECORD_BYTES) == 0);
    xks_reference_store *store = open_store(); /* whose size grew before its bytes were there */
    CHECK(found(store, 2) == 2 && found(store, 3) == 0);
    xks_reference_store_free(store);
}

static void a_header_that_was_being_written_is_written_again(void)
{
    fresh();
    xks_reference_store_free(open_store());
    CHECK(truncate(path, 5) == 0);
    xks_reference_store_free(open_store());
    CHECK(size_of_file() == HEADER_BYTES);
}

static void is_refused(const char *said)
{
    xks_reference_store *store;
    off_t size = size_of_file();
    CHECK_STATUS(XKS_CONFIG, xks_reference_store_open(path, &store, error));
    CHECK(store == NULL && strstr(error, said) != NULL && strstr(error, path) != NULL && strstr(error, "restore it") != NULL);
    CHECK(size_of_file() == size);
}

static void damage_is_named_and_left_as_it_is(void)
{
    three_references();
    write_byte(HEADER_BYTES + RECORD_BYTES + 40, '?'); /* in the second of three */
    is_refused("is damaged");
    three_references();
    write_byte(0, '?');
    is_refused("is not a file of key references");
    three_references();
    write_byte(23, '2'); /* its version */
    is_refused("of another version");
}

static void a_file_that_was_removed_in_use_takes_no_more_references(void)
{
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    bool first;
    three_references();
    xks_reference_store *store = open_store();
    CHECK(unlink(path) == 0);
    CHECK(found(store, 1) == 1);
    xks_p11_canary reference = reference_of(9);
    name_of(9, name);
    CHECK_STATUS(XKS_CONFIG, xks_reference_store_offer(store, name, &reference, &first, error));
    CHECK(!first && strstr(error, "was removed") != NULL);
    CHECK_STATUS(XKS_CONFIG, xks_reference_store_find(store, name, &reference, error));
    xks_reference_store_free(store);
}

/* Who starts next would make another file, and another reference for the same key. */
static void a_file_that_was_moved_in_use_takes_no_more_references(void)
{
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    char aside[128];
    bool first;
    three_references();
    xks_reference_store *store = open_store();
    snprintf(aside, sizeof aside, "%s.old", path);
    CHECK(rename(path, aside) == 0);
    xks_reference_store *next = open_store();
    CHECK(found(store, 1) == 1 && found(next, 1) == 0);
    xks_p11_canary reference = reference_of(9);
    name_of(9, name);
    CHECK_STATUS(XKS_CONFIG, xks_reference_store_offer(store, name, &reference, &first, error));
    CHECK(!first && strstr(error, "was removed or replaced") != NULL);
    CHECK(offer(next, 9, 9, &reference));
    CHECK_STATUS(XKS_CONFIG, xks_reference_store_find(store, name, &reference, error));
    xks_reference_store_free(store);
    xks_reference_store_free(next);
    CHECK(unlink(aside) == 0);
}

static void a_process_that_is_stopped_with_the_file_in_its_hands_stops_nobody_else(void)
{
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    bool first;
    int locked[2];
    char byte;
    three_references();
    xks_reference_store *store = open_store();
    CHECK(pipe(locked) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(path, O_RDWR);
        CHECK(fd >= 0 && flock(fd, LOCK_EX) == 0 && write(locked[1], "x", 1) == 1);
        (void)raise(SIGSTOP);
        _exit(0);
    }
    CHECK(read(locked[0], &byte, 1) == 1);
    alarm(60); /* it must not wait for ever */
    xks_p11_canary reference = reference_of(9);
    name_of(9, name);
    CHECK_STATUS(XKS_SYSTEM, xks_reference_store_offer(store, name, &reference, &first, error));
    CHECK(!first && strstr(error, "held by another process") != NULL);
    for (int i = 0; i < 40; i++) { /* nor does each of many keys wait for it as long */
        CHECK_STATUS(XKS_SYSTEM, xks_reference_store_offer(store, name, &reference, &first, error));
    }
    CHECK(found(store, 1) == 1); /* what is known needs no file */
    xks_reference_store *late;
    CHECK_STATUS(XKS_SYSTEM, xks_reference_store_open(path, &late, error));
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    CHECK(offer(store, 9, 9, &reference));
    alarm(0);
    xks_reference_store_free(store);
    close(locked[0]);
    close(locked[1]);
}

static void a_full_disk_leaves_no_half_record(void)
{
    three_references();
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        uint8_t name[XKS_REFERENCE_NAME_BYTES];
        bool first;
        xks_p11_canary reference = reference_of(9);
        xks_reference_store *store = open_store();
        struct rlimit limit = {(rlim_t)size_of_file() + 50, (rlim_t)size_of_file() + 50};
        CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR && setrlimit(RLIMIT_FSIZE, &limit) == 0);
        name_of(9, name);
        CHECK_STATUS(XKS_SYSTEM, xks_reference_store_offer(store, name, &reference, &first, error));
        CHECK(!first && strstr(error, "cannot be written") != NULL);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(size_of_file() == HEADER_BYTES + 3 * RECORD_BYTES);
}

static void a_file_is_for_its_owner_alone_and_is_not_opened_through_a_link(void)
{
    struct stat about;
    char link[128];
    xks_reference_store *store;
    fresh();
    umask(0);
    xks_reference_store_free(open_store());
    CHECK(stat(path, &about) == 0 && (about.st_mode & 0777) == 0600);
    snprintf(link, sizeof link, "%s/link", directory);
    CHECK(symlink(path, link) == 0);
    CHECK_STATUS(XKS_SYSTEM, xks_reference_store_open(link, &store, error));
    CHECK(unlink(link) == 0);
    CHECK_STATUS(XKS_SYSTEM, xks_reference_store_open("/nowhere/references", &store, error));
    CHECK(strstr(error, "/nowhere/references") != NULL);
}

int main(void)
{
    strcpy(directory, "/tmp/xksfast-test-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/key-references", directory);
    RUN(a_reference_is_there_after_the_store_was_opened_again);
    RUN(the_first_reference_counts_and_a_later_one_is_given_the_first);
    RUN(what_another_process_recorded_is_found_without_opening_again);
    RUN(processes_that_start_at_once_end_up_with_the_same_references);
    RUN(keepers_of_one_process_share_a_store);
    RUN(two_thousand_references_are_found_again);
    RUN(names_differ_by_group_and_by_label);
    RUN(a_record_that_was_being_written_is_ignored_and_written_over);
    RUN(a_header_that_was_being_written_is_written_again);
    RUN(damage_is_named_and_left_as_it_is);
    RUN(a_file_that_was_removed_in_use_takes_no_more_references);
    RUN(a_file_that_was_moved_in_use_takes_no_more_references);
    RUN(a_process_that_is_stopped_with_the_file_in_its_hands_stops_nobody_else);
    RUN(a_full_disk_leaves_no_half_record);
    RUN(a_file_is_for_its_owner_alone_and_is_not_opened_through_a_link);
    (void)unlink(path);
    (void)rmdir(directory);
    return 0;
}
