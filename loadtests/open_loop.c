/* SPDX-License-Identifier: Apache-2.0 */
/* open_loop.c - sends prepared HTTP/1.1 requests when a schedule says so, whatever has become of the earlier ones.
 *
 *     open_loop ADDRESS PORT CONNECTIONS REQUESTS SCHEDULE OUTCOMES ANSWERS
 *
 * Layer:   a program of the load tests; shares no code with the product. open_loop.py writes its input and judges its output.
 * Layout:  REQUESTS  {u32 length, bytes}...                       complete requests, used in rotation
 *          SCHEDULE  u64...                                       due times in ns from the start, ascending
 *          OUTCOMES  {i64 sent_ns, i64 done_ns, i64 status}...    one per due time; -1: never; status as of HTTP, or below
 *          ANSWERS   {u32 length, bytes}...                       the last body that each request was answered with
 *          All in the machine's byte order: written and read on it.
 * Memory:  everything is read before the start; nothing is allocated while it runs but new connections' sockets.
 * Threads: one. It sleeps in epoll_pwait2 until the next due time, to the nanosecond the kernel gives.
 * A request that finds no free connection waits, and its wait is visible: sent_ns is when it was sent, due is due.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_BYTES = 65536, MAX_CONNECTIONS = 4096, STATUS_CLOSED = -1, STATUS_TIMEOUT = -2, STATUS_MALFORMED = -3 };
static const int64_t TIMEOUT_NS = 2000000000;
static const int64_t START_DELAY_NS = 50000000;

typedef struct {
    int64_t sent_ns, done_ns, status;
} outcome;

typedef struct {
    const char *bytes;
    size_t len;
    char *answer; /* the last body */
    size_t answer_len;
} request;

typedef struct {
    int fd;
    int64_t arrival; /* index of what is being answered, -1: idle */
    size_t len;
    char bytes[ANSWER_BYTES];
} connection;

typedef struct {
    struct sockaddr_storage address;
    socklen_t address_len;
    int epoll;
    connection *connections;
    size_t connection_count;
    size_t *idle;
    size_t idle_count;
    request *requests;
    size_t request_count;
    const uint64_t *due_ns;
    outcome *outcomes;
    size_t arrival_count, next, finished;
    int64_t start_ns;
} run;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static _Noreturn void fail(const char *what)
{
    perror(what);
    exit(2);
}

static char *read_file(const char *path, size_t *len)
{
    struct stat facts;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fstat(fileno(file), &facts) != 0) {
        fail(path);
    }
    *len = (size_t)facts.st_size;
    char *bytes = malloc(*len + 1);
    if (bytes == NULL || fread(bytes, 1, *len, file) != *len) {
        fail(path);
    }
    fclose(file);
    return bytes;
}

static void connect_again(run *r, size_t index)
{
    connection *c = &r->connections[index];
    if (c->fd >= 0) {
        close(c->fd);
    }
    c->arrival = -1;
    c->len = 0;
    c->fd = socket(r->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        fail("socket");
    }
    int yes = 1;
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = index}};
    if (connect(c->fd, (struct sockaddr *)&r->address, r->address_len) != 0 ||
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) != 0 || fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0 ||
        epoll_ctl(r->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0) {
        close(c->fd); /* the server is gone: this connection sends nothing more, its share of the arrivals stays unsent */
        c->fd = -1;
        return;
    }
    r->idle[r->idle_count++] = index;
}

static void finish(run *r, connection *c, int64_t status)
{
    outcome *o = &r->outcomes[c->arrival];
    o->done_ns = now_ns() - r->start_ns;
    o->status = status;
    c->arrival = -1;
    c->len = 0;
    r->finished++;
}

/* The connection is of no more use: what it was asked has failed, and a new one takes its place. */
static void lose(run *r, size_t index, int64_t status)
{
    connection *c = &r->connections[index];
    if (c->arrival >= 0) {
        finish(r, c, status);
    } else {
        for (size_t i = 0; i < r->idle_count; i++) {
            if (r->idle[i] == index) {
                r->idle[i] = r->idle[--r->idle_count];
                break;
            }
        }
    }
    connect_again(r, index);
}

/* Body length of a complete head, or -1. */
static long content_length(char *head)
{
    for (char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, "content-length:", 15) == 0) {
            return strtol(line + 17, NULL, 10);
        }
    }
    return -1;
}

