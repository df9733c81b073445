/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_secret.h"

#include "xks_bytes.h"
#include "xks_hex.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SLOTS 1000000U
#define KEY_BYTES XKS_SECRET_SLOT_BYTES

/* One anonymous mapping holds the struct and its bytes, so that both are locked and left out of dumps. */
struct xks_secret {
    size_t mapped;
    size_t len;
    bool revealable;
    uint8_t data[];
};

/* len zero bytes. */
static xks_status secret_new(size_t len, xks_secret **out)
{
    size_t mapped = sizeof(xks_secret) + len;
    xks_secret *made = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *out = NULL;
    if (made == MAP_FAILED) {
        return XKS_SYSTEM;
    }
    (void)mlock(made, mapped); /* best effort: the limit may be low */
    (void)madvise(made, mapped, MADV_DONTDUMP);
    made->mapped = mapped;
    made->len = len;
    *out = made;
    return XKS_OK;
}

static xks_status secret_of(const uint8_t *data, size_t len, xks_secret **out)
{
    xks_status status = secret_new(len, out);
    if (status == XKS_OK) {
        memcpy((*out)->data, data, len);
    }
    return status;
}

/* A readable descriptor of a file without the mode bits in `forbidden`, or -1 with the text in error. */
static int open_private(const char *path, mode_t forbidden, char *error)
{
    struct stat about;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: cannot be read: %s", path, strerror(errno));
        return -1;
    }
    const char *problem = NULL;
    if (fstat(fd, &about) != 0) {
        problem = "cannot be examined";
    } else if (!S_ISREG(about.st_mode)) {
        problem = "is not a regular file";
    } else if (about.st_uid != geteuid() && about.st_uid != 0) {
        problem = "belongs to another user: make it yours with chown";
    } else if ((about.st_mode & forbidden) != 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: holds a secret and is open to others (mode %04o): run chmod 600 %s", path,
                 (unsigned)(about.st_mode & 07777), path);
        close(fd);
        return -1;
    } else if (about.st_size > XKS_SECRET_MAX_BYTES) {
        problem = "is too long for a secret";
    }
    if (problem != NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s", path, problem);
        close(fd);
        return -1;
    }
    return fd;
}

/* The whole file, up to XKS_SECRET_MAX_BYTES. */
static xks_status read_private(const char *path, mode_t forbidden, uint8_t buffer[XKS_SECRET_MAX_BYTES], size_t *len, char *error)
{
    xks_status status = XKS_OK;
    int fd = open_private(path, forbidden, error);
    *len = 0;
    if (fd < 0) {
        return XKS_CONFIG;
    }
    while (*len < XKS_SECRET_MAX_BYTES) {
        ssize_t got = read(fd, buffer + *len, XKS_SECRET_MAX_BYTES - *len);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: cannot be read: %s", path, strerror(errno));
            status = XKS_CONFIG;
        }
        if (got <= 0) {
            break;
        }
        *len += (size_t)got;
    }
    close(fd);
    return status;
}

static size_t without_newline(const uint8_t *text, size_t len)
{
    if (len > 0 && text[len - 1] == '\n') {
        len--;
        if (len > 0 && text[len - 1] == '\r') {
            len--;
        }
    }
    return len;
}

xks_status xks_secret_from_file(const char *path, xks_secret **out, char *error)
{
    uint8_t buffer[XKS_SECRET_MAX_BYTES];
    size_t len;
    *out = NULL;
    xks_status status = read_private(path, 077, buffer, &len, error);
    if (status != XKS_OK) {
        goto out;
    }
    len = without_newline(buffer, len);
    if (len == 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: is empty: write the secret into it", path);
        status = XKS_CONFIG;
        goto out;
    }
    status = secret_of(buffer, len, out);
    if (status != XKS_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: no memory for the secret", path);
    }
out:
    xks_wipe(buffer, sizeof buffer);
    return status;
}

xks_status xks_secret_key_from_file(const char *path, bool group_may_read, xks_secret **out, char *error)
{
    uint8_t buffer[XKS_SECRET_MAX_BYTES];
    uint8_t key[KEY_BYTES];
    size_t len;
    *out = NULL;
    xks_status status = read_private(path, group_may_read ? 037 : 077, buffer, &len, error);
    if (status != XKS_OK) {
        goto out;
    }
    if (len == KEY_BYTES) { /* as it is: the last byte of a key may be a newline */
        memcpy(key, buffer, KEY_BYTES);
    } else if (without_newline(buffer, len) != 2 * KEY_BYTES ||
               xks_hex_decode((const char *)buffer, 2 * KEY_BYTES, key) != XKS_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "%s: holds no key: a master key is 32 bytes or 64 lower-case hexadecimal digits (openssl rand -hex 32)", path);
        status = XKS_CONFIG;
        goto out;
    }
    status = secret_of(key, KEY_BYTES, out);
    if (status != XKS_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: no memory for the key", path);
    }
