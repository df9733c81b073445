/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_reference_store.h"

#include "xks_hash.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HEADER_BYTES 32
#define RECORD_BYTES 96
#define CHECKED_BYTES 88 /* of a record: what its check is over */
#define FIRST_BUCKETS 1024U
#define RECORDS_PER_READ 256U
#define NOT_THERE UINT32_MAX
/* Whoever holds the file does so for a few system calls, unless it is stopped there: then we say so, and do not stop with it. */
#define LOCK_PAUSE_NS 1000000
#define LOCK_TRIES 2000
#define LOCK_TRIES_WHILE_STUCK 20 /* many keys must not wait for the same process one after the other */

static const uint8_t HEADER[HEADER_BYTES] = "xksfast-key-references 1\n";
static const uint8_t DOMAIN[] = "xksfast-key-reference 1"; /* hashed with its NUL */

typedef struct record {
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    uint8_t iv[16];
    uint8_t tag[16];
    uint8_t ciphertext[XKS_CANARY_BYTES];
    uint8_t iv_len;
    uint8_t zero[7];
    uint8_t check[8];
} record;

_Static_assert(sizeof(record) == RECORD_BYTES, "a record is what is in the file");

struct xks_reference_store {
    char *path;
    int fd;
    pthread_mutex_t lock;
    /* --- guarded by lock */
    bool stuck; /* the last try for the file's lock found it held for too long */
    record *records;
    uint32_t count, capacity;
    uint32_t *buckets; /* indices of records, by open addressing; bucket_count of them, a power of two */
    uint32_t bucket_count;
};

/* --- errors */

static xks_status system_failed(const char *path, const char *what, char *error)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES,
             "%.300s cannot be %s: %s: see that its directory is there, has room and is this user's to write in", path, what,
             strerror(errno));
    return XKS_SYSTEM;
}

static xks_status damaged(const char *path, const char *what, char *error)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES,
             "%.200s %s: restore it from a backup; or, sure that the tokens hold the right keys, move it away and start again: the "
             "references are then made from the keys that are there",
             path, what);
    return XKS_CONFIG;
}

/* --- records in memory; all with the lock held, or before the store is shared */

static void compute_check(const record *r, uint8_t check[8])
{
    uint8_t digest[XKS_SHA256_BYTES];
    xks_sha256_once(r, CHECKED_BYTES, digest);
    memcpy(check, digest, 8);
}

static bool is_whole(const record *r)
{
    uint8_t check[8];
    compute_check(r, check);
    return memcmp(check, r->check, sizeof check) == 0 && r->iv_len >= 1 && r->iv_len <= sizeof r->iv;
}

/* The bucket of a name, or the free one where it belongs. A name is a digest: its first bytes are as good as a hash. */
static uint32_t *bucket_of(const xks_reference_store *store, const uint8_t *name)
{
    uint32_t at;
    memcpy(&at, name, sizeof at);
    for (at &= store->bucket_count - 1; store->buckets[at] != NOT_THERE; at = (at + 1) & (store->bucket_count - 1)) {
        if (memcmp(store->records[store->buckets[at]].name, name, XKS_REFERENCE_NAME_BYTES) == 0) {
            break;
        }
    }
    return &store->buckets[at];
}

static bool grow(xks_reference_store *store)
{
    uint32_t count = store->bucket_count == 0 ? FIRST_BUCKETS : store->bucket_count * 2;
    record *records = realloc(store->records, (size_t)count / 2 * sizeof *records);
    if (records == NULL) {
        return false;
    }
    store->records = records;
    uint32_t *buckets = malloc(count * sizeof *buckets);
    if (buckets == NULL) {
        return false;
    }
    memset(buckets, 0xFF, count * sizeof *buckets); /* NOT_THERE */
    free(store->buckets);
    store->buckets = buckets;
    store->bucket_count = count;
    store->capacity = count / 2;
    for (uint32_t i = 0; i < store->count; i++) {
        uint32_t *bucket = bucket_of(store, store->records[i].name);
        *bucket = *bucket == NOT_THERE ? i : *bucket;
    }
    return true;
}

/* Every record of the file has its place in `records`, so that `count` says where the next one is. */
static bool remember(xks_reference_store *store, const record *r)
{
    if (store->count == store->capacity && !grow(store)) {
        return false;
    }
    store->records[store->count] = *r;
    uint32_t *bucket = bucket_of(store, r->name);
    *bucket = *bucket == NOT_THERE ? store->count : *bucket; /* the first of a name counts */
    store->count++;
    return true;
}

