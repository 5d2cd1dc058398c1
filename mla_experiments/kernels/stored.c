/* Attention of a few query rows that read keys and values as a cache keeps them: softmax(scale q kT + mask) v.

   Unlike in shared_keys.c a vector holds numbers of one key or value, so that one row alone is quick. A block of tokens
   is unpacked into the first-level cache once for all rows that share it, or read as it lies; maxima and sums run along
   (Milakov & Gimelshein 2018, algorithm 3), and the context is cut into splits (Dao et al. 2023, Flash-Decoding).
   pack() writes what unpack() reads. */

#include "stored.h"

#include <omp.h>
#include <stdlib.h>

static inline float largest(rows x) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
        x = larger(x, __builtin_shuffle(x, (NUMBERED + half) & (LANES - 1)));
    return x[0];
}

/* A block of keys or values in single precision, `step` numbers from one token's to the next's. Where it is not unpacked
   but lies in the cache, the first row to read it fetches ahead. */
typedef struct {
    const float *from;
    int64_t step;
    int first;
} block;

/* Scores of one row with a block of keys, LANES tokens a vector; -infinity beyond the block's end. Like what else a row
   takes it stands in its caller: as calls, blocks in the first-level cache take a tenth longer. */
SPECIALISED void score(const float *query, block keys, int64_t width, int64_t tokens, const float *mask, rows *scores) {
    int64_t t = 0;
    for (; t + LANES <= tokens; t += LANES) {
        rows sum[LANES] = {0};
        const float *key = keys.from + t * keys.step;
        for (int64_t w = 0; w < width; w += LANES) {
            rows one = *(const rows_anywhere *)(query + w);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                if (keys.first) fetch(key + (i + AHEAD) * keys.step + w);
                sum[i] += one * *(const rows_anywhere *)(key + i * keys.step + w);
            }
        }
        scores[t / LANES] = sums_across(sum);
    }
    if (t < tokens) { /* what lies behind the last token is nobody's to read */
        rows sum[LANES] = {0};
        for (int64_t w = 0; w < width; w += LANES)
            for (int64_t i = t; i < tokens; i++)
                sum[i - t] += *(const rows_anywhere *)(query + w) *
                              *(const rows_anywhere *)(keys.from + i * keys.step + w);
        scores[t / LANES] = sums_across(sum);
    }
    float *single = (float *)scores;
    for (int64_t t = 0; mask && t < tokens; t++) single[t] += mask[t];
    for (int64_t t = tokens; t % LANES; t++) single[t] = -INFINITY;
}

/* output = shrink * output + sum over t of weights[t] * values[t], of width numbers; several sums hide latency */
SPECIALISED void mix(float *output, const float *weights, block values, int64_t width, int64_t tokens, float shrink) {
    for (int64_t c = 0; c < width; c += 2 * LANES) {
        int64_t more = c + LANES < width ? LANES : 0; /* 0 sums the same numbers twice, and stores them alike */
        rows a = *(rows_anywhere *)(output + c) * shrink, b = *(rows_anywhere *)(output + c + more) * shrink;
        rows odd_a = {0}, odd_b = {0};
        int64_t t = 0;
        for (; t + 2 <= tokens; t += 2) {
            const float *value = values.from + t * values.step + c, *next = value + values.step;
            if (values.first)
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) fetch(value + (AHEAD + i / 2) * values.step + i % 2 * more);
            a += weights[t] * *(const rows_anywhere *)value;
            b += weights[t] * *(const rows_anywhere *)(value + more);
            odd_a += weights[t + 1] * *(const rows_anywhere *)next;
            odd_b += weights[t + 1] * *(const rows_anywhere *)(next + more);
        }
        for (; t < tokens; t++) {
            const float *value = values.from + t * values.step + c;
            a += weights[t] * *(const rows_anywhere *)value;
            b += weights[t] * *(const rows_anywhere *)(value + more);
        }
        *(rows_anywhere *)(output + c) = a + odd_a;
        *(rows_anywhere *)(output + c + more) = b + odd_b;
    }
}

/* One row, one block. State: [value_width] sums of values, [LANES] sums of weights, then the maximum. */
SPECIALISED void attend_row(const stored_shape *z, const float *query, block keys, block values, int64_t tokens,
                            const float *mask, float *state) {
    int64_t width = padded(z->key.width), value_width = padded(z->value.width), vectors = (tokens + LANES - 1) / LANES;
    rows scores[BLOCK / LANES], most, *total = (rows *)(state + value_width);
    float *top = state + value_width + LANES;
    score(query, keys, width, tokens, mask, scores);
    most = scores[0];
    for (int64_t i = 1; i < vectors; i++) most = larger(scores[i], most);
    most = larger((rows){0} + largest(most), (rows){0} + *top);
    rows finite = zero_if_infinite(most), shrink = exponential(*top - finite), sum = *total * shrink;
    for (int64_t i = 0; i < vectors; i++) {
        scores[i] = exponential(scores[i] - finite);
        sum += scores[i];
    }
    *top = most[0];
    *total = sum;
    mix(state, (const float *)scores, values, value_width, tokens, shrink[0]);
}

static int64_t state_width(const stored_shape *z) { return padded(z->value.width) + 2 * LANES; } /* whole vectors */

