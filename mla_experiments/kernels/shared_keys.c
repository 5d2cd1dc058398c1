/* Attention of query rows that all read the same keys and values: softmax(scale q kT + mask) v, in single precision.
   Rows may be in parts, each with keys and values of its own; the end of every key, its tail, may lie elsewhere, and is
   one for all parts.

   A vector holds one number of LANES query rows. Both products are then sums of a vector of rows times a scalar of the
   cache, read in the order in which the cache lies in memory, and the softmax needs no sum across lanes. The context is
   worked through in blocks with a running maximum and sum (Milakov & Gimelshein 2018, Online normalizer calculation for
   softmax, algorithm 3), so that scores never sit in memory whole, and is cut into splits where there are fewer
   sequences than threads (Dao et al. 2023, Flash-Decoding). Rows that a cache keeps in fewer bits are unpacked, a block
   at a time, into the first-level cache, once for all rows and parts. So are keys that RoPE is yet to turn, whose values
   are read as they lie (Su et al. 2021, RoFormer, eq. 15). */

#include "tiles.h"

#include <omp.h>
#include <stdlib.h>

enum { BLOCK = 64 }; /* tokens */

typedef struct {
    int64_t batch, parts, num_rows, num_new, context, width, tail_width, value_width, splits, threads;
    int64_t query_batch, query_row, key_batch, key_part, key_token, tail_batch, tail_token;
    int64_t value_batch, value_part, value_token, mask_batch, mask_new;
    float scale;
} shape; /* strides are in numbers; num_rows are those of a part; row r of the queries is new token r % num_new */

typedef struct { const float *query, *key, *tail, *value, *mask; } sequence; /* mask may be null */

typedef struct {
    const char *key, *value; /* whole rows of a token; values are null where keys hold them */
    int64_t key_batch, key_token, value_batch, value_token; /* in bytes */
    int64_t tail;            /* where in a row of keys their tail begins */
    form key_form, value_form;
} stored; /* what is kept in fewer bits; keys and values of a sequence are then null */

typedef struct {
    const float *cosines, *sines, *weight; /* [width / 2] a token, and [width] or null; no cosines: keys are as they are */
    int64_t batch, token, interleaved;
} turning;

int lanes(void) { return LANES; }

/* LANES queries of a part, from first on, scaled, with their numbers side by side: [width + tail_width] */
static void turn(const shape *z, const float *query, int64_t first, rows *turned) {
    for (int64_t w = 0; w < z->width + z->tail_width; w++)
        for (int64_t lane = 0; lane < LANES; lane++) {
            int64_t row = first + lane;
            turned[w][lane] = row < z->num_rows ? query[row * z->query_row + w] * z->scale : 0;
        }
}

/* Scores of a part's LANES rows with the tokens from start on. */
static void score_block(const shape *z, const rows *query, const sequence *at, int64_t part, int64_t start,
                        int64_t tokens, rows *scores) {
    const float *key = at->key + part * z->key_part + start * z->key_token, *tail = at->tail + start * z->tail_token;
    /* parts that lie side by side in a token's row fetch a share of the rows each, a tile further on */
    const float *ahead = z->key_part < z->key_token
                             ? at->key + start * z->key_token + part * (TILE * z->key_token / z->parts)
                             : key;
    int64_t t = 0;
    for (; t + TILE <= tokens; t += TILE) {
        rows sum[TILE] = {0};
        score_tile(sum, query, key + t * z->key_token, z->width, z->key_token, ahead + (t + AHEAD) * z->key_token);
        if (z->tail_width) {
            const float *tails = tail + t * z->tail_token;
            score_tile(sum, query + z->width, tails, z->tail_width, z->tail_token, tails + AHEAD * z->tail_token);
        }
        for (int i = 0; i < TILE; i++) scores[t + i] = sum[i];
    }
    for (; t < tokens; t++) {
        scores[t] = score_one((rows){0}, query, key + t * z->key_token, z->width);
        scores[t] = score_one(scores[t], query + z->width, tail + t * z->tail_token, z->tail_width);
    }
}

/* One block of tokens for LANES rows. State: [value_width] sums of values, then the maximum and the sum of weights. */
static void attend_block(const shape *z, const rows *query, const sequence *at, int64_t part, int64_t first,
                         int64_t start, int64_t tokens, rows *state) {
    rows scores[BLOCK];
    const float *value = at->value + part * z->value_part + start * z->value_token;
    int64_t t, c = 0;
    score_block(z, query, at, part, start, tokens, scores);
    if (at->mask)
        for (int64_t lane = 0; lane < LANES; lane++) {
            const float *seen = at->mask + (first + lane) % z->num_new * z->mask_new + start;
            for (t = 0; t < tokens; t++) scores[t][lane] += seen[t];
        }
    rows shrink = soften(scores, tokens, state + z->value_width);
    for (; c + TILE <= z->value_width; c += TILE)
        mix_tile(state + c, scores, value + c, tokens, z->value_token, shrink);
    for (; c < z->value_width; c++) state[c] = mix_one(state[c] * shrink, scores, value + c, tokens, z->value_token);
}

/* Point a sequence to a block of tokens, unpacked. */
static sequence unpacked(const stored *kept, int64_t start, int64_t tokens, const sequence *at, float *room) {
    sequence block = {at->query, room, room + kept->tail, room, at->mask ? at->mask + start : at->mask};
    unpack_rows(&kept->key_form, kept->key + start * kept->key_token, kept->key_token, tokens, room);
    if (kept->value) {
        float *values = room + BLOCK * padded(kept->key_form.width);
        unpack_rows(&kept->value_form, kept->value + start * kept->value_token, kept->value_token, tokens, values);
        block.value = values;
    }
    return block;
}