static void receive(run *r, size_t index)
{
    connection *c = &r->connections[index];
    ssize_t got = recv(c->fd, c->bytes + c->len, sizeof c->bytes - 1 - c->len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (got <= 0 || c->arrival < 0) {
        lose(r, index, STATUS_CLOSED);
        return;
    }
    c->len += (size_t)got;
    c->bytes[c->len] = '\0';
    char *end = strstr(c->bytes, "\r\n\r\n");
    if (end == NULL) {
        return;
    }
    size_t head_len = (size_t)(end - c->bytes) + 4;
    end[2] = '\0';
    long body_len = content_length(c->bytes);
    end[2] = '\r';
    if (body_len < 0 || head_len + (size_t)body_len >= sizeof c->bytes || strncmp(c->bytes, "HTTP/1.1 ", 9) != 0) {
        lose(r, index, STATUS_MALFORMED);
        return;
    }
    if (c->len < head_len + (size_t)body_len) {
        return;
    }
    request *q = &r->requests[(size_t)c->arrival % r->request_count];
    memcpy(q->answer, c->bytes + head_len, (size_t)body_len);
    q->answer_len = (size_t)body_len;
    finish(r, c, strtol(c->bytes + 9, NULL, 10));
    r->idle[r->idle_count++] = index;
}

static void send_due(run *r)
{
    while (r->next < r->arrival_count && r->idle_count > 0 && (int64_t)r->due_ns[r->next] <= now_ns() - r->start_ns) {
        size_t index = r->idle[--r->idle_count];
        connection *c = &r->connections[index];
        request *q = &r->requests[r->next % r->request_count];
        c->arrival = (int64_t)r->next;
        r->outcomes[r->next].sent_ns = now_ns() - r->start_ns;
        r->next++;
        /* nothing else is in the socket's buffer, so a short write means a broken connection */
        if (send(c->fd, q->bytes, q->len, MSG_NOSIGNAL) != (ssize_t)q->len) {
            lose(r, index, STATUS_CLOSED);
        }
    }
}

static void time_out(run *r)
{
    int64_t at = now_ns() - r->start_ns;
    for (size_t i = 0; i < r->connection_count; i++) {
        connection *c = &r->connections[i];
        if (c->arrival >= 0 && at - r->outcomes[c->arrival].sent_ns > TIMEOUT_NS) {
            lose(r, i, STATUS_TIMEOUT);
        }
    }
}

/* Until every arrival has its outcome, or nothing has moved for the time-out after the last was due. */
static void serve(run *r)
{
    int64_t end_ns = (int64_t)r->due_ns[r->arrival_count - 1] + 2 * TIMEOUT_NS, checked_ns = 0;
    struct epoll_event events[256];
    while (r->finished < r->arrival_count && now_ns() - r->start_ns < end_ns) {
        send_due(r);
        int64_t at = now_ns() - r->start_ns, wait_ns = TIMEOUT_NS / 10;
        if (r->next < r->arrival_count && r->idle_count > 0) {
            int64_t until_ns = (int64_t)r->due_ns[r->next] - at;
            wait_ns = until_ns < 0 ? 0 : until_ns < wait_ns ? until_ns : wait_ns;
        }
        struct timespec wait = {.tv_sec = wait_ns / 1000000000, .tv_nsec = wait_ns % 1000000000};
        int count = epoll_pwait2(r->epoll, events, 256, &wait, NULL);
        for (int i = 0; i < count; i++) {
            receive(r, (size_t)events[i].data.u64);
        }
        if (at - checked_ns > TIMEOUT_NS / 10) {
            checked_ns = at;
            time_out(r);
        }
    }
}

static void read_address(run *r, const char *address, const char *port)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&r->address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&r->address;
    uint16_t number = htons((uint16_t)strtoul(port, NULL, 10));
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = number;
        r->address_len = sizeof *v4;
    } else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = number;
        r->address_len = sizeof *v6;
    } else {
        errno = EINVAL;
        fail(address);
    }
}

static void read_requests(run *r, char *bytes, size_t len)
{
    for (size_t at = 0; at < len; r->request_count++) {
        uint32_t request_len;
        memcpy(&request_len, bytes + at, sizeof request_len);
        request *grown = realloc(r->requests, (r->request_count + 1) * sizeof *grown);
        char *answer = malloc(ANSWER_BYTES);
        if (grown == NULL || answer == NULL) {
            fail("memory");
        }
        r->requests = grown;
        grown[r->request_count] = (request){.bytes = bytes + at + sizeof request_len, .len = request_len, .answer = answer};
        at += sizeof request_len + request_len;
    }
}

static void write_results(const run *r, const char *outcomes, const char *answers)
{
    FILE *file = fopen(outcomes, "wb");
    if (file == NULL || fwrite(r->outcomes, sizeof *r->outcomes, r->arrival_count, file) != r->arrival_count || fclose(file) != 0) {
        fail(outcomes);
    }
    file = fopen(answers, "wb");
    if (file == NULL) {
        fail(answers);
    }
    for (size_t i = 0; i < r->request_count; i++) {
        uint32_t len = (uint32_t)r->requests[i].answer_len;
        if (fwrite(&len, sizeof len, 1, file) != 1 || fwrite(r->requests[i].answer, 1, len, file) != len) {
            fail(answers);
        }
    }
    if (fclose(file) != 0) {
        fail(answers);
    }
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fputs("usage: open_loop ADDRESS PORT CONNECTIONS REQUESTS SCHEDULE OUTCOMES ANSWERS\n", stderr);
        return 2;
    }
    run r = {.epoll = epoll_create1(EPOLL_CLOEXEC), .connection_count = strtoul(argv[3], NULL, 10)};
    size_t requests_len, schedule_len;
    read_address(&r, argv[1], argv[2]);
    char *requests = read_file(argv[4], &requests_len), *schedule = read_file(argv[5], &schedule_len);
    read_requests(&r, requests, requests_len);
    r.due_ns = (const uint64_t *)(const void *)schedule;
    r.arrival_count = schedule_len / sizeof *r.due_ns;
    if (r.epoll < 0 || r.request_count == 0 || r.arrival_count == 0 || r.connection_count == 0 || r.connection_count > MAX_CONNECTIONS) {
        fputs("open_loop: nothing to do\n", stderr);
        return 2;
    }
    r.outcomes = calloc(r.arrival_count, sizeof *r.outcomes);
    r.connections = calloc(r.connection_count, sizeof *r.connections);
    r.idle = calloc(r.connection_count, sizeof *r.idle);
    if (r.outcomes == NULL || r.connections == NULL || r.idle == NULL) {
        fail("memory");
    }
    for (size_t i = 0; i < r.arrival_count; i++) {
        r.outcomes[i] = (outcome){-1, -1, STATUS_CLOSED};
    }
    for (size_t i = 0; i < r.connection_count; i++) {
        r.connections[i].fd = -1;
        connect_again(&r, i);
    }
    r.start_ns = now_ns() + START_DELAY_NS;
    serve(&r);
    write_results(&r, argv[6], argv[7]);
    return 0;
}