out:
    xks_wipe(buffer, sizeof buffer);
    xks_wipe(key, sizeof key);
    return status;
}

xks_status xks_secret_from_environment(const char *name, xks_secret **out, char *error)
{
    const char *value = getenv(name);
    *out = NULL;
    if (value == NULL || value[0] == '\0') {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the environment variable %s is not set: set it, or name a file instead", name);
        return XKS_CONFIG;
    }
    size_t len = strlen(value);
    if (len > XKS_SECRET_MAX_BYTES) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the environment variable %s is too long for a secret", name);
        return XKS_CONFIG;
    }
    xks_status status = secret_of((const uint8_t *)value, len, out);
    if (status != XKS_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory for the secret in %s", name);
    }
    return status;
}

xks_status xks_secret_from_bytes(const uint8_t *data, size_t len, xks_secret **out)
{
    *out = NULL;
    if (len == 0) {
        return XKS_BAD_INPUT;
    }
    return len > XKS_SECRET_MAX_BYTES ? XKS_TOO_LONG : secret_of(data, len, out);
}

xks_status xks_secret_blank(size_t len, xks_secret **out, uint8_t **room)
{
    *out = NULL;
    *room = NULL;
    if (len == 0) {
        return XKS_BAD_INPUT;
    }
    xks_status status = len > XKS_SECRET_MAX_BYTES ? XKS_TOO_LONG : secret_new(len, out);
    if (status == XKS_OK) {
        *room = (*out)->data;
    }
    return status;
}

xks_status xks_secret_random(size_t len, xks_secret **out)
{
    uint8_t *room;
    xks_status status = xks_secret_blank(len, out, &room);
    if (status == XKS_OK && RAND_priv_bytes(room, (int)len) != 1) {
        xks_secret_free(*out);
        *out = NULL;
        status = XKS_SYSTEM;
    }
    return status;
}

xks_status xks_secret_random_text(size_t chars, xks_secret **out)
{
    static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    *out = NULL;
    if (chars < XKS_SECRET_MIN_TEXT_CHARS || chars > XKS_SECRET_MAX_TEXT_CHARS) {
        return XKS_BAD_INPUT;
    }
    xks_status status = xks_secret_random(chars, out);
    if (status == XKS_OK) {
        for (size_t i = 0; i < chars; i++) {
            (*out)->data[i] = (uint8_t)ALPHABET[(*out)->data[i] & 63]; /* 64 characters: every one is as likely */
        }
        (*out)->revealable = true;
    }
    return status;
}

xks_status xks_secret_text_from_bytes(const uint8_t *data, size_t len, xks_secret **out)
{
    xks_status status = xks_secret_from_bytes(data, len, out);
    if (status == XKS_OK) {
        (*out)->revealable = true;
    }
    return status;
}

xks_status xks_secret_reveal(xks_secret *secret, const char **text, size_t *chars)
{
    *text = NULL;
    *chars = 0;
    if (!secret->revealable) {
        return XKS_NOT_PERMITTED;
    }
    secret->revealable = false;
    *text = (const char *)secret->data;
    *chars = secret->len;
    return XKS_OK;
}

void xks_secret_free(xks_secret *secret)
{
    if (secret == NULL) {
        return;
    }
    size_t mapped = secret->mapped;
    xks_wipe(secret, mapped);
    munmap(secret, mapped);
}

const uint8_t *xks_secret_view(const xks_secret *secret, size_t *len)
{
    *len = secret->len;
    return secret->data;
}

struct xks_secret_pages {
    uint8_t *slots;
    size_t mapped;
    uint32_t slot_count;
    int fd; /* -1 in a reader */
};

