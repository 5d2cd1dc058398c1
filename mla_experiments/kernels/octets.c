/* Attention of many query rows that read the same keys and values of 8 bits, in products of 16-bit numbers.

   As in shared_keys.c a vector holds a number of LANES query rows. Here it holds two, of 16 bits, and one instruction
   multiplies both with two of a cache and adds: twice as many products as in single precision, where a processor has it
   (AVX-512 VNNI). Queries are rounded to 16 bits, with a scale for each part of a row, weights of a block of tokens to
   16 bits of their largest: 2^-15 beside the 2^-7 of the cache. Sums are exact, in 32 bits. */

#include "stored.h"

#include <omp.h>
#include <stdlib.h>

enum { WIDEST = 512, TILE = 16, SPAN = 32 };
/* TILE sums at once, see shared_keys.c; SPAN tokens a block, whose keys, values and sums fit the first-level cache */

typedef struct { /* room of a thread */
    bits *queries;          /* [vectors of rows, width / 2]: two numbers a lane */
    rows *query_scales;     /* [vectors of rows, parts] */
    int16_t *keys;          /* [SPAN, width] */
    int32_t *values;        /* [SPAN / 2, value width]: the numbers of two tokens side by side */
    float *key_scales;      /* [parts, SPAN] */
    float *value_scales;    /* [SPAN] */
    rows *wide;             /* [width]: queries before they are rounded */
} space;

/* Whether this processor has the instruction; without it the same sums take more than in single precision. */
int pairs_pay(void) {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

typedef int32_t two_numbers __attribute__((aligned(2), may_alias));

static inline bits add_pairs(bits sum, bits two, const two_numbers *with) {
#ifdef __AVX512VNNI__
    /* in assembly, since GCC 12 would broadcast in an instruction of its own */
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(two), "m"(*with));
    return sum;
#else
    return sum + ((two << 16) >> 16) * (int32_t)(int16_t)*with + (two >> 16) * (*with >> 16);
#endif
}

static inline bits rounded(rows x) { /* of less than 2^22 */
    rows shifted = x + 12582912.0f;
    return (bits)shifted - (bits)((rows){0} + 12582912.0f);
}

static inline bits paired(bits first, bits second) { return (first & 0xffff) | (second << 16); }

static inline rows times_of(rows most) { /* LARGEST / most, 0 for zeros */
    rows times = LARGEST / most;
    return (rows)((bits)times & (most > 0.0f));
}

/* LANES rows of queries, from first on; query [rows, step] scaled, zeros beyond its width */
static void turn_pairs(const stored_shape *z, const float *query, int64_t step, int64_t first, bits *turned,
                       rows *scales, rows *wide) {
    int64_t count = z->rows - first < LANES ? z->rows - first : LANES;
    memset(wide, 0, sizeof(rows) * z->key.width);
    for (int64_t lane = 0; lane < count; lane++)
        for (int64_t w = 0; w < z->key.width; w++) ((float *)wide)[w * LANES + lane] = query[(first + lane) * step + w];
    for (int64_t part = 0, begin = 0; part < z->key.parts; begin = z->key.ends[part++]) {
        rows most = {0};
        for (int64_t w = begin; w < z->key.ends[part]; w++) most = larger(larger(wide[w], -wide[w]), most);
        rows times = times_of(most);
        for (int64_t w = begin; w < z->key.ends[part]; w += 2)
            turned[w / 2] = paired(rounded(wide[w] * times), rounded(wide[w + 1] * times));
        scales[part] = most / LARGEST;
    }
}

/* to[w] = from[w] */
static inline void widen(const int8_t *from, int64_t width, int16_t *to) {
    int64_t w = 0;
#ifdef __AVX512BW__
    for (; w + 32 <= width; w += 32)
        _mm512_storeu_si512(to + w, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(from + w))));
    for (; w + 16 <= width; w += 16)
        _mm256_storeu_si256((__m256i *)(to + w), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(from + w))));
#endif
    for (; w < width; w++) to[w] = from[w];
}

/* to[c] = one[c] and two[c] side by side */
static inline void pair_up(const int8_t *one, const int8_t *two, int64_t width, int32_t *to) {
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES)
        *(bits_anywhere *)(to + c) = paired(wide_octets(one + c), wide_octets(two + c));
    for (; c < width; c++) to[c] = (one[c] & 0xffff) | (int32_t)((uint32_t)two[c] << 16);
}

