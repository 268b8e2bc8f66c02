/* The probability of a decision from what is known of it in several contexts, which learn as they go.

       slot in context 0 ── logit ──┐
       slot in context 1 ── logit ──┼── weighted sum ── probability ── coder
       ...                          │        ^
       slot in context 9 ── logit ──┘     weights, the sum of two sets'

   A slot is a probability of 22 bits and a count of 10: it moves fast at first, slower later. Weights have 16 bits after
   the point, and follow the gradient of the code's length. */

#ifndef ARCHIVE_MIXER_H
#define ARCHIVE_MIXER_H

#include <stdint.h>

#include "logistic.h"
#include "range_coder.h"

#define INPUTS 10    /* contexts of a decision */
#define CONTEXTS 100 /* values of a context, at most */
#define DECISIONS 20 /* decisions of a number that are told apart */
#define BUSY_SETS 18 /* sets of weights by how far off predictions were nearby */
#define PLACE_SETS 12 /* and by the place in the plane */
#define RATE 6       /* of weights, / 1024 */
#define LIMIT 127    /* decisions after which a slot moves no slower */
#define CARRIED 4    /* decisions that a slot has seen, at most, when a plane begins */
#define LEAST 24     /* of 65536: the smallest probability that is coded */

typedef uint32_t Slot;

typedef struct {
    Slot slots[DECISIONS][INPUTS][CONTEXTS];
    int32_t busy[DECISIONS][BUSY_SETS][INPUTS]; /* a weight is the sum of one of each */
    int32_t place[DECISIONS][PLACE_SETS][INPUTS];
    uint32_t rates[LIMIT + 1]; /* how far a slot moves, of 65536, by its count */
} Mixer;

#define FIRST_WEIGHT (65536 * 3 / 20)
#define EVEN ((Slot)1 << 31) /* one half, never seen */

static void start_mixer(Mixer *mixer) {
    for (int b = 0; b < DECISIONS; b++) {
        for (int i = 0; i < INPUTS; i++)
            for (int c = 0; c < CONTEXTS; c++) mixer->slots[b][i][c] = EVEN;
        for (int s = 0; s < BUSY_SETS; s++)
            for (int i = 0; i < INPUTS; i++) mixer->busy[b][s][i] = FIRST_WEIGHT;
        for (int s = 0; s < PLACE_SETS; s++)
            for (int i = 0; i < INPUTS; i++) mixer->place[b][s][i] = FIRST_WEIGHT;
    }
    for (uint32_t n = 0; n <= LIMIT; n++) mixer->rates[n] = 655360 / (10 * n + 16);
}

/* Another plane is alike, not equal: what was learned holds until a few numbers say otherwise. */
static void loosen_mixer(Mixer *mixer) {
    Slot *slots = &mixer->slots[0][0][0];
    for (int i = 0; i < DECISIONS * INPUTS * CONTEXTS; i++)
        if ((slots[i] & 1023) > CARRIED) slots[i] = (slots[i] & ~(Slot)1023) | CARRIED;
}

static inline void learn_slot(Slot *slot, int bit, const uint32_t *rates) {
    uint32_t p = *slot >> 10, n = *slot & 1023, rate = rates[n];
    if (bit) p += (uint32_t)(((uint64_t)(4194303 - p) * rate) >> 16);
    else p -= (uint32_t)(((uint64_t)p * rate) >> 16);
    *slot = (p << 10) | (n < LIMIT ? n + 1 : n);
}

/* Code decision number `b` with the weights of two sets, of what is nearby and of the place; returns the bit. */
static inline int mixed_bit(Mixer *mixer, Coder *coder, const int32_t *contexts, int b, const int *sets, int bit) {
    int32_t *busy = mixer->busy[b][sets[0]], *place = mixer->place[b][sets[1]], inputs[INPUTS];
    int64_t sum = 0;
    for (int i = 0; i < INPUTS; i++) {
        inputs[i] = logit(mixer->slots[b][i][contexts[i]] >> 10);
        sum += ((int64_t)busy[i] + place[i]) * inputs[i];
    }
    int32_t mixed = (int32_t)shifted(sum, 16);
    int32_t p = clamped(probability(mixed), LEAST, 65536 - LEAST);
    bit = coded_bit(coder, p, bit);
    int64_t error = (int64_t)((bit << 16) - p) * RATE;
    for (int i = 0; i < INPUTS; i++) {
        int32_t step = (int32_t)shifted(inputs[i] * error + (1 << 17), 18);
        busy[i] = clamped(busy[i] + step, -(1 << 20), 1 << 20);
        place[i] = clamped(place[i] + step, -(1 << 20), 1 << 20);
        learn_slot(&mixer->slots[b][i][contexts[i]], bit, mixer->rates);
    }
    return bit;
}

#endif
