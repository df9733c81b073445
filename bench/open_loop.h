/* SPDX-License-Identifier: Apache-2.0 */
/* open_loop.h - what the load generator's two files share.
 *
 *   open_loop.c              what is sent and when: requests, schedule, records; main
 *   open_loop_connections.c  connections: a request goes out, an answer comes in, what breaks is opened anew
 *
 * Times are nanoseconds of CLOCK_MONOTONIC. One thread, one generator; what cannot go on ends the process.
 */
#ifndef OPEN_LOOP_H
#define OPEN_LOOP_H

#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#define MAX_REQUESTS 4096
#define ANSWER_BYTES 65536
#define MAX_SAMPLES 1024
#define STATUS_NO_ANSWER 0
#define STATUS_BROKEN 1
#define NOBODY UINT64_MAX

typedef struct request {
    uint32_t kind, weight, from_s, sample;
    size_t len;
    char *bytes;
} request;

typedef struct record {
    uint64_t due_ns, sent_ns, done_ns; /* CLOCK_MONOTONIC */
    uint32_t kind;
    uint32_t status;
} record;

typedef struct header {
    char magic[8];
    uint64_t start_ns, end_ns, count, samples, connections; /* connections: opened in all */
} header;

typedef struct sample {
    uint32_t request;
    uint32_t len;
    char *body;
} sample;

typedef struct connection {
    int fd; /* -1: closed until it is needed */
    bool connecting;
    uint64_t record; /* NOBODY: free */
    uint32_t request;
    size_t len, need; /* of the answer: read, and in all once the header is known */
    char *answer;
} connection;

typedef struct generator {
    int epoll;
    struct sockaddr_in server;
    request requests[MAX_REQUESTS];
    uint32_t request_count, set_first, set_count, total_weight;
    uint64_t start_ns, next_set_ns; /* next_set_ns: when the next set of requests holds */
    connection *connections;
    uint32_t *idle;
    uint32_t connection_count, idle_count, max_connections;
    record *records;
    uint64_t scheduled, sent, finished, capacity, opened;
    uint64_t arrivals, choices; /* states of two generators of random numbers, so that a seed gives one schedule */
    const uint64_t *given;      /* a schedule of @FILE: `given_count` moments; else NULL */
    uint64_t given_count;
    sample samples[MAX_SAMPLES];
    uint32_t sample_count, answers_200;
} generator;

static inline void die(const char *what)
{
    fprintf(stderr, "open_loop: %s: %s\n", what, strerror(errno));
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

/* --- open_loop.c */

/* An index into requests, by weight among those that hold now. */
uint32_t choose_request(generator *g);

/* --- open_loop_connections.c; a connection is named by its index */

void open_connection(generator *g, uint32_t number);
/* Send what is due, as far as connections are idle or may be opened. */
void send_due(generator *g);
/* What epoll says of a connection. */
void handle(generator *g, const struct epoll_event *event);

#endif
