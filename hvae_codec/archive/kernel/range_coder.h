/* Binary decisions to bytes and back: a range coder of 32 bits without carries.

   The interval [low, high] is split by the probability of a one; the byte that both ends share goes out. A decoder that
   runs past the end reads zeros and counts them, so damaged bytes cost no more time than sound ones. */

#ifndef ARCHIVE_RANGE_CODER_H
#define ARCHIVE_RANGE_CODER_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    uint32_t low, high, value;
    const uint8_t *input; /* of a decoder; NULL in an encoder */
    size_t length, position, missing;
    uint8_t *output; /* of an encoder */
    size_t capacity;
    int out_of_memory;
} Coder;

static void put_byte(Coder *coder, uint8_t byte) {
    if (coder->position == coder->capacity) {
        size_t capacity = 2 * coder->capacity + 64;
        uint8_t *output = realloc(coder->output, capacity);
        if (output == NULL) {
            coder->out_of_memory = 1;
            return;
        }
        coder->output = output;
        coder->capacity = capacity;
    }
    coder->output[coder->position++] = byte;
}

static uint8_t next_byte(Coder *coder) {
    if (coder->position < coder->length) return coder->input[coder->position++];
    coder->missing++;
    return 0;
}

static void start_decoder(Coder *coder) {
    for (int i = 0; i < 4; i++) coder->value = (coder->value << 8) | next_byte(coder);
}

#define MISSING_AT_END 3 /* of the four bytes that a decoder reads ahead */

/* Write one byte; with the zeros that a decoder reads after it, it lies in the interval that is left. */
static void finish_encoder(Coder *coder) {
    put_byte(coder, (uint8_t)((coder->low >> 24) + (coder->low & 0xffffff ? 1 : 0)));
}

/* Code a decision that is one with `probability` / 65536, 1 to 65535; `bit` is what a decoder ignores. */
static inline int coded_bit(Coder *coder, int32_t probability, int bit) {
    uint32_t range = coder->high - coder->low;
    uint32_t middle = coder->low + (uint32_t)(((uint64_t)range * (uint32_t)probability) >> 16);
    if (coder->input != NULL) bit = coder->value <= middle;
    if (bit) coder->high = middle;
    else coder->low = middle + 1;
    while (((coder->low ^ coder->high) & 0xff000000) == 0) {
        if (coder->input != NULL) coder->value = (coder->value << 8) | next_byte(coder);
        else put_byte(coder, (uint8_t)(coder->high >> 24));
        coder->low <<= 8;
        coder->high = (coder->high << 8) | 255;
    }
    return bit;
}

#endif
