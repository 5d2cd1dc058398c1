/* Attention of query rows that all read the same keys and values: softmax(scale q kT + mask) v, in single precision.

   A vector holds one number of LANES query rows. Both products are then sums of a vector of rows times a scalar of the
   cache, read in the order in which the cache lies in memory, and the softmax needs no sum across lanes. The context is
   worked through in blocks with a running maximum and sum (Milakov & Gimelshein 2018, Online normalizer calculation for
   softmax, algorithm 3), so that scores never sit in memory whole, and is cut into splits where there are fewer
   sequences than threads (Dao et al. 2023, Flash-Decoding). */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef __AVX512F__
enum { LANES = 16, TILE = 16 }; /* TILE sums at once: enough to hide a multiply-add's latency, few enough for registers */
#else
enum { LANES = 8, TILE = 8 };
#endif
enum { BLOCK = 64, AHEAD = 64 }; /* tokens */

typedef float rows __attribute__((vector_size(4 * LANES)));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

typedef struct {
    int64_t batch, num_rows, num_new, context, width, value_width, splits, threads;
    int64_t query_batch, query_row, key_batch, key_token, value_batch, value_token, mask_batch, mask_new;
    float scale;
} shape; /* strides are in numbers; row r of the queries is new token r % num_new */

int lanes(void) { return LANES; }

static inline rows larger(rows a, rows b) { /* b where a is NaN */
    bits first = a > b;
    return (rows)(((bits)a & first) | ((bits)b & ~first));
}

static inline rows zero_if_infinite(rows top) { return (rows)((bits)top & (top > -INFINITY)); }

/* e^x for x <= 0: to 2 units in the last place, 0 below -87, NaN for NaN (Cephes, expf) */
static inline rows exponential(rows x) {
    bits gone = x < -87.0f;
    x = (rows)((bits)x & ~gone);
    rows shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23 rounds to an integer, and leaves it in the low bits */
    rows n = shifted - 12582912.0f;
    rows r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    rows p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    rows power = (rows)(((bits)shifted << 23) + (127 << 23));
    return (rows)((bits)(p * power) & ~gone);
}

/* scores[i] = sum over w of query[w] * key[i][w], of TILE tokens; a tile further on is fetched meanwhile */
static inline void score_tile(rows *scores, const rows *query, const float *key, int64_t width, int64_t step) {
    rows sum[TILE] = {0};
    const float *quarter[4]; /* one pointer a token would find no registers */
    for (int i = 0; i < 4; i++) quarter[i] = key + i * (TILE / 4) * step;
    for (int64_t w = 0; w < width; w++) {
        rows one = query[w];
        __builtin_prefetch(key + AHEAD * step + TILE * w, 0, 2);
#pragma GCC unroll 16
        for (int i = 0; i < TILE; i++) sum[i] += one * quarter[i / (TILE / 4)][i % (TILE / 4) * step + w];
    }
    for (int i = 0; i < TILE; i++) scores[i] = sum[i];
}

static inline rows score_one(const rows *query, const float *key, int64_t width) {
    rows sum = {0};
    for (int64_t w = 0; w < width; w++) sum += query[w] * key[w];
    return sum;
}

/* output[i] = shrink * output[i] + sum over t of weights[t] * value[t][i], of TILE columns */
static inline void mix_tile(rows *output, const rows *weights, const float *value, int64_t tokens, int64_t step,
                            rows shrink) {
    rows sum[TILE];
    for (int i = 0; i < TILE; i++) sum[i] = output[i] * shrink;
    for (int64_t t = 0; t < tokens; t++) {
        rows one = weights[t];
#pragma GCC unroll 16
        for (int i = 0; i < TILE; i++) sum[i] += one * value[t * step + i];
    }
    for (int i = 0; i < TILE; i++) output[i] = sum[i];
}

static inline rows mix_one(rows sum, const rows *weights, const float *value, int64_t tokens, int64_t step) {
    for (int64_t t = 0; t < tokens; t++) sum += weights[t] * value[t * step];
    return sum;
}

/* LANES queries, scaled, with their numbers side by side: [width] */
static void turn(const shape *z, const float *query, int64_t first, rows *turned) {
    for (int64_t w = 0; w < z->width; w++)
        for (int64_t lane = 0; lane < LANES; lane++) {
            int64_t row = first + lane;
            turned[w][lane] = row < z->num_rows ? query[row * z->query_row + w] * z->scale : 0;
        }
}

