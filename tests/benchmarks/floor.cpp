// The toy model's expint step in C++ alone, on sdeflow's own kernel code: what a step cannot be faster than.
// To be compiled for the machine at hand (-march=native).

#define SDEFLOW_ONE_SET
#include "../../sdeflow/noise/philox.cpp"

namespace baseline {

// X, U by the score at theta, (theta - x)/v + (y - x) with a datum y for every x, and the sum of the new x.
struct Toy {
    float theta, variance;
    double* sum;

    INLINE void operator()(const Source& from, const Draw& d, const float* c, const Arrays<float>& at) const {
        const float *x = at.in[0], *u = at.in[1], *of = at.in[2];
        float xi[BLOCK<float>], eta[BLOCK<float>], partial[LANES] = {};
        float *x_out = at.out[0], *u_out = at.out[1];
        draw(from, d, d.slot, xi);
        draw(from, d, d.slot + 1, eta);
        for (int i = 0; i < BLOCK<float>; i += LANES) {
            SAME_PLACES
            for (int l = 0; l < LANES; ++l) {
                int e = i + l;
                float f = (theta - x[e]) / variance + (of[e] - x[e]);
                float a = x[e] + c[0] * u[e] + (c[5] * xi[e] + c[6] * eta[e]) + c[1] * f;
                float b = c[2] * u[e] + (c[7] * xi[e] + c[8] * eta[e]) + c[3] * f;
                x_out[e] = a;
                u_out[e] = b;
                partial[l] += a;
            }
        }
        for (float part : partial) *sum += part;
    }
};

}  // namespace baseline

// theta and m are at[0] and at[1]; c as for sdeflow_kinetic, and free, push, w, kick of theta's block in t.
EXPORT void toy_steps(
    float* x, float* u, const float* y, double* at, i64 data, int particles, double variance, const float* c,
    const double* t, u64 key, u64 first, int steps
) {
    const i64 size = data * particles, whole = size / BLOCK<float>;
    double sum = 0;
    for (i64 i = 0; i < size; ++i) sum += x[i];
    for (int n = 0; n < steps; ++n) {
        double flown = at[0] + t[0] * at[1], f = (sum / particles - data * flown) / variance;
        at[0] = flown + t[1] * f;
        at[1] = t[2] * at[1] + t[3] * f;
        double rest = sum = 0;  // what the room of the last block adds up to is nothing
        baseline::Toy toy{float(at[0]), float(variance), &sum}, last{toy.theta, toy.variance, &rest};
        Task<float> task{{&key, 1, size, 0, first + n, 0}, {{x, u}, {x, u, y}}, c, 0};
        baseline::blocks(task, toy, 0, whole);
        baseline::blocks(task, last, whole, blocks_of<float>(task.draw));
        for (i64 i = whole * BLOCK<float>; i < size; ++i) sum += x[i];
    }
}