xks_status xks_secret_pages_new(uint32_t slot_count, xks_secret_pages **out, char *error)
{
    xks_secret_pages *made = calloc(1, sizeof *made);
    *out = NULL;
    if (made == NULL || slot_count == 0 || slot_count > MAX_SLOTS) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no secret pages for %u keys", slot_count);
        free(made);
        return XKS_TOO_LONG;
    }
    made->slot_count = slot_count;
    made->mapped = (size_t)slot_count * XKS_SECRET_SLOT_BYTES;
    made->slots = MAP_FAILED;
    made->fd = memfd_create("xksfast-secrets", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made->fd < 0 || ftruncate(made->fd, (off_t)made->mapped) != 0 ||
        fcntl(made->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0 ||
        (made->slots = mmap(NULL, made->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, made->fd, 0)) == MAP_FAILED) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no secret pages: %s", strerror(errno));
        if (made->fd >= 0) {
            close(made->fd);
        }
        free(made);
        return XKS_SYSTEM;
    }
    (void)mlock(made->slots, made->mapped);
    (void)madvise(made->slots, made->mapped, MADV_DONTDUMP);
    *out = made;
    return XKS_OK;
}

/* Another process's slots. The pages keep a descriptor of their own where they may be written. */
static xks_status map_pages(int fd, bool writable, xks_secret_pages **out, char *error)
{
    struct stat about;
    *out = NULL;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &about) != 0 || about.st_size <= 0 ||
        about.st_size % XKS_SECRET_SLOT_BYTES != 0 || about.st_size / XKS_SECRET_SLOT_BYTES > MAX_SLOTS) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the descriptor does not hold secret pages");
        return XKS_BAD_INPUT;
    }
    xks_secret_pages *made = calloc(1, sizeof *made);
    if (made == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory for secret pages");
        return XKS_SYSTEM;
    }
    made->fd = -1;
    made->mapped = (size_t)about.st_size;
    made->slot_count = (uint32_t)(about.st_size / XKS_SECRET_SLOT_BYTES);
    made->slots = mmap(NULL, made->mapped, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (made->slots == MAP_FAILED || (writable && (made->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "secret pages cannot be mapped: %s", strerror(errno));
        if (made->slots != MAP_FAILED) {
            munmap(made->slots, made->mapped);
        }
        free(made);
        return XKS_SYSTEM;
    }
    (void)mlock(made->slots, made->mapped);
    (void)madvise(made->slots, made->mapped, MADV_DONTDUMP);
    *out = made;
    return XKS_OK;
}

xks_status xks_secret_pages_open(int fd, xks_secret_pages **out, char *error)
{
    return map_pages(fd, false, out, error);
}

xks_status xks_secret_pages_share(int fd, xks_secret_pages **out, char *error)
{
    return map_pages(fd, true, out, error);
}

void xks_secret_pages_free(xks_secret_pages *pages, int wipe)
{
    if (pages == NULL) {
        return;
    }
    if (wipe && pages->fd >= 0) {
        xks_wipe(pages->slots, pages->mapped);
    }
    munmap(pages->slots, pages->mapped);
    if (pages->fd >= 0) {
        close(pages->fd);
    }
    free(pages);
}

int xks_secret_pages_fd(const xks_secret_pages *pages)
{
    return pages->fd;
}

uint32_t xks_secret_pages_slots(const xks_secret_pages *pages)
{
    return pages->slot_count;
}

xks_status xks_secret_pages_write(xks_secret_pages *pages, uint32_t slot, const uint8_t data[32])
{
    if (slot >= pages->slot_count || pages->fd < 0) {
        return XKS_NOT_PERMITTED;
    }
    memcpy(pages->slots + (size_t)slot * XKS_SECRET_SLOT_BYTES, data, XKS_SECRET_SLOT_BYTES);
    return XKS_OK;
}

const uint8_t *xks_secret_pages_view(const xks_secret_pages *pages, uint32_t slot)
{
    return slot < pages->slot_count ? pages->slots + (size_t)slot * XKS_SECRET_SLOT_BYTES : NULL;
}

xks_status xks_secret_pages_put(xks_secret_pages *pages, uint32_t slot, const xks_secret *secret)
{
    return secret->len == XKS_SECRET_SLOT_BYTES ? xks_secret_pages_write(pages, slot, secret->data) : XKS_BAD_INPUT;
}

xks_status xks_secret_pages_take(xks_secret_pages *pages, uint32_t slot, xks_secret **out)
{
    *out = NULL;
    if (slot >= pages->slot_count || pages->fd < 0) {
        return XKS_NOT_PERMITTED;
    }
    uint8_t *held = pages->slots + (size_t)slot * XKS_SECRET_SLOT_BYTES;
    xks_status status = secret_of(held, XKS_SECRET_SLOT_BYTES, out);
    if (status == XKS_OK) {
        xks_wipe(held, XKS_SECRET_SLOT_BYTES);
    }
    return status;
}

void xks_process_harden(void)
{
    struct rlimit none = {0, 0};
    (void)setrlimit(RLIMIT_CORE, &none);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
