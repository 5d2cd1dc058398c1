/* Products of LANES query rows, side by side in vectors, with rows of a cache: scores of some tokens, sums of their
   values. */

#include "vectors.h"

#ifdef __AVX512F__
enum { TILE = 16 }; /* TILE sums at once: enough to hide a multiply-add's latency, few enough for registers */
#else
enum { TILE = 8 };
#endif

/* sum[i] += sum over w of query[w] * key[i][w], of TILE tokens; what lies ahead is fetched meanwhile */
static inline void score_tile(rows *sum, const rows *query, const float *key, int64_t width, int64_t step,
                              const float *ahead) {
    const float *quarter[4]; /* one pointer a token would find no registers */
    for (int i = 0; i < 4; i++) quarter[i] = key + i * (TILE / 4) * step;
    for (int64_t w = 0; w < width; w++) {
        rows one = query[w];
        fetch(ahead + TILE * w);
#pragma GCC unroll 16
        for (int i = 0; i < TILE; i++) sum[i] += one * quarter[i / (TILE / 4)][i % (TILE / 4) * step + w];
    }
}

static inline rows score_one(rows sum, const rows *query, const float *key, int64_t width) {
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
