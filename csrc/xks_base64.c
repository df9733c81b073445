/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_base64.h"

static const char ALPHABET[64] = {
    'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J', 'K', 'L', 'M', 'N', 'O', 'P', 'Q', 'R', 'S', 'T', 'U', 'V',
    'W', 'X', 'Y', 'Z', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r',
    's', 't', 'u', 'v', 'w', 'x', 'y', 'z', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '+', '/'};

#define NOT_BASE64 0x80

/* Value of each character, NOT_BASE64 for all that is outside the alphabet. One bit to test for four characters at once. */
static const uint8_t VALUES[256] = {
#define X NOT_BASE64
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  62, X,  X,  X,  63, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, X,  X,
    X,  X,  X,  X,  X,  0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
    25, X,  X,  X,  X,  X,  X,  26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48,
    49, 50, 51, X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
    X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,  X,
#undef X
};

size_t xks_base64_encoded_len(size_t len)
{
    return (len + 2) / 3 * 4;
}

size_t xks_base64_decoded_max(size_t text_len)
{
    return text_len / 4 * 3;
}

void xks_base64_encode(const uint8_t *data, size_t len, char *out)
{
    size_t i = 0;
    for (; i + 3 <= len; i += 3) {
        uint32_t bits = (uint32_t)data[i] << 16 | (uint32_t)data[i + 1] << 8 | data[i + 2];
        *out++ = ALPHABET[bits >> 18];
        *out++ = ALPHABET[bits >> 12 & 63];
        *out++ = ALPHABET[bits >> 6 & 63];
        *out++ = ALPHABET[bits & 63];
    }
    if (i < len) {
        uint32_t bits = (uint32_t)data[i] << 16 | (i + 1 < len ? (uint32_t)data[i + 1] << 8 : 0);
        *out++ = ALPHABET[bits >> 18];
        *out++ = ALPHABET[bits >> 12 & 63];
        *out++ = i + 1 < len ? ALPHABET[bits >> 6 & 63] : '=';
        *out++ = '=';
    }
}

/* The last four characters, of which one or two may be padding. Returns the bytes written, 0 when they are not strict Base64. */
static size_t decode_last(const uint8_t *text, uint8_t bytes[3])
{
    uint32_t a = VALUES[text[0]], b = VALUES[text[1]], c = VALUES[text[2]], d = VALUES[text[3]];
    if (text[3] == '=') {
        d = 0;
        if (text[2] == '=') {
            bytes[0] = (uint8_t)(a << 2 | b >> 4);
            return (a | b) & NOT_BASE64 || (b & 15) != 0 ? 0 : 1;
        }
        bytes[0] = (uint8_t)(a << 2 | b >> 4);
        bytes[1] = (uint8_t)(b << 4 | c >> 2);
        return (a | b | c) & NOT_BASE64 || (c & 3) != 0 ? 0 : 2;
    }
    bytes[0] = (uint8_t)(a << 2 | b >> 4);
    bytes[1] = (uint8_t)(b << 4 | c >> 2);
    bytes[2] = (uint8_t)(c << 6 | d);
    return (a | b | c | d) & NOT_BASE64 ? 0 : 3;
}

xks_status xks_base64_decode(const char *text, size_t text_len, uint8_t *out, size_t out_capacity, size_t *out_len)
{
    const uint8_t *in = (const uint8_t *)text;
    size_t written = 0;
    *out_len = 0;
    if (text_len % 4 != 0) {
        return XKS_BAD_INPUT;
    }
    if (text_len == 0) {
        return XKS_OK;
    }
    size_t whole = text_len - 4;
    if (out_capacity < whole / 4 * 3) {
        return XKS_NO_SPACE;
    }
    for (size_t i = 0; i < whole; i += 4) {
        uint32_t a = VALUES[in[i]], b = VALUES[in[i + 1]], c = VALUES[in[i + 2]], d = VALUES[in[i + 3]];
        if ((a | b | c | d) & NOT_BASE64) {
            return XKS_BAD_INPUT;
        }
        uint32_t bits = a << 18 | b << 12 | c << 6 | d;
        out[written++] = (uint8_t)(bits >> 16);
        out[written++] = (uint8_t)(bits >> 8 & 0xFF);
        out[written++] = (uint8_t)(bits & 0xFF);
    }
    uint8_t last[3];
    size_t last_len = decode_last(in + whole, last);
    if (last_len == 0) {
        return XKS_BAD_INPUT;
    }
    if (out_capacity - written < last_len) {
        return XKS_NO_SPACE;
    }
    for (size_t i = 0; i < last_len; i++) {
        out[written++] = last[i];
    }
    *out_len = written;
    return XKS_OK;
}
