/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_secret.h"

#include "xks_bytes.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SLOTS 1000000U

/* One anonymous mapping holds the struct and its bytes, so that both are locked and left out of dumps. */
struct xks_secret {
    size_t mapped;
    size_t len;
    uint8_t data[];
};

static xks_status secret_new(const uint8_t *data, size_t len, xks_secret **out)
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
    memcpy(made->data, data, len);
    *out = made;
    return XKS_OK;
}

/* A readable descriptor of a file that only its owner can read, or -1 with the text in error. */
static int open_private(const char *path, char *error)
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
    } else if ((about.st_mode & 077) != 0) {
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

xks_status xks_secret_from_file(const char *path, xks_secret **out, char *error)
{
    uint8_t buffer[XKS_SECRET_MAX_BYTES];
    size_t len = 0;
    xks_status status = XKS_CONFIG;
    *out = NULL;
    int fd = open_private(path, error);
    if (fd < 0) {
        return XKS_CONFIG;
    }
    for (;;) {
        ssize_t got = read(fd, buffer + len, sizeof buffer - len);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: cannot be read: %s", path, strerror(errno));
            goto out;
        }
        if (got == 0 || (len += (size_t)got) == sizeof buffer) {
            break;
        }
    }
    if (len > 0 && buffer[len - 1] == '\n') {
        len--;
        if (len > 0 && buffer[len - 1] == '\r') {
            len--;
        }
    }
    if (len == 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: is empty: write the secret into it", path);
        goto out;
    }
    status = secret_new(buffer, len, out);
    if (status != XKS_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: no memory for the secret", path);
    }
out:
    xks_wipe(buffer, sizeof buffer);
    close(fd);
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
    xks_status status = secret_new((const uint8_t *)value, len, out);
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
    return len > XKS_SECRET_MAX_BYTES ? XKS_TOO_LONG : secret_new(data, len, out);
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

xks_status xks_secret_pages_open(int fd, xks_secret_pages **out, char *error)
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
    made->slots = mmap(NULL, made->mapped, PROT_READ, MAP_SHARED, fd, 0);
    if (made->slots == MAP_FAILED) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "secret pages cannot be mapped: %s", strerror(errno));
        free(made);
        return XKS_SYSTEM;
    }
    (void)mlock(made->slots, made->mapped);
    (void)madvise(made->slots, made->mapped, MADV_DONTDUMP);
    *out = made;
    return XKS_OK;
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

void xks_process_harden(void)
{
    struct rlimit none = {0, 0};
    (void)setrlimit(RLIMIT_CORE, &none);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}
