// The toy model's expint step in C++ alone, on sdeflow's own kernel code: what a step cannot be faster than.

#include "../../sdeflow/fused.cpp"

namespace {

// X, U by the score at theta, (theta - x)/v + (y - x) with a datum y for every x, and the sum of the new x.
struct Toy {
    Draw d;
    float *x, *u;
    const float* y;
    float theta, variance;
    const float* c;  // free, push, w, kick, q1, q2, p1, p2
    double* sum;

    template <class Lane>
    INLINE void block(u64 key, i64 block, i64 at, i64 count) const {
        float a[BLOCK<float>] = {}, b[BLOCK<float>] = {}, of[BLOCK<float>] = {};
        float xi[BLOCK<float>], eta[BLOCK<float>];
        copy(a, x + at, count);
        copy(b, u + at, count);
        copy(of, y + at, count);
        draw<Lane>(d, key, block, d.slot, xi);
        draw<Lane>(d, key, block, d.slot + 1, eta);
        float partial[LANES] = {};
        for (int l = 0; l < BLOCK<float>; ++l) {
            float f = (theta - a[l]) / variance + (of[l] - a[l]);
            a[l] = a[l] + c[0] * b[l] + (c[4] * xi[l] + c[5] * eta[l]) + c[1] * f;
            b[l] = c[2] * b[l] + (c[6] * xi[l] + c[7] * eta[l]) + c[3] * f;
        }
        for (i64 l = count; l < BLOCK<float>; ++l) a[l] = 0;
        for (int i = 0; i < BLOCK<float>; i += LANES)
            for (int l = 0; l < LANES; ++l) partial[l] += a[i + l];
        for (float part : partial) *sum += part;
        copy(x + at, a, count);
        copy(u + at, b, count);
    }
};

PART(toy, float, Toy)

}  // namespace

// theta and m are at[0] and at[1]; of t: free, push, w, kick of theta's block.
EXPORT void toy_steps(
    float* x, float* u, const float* y, double* at, i64 data, int particles, double variance, const float* c,
    const double* t, u64 key, u64 first, int steps
) {
    const i64 size = data * particles, all = (size + BLOCK<float> - 1) / BLOCK<float>;
    double sum = 0;
    for (i64 i = 0; i < size; ++i) sum += x[i];
    for (int n = 0; n < steps; ++n) {
        double flown = at[0] + t[0] * at[1], f = (sum / particles - data * flown) / variance;
        at[0] = flown + t[1] * f;
        at[1] = t[2] * at[1] + t[3] * f;
        sum = 0;
        toy({{&key, 1, size, first + n, 0}, x, u, y, float(at[0]), float(variance), c, &sum}, 0, all);
    }
}
