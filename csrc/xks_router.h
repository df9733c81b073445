/* SPDX-License-Identifier: Apache-2.0 */
/* xks_router.h - which partition takes the next call: latency, calls in flight, breaker, retries, hedges, waiting.
 *
 * Layer:   below the engine; knows no threads, no tokens, no clock and no source of chance of its own.
 * Memory:  one allocation in _new; nothing after it.
 * Threads: belongs to one thread, the event loop's.
 * Time:    every `now` is CLOCK_MONOTONIC in ns, given by the caller and never going back; chance comes from `seed`. Equal calls give
 *          equal answers.
 *
 * A set of partitions is a uint64_t with bit p for partition p.
 *
 * How it chooses. Of the partitions that are in service, have the key and have room, it takes the one with the least
 *
 *   max(median, age of its oldest call if that is unusual) x queue x slow start x (1 + 0.02 calls in flight)
 *
 * where medians within 40 % of the best are equal, so that calls in flight decide between partitions that are about equally fast, and
 * `queue` is 1 until more calls are in flight than the partition works on at once. A partition whose oldest call is out for much longer
 * than its calls usually take is avoided while another has capacity to spare, and comes back by itself when the call returns: it is
 * never ejected for latency, which would let stalls everywhere take everything out. Only faults in a row and calls out for longer than
 * a second open the breaker. A median that is worse than the group's and old fades towards the group's; the partition then gets one
 * call at a time until one of them came back.
 */
#ifndef XKS_ROUTER_H
#define XKS_ROUTER_H

#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XKS_ROUTER_MAX_PARTITIONS 64
#define XKS_HANG_NS 1000000000 /* a call out for longer hangs: it is written off, its thread lost, and the breaker opens */
#define XKS_ROUTER_MAX_CALLS 1024 /* handed to one partition and not returned */

typedef struct xks_router xks_router;

/* A budget is a token bucket: every first attempt adds `budget`, every retry or hedge takes 1. It holds at most 10 + the sessions of
 * all partitions and starts full, so that all calls lost with one partition can be repeated at once. */
typedef struct xks_router_config {
    uint64_t seed;
    uint32_t partitions; /* 1..64 */
    double retry_budget; /* retries per first attempt, 0..1; 0: none */
    double hedge_budget; /* hedges per first attempt, 0..1; 0: none */
} xks_router_config;

typedef enum xks_route_purpose {
    XKS_ROUTE_FIRST = 0,
    XKS_ROUTE_RETRY = 1, /* of a partition's fault; taken from the retry budget */
    XKS_ROUTE_HEDGE = 2, /* a second call beside one that is slow; only to spare capacity, taken from the hedge budget */
    XKS_ROUTE_CHECK = 3  /* a check decrypt: never counted against a budget; goes to a tried partition when no other answers now */
} xks_route_purpose;

typedef struct xks_route_request {
    uint64_t members;      /* the partitions of the group */
    uint64_t usable;       /* of them, those on which the key is usable now */
    uint64_t tried;        /* those that had an attempt of this job: taken only when no other serves; never for a hedge */
    uint64_t local;        /* those at our site; 0: no preference */
    uint64_t remaining_ns; /* until the job's deadline */
    xks_route_purpose purpose;
} xks_route_request;

typedef enum xks_route_verdict {
    XKS_ROUTE_CHOSEN = 0,
    XKS_ROUTE_FULL = 1,     /* partitions that could serve are at their limit (hedge: have none to spare): wait for a completion */
    XKS_ROUTE_OUT = 2,      /* no member can serve: each is out, or hangs; for a hedge: no other member */
    XKS_ROUTE_NO_KEY = 3,   /* members serve, but on none of them is the key usable */
    XKS_ROUTE_LATE = 4,     /* too little time remains: less than 3 medians; for a first attempt or check less than one,
                                 unless a partition is idle and 50 ms remain: one call at a time finds out whether it is still so slow */
    XKS_ROUTE_NO_BUDGET = 5 /* retries or hedges are used up */
} xks_route_verdict;

typedef enum xks_call_result {
    XKS_CALL_SERVED = 0,  /* the token did its work, or rightly said that the caller's request is bad */
    XKS_CALL_FAULT = 1,   /* the partition's fault */
    XKS_CALL_NOT_MADE = 2 /* the token was never called: expired in the queue, or no session */
} xks_call_result;

/* XKS_BAD_INPUT: partitions or a budget out of range. XKS_SYSTEM: no memory. Partitions begin out of service, with no session. */
XKS_MUST_CHECK xks_status xks_router_new(const xks_router_config *config, xks_router **out);
void xks_router_free(xks_router *router);

