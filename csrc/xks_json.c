/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_json.h"

#include <stdbool.h>
#include <string.h>

/* A member name as it stands between its quotes. */
typedef struct name_view {
    const char *text;
    size_t len;
    bool escaped;
} name_view;

/* The names of every object that is still open, outermost first; `first_name[d]` is where those of depth d begin. */
typedef struct scan {
    const char *at;
    const char *end;
    name_view names[XKS_JSON_MAX_MEMBERS];
    size_t name_count;
    size_t members; /* over the whole document */
    size_t first_name[XKS_JSON_MAX_DEPTH];
    bool is_object[XKS_JSON_MAX_DEPTH];
    size_t depth;
} scan;

static unsigned hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return (unsigned)(c - '0');
    }
    if (c >= 'a' && c <= 'f') {
        return (unsigned)(c - 'a') + 10;
    }
    return c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10 : 16;
}

/* One code unit of an escaped name: a byte as it stands (UTF-8), or what an escape means, marked by bit 16 when it is beyond
 * ASCII so that it never equals a raw byte: the two spellings of a non-ASCII name then count as different, which refuses less,
 * never more; no member of the API has such a name. Returns 0x20000 at the end or for a broken escape. */
static uint32_t next_unit(const char **at, const char *end)
{
    if (*at >= end) {
        return 0x20000;
    }
    char c = *(*at)++;
    if (c != '\\') {
        return (uint8_t)c;
    }
    if (*at >= end) {
        return 0x20000;
    }
    c = *(*at)++;
    switch (c) {
    case 'b': return '\b';
    case 'f': return '\f';
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'u': break;
    default: return (uint8_t)c;
    }
    uint32_t unit = 0;
    if (end - *at < 4) {
        return 0x20000;
    }
    for (int i = 0; i < 4; i++) {
        unsigned digit = hex_digit(*(*at)++);
        if (digit > 15) {
            return 0x20000;
        }
        unit = unit << 4 | digit;
    }
    return unit < 0x80 ? unit : unit | 0x10000;
}

static bool same_name(const name_view *a, const name_view *b)
{
    if (!a->escaped && !b->escaped) {
        return a->len == b->len && memcmp(a->text, b->text, a->len) == 0;
    }
    const char *left = a->text, *right = b->text;
    for (;;) {
        uint32_t x = next_unit(&left, a->text + a->len);
        uint32_t y = next_unit(&right, b->text + b->len);
        if (x != y) {
            return false;
        }
        if (x == 0x20000) {
            return true;
        }
    }
}

/* Past a string whose opening quote was read. */
static bool read_string(scan *s, name_view *out)
{
    out->text = s->at;
    out->escaped = false;
    const char *quote = memchr(s->at, '"', (size_t)(s->end - s->at));
    if (quote == NULL) {
        return false;
    }
    if (memchr(s->at, '\\', (size_t)(quote - s->at)) == NULL) { /* nearly every string: long Base64 texts pass at memchr's speed */
        out->len = (size_t)(quote - s->at);
        s->at = quote + 1;
        return true;
    }
    while (s->at < s->end) {
        char c = *s->at++;
        if (c == '"') {
            out->len = (size_t)(s->at - 1 - out->text);
            return true;
        }
        if (c == '\\') {
            out->escaped = true;
            if (s->at >= s->end) {
                return false;
            }
            s->at++;
        }
    }
    return false;
}

static void skip_space(scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r')) {
        s->at++;
    }
}

static xks_status note_name(scan *s, const name_view *name)
{
    for (size_t i = s->first_name[s->depth - 1]; i < s->name_count; i++) {
        if (same_name(&s->names[i], name)) {
            return XKS_BAD_INPUT;
        }
    }
    if (s->members == XKS_JSON_MAX_MEMBERS) {
        return XKS_TOO_LONG;
    }
    s->members++;
    s->names[s->name_count++] = *name;
    return XKS_OK;
}

static xks_status open_level(scan *s, bool is_object)
{
    if (s->depth == XKS_JSON_MAX_DEPTH) {
        return XKS_TOO_LONG;
    }
    s->first_name[s->depth] = s->name_count;
    s->is_object[s->depth] = is_object;
    s->depth++;
    return XKS_OK;
}

static xks_status close_level(scan *s, bool is_object)
{
    if (s->depth == 0 || s->is_object[s->depth - 1] != is_object) {
        return XKS_BAD_INPUT;
    }
    s->depth--;
    s->name_count = s->first_name[s->depth];
    return XKS_OK;
}

xks_status xks_json_check_members(const char *text, size_t text_len)
{
    scan s;
    s.at = text;
    s.end = text + text_len;
    s.name_count = s.members = s.depth = 0;
    while (s.at < s.end) {
        xks_status status = XKS_OK;
        name_view name;
        switch (*s.at++) {
        case '{': status = open_level(&s, true); break;
        case '[': status = open_level(&s, false); break;
        case '}': status = close_level(&s, true); break;
        case ']': status = close_level(&s, false); break;
        case '"':
            if (!read_string(&s, &name)) {
                return XKS_BAD_INPUT;
            }
            skip_space(&s);
            if (s.at < s.end && *s.at == ':') { /* only a member name is followed by a colon */
                s.at++;
                status = s.depth > 0 && s.is_object[s.depth - 1] ? note_name(&s, &name) : XKS_BAD_INPUT;
            }
            break;
        default: break;
        }
        if (status != XKS_OK) {
            return status;
        }
    }
    return s.depth == 0 ? XKS_OK : XKS_BAD_INPUT;
}
