/* Numbers of a chunk to bits and back, both directions by the same steps.

   What is coded is the difference from the prediction, in as many bits as the array's numbers have, so that every number
   is there: its size (0? 1? 2? ..., in units that grow with the misses so far), the bits below the unit, its sign. */

#ifndef ARCHIVE_NUMBERS_H
#define ARCHIVE_NUMBERS_H

#include <stdint.h>

#include "mixer.h"
#include "prediction.h"
#include "range_coder.h"

#define UNITS (DECISIONS - 2) /* units that are counted one by one; beyond them their number's length is coded */
#define SIGN (DECISIONS - 1)

typedef struct {
    Mixer mixer;
    Coder coder;
    Slot lengths[33], units[33][4];
    int bits; /* of a number: 8, 16 or 32 */
} Chunk;

static void start_chunk(Chunk *chunk, int bits) {
    start_mixer(&chunk->mixer);
    for (int i = 0; i < 33; i++) {
        chunk->lengths[i] = EVEN;
        for (int j = 0; j < 4; j++) chunk->units[i][j] = EVEN;
    }
    chunk->bits = bits;
}

static int slot_bit(Chunk *chunk, Slot *slot, int bit) {
    bit = coded_bit(&chunk->coder, clamped((int32_t)(*slot >> 16), LEAST, 65536 - LEAST), bit);
    learn_slot(slot, bit, chunk->mixer.rates);
    return bit;
}

/* The lowest `count` bits of `value`, of which the two highest are learned. */
static uint32_t low_bits(Chunk *chunk, int count, uint32_t value) {
    uint32_t coded = 0, even = EVEN;
    for (int i = count - 1; i >= 0; i--) {
        int known = count - 1 - i;
        Slot *slot = known == 0 ? &chunk->units[count][0] : known == 1 ? &chunk->units[count][1 + (coded & 1)] : &even;
        coded = (coded << 1) | (uint32_t)slot_bit(chunk, slot, (value >> i) & 1);
        even = EVEN;
    }
    return coded;
}

/* How many units there are beyond those that are counted: the number's length, then its bits below the highest. */
static uint32_t long_count(Chunk *chunk, uint32_t beyond) {
    int length = 0;
    while (length < 32 && !slot_bit(chunk, &chunk->lengths[length], ((uint64_t)beyond + 1) >> (length + 1) == 0)) length++;
    uint32_t below = 0, even = EVEN;
    for (int i = length - 1; i >= 0; i--) {
        below = (below << 1) | (uint32_t)slot_bit(chunk, &even, (int)((((uint64_t)beyond + 1) >> i) & 1));
        even = EVEN;
    }
    return (uint32_t)((((uint64_t)1 << length) | below) - 1);
}

static inline uint32_t coded_units(Chunk *chunk, const int32_t *contexts, const int *sets, uint32_t units) {
    for (uint32_t b = 0; b < UNITS; b++)
        if (mixed_bit(&chunk->mixer, &chunk->coder, contexts, (int)b, sets, units == b)) return b;
    return UNITS + long_count(chunk, units - UNITS);
}

/* The difference in `bits` bits, from -2^(bits-1) to 2^(bits-1) - 1, whatever was added to it or taken from it. */
static inline int64_t wrapped(int64_t value, int bits) {
    uint64_t half = (uint64_t)1 << (bits - 1), all = (half << 1) - 1;
    return (int64_t)(((uint64_t)value + half) & all) - (int64_t)half;
}

static inline int unit_bits(const Average *average) {
    int bits = 0;
    while (bits < 31 && average->size >> bits > 16 * 5) bits++;
    return bits;
}

static inline void code_number(Chunk *chunk, const Plane *plane, Average *average, int32_t y, int32_t x) {
    int32_t contexts[INPUTS], *number = plane->numbers + y * plane->width + x;
    int sets[2], low = unit_bits(average);
    int64_t prediction = predicted(plane, average, y, x, contexts, sets);
    int64_t difference = wrapped(*number - prediction, chunk->bits);
    uint64_t size = (uint64_t)absolute(difference);
    size = (uint64_t)coded_units(chunk, contexts, sets, (uint32_t)(size >> low)) << low
         | low_bits(chunk, low, (uint32_t)(size & (((uint64_t)1 << low) - 1)));
    size &= 0xffffffff; /* more than that only damaged bytes say */
    int negative = size > 0 && mixed_bit(&chunk->mixer, &chunk->coder, contexts, SIGN, sets, difference < 0);
    *number = (int32_t)wrapped(prediction + (negative ? -(int64_t)size : (int64_t)size), chunk->bits);
    plane->misses[y * plane->width + x] = (uint8_t)(size < 255 ? size : 255);
    learn_average(average, *number, (int64_t)size);
}

/* Code int32 [planes, images, height, width]: read by an encoder, filled by a decoder. */
static void code_numbers(Chunk *chunk, int32_t *numbers, const int32_t *shape, uint8_t *misses) {
    const int64_t area = (int64_t)shape[2] * shape[3], images = shape[1];
    for (int32_t v = 0; v < shape[0]; v++) {
        Average average = {0, 0, 0};
        if (v > 0) loosen_mixer(&chunk->mixer);
        for (int32_t i = 0; i < images; i++) {
            int32_t *first = numbers + (v * images + i) * area;
            Plane plane = {shape[2], shape[3], first, v ? first - images * area : NULL, i ? first - area : NULL, misses};
            for (int32_t y = 0; y < shape[2]; y++)
                for (int32_t x = 0; x < shape[3]; x++) code_number(chunk, &plane, &average, y, x);
        }
    }
}

#endif
