/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: a date that is read lies in 1970..9999, and its day is formatted as it was written. */
#include "xks_clock.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t at;
    char day[8];
    if (size != 16 || xks_parse_amz_date((const char *)data, &at) != XKS_OK) {
        return 0;
    }
    xks_format_utc_day(at, day);
    if (at < 0 || at > 253402300799 || memcmp(day, data, 8) != 0) {
        abort();
    }
    return 0;
}
