/* Attention among keys and values in factors (Zhang et al. 2025, Tensor Product Attention, section 5), in single
   precision: with k_h = sum over r of a_r[h] b_r the score of a head is the sum over r of a_r[h] (q_h . b_r), and its
   output the sum over tokens and r of (weight_h a'_r[h]) b'_r.

   A vector holds one number of LANES heads, so that the a are read as they lie, and b a scalar at a time, as keys that
   all heads share (shared_keys.c): nothing is expanded, and no score is in memory but a block's. */

#include "tiles.h"

#include <omp.h>
#include <stdlib.h>

enum { BLOCK = 64 }; /* tokens */

typedef struct {
    int64_t batch, num_heads, num_new, context, ranks, width, splits, threads;
    int64_t key_batch, key_token, value_batch, value_token, rank, mask_batch, mask_new; /* strides, in numbers */
} shape; /* a rank's a, [num_heads], is followed by its b, [width] */

typedef struct { const float *query, *key, *value, *mask; } sequence; /* query [num_new, num_heads, width], scaled */

int lanes(void) { return LANES; }

/* LANES heads of a new token, from first on, with their numbers side by side: [width] */
static void turn(const shape *z, const float *query, int64_t first, rows *turned) {
    for (int64_t w = 0; w < z->width; w++)
        for (int64_t lane = 0; lane < LANES; lane++)
            turned[w][lane] = first + lane < z->num_heads ? query[(first + lane) * z->width + w] : 0;
}

static inline rows heads_at(const float *a) { return *(const rows_anywhere *)a; }

/* Scores of LANES heads with a block of tokens, whose keys begin at key. */
static void score_block(const shape *z, const rows *query, const float *key, int64_t first, int64_t tokens,
                        rows *scores) {
    for (int64_t t = 0; t < tokens; t++) scores[t] = (rows){0};
    for (int64_t r = 0; r < z->ranks; r++) {
        const float *a = key + r * z->rank + first, *b = key + r * z->rank + z->num_heads;
        int64_t t = 0;
        for (; t + TILE <= tokens; t += TILE) {
            rows sum[TILE] = {0};
            score_tile(sum, query, b + t * z->key_token, z->width, z->key_token, b + (t + AHEAD) * z->key_token);
            for (int i = 0; i < TILE; i++) scores[t + i] += heads_at(a + (t + i) * z->key_token) * sum[i];
        }
        for (; t < tokens; t++)
            scores[t] += heads_at(a + t * z->key_token) * score_one((rows){0}, query, b + t * z->key_token, z->width);
    }
}

/* State: [width] sums of values, then the maximum and the sum of weights. */
static void attend_block(const shape *z, const rows *query, const sequence *at, int64_t new, int64_t first,
                         int64_t start, int64_t tokens, rows *state) {
    rows scores[BLOCK], weights[BLOCK];
    score_block(z, query, at->key + start * z->key_token, first, tokens, scores);
    if (at->mask)
        for (int64_t t = 0; t < tokens; t++) scores[t] += at->mask[new * z->mask_new + start + t];
    rows shrink = soften(scores, tokens, state + z->width);
    for (int64_t r = 0; r < z->ranks; r++, shrink = (rows){0} + 1.0f) {
        const float *a = at->value + start * z->value_token + r * z->rank + first;
        const float *b = at->value + start * z->value_token + r * z->rank + z->num_heads;
        int64_t c = 0;
        for (int64_t t = 0; t < tokens; t++) weights[t] = scores[t] * heads_at(a + t * z->value_token);
        for (; c + TILE <= z->width; c += TILE) mix_tile(state + c, weights, b + c, tokens, z->value_token, shrink);
        for (; c < z->width; c++) state[c] = mix_one(state[c] * shrink, weights, b + c, tokens, z->value_token);
    }
}

/* One sequence over the tokens from begin to end. */
static void attend_split(const shape *z, const sequence *at, int64_t begin, int64_t end, rows *turned, rows *state) {
    int64_t size = z->width + 2, b = 0;
    for (int64_t new = 0; new < z->num_new; new++)
        for (int64_t first = 0; first < z->num_heads; first += LANES, b++) {
            turn(z, at->query + new * z->num_heads * z->width, first, turned + b * z->width);
            for (int64_t c = 0; c < size; c++) state[b * size + c] = (rows){0};
            state[b * size + z->width] -= INFINITY;
        }
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t tokens = end - start < BLOCK ? end - start : BLOCK;
        b = 0;
        for (int64_t new = 0; new < z->num_new; new++)
            for (int64_t first = 0; first < z->num_heads; first += LANES, b++)
                attend_block(z, turned + b * z->width, at, new, first, start, tokens, state + b * size);
    }
}

/* output [batch, num_new, num_heads, width]. Returns 1 where there is no memory for the state. */
int attend(const shape *z, const sequence *all, float *output) {
    int64_t of_new = (z->num_heads + LANES - 1) / LANES, blocks = z->num_new * of_new, tasks = z->batch * z->splits;
    int64_t size = z->width + 2, length = (z->context + z->splits - 1) / z->splits, each = z->num_heads * z->width;
    rows *state =
        aligned_alloc(sizeof(rows), sizeof(rows) * blocks * (tasks * size + z->threads * z->width));
    if (!state) return 1;
#pragma omp parallel num_threads(z->threads)
    {
        rows *turned = state + blocks * (tasks * size + omp_get_thread_num() * z->width);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t b = task / z->splits, begin = task % z->splits * length, end = begin + length;
            sequence at = {all->query + b * z->num_new * each, all->key + b * z->key_batch,
                           all->value + b * z->value_batch, all->mask ? all->mask + b * z->mask_batch : all->mask};
            attend_split(z, &at, begin, end < z->context ? end : z->context, turned, state + task * blocks * size);
        }
#pragma omp for
        for (int64_t p = 0; p < z->batch * blocks; p++) {
            int64_t b = p / blocks, block = p % blocks, first = block % of_new * LANES;
            join(state + (b * z->splits * blocks + block) * size, z->width, z->splits, blocks * size,
                 z->num_heads - first, output + (b * z->num_new + block / of_new) * each + first * z->width);
        }
    }
    free(state);
    return 0;
}
