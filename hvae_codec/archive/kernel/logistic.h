/* Probabilities and their logits in whole numbers: equal on every machine, as logarithms of a C library are not.

   A probability is 16 bits, p / 65536; a logit, ln(p / (1 - p)), has 8 bits after the point. */

#ifndef ARCHIVE_LOGISTIC_H
#define ARCHIVE_LOGISTIC_H

#include <stdint.h>

#define LOGIT_LIMIT 3071 /* 12 units: a probability of 0.4 / 65536 */

/* round(65536 / (1 + exp(-(i - 48) / 4))), a quarter of a unit apart */
static const int32_t KNOTS[97] = {
    0, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267, 342,
    439, 562, 720, 922, 1179, 1506, 1921, 2446, 3108, 3938, 4971, 6249, 7812, 9702, 11955, 14595, 17625,
    21025, 24743, 28693, 32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834, 57724, 59287, 60565, 61598,
    62428, 63090, 63615, 64030, 64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328, 65374, 65410, 65438,
    65459, 65476, 65489, 65500, 65508, 65514, 65519, 65523, 65526, 65528, 65530, 65531, 65532, 65533, 65534,
    65534, 65535, 65535, 65535, 65535, 65535, 65536};

static int16_t LOGITS[4096]; /* of (i + 0.5) / 4096; filled when the module is loaded, and never changed */

static inline int32_t clamped(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

/* Divide by 2^bits, rounding down, also where C leaves the shift of a negative number to the compiler. */
static inline int64_t shifted(int64_t value, int bits) {
    return value >= 0 ? value >> bits : ~(~value >> bits);
}

/* The probability of a logit, 0 to 65536. */
static inline int32_t probability(int32_t logit) {
    int32_t from_lowest = clamped(logit, -LOGIT_LIMIT, LOGIT_LIMIT) + 3072;
    int32_t knot = from_lowest >> 6, part = from_lowest & 63;
    return (KNOTS[knot] * (64 - part) + KNOTS[knot + 1] * part) >> 6;
}

/* The logit of a probability of 22 bits. */
static inline int32_t logit(uint32_t p22) {
    return LOGITS[p22 >> 10];
}

static void fill_logits(void) {
    int32_t value = -LOGIT_LIMIT;
    for (int32_t i = 0; i < 4096; i++) {
        while (value < LOGIT_LIMIT && probability(value) < i * 16 + 8) value++;
        LOGITS[i] = (int16_t)value;
    }
}

#endif