static bool look_up(const xks_reference_store *store, const uint8_t *name, xks_p11_canary *reference)
{
    uint32_t at = store->bucket_count == 0 ? NOT_THERE : *bucket_of(store, name);
    if (at == NOT_THERE) {
        return false;
    }
    const record *r = &store->records[at];
    memset(reference, 0, sizeof *reference);
    memcpy(reference->iv, r->iv, sizeof r->iv);
    memcpy(reference->tag, r->tag, sizeof r->tag);
    memcpy(reference->ciphertext, r->ciphertext, sizeof r->ciphertext);
    reference->iv_len = r->iv_len;
    return true;
}

/* --- the file; all with the lock held and the file locked against other processes */

static off_t end_of(const xks_reference_store *store)
{
    return (off_t)HEADER_BYTES + (off_t)store->count * RECORD_BYTES;
}

/* Bytes read from `at` on, fewer at the end of the file; -1: errno. */
static ssize_t read_at(int fd, void *out, size_t len, off_t at)
{
    size_t got = 0;
    while (got < len) {
        ssize_t n = pread(fd, (uint8_t *)out + got, len - got, at + (off_t)got);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -1;
        }
        if (n == 0) {
            break;
        }
        got += (size_t)n;
    }
    return (ssize_t)got;
}

static bool write_at(int fd, const void *data, size_t len, off_t at)
{
    for (size_t put = 0; put < len;) {
        ssize_t n = pwrite(fd, (const uint8_t *)data + put, len - put, at + (off_t)put);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            errno = n == 0 ? EIO : errno;
            return false;
        }
        put += (size_t)n;
    }
    return true;
}

/* Take in the records that are new. What stands behind the last whole one was being written when its writer was stopped, unless a whole
 * one follows it: then the file is damaged. */
static xks_status take_in(xks_reference_store *store, char *error)
{
    record read[RECORDS_PER_READ];
    bool torn = false;
    for (off_t at = end_of(store);;) {
        ssize_t got = read_at(store->fd, read, sizeof read, at);
        if (got < 0) {
            return system_failed(store->path, "read", error);
        }
        for (size_t i = 0; i < (size_t)got / RECORD_BYTES; i++) {
            bool whole = is_whole(&read[i]);
            if (whole && torn) {
                return damaged(store->path, "is damaged: a record in its middle does not have the checksum it was written with", error);
            }
            torn = torn || !whole;
            if (whole && !remember(store, &read[i])) {
                errno = ENOMEM;
                return system_failed(store->path, "read", error);
            }
        }
        if ((size_t)got < sizeof read) {
            return XKS_OK;
        }
        at += got;
    }
}

static xks_status look_at_header(xks_reference_store *store, char *error)
{
    uint8_t header[HEADER_BYTES];
    ssize_t got = read_at(store->fd, header, sizeof header, 0);
    if (got < 0) {
        return system_failed(store->path, "read", error);
    }
    if (memcmp(header, HEADER, (size_t)got) != 0) {
        return damaged(store->path, "is not a file of key references, or one of another version", error);
    }
    if (got < HEADER_BYTES && (!write_at(store->fd, HEADER, sizeof HEADER, 0) || fsync(store->fd) != 0)) {
        return system_failed(store->path, "written", error);
    }
    return XKS_OK;
}

/* References that are added to a file without its name would be unknown to who starts next. */
static xks_status still_named(const xks_reference_store *store, char *error)
{
    struct stat about, named;
    if (fstat(store->fd, &about) != 0) {
        return system_failed(store->path, "read", error);
    }
    if (stat(store->path, &named) != 0 || named.st_ino != about.st_ino || named.st_dev != about.st_dev) {
        return damaged(store->path, "was removed or replaced while it was in use", error);
    }
    if (about.st_size < end_of(store)) {
        return damaged(store->path, "has become shorter while it was in use", error);
    }
    return XKS_OK;
}

static xks_status refresh_locked(xks_reference_store *store, char *error)
{
    xks_status status = still_named(store, error);
    return status == XKS_OK ? take_in(store, error) : status;
}

static xks_status lock_file(xks_reference_store *store, char *error)
{
    const struct timespec pause = {0, LOCK_PAUSE_NS};
    int result = flock(store->fd, LOCK_EX | LOCK_NB), most = store->stuck ? LOCK_TRIES_WHILE_STUCK : LOCK_TRIES;
    for (int tries = 1; result != 0 && (errno == EWOULDBLOCK || errno == EINTR) && tries < most; tries++) {
        (void)nanosleep(&pause, NULL);
        result = flock(store->fd, LOCK_EX | LOCK_NB);
    }
    store->stuck = result != 0 && errno == EWOULDBLOCK;
    if (store->stuck) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "%.300s is held by another process that does not go on: see which one is stopped or hangs (fuser shows those that have it "
                 "open), and end it",
                 store->path);
        return XKS_SYSTEM;
    }
    return result == 0 ? XKS_OK : system_failed(store->path, "locked", error);
}

