#include "softmax_f64.h"

#include <math.h>

#define LANES 8  // sums side by side: the compiler makes vectors of them
#define STRETCH 2048  // numbers that are summed before they are added to the whole: keeps rounding small

// e^x for x <= 0, within about one unit in the last place, and e^-708 below: next to 1, nothing. NaN stays NaN.
INLINE double exp_down(double x) {
    x = x < -708.0 ? -708.0 : x;
    const double magic = 0x1.8p52 + 1023;  // added, it rounds to the whole number that the lowest bits then hold
    const double shifted = x * 0x1.71547652b82fep0 + magic, n = shifted - magic;
    const double r = x - n * 0x1.62e42feep-1 - n * 0x1.a39ef35793c76p-33;  // ln 2 in two: the first product is exact
    // (e^r - 1 - r) / r^2 by Remez, which makes e^r within 4e-18 for |r| < ln 2 / 2. In pairs: fewer steps wait.
    const double s = r * r, q = s * s;
    const double a = 0x1.55555555554fap-3 * r + 0x1.000000000000ap-1;
    const double b = 0x1.1111111127be5p-7 * r + 0x1.555555555087cp-5;
    const double c = 0x1.a01a012a57b51p-13 * r + 0x1.6c16c1842a11dp-10;
    const double d = 0x1.71df2552390c2p-19 * r + 0x1.a0199a0c677acp-16;
    const double e = 0x1.ad7f6f0799ee2p-26 * r + 0x1.28ad72cc30daap-22;
    const double p = (e * q + (d * s + c)) * q + (b * s + a);
    uint64_t bits;
    double power;  // 2^n: the lowest bits are its exponent
    memcpy(&bits, &shifted, 8);
    bits <<= 52;
    memcpy(&power, &bits, 8);
    return (p * s + r + 1.0) * power;
}

INLINE double sum_of(const void *z, int wide, int64_t width, double largest, double scale) {
    double total = 0;
    for (int64_t start = 0; start < width; start += STRETCH) {
        const int64_t end = start + STRETCH < width ? start + STRETCH : width;
        double part[LANES] = {0}, sum = 0;
        int64_t i = start;
        for (; i + LANES <= end; i += LANES)
            for (int j = 0; j < LANES; j++) part[j] += exp_down((logit_at(z, wide, i + j) - largest) * scale);
        for (; i < end; i++) sum += exp_down((logit_at(z, wide, i) - largest) * scale);
        for (int j = 0; j < LANES; j++) sum += part[j];
        total += sum;
    }
    return total;
}

INLINE double weights_of(const double *z, int64_t count, double largest, double scale, double *w) {
    double part[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int j = 0; j < LANES; j++) part[j] += w[i + j] = exp_down((z[i + j] - largest) * scale);
    for (; i < count; i++) sum += w[i] = exp_down((z[i] - largest) * scale);
    for (int j = 0; j < LANES; j++) sum += part[j];
    return sum;
}

static double sum_portable(const void *z, int wide, int64_t width, double largest, double scale) {
    return wide ? sum_of(z, 1, width, largest, scale) : sum_of(z, 0, width, largest, scale);
}

static double weights_portable(const double *z, int64_t count, double largest, double scale, double *w) {
    return weights_of(z, count, largest, scale, w);
}

static double peaks_portable(const void *z, int wide, int64_t width, double *peaks) {
    double largest = -INFINITY;
    for (int64_t start = 0; start < width; start += GROUP) {
        double peak = -INFINITY;
        for (int64_t i = start; i < start + GROUP && i < width; i++)
            peak = logit_at(z, wide, i) > peak ? logit_at(z, wide, i) : peak;
        peaks[start / GROUP] = peak;
        largest = peak > largest ? peak : largest;
    }
    return largest;
}

#if NW_X86
AVX2 static double sum_avx2(const void *z, int wide, int64_t width, double largest, double scale) {
    if (wide) return sum_of(z, 1, width, largest, scale);
    return scale == 1 ? sum_of(z, 0, width, largest, 1) : sum_of(z, 0, width, largest, scale);
}

AVX2 static double weights_avx2(const double *z, int64_t count, double largest, double scale, double *w) {
    return weights_of(z, count, largest, scale, w);
}

AVX2 static double peaks_avx2(const float *z, int64_t width, double *peaks) {
    const __m256 lowest = _mm256_set1_ps(-INFINITY);
    float largest = -INFINITY;
    int64_t start = 0;
    for (; start + GROUP <= width; start += GROUP) {  // max gives its second operand where the first is NaN
        __m256 m = _mm256_max_ps(_mm256_loadu_ps(z + start), lowest);
        m = _mm256_max_ps(_mm256_loadu_ps(z + start + 8), m);
        __m128 s = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
        s = _mm_max_ps(s, _mm_movehl_ps(s, s));
        s = _mm_max_ss(s, _mm_movehdup_ps(s));
        const float peak = _mm_cvtss_f32(s);
        peaks[start / GROUP] = peak;
        largest = peak > largest ? peak : largest;
    }
    const double rest = peaks_portable(z + start, 0, width - start, peaks + start / GROUP);
    return rest > largest ? rest : largest;
}
#endif

double find_peaks(const void *z, int wide, int64_t width, double *peaks) {
#if NW_X86
    if (!wide && nw_level()) return peaks_avx2(z, width, peaks);
#endif
    return peaks_portable(z, wide, width, peaks);
}

double sum_weights(const void *z, int wide, int64_t width, double largest, double scale) {
#if NW_X86
    if (nw_level()) return sum_avx2(z, wide, width, largest, scale);
#endif
    return sum_portable(z, wide, width, largest, scale);
}

double find_weights(const double *z, int64_t count, double largest, double scale, double *w) {
#if NW_X86
    if (nw_level()) return weights_avx2(z, count, largest, scale, w);
#endif
    return weights_portable(z, count, largest, scale, w);
}
