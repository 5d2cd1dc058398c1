/* What attention in C has in common: vectors of single precision, e^x, an online softmax (Milakov & Gimelshein 2018,
   algorithm 3), and rows of a cache in the forms that it is kept in. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__ /* and with it F16C */
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

typedef float rows __attribute__((vector_size(4 * LANES)));
typedef float rows_anywhere __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));
typedef int32_t bits_anywhere __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

static inline rows larger(rows a, rows b) { /* b where a is NaN */
    bits first = a > b;
    return (rows)(((bits)a & first) | ((bits)b & ~first));
}

static inline rows zero_if_infinite(rows top) { return (rows)((bits)top & (top > -INFINITY)); }

#ifdef __AVX512F__
static const bits NUMBERED = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
static const bits NUMBERED = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

/* sums[i] = sum of the lanes of x[i], for LANES vectors: halved, two into one, until one is left */
static inline rows sums_across(rows *x) {
#pragma GCC unroll 4
    for (int count = LANES; count > 1; count /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < count; i += 2)
            x[i / 2] = __builtin_shuffle(x[i], x[i + 1], 2 * NUMBERED) +
                       __builtin_shuffle(x[i], x[i + 1], 2 * NUMBERED + 1);
    return x[0];
}

enum { LARGEST = 32767 }; /* to which the largest number of a row is scaled, where it is rounded to 16 bits */

/* The largest size among numbers; NaN where one is NaN, and else infinite where one is. */
static inline float largest_size(const float *from, int64_t count) {
    float most = 0;
    for (int64_t i = 0; i < count; i++) {
        float size = fabsf(from[i]);
        most = size > most || size != size ? size : most;
    }
    return most;
}

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

/* One block of an online softmax: scores become weights, the maximum and the sum of weights in softmax[0] and [1] are
   brought up to date, and what was summed before is to be multiplied by what is returned. */
static inline rows soften(rows *scores, int64_t tokens, rows *softmax) {
    rows top = softmax[0];
    for (int64_t t = 0; t < tokens; t++) top = larger(scores[t], top);
    rows finite = zero_if_infinite(top); /* a row that has seen nothing yet */
    rows shrink = exponential(softmax[0] - finite), sum = softmax[1] * shrink;
    for (int64_t t = 0; t < tokens; t++) {
        scores[t] = exponential(scores[t] - finite);
        sum += scores[t];
    }
    softmax[0] = top;
    softmax[1] = sum;
    return shrink;
}

/* Weigh the splits of LANES rows by their sums of exponentials; a row that sees nothing gives zeros. The state of a
   split, apart from the next, is [width] sums of values and then the softmax; output [lanes, width]. */
static inline void join(const rows *state, int64_t width, int64_t splits, int64_t apart, int64_t lanes, float *output) {
    rows top = state[width], total = {0}, share[splits];
    for (int64_t s = 1; s < splits; s++) top = larger(state[s * apart + width], top);
    for (int64_t s = 0; s < splits; s++) {
        share[s] = exponential(state[s * apart + width] - zero_if_infinite(top));
        total += share[s] * state[s * apart + width + 1];
    }
    total = (rows)((bits)total | ((bits)((rows){0} + 1.0f) & (total == 0.0f)));
    for (int64_t c = 0; c < width; c++) {
        rows mixed = {0};
        for (int64_t s = 0; s < splits; s++) mixed += share[s] * state[s * apart + c];
        mixed /= total;
        for (int64_t lane = 0; lane < LANES && lane < lanes; lane++) output[lane * width + c] = mixed[lane];
    }
}

/* How a row lies in a cache. OCTETS: whole numbers of 8 bits, after them at a multiple of 4 one scale a part. */
enum { SINGLE = 0, BRAIN = 1, HALF = 2, OCTETS = 3, MOST_PARTS = 16 };

typedef struct {
    int64_t kind, width, parts, ends[MOST_PARTS]; /* where each part ends */
} form;

static inline int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

static inline float from_half(uint16_t number) {
    _Float16 half;
    memcpy(&half, &number, 2);
    return half;
}

static inline rows from_halves(const uint16_t *from) {
#if defined(__AVX512F__)
    return (rows)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__AVX2__)
    return (rows)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    rows numbers;
    for (int i = 0; i < LANES; i++) numbers[i] = from_half(from[i]);
    return numbers;
#endif
}

static inline rows from_brains(const uint16_t *from) { /* the upper halves of single precision */
    return (rows)(__builtin_convertvector(*(const halves *)from, bits) << 16);
}

static inline float from_brain(uint16_t number) {
    uint32_t whole = (uint32_t)number << 16;
    float single;
    memcpy(&single, &whole, 4);
    return single;
}

static inline bits wide_octets(const int8_t *from) { /* which compilers do a number at a time, if left to it */
#if defined(__AVX512F__)
    return (bits)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif defined(__AVX2__)
    return (bits)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    bits numbers;
    for (int i = 0; i < LANES; i++) numbers[i] = from[i];
    return numbers;
#endif
}

