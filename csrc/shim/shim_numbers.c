/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_numbers.h"

void shim_numbers_forget(void)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    state->number_high = 0;
    pthread_mutex_unlock(&state->mutex);
}

CK_OBJECT_HANDLE shim_number_of(CK_OBJECT_HANDLE real)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    uint32_t number = 0, unused = state->number_high;
    while (number < state->number_high && state->numbers[number] != real) {
        unused = state->numbers[number] == CK_INVALID_HANDLE && unused == state->number_high ? number : unused;
        number++;
    }
    if (number == state->number_high && unused < SHIM_MAX_NUMBERS) {
        number = unused;
        state->number_high += number == state->number_high ? 1 : 0;
        state->numbers[number] = real;
    }
    bool found = number < state->number_high;
    pthread_mutex_unlock(&state->mutex);
    return found ? number + 1 : CK_INVALID_HANDLE;
}

CK_OBJECT_HANDLE shim_number_real(CK_OBJECT_HANDLE number)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    CK_OBJECT_HANDLE real = number > 0 && number <= state->number_high ? state->numbers[number - 1] : CK_INVALID_HANDLE;
    pthread_mutex_unlock(&state->mutex);
    return real;
}

void shim_number_free(CK_OBJECT_HANDLE number)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    if (number > 0 && number <= state->number_high) {
        state->numbers[number - 1] = CK_INVALID_HANDLE;
    }
    pthread_mutex_unlock(&state->mutex);
}
