/* y = x / sqrt(mean(x^2) + eps) * w, row by row, in single precision. */

#include <math.h>
#include <stdint.h>

enum { LANES = 16 };

/* x, y [rows, width], w [width], all contiguous; LANES sums at once, so that a compiler may use vectors for them */
void rms_norm(const float *x, const float *w, float *y, int64_t rows, int64_t width, float eps) {
    for (int64_t r = 0; r < rows; r++, x += width, y += width) {
        float sums[LANES] = {0}, sum = 0;
        int64_t k = 0;
        for (; k + LANES <= width; k += LANES)
            for (int i = 0; i < LANES; i++) sums[i] += x[k + i] * x[k + i];
        for (; k < width; k++) sum += x[k] * x[k];
        for (int i = 0; i < LANES; i++) sum += sums[i];
        float factor = 1 / sqrtf(sum / width + eps);
        for (k = 0; k < width; k++) y[k] = x[k] * factor * w[k];
    }
}