static inline rows from_octets(const int8_t *from) { return __builtin_convertvector(wide_octets(from), rows); }

static inline void unpack_part(const int8_t *from, int64_t begin, int64_t end, float scale, float *to) {
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES)
        *(rows_anywhere *)(to + i) = from_octets(from + i) * scale;
    for (; i < end; i++) to[i] = from[i] * scale;
}

/* to[i] = number i of a row, in single precision */
static inline void unpack(const form *f, const char *from, float *to) {
    int64_t i = 0, whole = f->width - f->width % LANES;
    const uint16_t *sixteen = (const uint16_t *)from;
    if (f->kind == OCTETS) {
        const char *scales = from + (f->width + 3) / 4 * 4;
        for (int64_t part = 0, begin = 0; part < f->parts; begin = f->ends[part++]) {
            float scale;
            memcpy(&scale, scales + 4 * part, 4);
            unpack_part((const int8_t *)from, begin, f->ends[part], scale, to);
        }
    } else if (f->kind == BRAIN) {
        for (; i < whole; i += LANES) *(rows_anywhere *)(to + i) = from_brains(sixteen + i);
        for (; i < f->width; i++) to[i] = from_brain(sixteen[i]);
    } else if (f->kind == HALF) {
        for (; i < whole; i += LANES) *(rows_anywhere *)(to + i) = from_halves(sixteen + i);
        for (; i < f->width; i++) to[i] = from_half(sixteen[i]);
    } else {
        memcpy(to, from, 4 * f->width);
    }
}

#define SPECIALISED static inline __attribute__((always_inline))

/* Ask for a line of what will be read AHEAD tokens later, into the second-level cache. Processors do so by themselves
   within a page of memory only, and the first-level cache has no room for it: asked for there, it is gone again. */
enum { AHEAD = 128, LINE = 64 };
static inline void fetch(const void *address) { __builtin_prefetch(address, 0, 2); }

SPECIALISED int64_t size_of(int64_t kind) { return kind == OCTETS ? 1 : kind == SINGLE ? 4 : 2; }

SPECIALISED rows numbers_at(int64_t kind, const char *from, int64_t i) {
    if (kind == OCTETS) return from_octets((const int8_t *)from + i);
    if (kind == BRAIN) return from_brains((const uint16_t *)from + i);
    if (kind == HALF) return from_halves((const uint16_t *)from + i);
    return *(const rows_anywhere *)((const float *)from + i);
}

/* The same of rows of whole vectors, with one scale if any: without a branch, where kind and vectors are constants. */
SPECIALISED void unpack_vectors(int64_t kind, int64_t vectors, const char *from, int64_t step, int64_t count,
                                float *to) {
    for (int64_t t = 0; t < count; t++, from += step, to += vectors * LANES) {
        float scale = 1;
        if (kind == OCTETS) memcpy(&scale, from + vectors * LANES, 4);
        for (int64_t at = 0; at < vectors * LANES * size_of(kind); at += LINE) fetch(from + AHEAD * step + at);
#pragma GCC unroll 8
        for (int64_t i = 0; i < vectors; i++) {
            rows numbers = numbers_at(kind, from, i * LANES);
            *(rows_anywhere *)(to + i * LANES) = kind == OCTETS ? numbers * scale : numbers;
        }
    }
}

SPECIALISED void unpack_kind(int64_t kind, int64_t vectors, const char *from, int64_t step, int64_t count, float *to) {
    if (vectors == 2) unpack_vectors(kind, 2, from, step, count, to);
    else if (vectors == 4) unpack_vectors(kind, 4, from, step, count, to);
    else if (vectors == 8) unpack_vectors(kind, 8, from, step, count, to);
    else unpack_vectors(kind, vectors, from, step, count, to);
}

/* count rows that lie step bytes apart, to rows that lie padded widths apart */
static inline void unpack_rows(const form *f, const char *from, int64_t step, int64_t count, float *to) {
    int64_t vectors = (f->width + LANES - 1) / LANES;
    if (f->width % LANES || (f->kind == OCTETS && (f->parts > 1 || f->width != f->ends[0])))
        for (int64_t t = 0; t < count; t++) {
            for (int64_t at = 0; at < f->width * size_of(f->kind); at += LINE) fetch(from + (t + AHEAD) * step + at);
            unpack(f, from + t * step, to + t * vectors * LANES);
        }
    else if (f->kind == OCTETS) unpack_kind(OCTETS, vectors, from, step, count, to);
    else if (f->kind == BRAIN) unpack_kind(BRAIN, vectors, from, step, count, to);
    else if (f->kind == HALF) unpack_kind(HALF, vectors, from, step, count, to);
    else unpack_kind(SINGLE, vectors, from, step, count, to);
}
