/* y = x W^T for a few rows of x, in single precision: W [out, in] is read once, at the rate of the memory, in any form
   of `vectors.h`.

   A vector holds LANES numbers along the rows of W, which lie so in memory; OUTPUTS rows of W times ROWS rows of x are
   summed at once, so that a number loaded serves several multiply-adds. One row of x needs no such thing: W is then a
   single stream, as it lies, which processors fetch ahead by themselves and lose among several.

   W in 8 bits meets x in products of whole numbers, two to a lane: x is rounded to 16 bits of the largest in its row,
   2^-16 of it beside the 2^-8 of W. Sums are exact, in 32 bits, so that they are the same in any order. */

#include "vectors.h"

#include <stdlib.h>

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

#if defined(__AVX512BW__)
#define IN_PAIRS
typedef __m512i pairs;
static inline pairs widened(const int8_t *w) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w)); }
static inline bits add_products(bits sum, pairs w, const int16_t *x) {
#ifdef __AVX512VNNI__
    return (bits)_mm512_dpwssd_epi32((__m512i)sum, w, _mm512_loadu_si512(x));
#else
    return sum + (bits)_mm512_madd_epi16(w, _mm512_loadu_si512(x));
#endif
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define IN_PAIRS
typedef __m256i pairs;
static inline pairs widened(const int8_t *w) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w)); }
static inline bits add_products(bits sum, pairs w, const int16_t *x) {
    return sum + (bits)_mm256_madd_epi16(w, _mm256_loadu_si256((const __m256i *)x));
}
#endif

#ifdef IN_PAIRS
enum { TWICE = 2 * LANES, MOST_STEPS = 256 }; /* so many pairs of products of 7 and 15 bits stay below 2^31 */

/* A row of x in 16 bits, zeros up to `room`; returns its scale, NaN where a number is not finite. */
static float rounded_row(const float *x, int64_t in, int64_t room, int16_t *to) {
    float most = largest_size(x, in), times = most > 0 && most < INFINITY ? LARGEST / most : 0;
    for (int64_t k = 0; k < in; k++) to[k] = (int16_t)lrintf(x[k] * times);
    memset(to + in, 0, sizeof(int16_t) * (room - in));
    return most < INFINITY ? most / LARGEST : NAN;
}

/* y[r][o] for some rows of x, `room` apart, and LANES rows of W or the last ones. */
SPECIALISED void product_in_pairs(const matrix *m, const int16_t *x, const float *scales, int64_t room, const char *w,
                                  float *y, int count, int outputs) {
    rows sums[ROWS][LANES];
    int64_t whole = m->in - m->in % TWICE;
    memset(sums, 0, count * sizeof *sums);
    for (int o = 0; o < outputs; o++) {
        const int8_t *row = (const int8_t *)w + o * m->step;
        for (int64_t k = 0; k < whole;) {
            int64_t end = whole - k > MOST_STEPS * TWICE ? k + MOST_STEPS * TWICE : whole;
            bits sum[ROWS] = {0};
            for (; k < end; k += TWICE) {
                pairs numbers = widened(row + k);
#pragma GCC unroll 4
                for (int r = 0; r < count; r++) sum[r] = add_products(sum[r], numbers, x + r * room + k);
            }
            for (int r = 0; r < count; r++) sums[r][o] += __builtin_convertvector(sum[r], rows);
        }
        for (int r = 0; r < count; r++) { /* what lies behind a row is not its own */
            int32_t rest = 0;
            for (int64_t k = whole; k < m->in; k++) rest += row[k] * x[r * room + k];
            sums[r][o][0] += rest;
        }
    }
    for (int r = 0; r < count; r++) {
        rows all = sums_across(sums[r]);
        for (int o = 0; o < outputs; o++)
            y[r * m->out + o] = all[o] * (scales[r] * scale_of(OCTETS, w + o * m->step, m->in));
    }
}

/* As few_rows, of W in 8 bits. Returns 1 where there is no memory for x in 16. */
static int few_rows_in_pairs(const float *x, const char *w, float *y, int64_t num_rows, const matrix *m, int threads) {
    int64_t room = (m->in + TWICE - 1) / TWICE * TWICE;
    int16_t *rounded_x = malloc(num_rows * (room * sizeof(int16_t) + sizeof(float)));
    if (!rounded_x) return 1;
    float *scales = (float *)(rounded_x + num_rows * room);
    for (int64_t r = 0; r < num_rows; r++) scales[r] = rounded_row(x + r * m->in, m->in, room, rounded_x + r * room);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < m->out; o += LANES) {
        int outputs = m->out - o < LANES ? m->out - o : LANES;
        const char *here = w + o * m->step;
        int64_t r = 0;
        for (; r + ROWS <= num_rows; r += ROWS)
            product_in_pairs(m, rounded_x + r * room, scales + r, room, here, y + r * m->out + o, ROWS, outputs);
        for (; r < num_rows; r++)
            product_in_pairs(m, rounded_x + r * room, scales + r, room, here, y + r * m->out + o, 1, outputs);
    }
    free(rounded_x);
    return 0;
}
#endif

/* x [rows, in] and y [rows, out] contiguous, w [out] rows of a form, `step` bytes apart. Returns 1 where there is no
   memory. */
int few_rows(const float *x, const char *w, float *y, int64_t num_rows, int64_t in, int64_t out, int64_t kind,
             int64_t step, int threads) {
    matrix m = {in, out, step};
#ifdef IN_PAIRS
    if (kind == OCTETS) return few_rows_in_pairs(x, w, y, num_rows, &m, threads);
#endif
    if (num_rows == 1 && kind == SINGLE) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t o = 0; o < out; o++) product(SINGLE, &m, x, w + o * step, y + o, 1, 1);
        return 0;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t o = 0; o < out; o += OUTPUTS) {
        int outputs = out - o < OUTPUTS ? out - o : OUTPUTS;
        if (kind == OCTETS) columns(OCTETS, &m, x, w + o * step, y + o, num_rows, outputs);
        else if (kind == BRAIN) columns(BRAIN, &m, x, w + o * step, y + o, num_rows, outputs);
        else if (kind == HALF) columns(HALF, &m, x, w + o * step, y + o, num_rows, outputs);
        else columns(SINGLE, &m, x, w + o * step, y + o, num_rows, outputs);
    }
    return 0;
}
