/* SPDX-License-Identifier: Apache-2.0 */
/* open_loop.c - sends pre-signed HTTP/1.1 requests when a schedule says so, and writes down what became of each.
 *
 * usage: open_loop ADDRESS:PORT ARRIVALS RATE SECONDS START_NS CONNECTIONS MAX_CONNECTIONS SEED SPIN REQUESTS RECORDS
 *
 * An open loop: the schedule decides when a request is due, not the answer to the one before, and latency counts from that moment.
 * So a server that stops for a second shows a second's worth of late answers, where a closed loop (wrk) shows one per connection.
 * No Debian package does Poisson arrivals with a record per request (wrk is closed, h2load paces but keeps percentiles only), and
 * none sends a mix with an expected status each.
 *
 * ADDRESS:   of IPv4, as four numbers
 * ARRIVALS:  constant | poisson | closed (each connection sends as soon as it was answered) | @FILE (native uint64_t, ascending:
 *            nanoseconds after START_NS). RATE counts for the first two only.
 * START_NS:  CLOCK_MONOTONIC at which the first second begins, so that whoever injects faults has the same clock; 0: now
 * SPIN:      1: never sleep, for the last microseconds; 0: sleep until something is due or arrives
 * REQUESTS:  for each request a line "KIND WEIGHT FROM_S SAMPLE LENGTH", LENGTH bytes, a newline. Of the requests whose FROM_S is not
 *            in the future those with the latest one are used: so a run longer than a signature is valid has several sets.
 *            SAMPLE: keep every so many-th 200 answer's body; 0: none.
 * RECORDS:   a header and one `record` per request, in the order in which they were due; then the sampled answers.
 *
 * One thread; one request at a time on a connection. A connection that the server closed is opened again; its request has status 1.
 * Nobody who listens is an error before the start; later it is what became of the requests, and each of them tries to connect anew.
 * What is not answered GRACE_NS after the last one was due has status 0.
 */
#define _GNU_SOURCE
#include "open_loop.h"
#include <arpa/inet.h>
#include <math.h>
#include <sys/prctl.h>

#define GRACE_NS 3000000000U
#define MAX_REQUEST_BYTES 131072 /* less than a socket buffer: one send takes all of it */

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

static double next_unit(uint64_t *state) /* in (0, 1] */
{
    return ((double)(next_random(state) >> 11) + 1.0) / 9007199254740992.0;
}

static void read_requests(generator *g, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        die(path);
    }
    for (;;) {
        request *r = &g->requests[g->request_count];
        int fields = fscanf(file, "%u %u %u %u %zu", &r->kind, &r->weight, &r->from_s, &r->sample, &r->len);
        if (fields == EOF) {
            break;
        }
        if (fields != 5 || fgetc(file) != '\n' || r->weight == 0 || r->len == 0 || r->len > MAX_REQUEST_BYTES ||
            g->request_count == MAX_REQUESTS - 1 || (r->bytes = malloc(r->len)) == NULL ||
            fread(r->bytes, 1, r->len, file) != r->len || fgetc(file) != '\n') {
            fprintf(stderr, "open_loop: %s: request %u is malformed\n", path, g->request_count);
            exit(1);
        }
        g->request_count++;
    }
    fclose(file);
    if (g->request_count == 0 || g->requests[0].from_s != 0) {
        fprintf(stderr, "open_loop: %s: no request that is valid from second 0 on\n", path);
        exit(1);
    }
}

/* Use the set of requests that holds at this time. They stand in the order of from_s. */
static void choose_set(generator *g, uint64_t now)
{
    uint64_t second = now > g->start_ns ? (now - g->start_ns) / 1000000000U : 0;
    uint32_t i = g->set_first + g->set_count;
    while (i < g->request_count && g->requests[i].from_s <= second) {
        uint32_t from_s = g->requests[i].from_s;
        g->set_first = i;
        g->total_weight = 0;
        for (; i < g->request_count && g->requests[i].from_s == from_s; i++) {
            g->total_weight += g->requests[i].weight;
        }
        g->set_count = i - g->set_first;
    }
    g->next_set_ns = i < g->request_count ? g->start_ns + g->requests[i].from_s * 1000000000ULL : UINT64_MAX;
}

uint32_t choose_request(generator *g)
{
    uint32_t at = (uint32_t)(next_random(&g->choices) % g->total_weight), i = g->set_first;
    while (at >= g->requests[i].weight) {
        at -= g->requests[i++].weight;
    }
    return i;
}

static void schedule(generator *g, uint64_t due_ns)
{
    if (g->scheduled == g->capacity) {
        g->capacity = g->capacity == 0 ? 1 << 20 : g->capacity * 2;
        g->records = realloc(g->records, g->capacity * sizeof *g->records);
        if (g->records == NULL) {
            die("memory");
        }
    }
    g->records[g->scheduled++] = (record){.due_ns = due_ns};
}

/* When the next request is due, after those that have been scheduled. */
static uint64_t next_due_ns(generator *g, bool poisson, double rate, double *due_s)
{
    if (g->given != NULL) {
        return g->scheduled < g->given_count ? g->start_ns + g->given[g->scheduled] : UINT64_MAX;
    }
    if (g->scheduled > 0) {
        *due_s = poisson ? *due_s - log(next_unit(&g->arrivals)) / rate : (double)g->scheduled / rate;
    }
    return g->start_ns + (uint64_t)(*due_s * 1e9);
}