static void unlock_file(const xks_reference_store *store)
{
    (void)flock(store->fd, LOCK_UN);
}

static xks_status append(xks_reference_store *store, const record *r, char *error)
{
    off_t end = end_of(store);
    if (ftruncate(store->fd, end) != 0) { /* what was being written when its writer was stopped */
        return system_failed(store->path, "written", error);
    }
    if (!write_at(store->fd, r, sizeof *r, end)) {
        xks_status status = system_failed(store->path, "written", error);
        (void)!ftruncate(store->fd, end);
        return status;
    }
    if (!remember(store, r)) {
        (void)!ftruncate(store->fd, end);
        errno = ENOMEM;
        return system_failed(store->path, "written", error);
    }
    return XKS_OK;
}

/* --- what others call */

/* The file's name is on the disk as well. A directory that cannot be synced is as good as it gets. */
static void sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *directory = slash == NULL ? strdup(".") : strndup(path, slash == path ? 1 : (size_t)(slash - path));
    int fd = directory == NULL ? -1 : open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(directory);
}

xks_status xks_reference_store_open(const char *path, xks_reference_store **out, char *error)
{
    xks_reference_store *store = calloc(1, sizeof *store);
    struct stat about;
    *out = NULL;
    if (store == NULL || (store->path = strdup(path)) == NULL) {
        free(store);
        errno = ENOMEM;
        return system_failed(path, "opened", error);
    }
    pthread_mutex_init(&store->lock, NULL);
    store->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    xks_status status = XKS_OK;
    if (store->fd < 0 || fstat(store->fd, &about) != 0) {
        status = system_failed(path, "opened", error);
    } else if (!S_ISREG(about.st_mode)) {
        status = damaged(path, "is not a regular file", error);
    } else if ((status = lock_file(store, error)) == XKS_OK) {
        status = look_at_header(store, error);
        status = status == XKS_OK ? take_in(store, error) : status;
        unlock_file(store);
        sync_directory(path);
    }
    if (status != XKS_OK) {
        xks_reference_store_free(store);
        return status;
    }
    *out = store;
    return XKS_OK;
}

void xks_reference_store_free(xks_reference_store *store)
{
    if (store == NULL) {
        return;
    }
    if (store->fd >= 0) {
        close(store->fd);
    }
    pthread_mutex_destroy(&store->lock);
    free(store->records);
    free(store->buckets);
    free(store->path);
    free(store);
}

void xks_reference_name(const char *group, const char *label, size_t label_len, uint8_t name[XKS_REFERENCE_NAME_BYTES])
{
    xks_sha256 hash;
    xks_sha256_init(&hash);
    xks_sha256_update(&hash, DOMAIN, sizeof DOMAIN);
    xks_sha256_update(&hash, group, strlen(group) + 1); /* its NUL ends it */
    xks_sha256_update(&hash, label, label_len);
    xks_sha256_final(&hash, name);
}

xks_status xks_reference_store_find(xks_reference_store *store, const uint8_t name[XKS_REFERENCE_NAME_BYTES],
                                    xks_p11_canary *reference, char *error)
{
    pthread_mutex_lock(&store->lock);
    bool found = look_up(store, name, reference);
    xks_status status = found ? XKS_OK : lock_file(store, error);
    if (!found && status == XKS_OK) {
        status = refresh_locked(store, error);
        unlock_file(store);
        status = status == XKS_OK && !look_up(store, name, reference) ? XKS_NOT_FOUND : status;
    }
    pthread_mutex_unlock(&store->lock);
    return status;
}

xks_status xks_reference_store_offer(xks_reference_store *store, const uint8_t name[XKS_REFERENCE_NAME_BYTES],
                                     xks_p11_canary *reference, bool *first, char *error)
{
    record made = {.iv_len = reference->iv_len};
    memcpy(made.name, name, sizeof made.name);
    memcpy(made.iv, reference->iv, sizeof made.iv);
    memcpy(made.tag, reference->tag, sizeof made.tag);
    memcpy(made.ciphertext, reference->ciphertext, sizeof made.ciphertext);
    compute_check(&made, made.check);
    *first = false;
    pthread_mutex_lock(&store->lock);
    xks_status status = lock_file(store, error);
    if (status == XKS_OK) {
        status = refresh_locked(store, error);
        if (status == XKS_OK && !look_up(store, name, reference)) {
            status = append(store, &made, error);
            *first = status == XKS_OK;
        }
        unlock_file(store);
    }
    pthread_mutex_unlock(&store->lock);
    return status;
}

xks_status xks_reference_store_sync(xks_reference_store *store, char *error)
{
    return fdatasync(store->fd) == 0 ? XKS_OK : system_failed(store->path, "written to the disk", error);
}
