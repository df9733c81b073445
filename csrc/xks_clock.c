/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_clock.h"

#include <time.h>

uint64_t xks_monotonic_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

int64_t xks_unix_seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec;
}

/* Days from 1970-01-01 to a civil date, and back: the era method, 400 years of 146,097 days with March as the first month. */
static int64_t days_from_civil(int64_t year, unsigned month, unsigned day)
{
    year -= month <= 2;
    int64_t era = year / 400;
    unsigned year_of_era = (unsigned)(year - era * 400);
    unsigned day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    unsigned day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return era * 146097 + (int64_t)day_of_era - 719468;
}

static unsigned days_in_month(unsigned year, unsigned month)
{
    static const uint8_t DAYS[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return DAYS[month - 1] + (month == 2 && leap ? 1U : 0U);
}

/* count decimal digits of text; false when one is none. */
static bool read_digits(const char *text, unsigned count, unsigned *value)
{
    *value = 0;
    for (unsigned i = 0; i < count; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return false;
        }
        *value = *value * 10 + (unsigned)(text[i] - '0');
    }
    return true;
}

xks_status xks_parse_amz_date(const char text[16], int64_t *unix_seconds)
{
    unsigned year, month, day, hour, minute, second;
    if (text[8] != 'T' || text[15] != 'Z' || !read_digits(text, 4, &year) || !read_digits(text + 4, 2, &month) ||
        !read_digits(text + 6, 2, &day) || !read_digits(text + 9, 2, &hour) || !read_digits(text + 11, 2, &minute) ||
        !read_digits(text + 13, 2, &second)) {
        return XKS_BAD_INPUT;
    }
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > days_in_month(year, month) || hour > 23 || minute > 59 ||
        second > 59) {
        return XKS_BAD_INPUT;
    }
    *unix_seconds = days_from_civil(year, month, day) * 86400 + (int64_t)(hour * 3600 + minute * 60 + second);
    return XKS_OK;
}

void xks_format_utc_day(int64_t unix_seconds, char day[8])
{
    int64_t shifted = unix_seconds / 86400 + 719468;
    int64_t era = shifted / 146097;
    unsigned day_of_era = (unsigned)(shifted - era * 146097);
    unsigned year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    unsigned day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    unsigned shifted_month = (5 * day_of_year + 2) / 153;
    unsigned month = shifted_month < 10 ? shifted_month + 3 : shifted_month - 9;
    unsigned year = (unsigned)(era * 400) + year_of_era + (month <= 2);
    unsigned values[3] = {year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1};
    day[0] = (char)('0' + values[0] / 1000 % 10);
    day[1] = (char)('0' + values[0] / 100 % 10);
    day[2] = (char)('0' + values[0] / 10 % 10);
    day[3] = (char)('0' + values[0] % 10);
    day[4] = (char)('0' + values[1] / 10);
    day[5] = (char)('0' + values[1] % 10);
    day[6] = (char)('0' + values[2] / 10);
    day[7] = (char)('0' + values[2] % 10);
}
