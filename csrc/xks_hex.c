/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_hex.h"

void xks_hex_encode(const uint8_t *data, size_t len, char *out)
{
    static const char DIGITS[16] = {'0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'};
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = DIGITS[data[i] >> 4];
        out[2 * i + 1] = DIGITS[data[i] & 15];
    }
}

/* 0..15, or a value with bit 8 set when c is no lower-case digit; without branches and tables. */
static unsigned digit_value(unsigned c)
{
    unsigned is_digit = ((c - '0') & 0xFFFFU) < 10U;
    unsigned is_letter = ((c - 'a') & 0xFFFFU) < 6U;
    return (is_digit * (c - '0')) | (is_letter * (c - 'a' + 10)) | ((1U - (is_digit | is_letter)) << 8);
}

xks_status xks_hex_decode(const char *text, size_t text_len, uint8_t *out)
{
    unsigned wrong = 0;
    if (text_len % 2 != 0) {
        return XKS_BAD_INPUT;
    }
    for (size_t i = 0; i < text_len / 2; i++) {
        unsigned high = digit_value((uint8_t)text[2 * i]);
        unsigned low = digit_value((uint8_t)text[2 * i + 1]);
        wrong |= high | low;
        out[i] = (uint8_t)((high << 4 | low) & 0xFF);
    }
    return wrong > 0xFF ? XKS_BAD_INPUT : XKS_OK;
}