/* A block of tokens as the products want it, once for all rows; tokens beyond its end are zeros. */
static void spread_block(const stored_shape *z, const char *key, const char *value, int64_t tokens, const space *at) {
    int64_t width = z->key.width, value_width = z->value.width;
    const char *numbers = z->shared ? key : value;
    int64_t step = z->shared ? z->key_token : z->value_token;
    static const int8_t none[WIDEST] = {0};
    for (int64_t t = 0; t < tokens; t++) {
        const int8_t *row = (const int8_t *)key + t * z->key_token;
        for (int64_t w = 0; w < width; w += LINE) /* of the next block */
            fetch(row + SPAN * z->key_token + w);
        widen(row, width, at->keys + t * width);
        for (int64_t part = 0; part < z->key.parts; part++)
            memcpy(at->key_scales + part * SPAN + t, row + (width + 3) / 4 * 4 + 4 * part, 4);
        memcpy(at->value_scales + t, numbers + t * step + ((z->shared ? width : value_width) + 3) / 4 * 4, 4);
    }
    for (int64_t t = tokens; t % TILE; t++) {
        memset(at->keys + t * width, 0, 2 * width);
        for (int64_t part = 0; part < z->key.parts; part++) at->key_scales[part * SPAN + t] = 0;
    }
    for (int64_t t = 0; t < tokens; t += 2) {
        const int8_t *one = (const int8_t *)numbers + t * step;
        pair_up(one, t + 1 < tokens ? one + step : none, value_width, at->values + t / 2 * value_width);
    }
}

/* Scores of LANES rows with a block. */
static void score_pairs(const stored_shape *z, const space *at, const bits *queries, const rows *scales,
                        int64_t tokens, rows *scores) {
    int64_t width = z->key.width;
    for (int64_t t = 0; t < tokens; t += TILE) {
        for (int i = 0; i < TILE; i++) scores[t + i] = (rows){0};
        for (int64_t part = 0, begin = 0; part < z->key.parts; begin = z->key.ends[part++]) {
            bits sum[TILE] = {0};
            const int16_t *quarter[4]; /* one pointer a token would find no registers */
            for (int i = 0; i < 4; i++) quarter[i] = at->keys + (t + i * (TILE / 4)) * width;
            for (int64_t w = begin; w < z->key.ends[part]; w += 2) {
                bits two = queries[w / 2];
#pragma GCC unroll 16
                for (int i = 0; i < TILE; i++) {
                    const int16_t *with = quarter[i / (TILE / 4)] + i % (TILE / 4) * width + w;
                    sum[i] = add_pairs(sum[i], two, (const two_numbers *)with);
                }
            }
            const float *of_keys = at->key_scales + part * SPAN + t;
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++)
                scores[t + i] += __builtin_convertvector(sum[i], rows) * (scales[part] * of_keys[i]);
        }
    }
}

/* state = shrink * state + sum over t of weights[t] * values[t], and what is NaN in a scale stays NaN */
static void mix_pairs(const stored_shape *z, const space *at, rows *weights, int64_t tokens, rows shrink, rows *state) {
    rows most = {0}, all = {0};
    bits two[SPAN / 2];
    for (int64_t t = 0; t < tokens; t++) {
        weights[t] *= at->value_scales[t];
        most = larger(weights[t], most);
        all += weights[t];
    }
    if (tokens % 2) weights[tokens] = (rows){0};
    rows times = times_of(most), back = most / LARGEST + (all - all);
    for (int64_t t = 0; t < tokens; t += 2)
        two[t / 2] = paired(rounded(weights[t] * times), rounded(weights[t + 1] * times));
    int64_t width = z->value.width, c = 0, pairs = (tokens + 1) / 2;
    for (; c + TILE <= width; c += TILE) {
        bits sum[TILE] = {0};
        for (int64_t p = 0; p < pairs; p++) {
            const int32_t *values = at->values + p * width + c;
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++) sum[i] = add_pairs(sum[i], two[p], values + i);
        }
#pragma GCC unroll 16
        for (int i = 0; i < TILE; i++)
            state[c + i] = state[c + i] * shrink + __builtin_convertvector(sum[i], rows) * back;
    }
    for (; c < width; c++) {
        bits sum = {0};
        for (int64_t p = 0; p < pairs; p++) sum = add_pairs(sum, two[p], at->values + p * width + c);
        state[c] = state[c] * shrink + __builtin_convertvector(sum, rows) * back;
    }
}

