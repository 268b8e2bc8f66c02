/* What is known of a number before it is coded: a prediction, and contexts that say how far off it will be. */

#ifndef ARCHIVE_PREDICTION_H
#define ARCHIVE_PREDICTION_H

#include <stdint.h>

#include "mixer.h"

/* Where a plane's numbers lie: those of one image and one variate, height × width, in rows. */
typedef struct {
    int32_t height, width;
    int32_t *numbers;       /* of this image and plane */
    const int32_t *before;  /* of this image and the plane before; NULL in the first */
    const int32_t *earlier; /* of the image before and this plane; NULL in the first */
    uint8_t *misses;        /* how far off predictions were, 0 to 255, of this image and plane */
} Plane;

typedef struct {
    int64_t mean; /* of the plane's numbers so far, 8 bits after the point */
    int64_t size; /* of its predictions' misses so far, 4 bits after the point */
    int32_t count;
} Average;

static inline int64_t absolute(int64_t value) {
    return value < 0 ? -value : value;
}

static inline int32_t within(int64_t value, int32_t most) {
    return value < -most ? -most : value > most ? most : (int32_t)value;
}

/* The level of a sum of differences, 0 to 5. */
static inline int32_t level(int64_t sum) {
    return sum <= 2 ? (int32_t)sum : sum <= 4 ? 3 : sum <= 7 ? 4 : 5;
}

/* The median edge detector's prediction from left, above and the corner between them. */
static inline int64_t median_edge(int64_t left, int64_t above, int64_t corner) {
    int64_t low = left < above ? left : above, high = left < above ? above : left;
    return corner >= high ? low : corner <= low ? high : left + above - corner;
}

/* Numbers that are known around one, those beyond an edge as the nearest that there is. */
typedef struct {
    int64_t left, above, corner, right, left2, above2; /* `right` is above and to the right */
    int32_t missed, missed4; /* how far off the predictions of two and four of them were */
    int32_t edge; /* 1 in the first column, 2 in the first row, 3 in the first place of both */
    int64_t slope, same; /* in the plane before: the number against left and above, and the number itself */
    int64_t earlier; /* in the image before */
} Known;

static inline void look_around(Known *known, const Plane *plane, const Average *average, int32_t y, int32_t x) {
    const int32_t width = plane->width, at = y * width + x;
    const int32_t *k = plane->numbers + at;
    const int has_right = y > 0 && x < width - 1;
    if (x > 0 && y > 0) known->left = k[-1], known->above = k[-width], known->corner = k[-width - 1];
    else if (x > 0) known->left = known->above = known->corner = k[-1];
    else if (y > 0) known->left = known->above = known->corner = k[-width];
    else known->left = known->above = known->corner = shifted(average->mean + 128, 8);
    known->right = has_right ? k[1 - width] : known->above;
    known->left2 = x > 1 ? k[-2] : known->left;
    known->above2 = y > 1 ? k[-2 * width] : known->above;
    known->edge = (x == 0) + 2 * (y == 0);
}

static inline void look_at_misses(Known *known, const Plane *plane, int32_t y, int32_t x) {
    const int32_t width = plane->width;
    const uint8_t *m = plane->misses + y * width + x;
    int32_t left = x > 0 ? m[-1] : 0, above = y > 0 ? m[-width] : 0;
    int32_t corner = x > 0 && y > 0 ? m[-width - 1] : 0, right = y > 0 && x < width - 1 ? m[1 - width] : above;
    known->missed = level(left + above);
    known->missed4 = level((left + above + corner + right) / 2);
}

static inline void look_elsewhere(Known *known, const Plane *plane, int32_t y, int32_t x, int64_t prediction) {
    const int32_t width = plane->width, at = y * width + x;
    known->slope = known->same = 0;
    if (plane->before != NULL) {
        const int32_t *b = plane->before + at;
        int64_t around = (int64_t)(x > 0 ? b[-1] : b[0]) + (y > 0 ? b[-width] : b[0]);
        known->slope = b[0] - shifted(around, 1);
        known->same = b[0];
    }
    known->earlier = plane->earlier != NULL ? plane->earlier[at] - prediction : 0;
}

/* Fill the contexts of a number with prediction `p`, and its two sets of weights. */
static inline void fill_contexts(const Known *known, int64_t p, int32_t *contexts, int *sets) {
    int32_t busy = level(absolute(known->left - known->above) + absolute(known->above - known->corner));
    contexts[0] = known->edge * 6 + busy;
    contexts[1] = within(known->left - p, 4) * 9 + within(known->above - p, 4) + 40;
    contexts[2] = within(known->corner - p, 4) * 9 + within(known->right - p, 4) + 40;
    contexts[3] = (within(known->slope, 4) + 4) * 6 + busy;
    contexts[4] = within(known->left2 - p, 4) * 9 + within(known->above2 - p, 4) + 40;
    contexts[5] = within(p, 49) + 50;
    contexts[6] = known->missed * 6 + known->missed4;
    contexts[7] = (within(known->slope, 3) + 3) * 6 + known->missed4;
    contexts[8] = within(known->same, 4) * 9 + within(p, 4) + 40;
    contexts[9] = (within(known->earlier, 3) + 3) * 6 + known->missed;
    sets[0] = known->missed * 3 + (busy == 0 ? 0 : busy < 3 ? 1 : 2);
    sets[1] = within(absolute(known->slope), 2) * 4 + known->edge;
}

/* Predict number (y, x), and fill its contexts and the two sets of weights. */
static inline int64_t predicted(
    const Plane *plane, const Average *average, int32_t y, int32_t x, int32_t *contexts, int *sets) {
    Known known;
    look_around(&known, plane, average, y, x);
    look_at_misses(&known, plane, y, x);
    int64_t prediction = median_edge(known.left, known.above, known.corner);
    look_elsewhere(&known, plane, y, x, prediction);
    fill_contexts(&known, prediction, contexts, sets);
    return prediction;
}

static inline void learn_average(Average *average, int64_t number, int64_t size) {
    if (average->count < 200) average->count++;
    average->mean += (number * 256 - average->mean) / average->count;
    average->size += (size * 16 - average->size) / average->count;
}

#endif
