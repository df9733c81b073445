/* SPDX-License-Identifier: Apache-2.0 */
/* open_loop_connections.c - the generator's connections: a request goes out, an answer comes in, what breaks is opened anew. */
#define _GNU_SOURCE
#include "open_loop.h"
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

void open_connection(generator *g, uint32_t number)
{
    connection *c = &g->connections[number];
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = number};
    int yes = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) != 0) {
        die("socket");
    }
    c->connecting = true;
    c->record = NOBODY;
    c->len = c->need = 0;
    if (connect(c->fd, (const struct sockaddr *)&g->server, sizeof g->server) == 0) {
        c->connecting = false;
    } else if (errno != EINPROGRESS) {
        die("connect");
    }
    if (epoll_ctl(g->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0) {
        die("epoll_ctl");
    }
    g->opened++;
}

static void finish(generator *g, connection *c, uint32_t status)
{
    record *r = &g->records[c->record];
    r->done_ns = now_ns();
    r->status = status;
    c->record = NOBODY;
    c->len = c->need = 0;
    g->finished++;
}

/* The server ended it: what was on the way counts as broken, and the connection is opened anew; if it was refused, only when needed. */
static void broken(generator *g, uint32_t number)
{
    connection *c = &g->connections[number];
    bool was_idle = c->record == NOBODY, refused = c->connecting; /* idle, connected or not yet */
    if (c->record != NOBODY) {
        finish(g, c, STATUS_BROKEN);
    } else if (refused && now_ns() < g->start_ns) {
        fprintf(stderr, "open_loop: nobody listens on port %d\n", ntohs(g->server.sin_port));
        exit(1);
    }
    close(c->fd);
    if (refused) {
        c->fd = -1;
        c->connecting = false;
    } else {
        open_connection(g, number);
    }
    if (!was_idle) {
        g->idle[g->idle_count++] = number;
    }
}

static void transmit(generator *g, uint32_t number)
{
    connection *c = &g->connections[number];
    const request *r = &g->requests[c->request];
    ssize_t n = send(c->fd, r->bytes, r->len, MSG_NOSIGNAL);
    g->records[c->record].sent_ns = now_ns();
    if (n != (ssize_t)r->len) {
        broken(g, number);
    }
}

void send_due(generator *g)
{
    while (g->sent < g->scheduled) {
        uint32_t number;
        if (g->idle_count > 0) {
            number = g->idle[--g->idle_count];
        } else if (g->connection_count < g->max_connections) {
            number = g->connection_count++;
            open_connection(g, number);
        } else {
            return;
        }
        connection *c = &g->connections[number];
        if (c->fd < 0) {
            open_connection(g, number);
        }
        c->record = g->sent++;
        c->request = choose_request(g);
        g->records[c->record].kind = g->requests[c->request].kind;
        if (!c->connecting) {
            transmit(g, number);
        }
    }
}

static void keep_sample(generator *g, const connection *c, const char *body, size_t len)
{
    uint32_t every = g->requests[c->request].sample;
    if (every == 0 || g->sample_count == MAX_SAMPLES || g->answers_200++ % every != 0) {
        return;
    }
    sample *s = &g->samples[g->sample_count];
    s->body = malloc(len);
    if (s->body != NULL) {
        memcpy(s->body, body, len);
        s->len = (uint32_t)len;
        s->request = c->request;
        g->sample_count++;
    }
}

/* Where the body begins, once the header is whole; SIZE_MAX: it is no HTTP answer with a Content-Length. */
static size_t parse_header(connection *c, size_t *body)
{
    char *end = memmem(c->answer, c->len, "\r\n\r\n", 4);
    if (end == NULL) {
        return c->len == ANSWER_BYTES ? SIZE_MAX : 0;
    }
    *body = (size_t)(end - c->answer) + 4;
    for (char *line = c->answer; line < end; line = (char *)memchr(line, '\n', *body - (size_t)(line - c->answer)) + 1) {
        if (strncasecmp(line, "Content-Length:", 15) == 0) {
            size_t length = strtoul(line + 15, NULL, 10);
            return length <= ANSWER_BYTES - *body ? *body + length : SIZE_MAX;
        }
    }
    return SIZE_MAX;
}

static void receive(generator *g, uint32_t number)
{
    connection *c = &g->connections[number];
    for (;;) {
        ssize_t n = recv(c->fd, c->answer + c->len, ANSWER_BYTES - c->len, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return;
        }
        if (n <= 0 || c->record == NOBODY) {
            broken(g, number);
            return;
        }
        c->len += (size_t)n;
        size_t body = 0;
        c->need = parse_header(c, &body);
        if (c->need == SIZE_MAX || (c->need > 0 && body < 16)) {
            broken(g, number);
            return;
        }
        if (c->need > 0 && c->len >= c->need) {
            uint32_t status = (uint32_t)strtoul((char[4]){c->answer[9], c->answer[10], c->answer[11], 0}, NULL, 10);
            bool closes = memmem(c->answer, body, "onnection: close", 16) != NULL;
            if (status == 200) {
                keep_sample(g, c, c->answer + body, c->need - body);
            }
            finish(g, c, status);
            if (closes) {
                close(c->fd);
                open_connection(g, number);
            }
            g->idle[g->idle_count++] = number;
            return;
        }
    }
}

void handle(generator *g, const struct epoll_event *event)
{
    uint32_t number = event->data.u32;
    connection *c = &g->connections[number];
    if (c->connecting && event->events & (EPOLLERR | EPOLLHUP)) {
        broken(g, number);
        return;
    }
    if (c->connecting && event->events & EPOLLOUT) {
        c->connecting = false;
        if (c->record != NOBODY) {
            transmit(g, number);
        }
        return;
    }
    if (event->events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
        receive(g, number);
    }
}