/* One block of tokens for LANES rows. State: [value_width] sums of values, then the maximum and the sum of weights. */
static void attend_block(const shape *z, const rows *query, const float *key, const float *value, const float *mask,
                         int64_t first, int64_t tokens, rows *state) {
    rows scores[BLOCK], *top = state + z->value_width, *total = top + 1, new_top = *top;
    int64_t t = 0, c = 0;
    for (; t + TILE <= tokens; t += TILE)
        score_tile(scores + t, query, key + t * z->key_token, z->width, z->key_token);
    for (; t < tokens; t++) scores[t] = score_one(query, key + t * z->key_token, z->width);
    if (mask)
        for (int64_t lane = 0; lane < LANES; lane++) {
            const float *seen = mask + (first + lane) % z->num_new * z->mask_new;
            for (t = 0; t < tokens; t++) scores[t][lane] += seen[t];
        }
    for (t = 0; t < tokens; t++) new_top = larger(scores[t], new_top);
    rows finite = zero_if_infinite(new_top); /* a row that has seen nothing yet */
    rows shrink = exponential(*top - finite), sum = *total * shrink;
    for (t = 0; t < tokens; t++) {
        scores[t] = exponential(scores[t] - finite);
        sum += scores[t];
    }
    *top = new_top;
    *total = sum;
    for (; c + TILE <= z->value_width; c += TILE)
        mix_tile(state + c, scores, value + c, tokens, z->value_token, shrink);
    for (; c < z->value_width; c++) state[c] = mix_one(state[c] * shrink, scores, value + c, tokens, z->value_token);
}

/* One sequence over the tokens from begin to end, each block of them read once for all rows. */
static void attend_split(const shape *z, const float *query, const float *key, const float *value, const float *mask,
                         int64_t begin, int64_t end, rows *turned, rows *state) {
    int64_t size = z->value_width + 2;
    for (int64_t first = 0, b = 0; first < z->num_rows; first += LANES, b++) {
        turn(z, query, first, turned + b * z->width);
        for (int64_t c = 0; c < size; c++) state[b * size + c] = (rows){0};
        state[b * size + z->value_width] -= INFINITY;
    }
    for (int64_t start = begin; start < end; start += BLOCK)
        for (int64_t first = 0, b = 0; first < z->num_rows; first += LANES, b++)
            attend_block(z, turned + b * z->width, key + start * z->key_token, value + start * z->value_token,
                         mask ? mask + start : mask, first, end - start < BLOCK ? end - start : BLOCK,
                         state + b * size);
}

/* Weigh the splits of a sequence by their sums of exponentials; a row that sees nothing gives zeros. */
static void join(const shape *z, const rows *state, int64_t apart, float *output) {
    int64_t size = z->value_width + 2;
    for (int64_t first = 0; first < z->num_rows; first += LANES, state += size) {
        rows top = state[z->value_width], total = {0}, share[z->splits];
        for (int64_t s = 1; s < z->splits; s++) top = larger(state[s * apart + z->value_width], top);
        for (int64_t s = 0; s < z->splits; s++) {
            share[s] = exponential(state[s * apart + z->value_width] - zero_if_infinite(top));
            total += share[s] * state[s * apart + z->value_width + 1];
        }
        total = (rows)((bits)total | ((bits)((rows){0} + 1.0f) & (total == 0.0f)));
        for (int64_t c = 0; c < z->value_width; c++) {
            rows mixed = {0};
            for (int64_t s = 0; s < z->splits; s++) mixed += share[s] * state[s * apart + c];
            mixed /= total;
            for (int64_t lane = 0; lane < LANES && first + lane < z->num_rows; lane++)
                output[(first + lane) * z->value_width + c] = mixed[lane];
        }
    }
}

/* output [batch, num_rows, value_width]; mask may be null. Returns 1 where there is no memory for the state. */
int attend(const shape *z, const float *query, const float *key, const float *value, const float *mask, float *output) {
    int64_t blocks = (z->num_rows + LANES - 1) / LANES, tasks = z->batch * z->splits;
    int64_t size = blocks * (z->value_width + 2), length = (z->context + z->splits - 1) / z->splits;
    rows *state = aligned_alloc(sizeof(rows), sizeof(rows) * (tasks * size + z->threads * blocks * z->width));
    if (!state) return 1;
#pragma omp parallel num_threads(z->threads)
    {
        rows *turned = state + tasks * size + omp_get_thread_num() * blocks * z->width;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t b = task / z->splits, begin = task % z->splits * length, end = begin + length;
            attend_split(z, query + b * z->query_batch, key + b * z->key_batch, value + b * z->value_batch,
                         mask ? mask + b * z->mask_batch : mask, begin, end < z->context ? end : z->context, turned,
                         state + task * size);
        }
#pragma omp for
        for (int64_t b = 0; b < z->batch; b++)
            join(z, state + b * z->splits * size, size, output + b * z->num_rows * z->value_width);
    }
    free(state);
    return 0;
}
