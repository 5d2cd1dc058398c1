/* y = x W^T for a few rows of x, in single precision: W [out, in] is read once, at the rate of the memory.

   A vector holds LANES numbers along the rows of W, which lie so in memory; OUTPUTS rows of W times ROWS rows of x are
   summed at once, so that a number loaded serves several multiply-adds. */

#include <stdint.h>

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 4 }; /* OUTPUTS * ROWS sums at once, as many as there are registers for */
#else
enum { LANES = 8, ROWS = 2 };
#endif
enum { OUTPUTS = 4, AHEAD = 8 };

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

/* The sum of a vector's numbers, by halves. */
static inline float total(lanes vector) {
    float parts[LANES];
    *(unaligned *)parts = vector;
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

/* Rounded once or twice, but always alike: a row's result must not depend on the rows beside it. */
static inline float multiply_add(float x, float w, float sum) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(x, w, sum);
#else
    return x * w + sum;
#endif
}

/* sums[r][o] = sum over k of x[r][k] * w[o][k]; the rows of W after these are fetched meanwhile */
static inline void product(const float *x, const float *w, int64_t in, int rows, int outputs,
                           float sums[ROWS][OUTPUTS]) {
    lanes sum[ROWS][OUTPUTS] = {0};
    int64_t k = 0;
    for (; k + LANES <= in; k += LANES)
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) {
            lanes weight = *(const unaligned *)(w + o * in + k);
            __builtin_prefetch(w + (o + AHEAD) * in + k, 0, 2);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sum[r][o] += weight * *(const unaligned *)(x + r * in + k);
        }
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++) {
            sums[r][o] = total(sum[r][o]);
            for (int64_t rest = k; rest < in; rest++)
                sums[r][o] = multiply_add(x[r * in + rest], w[o * in + rest], sums[r][o]);
        }
}

static inline void block(const float *x, const float *w, float *y, int64_t in, int64_t out, int rows, int outputs) {
    float sums[ROWS][OUTPUTS];
    if (rows == ROWS && outputs == OUTPUTS) product(x, w, in, ROWS, OUTPUTS, sums);
    else if (rows == 1 && outputs == OUTPUTS) product(x, w, in, 1, OUTPUTS, sums);
    else product(x, w, in, rows, outputs, sums);
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++) y[r * out + o] = sums[r][o];
}

/* x [rows, in], w [out, in], y [rows, out], all contiguous */
void few_rows(const float *x, const float *w, float *y, int64_t rows, int64_t in, int64_t out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < out; o += OUTPUTS) {
        int outputs = out - o < OUTPUTS ? out - o : OUTPUTS;
        int64_t r = 0; /* the last outputs by single rows: the general product need not round as the others do */
        for (; outputs == OUTPUTS && r + ROWS <= rows; r += ROWS)
            block(x + r * in, w + o * in, y + r * out + o, in, out, ROWS, outputs);
        for (; r < rows; r++) block(x + r * in, w + o * in, y + r * out + o, in, out, 1, outputs);
    }
}