/* Keys of a part turned by the angles of their tokens, half-split in either layout, in rows that lie width apart. */
static void turn_keys(const turning *by, int64_t width, const float *key, int64_t step, int64_t start, int64_t tokens,
                      float *to) {
    int64_t half = width / 2, first = by->interleaved ? 2 : 1, second = by->interleaved ? 1 : half;
    for (int64_t t = 0; t < tokens; t++, key += step, to += width) {
        const float *cosine = by->cosines + (start + t) * by->token, *sine = by->sines + (start + t) * by->token;
        for (int64_t p = 0; p < half; p++) {
            float x = key[p * first], y = key[p * first + second];
            if (by->weight) x *= by->weight[p * first], y *= by->weight[p * first + second];
            to[p] = x * cosine[p] - y * sine[p];
            to[p + half] = y * cosine[p] + x * sine[p];
        }
    }
}

/* A block of tokens with the keys of all parts, turned. */
static void attend_turned(const shape *z, const sequence *at, const turning *by, int64_t start, int64_t tokens,
                          const rows *queries, float *room, rows *state) {
    shape y = *z;
    y.key_token = z->width;
    y.key_part = 0;
    sequence block = {at->query, room, room, at->value + start * z->value_token, at->mask ? at->mask + start : 0};
    int64_t b = 0;
    for (int64_t part = 0; part < z->parts; part++) {
        const float *key = at->key + part * z->key_part + start * z->key_token;
        turn_keys(by, z->width, key, z->key_token, start, tokens, room);
        for (int64_t first = 0; first < z->num_rows; first += LANES, b++)
            attend_block(&y, queries + b * z->width, &block, part, first, 0, tokens,
                         state + b * (z->value_width + 2));
    }
}

/* One sequence over the tokens from begin to end, each block of them read once for all rows of all parts. */
static void attend_split(const shape *z, const sequence *at, const stored *kept, const turning *by, int64_t begin,
                         int64_t end, rows *turned, float *room, rows *state) {
    int64_t size = z->value_width + 2, width = z->width + z->tail_width, b = 0;
    for (int64_t part = 0; part < z->parts; part++)
        for (int64_t first = 0; first < z->num_rows; first += LANES, b++) {
            turn(z, at->query + part * z->num_rows * z->query_row, first, turned + b * width);
            for (int64_t c = 0; c < size; c++) state[b * size + c] = (rows){0};
            state[b * size + z->value_width] -= INFINITY;
        }
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t tokens = end - start < BLOCK ? end - start : BLOCK;
        if (by->cosines) {
            attend_turned(z, at, by, start, tokens, turned, room, state);
            continue;
        }
        sequence block = kept->key ? unpacked(kept, start, tokens, at, room) : *at;
        b = 0;
        for (int64_t part = 0; part < z->parts; part++)
            for (int64_t first = 0; first < z->num_rows; first += LANES, b++)
                attend_block(z, turned + b * width, &block, part, first, kept->key ? 0 : start, tokens,
                             state + b * size);
    }
}

/* output [batch, parts, num_rows, value_width]. Returns 1 where there is no memory for the state. */
int attend(const shape *z, const sequence *all, const stored *kept, const turning *by, float *output) {
    int64_t of_part = (z->num_rows + LANES - 1) / LANES, blocks = z->parts * of_part, tasks = z->batch * z->splits;
    int64_t size = z->value_width + 2, width = z->width + z->tail_width;
    int64_t length = (z->context + z->splits - 1) / z->splits;
    int64_t room = kept->key ? BLOCK / LANES * (padded(kept->key_form.width) + padded(kept->value_form.width)) : 0;
    if (by->cosines) room = BLOCK / LANES * padded(z->width);
    int64_t of_thread = blocks * width + room;
    rows *state = aligned_alloc(sizeof(rows), sizeof(rows) * (blocks * tasks * size + z->threads * of_thread));
    if (!state) return 1;
#pragma omp parallel num_threads(z->threads)
    {
        rows *turned = state + blocks * tasks * size + omp_get_thread_num() * of_thread;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t b = task / z->splits, begin = task % z->splits * length, end = begin + length;
            sequence at = {all->query + b * z->query_batch, all->key + b * z->key_batch, all->tail + b * z->tail_batch,
                           all->value + b * z->value_batch, all->mask ? all->mask + b * z->mask_batch : all->mask};
            stored of_batch = *kept;
            turning of_angles = *by;
            of_angles.cosines += by->cosines ? b * by->batch : 0;
            of_angles.sines += by->cosines ? b * by->batch : 0;
            if (kept->key) of_batch.key += b * kept->key_batch;
            if (kept->value) of_batch.value += b * kept->value_batch;
            attend_split(z, &at, &of_batch, &of_angles, begin, end < z->context ? end : z->context, turned,
                         (float *)(turned + blocks * width), state + task * blocks * size);
        }
#pragma omp for
        for (int64_t p = 0; p < z->batch * z->parts; p++) {
            const rows *of_p = state + (p / z->parts * z->splits * z->parts + p % z->parts) * of_part * size;
            for (int64_t first = 0; first < z->num_rows; first += LANES, of_p += size)
                join(of_p, z->value_width, z->splits, blocks * size, z->num_rows - first,
                     output + (p * z->num_rows + first) * z->value_width);
        }
    }
    free(state);
    return 0;
}