/* One block for LANES rows. State: [value width] sums of values, then the maximum and the sum of weights. */
static void attend_pairs(const stored_shape *z, const space *at, const bits *queries, const rows *scales,
                         const float *mask, int64_t first, int64_t tokens, rows *state) {
    rows scores[SPAN];
    score_pairs(z, at, queries, scales, tokens, scores);
    if (mask)
        for (int64_t lane = 0; lane < LANES; lane++) {
            const float *seen = mask + (first + lane) % z->num_new * z->mask_new;
            for (int64_t t = 0; t < tokens; t++) scores[t][lane] += seen[t];
        }
    rows shrink = soften(scores, tokens, state + z->value.width);
    mix_pairs(z, at, scores, tokens, shrink, state);
}

static int64_t vectors_of(const stored_shape *z) { return (z->rows + LANES - 1) / LANES; }

static space space_at(const stored_shape *z, rows *room) {
    int64_t vectors = vectors_of(z), width = z->key.width;
    space at = {(bits *)room, room + vectors * width / 2, 0, 0, 0, 0, 0};
    at.wide = at.query_scales + vectors * z->key.parts;
    at.keys = (int16_t *)(at.wide + width);
    at.values = (int32_t *)(at.keys + SPAN * width);
    at.key_scales = (float *)(at.values + SPAN / 2 * z->value.width);
    at.value_scales = at.key_scales + z->key.parts * SPAN;
    return at;
}

static int64_t room_of(const stored_shape *z) { /* in vectors, see space_at */
    int64_t numbers = SPAN / 2 * (z->key.width + z->value.width) + SPAN * (z->key.parts + 1);
    return vectors_of(z) * (z->key.width / 2 + z->key.parts) + z->key.width + numbers / LANES + 1;
}

/* As attend_stored in stored.c, of OCTETS whose parts are even in width, and no wider than 512. */
int attend_octets(const stored_shape *z, const float *query, const char *key, const char *value, const float *mask,
                  float *output) {
    int64_t step = padded(z->key.width), size = z->value.width + 2, vectors = vectors_of(z);
    int64_t pairs = z->batch * z->groups;
    int64_t tasks = pairs * z->splits, length = (z->context + z->splits - 1) / z->splits, room = room_of(z);
    rows *state = aligned_alloc(sizeof(rows), sizeof(rows) * (tasks * vectors * size + z->threads * room));
    if (!state) return 1;
#pragma omp parallel num_threads(z->threads)
    {
        space at = space_at(z, state + tasks * vectors * size + omp_get_thread_num() * room);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t pair = task / z->splits, b = pair / z->groups, g = pair % z->groups;
            int64_t begin = task % z->splits * length, end = begin + length < z->context ? begin + length : z->context;
            const char *keys = key + b * z->key_batch + g * z->key_group;
            const char *values = z->shared ? keys : value + b * z->value_batch + g * z->value_group;
            for (int64_t v = 0; v < vectors; v++) {
                rows *mine = state + (task * vectors + v) * size;
                turn_pairs(z, query + pair * z->rows * step, step, v * LANES, at.queries + v * z->key.width / 2,
                           at.query_scales + v * z->key.parts, at.wide);
                for (int64_t c = 0; c < size; c++) mine[c] = (rows){0};
                mine[z->value.width] -= INFINITY;
            }
            for (int64_t start = begin; start < end; start += SPAN) {
                int64_t tokens = end - start < SPAN ? end - start : SPAN;
                spread_block(z, keys + start * z->key_token, values + start * z->value_token, tokens, &at);
                for (int64_t v = 0; v < vectors; v++)
                    attend_pairs(z, &at, at.queries + v * z->key.width / 2, at.query_scales + v * z->key.parts,
                                 mask ? mask + b * z->mask_batch + start : mask, v * LANES, tokens,
                                 state + (task * vectors + v) * size);
            }
        }
#pragma omp for
        for (int64_t v = 0; v < pairs * vectors; v++) {
            int64_t first = v % vectors * LANES;
            join(state + (v / vectors * z->splits * vectors + v % vectors) * size, z->value.width, z->splits,
                 vectors * size, z->rows - first, output + (v / vectors * z->rows + first) * z->value.width);
        }
    }
    free(state);
    return 0;
}
