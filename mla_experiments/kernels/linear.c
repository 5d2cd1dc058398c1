/* y = x W^T for a few rows of x, in single precision: W [out, in] is read once, at the rate of the memory, in any form
   of `vectors.h`.

   A vector holds LANES numbers along the rows of W, which lie so in memory; OUTPUTS rows of W times ROWS rows of x are
   summed at once, so that a number loaded serves several multiply-adds. One row of x needs no such thing: W is then a
   single stream, as it lies, which processors fetch ahead by themselves and lose among several. */

#include "vectors.h"

#ifdef __AVX512F__
enum { ROWS = 4 }; /* OUTPUTS * ROWS sums at once, as many as there are registers for */
#else
enum { ROWS = 2 };
#endif
enum { OUTPUTS = 4, ROWS_AHEAD = 8 };

/* The sum of a vector's numbers, by halves. */
static inline float total(rows vector) {
    float parts[LANES];
    *(rows_anywhere *)parts = vector;
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

SPECIALISED float number_at(int64_t kind, const char *from, int64_t i) {
    if (kind == OCTETS) return ((const int8_t *)from)[i];
    if (kind == BRAIN) return from_brain(((const uint16_t *)from)[i]);
    if (kind == HALF) return from_half(((const uint16_t *)from)[i]);
    return ((const float *)from)[i];
}

/* What a row of W of 8 bits is to be multiplied by: its scale stands behind it. */
SPECIALISED float scale_of(int64_t kind, const char *row, int64_t in) {
    float scale = 1;
    if (kind == OCTETS) memcpy(&scale, row + (in + 3) / 4 * 4, 4);
    return scale;
}

typedef struct {
    int64_t in, out, step; /* bytes from a row of W to the next */
} matrix;

/* y[r][o] = sum over k of x[r][k] * w[o][k]; of several rows of W, those after these are fetched meanwhile */
SPECIALISED void product(int64_t kind, const matrix *m, const float *x, const char *w, float *y, int count, int outputs) {
    rows sum[ROWS][OUTPUTS] = {0};
    int64_t in = m->in, step = m->step, k = 0;
    for (; k + LANES <= in; k += LANES)
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) {
            rows weight = numbers_at(kind, w + o * step, k);
            if (outputs > 1 && k * size_of(kind) % LINE == 0) fetch(w + (o + ROWS_AHEAD) * step + k * size_of(kind));
#pragma GCC unroll 4
            for (int r = 0; r < count; r++) sum[r][o] += weight * *(const rows_anywhere *)(x + r * in + k);
        }
    for (int r = 0; r < count; r++)
        for (int o = 0; o < outputs; o++) {
            float all = total(sum[r][o]);
            for (int64_t rest = k; rest < in; rest++)
                all = multiply_add(x[r * in + rest], number_at(kind, w + o * step, rest), all);
            y[r * m->out + o] = all * scale_of(kind, w + o * step, in);
        }
}

/* OUTPUTS columns of y, or the last, by single rows: the general product need not round as the others do. */
SPECIALISED void columns(int64_t kind, const matrix *m, const float *x, const char *w, float *y, int64_t num_rows,
                         int outputs) {
    int64_t r = 0;
    for (; outputs == OUTPUTS && r + ROWS <= num_rows; r += ROWS)
        product(kind, m, x + r * m->in, w, y + r * m->out, ROWS, OUTPUTS);
    for (; r < num_rows; r++)
        if (outputs == OUTPUTS) product(kind, m, x + r * m->in, w, y + r * m->out, 1, OUTPUTS);
        else product(kind, m, x + r * m->in, w, y + r * m->out, 1, outputs);
}

/* x [rows, in] and y [rows, out] contiguous, w [out] rows of a form, `step` bytes apart */
void few_rows(const float *x, const char *w, float *y, int64_t num_rows, int64_t in, int64_t out, int64_t kind,
              int64_t step, int threads) {
    matrix m = {in, out, step};
    if (num_rows == 1 && kind == SINGLE) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t o = 0; o < out; o++) product(SINGLE, &m, x, w + o * step, y + o, 1, 1);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < out; o += OUTPUTS) {
        int outputs = out - o < OUTPUTS ? out - o : OUTPUTS;
        if (kind == OCTETS) columns(OCTETS, &m, x, w + o * step, y + o, num_rows, outputs);
        else if (kind == BRAIN) columns(BRAIN, &m, x, w + o * step, y + o, num_rows, outputs);
        else if (kind == HALF) columns(HALF, &m, x, w + o * step, y + o, num_rows, outputs);
        else columns(SINGLE, &m, x, w + o * step, y + o, num_rows, outputs);
    }
}