static void wait_and_handle(generator *g, uint64_t until_ns, bool spin)
{
    struct epoll_event events[256];
    uint64_t now = now_ns(), left = until_ns > now ? until_ns - now : 0;
    struct timespec timeout = {0, 0};
    if (!spin) {
        left = left < 100000000U ? left : 100000000U;
        timeout.tv_nsec = (long)left;
    }
    int count = epoll_pwait2(g->epoll, events, 256, &timeout, NULL);
    for (int i = 0; i < count; i++) {
        handle(g, &events[i]);
    }
}

static void run(generator *g, const char *arrivals, double rate, double seconds, bool spin)
{
    bool closed = strcmp(arrivals, "closed") == 0, poisson = strcmp(arrivals, "poisson") == 0;
    uint64_t start_ns = g->start_ns, end_ns = start_ns + (uint64_t)(seconds * 1e9);
    double due_s = 0;
    uint64_t due_ns = closed ? 0 : next_due_ns(g, poisson, rate, &due_s);
    while (now_ns() < start_ns) {
        wait_and_handle(g, start_ns, spin);
    }
    for (;;) {
        uint64_t now = now_ns();
        if (now >= g->next_set_ns) {
            choose_set(g, now);
        }
        if (closed && now < end_ns) {
            for (uint32_t i = g->idle_count; i > 0; i--) {
                schedule(g, now);
            }
        }
        while (!closed && due_ns <= now && due_ns < end_ns) {
            schedule(g, due_ns);
            due_ns = next_due_ns(g, poisson, rate, &due_s);
        }
        send_due(g);
        if (now >= end_ns && (g->finished == g->scheduled || now >= end_ns + GRACE_NS)) {
            return;
        }
        wait_and_handle(g, !closed && due_ns < end_ns ? due_ns : end_ns + GRACE_NS, spin);
    }
}

static void read_schedule(generator *g, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        die(path);
    }
    long size = ftell(file);
    rewind(file);
    uint64_t *moments = size > 0 ? malloc((size_t)size) : NULL;
    g->given_count = size > 0 ? (uint64_t)size / sizeof *moments : 0;
    if (moments == NULL || fread(moments, sizeof *moments, g->given_count, file) != g->given_count) {
        fprintf(stderr, "open_loop: %s: no schedule\n", path);
        exit(1);
    }
    fclose(file);
    g->given = moments;
}

static void read_server(generator *g, const char *text)
{
    char address[INET_ADDRSTRLEN];
    const char *colon = strchr(text, ':');
    size_t len = colon == NULL ? 0 : (size_t)(colon - text);
    if (len > 0 && len < sizeof address) {
        memcpy(address, text, len);
        address[len] = 0;
        g->server.sin_family = AF_INET;
        g->server.sin_port = htons((uint16_t)atoi(colon + 1));
        if (inet_pton(AF_INET, address, &g->server.sin_addr) == 1) {
            return;
        }
    }
    fprintf(stderr, "open_loop: %s is no ADDRESS:PORT\n", text);
    exit(2);
}

static void write_records(const generator *g, const char *path)
{
    FILE *file = fopen(path, "wb");
    header head = {"xksopen1", g->start_ns, now_ns(), g->scheduled, g->sample_count, g->opened};
    if (file == NULL || fwrite(&head, sizeof head, 1, file) != 1 ||
        fwrite(g->records, sizeof *g->records, g->scheduled, file) != g->scheduled) {
        die(path);
    }
    for (uint32_t i = 0; i < g->sample_count; i++) {
        const sample *s = &g->samples[i];
        if (fwrite(s, 8, 1, file) != 1 || fwrite(s->body, 1, s->len, file) != s->len) {
            die(path);
        }
    }
    if (fclose(file) != 0) {
        die(path);
    }
}

int main(int argc, char **argv)
{
    static generator g;
    if (argc != 12) {
        fprintf(stderr, "usage: see the head of open_loop.c\n");
        return 2;
    }
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    uint32_t warm = (uint32_t)strtoul(argv[6], NULL, 10);
    read_server(&g, argv[1]);
    g.max_connections = (uint32_t)strtoul(argv[7], NULL, 10);
    g.arrivals = strtoull(argv[8], NULL, 10);
    g.choices = ~g.arrivals;
    if (g.max_connections < warm) {
        g.max_connections = warm;
    }
    g.start_ns = strtoull(argv[5], NULL, 10);
    read_requests(&g, argv[10]);
    if (argv[2][0] == '@') {
        read_schedule(&g, argv[2] + 1);
    }
    g.connections = calloc(g.max_connections, sizeof *g.connections);
    g.idle = calloc(g.max_connections, sizeof *g.idle);
    char *answers = malloc((size_t)g.max_connections * ANSWER_BYTES);
    g.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (g.connections == NULL || g.idle == NULL || answers == NULL || g.epoll < 0) {
        die("memory");
    }
    for (uint32_t i = 0; i < g.max_connections; i++) {
        g.connections[i].answer = answers + (size_t)i * ANSWER_BYTES;
    }
    (void)prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    for (; g.connection_count < warm; g.connection_count++) {
        open_connection(&g, g.connection_count);
        g.idle[g.idle_count++] = g.connection_count;
    }
    if (g.start_ns == 0) {
        g.start_ns = now_ns() + 50000000U;
    }
    choose_set(&g, g.start_ns);
    run(&g, argv[2], rate, seconds, strcmp(argv[9], "1") == 0);
    write_records(&g, argv[11]);
    return 0;
}