/* sessions: threads that can take a call now; it changes as a pool shrinks, grows or loses threads to calls that hang. 0: nothing can
 * be handed over. A call that was told overdue is no longer in flight here, so its thread must not be among the sessions either. */
void xks_router_set_sessions(xks_router *router, uint32_t partition, uint32_t sessions);
/* in_service: logged in, and its last probes were good. A change to true closes the breaker and begins a slow start (not the first
 * time). */
void xks_router_set_in_service(xks_router *router, uint32_t partition, bool in_service, uint64_t now);

/* The partition for a call. Changes nothing but the tie-breaking sequence and, at most every 10 ms, the median to which the members'
 * old ones fade.
 * When every usable member is out of service it is panic: the one with the fewest faults in a row that has room and does not hang is
 * chosen, for anything but a hedge. Where all fail at once callers get the failure at once, and the first to recover is found. */
xks_route_verdict xks_router_pick(xks_router *router, const xks_route_request *request, uint64_t now, uint32_t *partition);

/* A call was handed to the partition; the result is for _end. Never fails: pick keeps within XKS_ROUTER_MAX_CALLS. */
uint32_t xks_router_begin(xks_router *router, uint32_t partition, xks_route_purpose purpose, uint64_t now);
/* It came back. took_ns: from hand-over to return, 0 for NOT_MADE. True when the breaker must open now: three faults in a row. */
bool xks_router_end(xks_router *router, uint32_t partition, uint32_t call, xks_call_result result, uint64_t took_ns, uint64_t now);

/* The partitions whose breaker must open now because a call is out for longer than a second. Each is told once per opening; calls
 * begun before the opening do not cause another. Every such call leaves the calls in flight, told or not (see _set_sessions). */
uint64_t xks_router_overdue(xks_router *router, uint64_t now);

/* How long a call to this partition may be out before a hedge is worth asking for. */
uint64_t xks_router_hedge_delay_ns(const xks_router *router, uint32_t partition);

/* How long a job would wait that stands behind `waiting` others for these members; 0 while there is room for all of them, UINT64_MAX
 * when no member is in service. */
uint64_t xks_router_wait_ns(xks_router *router, uint64_t members, uint32_t waiting, uint64_t now);

/* How long a call takes from hand-over to return when its partition is as full as it may be: the longest of these members. */
uint64_t xks_router_call_ns(xks_router *router, uint64_t members, uint64_t now);

/* --- explaining */

typedef enum xks_route_reason {
    XKS_REASON_ELIGIBLE = 0,
    XKS_REASON_OUT_OF_SERVICE,
    XKS_REASON_FULL,     /* in flight at its limit */
    XKS_REASON_TOO_SLOW, /* would take longer than the time that remains */
    XKS_REASON_STALLED,  /* softly avoided: its oldest call is out too long */
    XKS_REASON_REMOTE,   /* another site, while the local one has room */
    XKS_REASON_TRIED,    /* had an attempt of this job */
    XKS_REASON_NO_KEY,
    XKS_REASON_BUSY /* a hedge goes to spare capacity only */
} xks_route_reason;

/* Why _pick with the same arguments would or would not consider the partition. Draws no chance. */
xks_route_reason xks_router_explain(xks_router *router, const xks_route_request *request, uint32_t partition, uint64_t now);

typedef struct xks_route_view {
    bool in_service;
    xks_route_reason reason; /* for a first attempt, the key usable, with the whole of a 200 ms deadline, no site preferred */
    double score;            /* ns; the smallest is chosen, after levelling medians that are near the group's best */
    uint32_t in_flight;      /* handed over and not returned, without the written-off */
    uint32_t written_off;    /* calls out for longer than a second */
    uint32_t limit;          /* of calls in flight */
    double concurrency;      /* estimated calls that the partition works on at once without queueing */
    uint64_t median_ns;      /* of a call that does not queue, faded when old; 0: no call yet */
    uint64_t p95_ns;         /* of a call as it is; 0: no call yet */
    uint64_t oldest_call_ns; /* age of the oldest call, written off or not; 0: none */
    double slow_start;       /* factor on the score, 1 when over */
    uint32_t faults_in_row;
    uint64_t firsts, retries, hedges, checks; /* calls handed over, by purpose */
    uint64_t served, faults, opens;
} xks_route_view;

void xks_router_view(xks_router *router, uint32_t partition, uint64_t now, xks_route_view *out);

#endif