/* A block as it lies, where that is in single precision and whole vectors; else unpacked into `here`. */
static block read_block(const form *f, const char *from, int64_t step, int64_t tokens, float *here) {
    if (f->kind == SINGLE && f->width % LANES == 0) return (block){(const float *)from, step / 4, 1};
    unpack_rows(f, from, step, tokens, here);
    return (block){here, padded(f->width), 0};
}

/* The rows of one group of one sequence, over the tokens from begin to end. */
static void attend_rows(const stored_shape *z, const float *query, const char *key, const char *value,
                        const float *mask, int64_t begin, int64_t end, float *scratch, float *state) {
    int64_t width = padded(z->key.width), value_width = padded(z->value.width), size = state_width(z);
    float *values_here = scratch + BLOCK * width;
    memset(state, 0, sizeof(float) * z->rows * size);
    for (int64_t r = 0; r < z->rows; r++) state[r * size + value_width + LANES] = -INFINITY;
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t tokens = end - start < BLOCK ? end - start : BLOCK;
        block keys = read_block(&z->key, key + start * z->key_token, z->key_token, tokens, scratch);
        block values = keys;
        if (!z->shared)
            values = read_block(&z->value, value + start * z->value_token, z->value_token, tokens, values_here);
        for (int64_t r = 0; r < z->rows; r++, keys.first = values.first = 0) {
            const float *of_row = mask ? mask + r % z->num_new * z->mask_new + start : mask;
            attend_row(z, query + r * width, keys, values, tokens, of_row, state + r * size);
        }
    }
}

/* Weigh the splits of a row by their sums of exponentials; a row that sees nothing gives zeros. */
static void join_row(const stored_shape *z, const float *state, int64_t apart, float *output) {
    int64_t at = padded(z->value.width);
    float top = -INFINITY, total = 0;
    for (int64_t s = 0; s < z->splits; s++)
        top = state[s * apart + at + LANES] > top ? state[s * apart + at + LANES] : top;
    memset(output, 0, sizeof(float) * z->value.width);
    for (int64_t s = 0; s < z->splits; s++, state += apart) {
        float share = exponential((rows){0} + (state[at + LANES] - (top > -INFINITY ? top : 0)))[0];
        for (int i = 0; i < LANES; i++) total += share * state[at + i];
        for (int64_t c = 0; c < z->value.width; c++) output[c] += share * state[c];
    }
    for (int64_t c = 0; c < z->value.width && total != 0; c++) output[c] /= total;
}

/* query [batch, groups, rows, padded key width], scaled, zeros at the end; output [batch, groups, rows, value width].
   Returns 1 where there is no memory for the state. */
int attend_stored(const stored_shape *z, const float *query, const char *key, const char *value, const float *mask,
                  float *output) {
    int64_t width = padded(z->key.width), size = state_width(z), pairs = z->batch * z->groups;
    int64_t tasks = pairs * z->splits, length = (z->context + z->splits - 1) / z->splits;
    int64_t room = BLOCK * (width + padded(z->value.width));
    size_t bytes = sizeof(float) * (tasks * z->rows * size + z->threads * room); /* whole vectors, too */
    float *state = aligned_alloc(sizeof(rows), bytes);
    if (!state) return 1;
    memset(state, 0, bytes); /* the ends of unpacked rows stay zeros */
#pragma omp parallel num_threads(z->threads)
    {
        float *scratch = state + tasks * z->rows * size + omp_get_thread_num() * room;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t pair = task / z->splits, b = pair / z->groups, g = pair % z->groups;
            int64_t begin = task % z->splits * length, end = begin + length;
            attend_rows(z, query + pair * z->rows * width, key + b * z->key_batch + g * z->key_group,
                        value + b * z->value_batch + g * z->value_group, mask ? mask + b * z->mask_batch : mask, begin,
                        end < z->context ? end : z->context, scratch, state + task * z->rows * size);
        }
#pragma omp for
        for (int64_t r = 0; r < pairs * z->rows; r++)
            join_row(z, state + (r / z->rows * z->splits * z->rows + r % z->rows) * size, z->rows * size,
                     output + r * z->value.width);
    }
    free(state);
    return 0;
}

/* One row of f->width numbers as OCTETS; a part with one that is not finite becomes NaN. */
static void pack_row(const form *f, const float *from, char *to) {
    char *scales = to + (f->width + 3) / 4 * 4;
    for (int64_t part = 0, begin = 0; part < f->parts; begin = f->ends[part++]) {
        float most = largest_size(from + begin, f->ends[part] - begin);
        float scale = most < INFINITY ? most / 127 : NAN, times = most > 0 && most < INFINITY ? 127 / most : 0;
        for (int64_t i = begin; i < f->ends[part]; i++) to[i] = times ? (int8_t)lrintf(from[i] * times) : (most != 0);
        memcpy(scales + 4 * part, &scale, 4);
    }
}

/* from [batch, groups, count, width] to a buffer with these strides, the new tokens' first row at its begin */
void pack(const form *f, const float *from, char *to, int64_t batch, int64_t groups, int64_t count, int64_t to_batch,
          int64_t to_group, int64_t to_token) {
    for (int64_t b = 0; b < batch; b++)
        for (int64_t g = 0; g < groups; g++)
            for (int64_t t = 0; t < count; t++, from += f->width)
                pack_row(f, from, to + b * to_batch + g * to_group + t * to_token);
}

int stored_lanes(void) { return LANES; }
