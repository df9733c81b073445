/* SPDX-License-Identifier: Apache-2.0 */
/* What partitions found out about keys: written down, told to operators, and added up to what a caller is told. */
#include "xks_engine_internal.h"

#include "xks_ckr_name.h"
#include "xks_clock.h"
#include <stdio.h>
#include <string.h>

/* --- in words */

/* What is wrong with a key and what to do. Texts and names are cut so that what to do is always there. */
static void explain_locked(const engine_partition *partition, xks_key_state state, CK_RV rv, const char *label, size_t label_len,
                           char *out)
{
    int len = (int)(label_len < 128 ? label_len : 128);
    const char *token = partition->info.label;
    out[0] = '\0';
    switch (state) {
    case XKS_KEY_USABLE:
        break;
    case XKS_KEY_PENDING:
        snprintf(out, XKS_ERROR_TEXT_BYTES, "the key '%.*s' has not been looked for yet", len, label);
        break;
    case XKS_KEY_ABSENT:
        snprintf(out, XKS_ERROR_TEXT_BYTES,
                 "token '%s' has no secret key with the label '%.*s': create it, correct the label, or set create = true", token, len,
                 label);
        break;
    case XKS_KEY_AMBIGUOUS:
        snprintf(out, XKS_ERROR_TEXT_BYTES,
                 "token '%s' has several secret keys with the label '%.*s': give each a label of its own", token, len, label);
        break;
    case XKS_KEY_WRONG_TYPE:
        snprintf(out, XKS_ERROR_TEXT_BYTES, "the key '%.*s' on token '%s' is not AES with 256 bits: XKS knows no other", len, label,
                 token);
        break;
    case XKS_KEY_FAILED:
        if (rv == XKS_CKR_NO_REFERENCE) {
            snprintf(out, XKS_ERROR_TEXT_BYTES, "the key '%.*s' on token '%s' is not used, since what it is proven against is missing: %.300s",
                     len < 64 ? len : 64, label, token, partition->reference_problem);
        } else {
            snprintf(out, XKS_ERROR_TEXT_BYTES, "the key '%.*s' on token '%s' cannot be read: %s (0x%lx)", len, label, token,
                     xks_ckr_name(rv), rv);
        }
        break;
    case XKS_KEY_DIFFERENT:
        snprintf(out, XKS_ERROR_TEXT_BYTES,
                 "the key '%.*s' on token '%s' is another key than the one that this label has stood for since it was first seen: put "
                 "the right key back (xksfast partition verify says which partitions have it); or give the new key a label of its own "
                 "and rotate to it (xksfast key rotate STORE KEY --label LABEL); or, if the first one was wrong, stop this node, move "
                 "key-references out of its state directory, and start it",
                 len < 80 ? len : 80, label, token);
        break;
    }
}

static bool is_refusal(xks_key_state state)
{
    return state == XKS_KEY_DIFFERENT || state == XKS_KEY_AMBIGUOUS || state == XKS_KEY_WRONG_TYPE || state == XKS_KEY_FAILED;
}

/* --- writing down */

/* Whether somebody must hear of a key's new state. What is so from the beginning is told by who asked for the key. */
static bool is_news(xks_key_state former, xks_key_state state)
{
    if (state == former || state == XKS_KEY_PENDING) {
        return false;
    }
    return former == XKS_KEY_USABLE || state == XKS_KEY_DIFFERENT || state == XKS_KEY_AMBIGUOUS ||
           (state == XKS_KEY_USABLE && former != XKS_KEY_PENDING);
}

static void push_news(xks_engine *engine, const xks_key_news *news)
{
    pthread_mutex_lock(&engine->lock);
    if (engine->news_count < XKS_KEY_NEWS) {
        engine->news[engine->news_count++] = *news;
    } else {
        engine->news_lost++;
    }
    pthread_mutex_unlock(&engine->lock);
}

/* What the partition's status says of keys follows the key; true when it is news as well. */
static bool tell_locked(engine_partition *partition, const wanted_key *wanted, partition_key *known, const key_finding *found,
                        xks_key_news *news)
{
    xks_key_state former = (xks_key_state)known->told;
    *news = (xks_key_news){.partition = partition->index, .state = found->state};
    explain_locked(partition, found->state, found->rv, wanted->label, wanted->label_len, news->text);
    if (is_refusal(found->state)) {
        memcpy(partition->key_problem, news->text, sizeof partition->key_problem);
        partition->problem_key = wanted->index;
    } else if (partition->problem_key == wanted->index) {
        partition->key_problem[0] = '\0'; /* the sweep finds what else there is */
    }
    known->told = found->state == XKS_KEY_PENDING ? known->told : (uint8_t)found->state;
    if (found->state == XKS_KEY_USABLE) {
        int len = (int)(wanted->label_len < 128 ? wanted->label_len : 128);
        snprintf(news->text, sizeof news->text, "the key '%.*s' on token '%s' is used again", len, wanted->label, partition->info.label);
    }
    return is_news(former, found->state);
}

bool xks_engine_publish_key(engine_partition *partition, const wanted_key *wanted, xks_p11_key *key, const key_finding *found)
{
    xks_key_news news;
    bool tell = false;
    pthread_mutex_lock(&partition->lock);
    partition_key *known = xks_partition_key_at(partition, wanted->index);
    bool current = known->wanted && known->generation == wanted->generation;
    bool usable = found->state == XKS_KEY_USABLE;
    /* The copy of a removed key that was looked at again is destroyed with what is known of it, once: later its number is another's. */
    bool drop = !current && !(known->copied && known->use == key->use);
    if (current) {
        known->source = usable ? key->source : 0; /* the token may give the number of what is not used to another key */
        known->use = usable ? key->use : 0;
        known->copied = key->copied;
        known->can_encrypt = key->can_encrypt;
        known->can_decrypt = key->can_decrypt;
        known->extractable = key->extractable;
        known->proven = found->proven;
        known->rv = (uint32_t)found->rv;
        xks_engine_set_key_locked(partition, wanted->index, found->state);
        tell = tell_locked(partition, wanted, known, found, &news);
        if (found->state == XKS_KEY_FAILED) {
            xks_engine_retry_key_locked(partition, wanted->index, xks_monotonic_ns());
        } else {
            known->failed = 0;
        }
    }
    pthread_mutex_unlock(&partition->lock);
    if (drop) {
        xks_p11_key_drop(partition->p11, partition->keeper_session, key);
    }
    if (tell) {
        push_news(partition->engine, &news);
    }
    return current;
}

size_t xks_engine_take_key_news(xks_engine *engine, xks_key_news out[XKS_KEY_NEWS], uint32_t *lost)
{
    pthread_mutex_lock(&engine->lock);
    size_t count = engine->news_count;
    memcpy(out, engine->news, count * sizeof *out);
    *lost = engine->news_lost;
    engine->news_count = engine->news_lost = 0;
    pthread_mutex_unlock(&engine->lock);
    return count;
}

/* --- what a caller is told; the loop thread's */

bool xks_engine_any_hangs(const xks_engine *engine, uint64_t members)
{
    for (; members != 0; members &= members - 1) {
        if (atomic_load(&engine->partitions[__builtin_ctzll(members)]->hangs)) {
            return true;
        }
    }
    return false;
}

xks_status xks_engine_why_no_key(const xks_engine *engine, const engine_group *group, uint32_t key)
{
    bool unknown = (group->members & ~engine->in_service) != 0, wrong = false;
    for (uint64_t members = group->members; members != 0 && !unknown; members &= members - 1) {
        const engine_partition *partition = engine->partitions[__builtin_ctzll(members)];
        uint8_t state = atomic_load(&xks_partition_key_at(partition, key)->state);
        unknown = state == XKS_KEY_FAILED || state == XKS_KEY_PENDING;
        wrong = wrong || state != XKS_KEY_ABSENT;
    }
    if (unknown) {
        return xks_engine_any_hangs(engine, group->members) ? XKS_TIMEOUT : XKS_UNAVAILABLE;
    }
    return wrong ? XKS_CONFIG : XKS_NOT_FOUND;
}

xks_status xks_engine_key_verdict(xks_engine *engine, uint32_t key)
{
    xks_job asked = {.key = key};
    if (*engine->ours == 0 || !engine->started) {
        return XKS_UNAVAILABLE;
    }
    xks_engine_look_at_changes(engine, xks_monotonic_ns());
    const engine_group *group = xks_engine_group_of(engine, &asked);
    if (group == NULL) {
        return XKS_NOT_FOUND;
    }
    for (uint64_t members = group->members; members != 0; members &= members - 1) {
        uint8_t state = atomic_load(&xks_partition_key_at(engine->partitions[__builtin_ctzll(members)], key)->state);
        if (state == XKS_KEY_USABLE || state == XKS_KEY_PENDING) {
            return XKS_OK;
        }
    }
    return xks_engine_why_no_key(engine, group, key);
}

/* --- what is asked about a key */

xks_status xks_engine_key_status(xks_engine *engine, uint32_t key, uint32_t partition, xks_key_status *out)
{
    xks_status status = XKS_NOT_FOUND;
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&engine->lock);
    if (partition < engine->partition_count && key < engine->keys_used && xks_engine_key_at(engine, key)->references > 0) {
        engine_partition *p = engine->partitions[partition];
        pthread_mutex_lock(&p->lock);
        const partition_key *known = xks_partition_key_at(p, key);
        const engine_key *about = xks_engine_key_at(engine, key);
        out->state = (xks_key_state)atomic_load(&known->state);
        out->can_encrypt = known->can_encrypt;
        out->can_decrypt = known->can_decrypt;
        out->extractable = known->extractable;
        out->session_copy = known->copied;
        out->proven = known->proven;
        if (atomic_load(&p->state) != XKS_PARTITION_READY) {
            out->state = XKS_KEY_PENDING;
            snprintf(out->reason, sizeof out->reason, "the partition is not ready: %.400s", p->reason);
        } else {
            explain_locked(p, out->state, known->rv, about->label, about->label_len, out->reason);
        }
        pthread_mutex_unlock(&p->lock);
        status = XKS_OK;
    }
    pthread_mutex_unlock(&engine->lock);
    return status;
}
