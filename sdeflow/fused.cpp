// Counter-based normals, and the updates that consume them, in one pass over memory.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) by Box-Muller. The normal number e of a replica depends on
//
//     key       64 bits of the replica and the channel
//     counter   (group of e, low word of step, high word of step, slot)
//
// and on nothing else: not on threads, sizes or instruction sets. The slot tells the normals of a step apart.
// A call of Philox gives four words, 4 normals in float or 2 in double; LANES calls side by side fill a
// block, in which normal i of lane l is element i * LANES + l. So e = block * BLOCK + i * LANES + l, and its
// group is block * LANES + l.
//
// Plain C ABI on raw pointers; arrays [replicas, size] are contiguous, outputs may be inputs. Every loop over
// lanes is written for the compiler to vectorise. Only correctly rounded operations are used, and built with
// -ffp-contract=off each instruction set gives the same bits.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif
#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

// A share of the blocks, compiled for several instruction sets of which the best is taken.
#if defined(SDEFLOW_ONE_CLONE) || !defined(__x86_64__) || !defined(__GLIBC__) || defined(__clang__) || \
    __GNUC__ < 12
#define PART(NAME, T, JOB) \
    void NAME(const JOB& job, i64 from, i64 to) { blocks<T, u32>(job, from, to); }
#else
#define PART(NAME, T, JOB)                                                                                   \
    __attribute__((target("arch=x86-64-v4"))) void NAME##_wide(const JOB& job, i64 from, i64 to) {           \
        blocks<T, u64>(job, from, to);                                                                       \
    }                                                                                                        \
    __attribute__((target_clones("arch=x86-64-v3", "default"))) void NAME##_narrow(                          \
        const JOB& job, i64 from, i64 to                                                                     \
    ) {                                                                                                      \
        blocks<T, u32>(job, from, to);                                                                       \
    }                                                                                                        \
    void NAME(const JOB& job, i64 from, i64 to) {                                                            \
        __builtin_cpu_supports("x86-64-v4") ? NAME##_wide(job, from, to) : NAME##_narrow(job, from, to);     \
    }
#endif

using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;

namespace {

constexpr int LANES = 16;
constexpr i64 LEAST_BLOCKS = 1024;  // a thread is worth starting for

template <class T>
struct Real;

template <>
struct Real<float> {
    using Bits = u32;
    static constexpr int normals = 4, fraction = 23, log_terms = 5, turn_terms = 5;
    static constexpr Bits one = 0x3f800000u, root_half = 0x3f3504f3u, integer = 0x4b000000u;
};

template <>
struct Real<double> {
    using Bits = u64;
    static constexpr int normals = 2, fraction = 52, log_terms = 12, turn_terms = 9;
    static constexpr Bits one = 0x3ff0000000000000u, root_half = 0x3fe6a09e667f3bcdu;
    static constexpr Bits integer = 0x4330000000000000u;
};

template <class T>
constexpr int BLOCK = LANES * Real<T>::normals;

template <class To, class From>
INLINE To bits(From x) {
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

// Philox -----------------------------------------------------------------------------------------------

struct Words {
    u32 w[4][LANES];
};

// Ten rounds on lanes of 32 or of 64 bits: the latter save packing where 64-bit products are at hand.
template <class Lane>
INLINE void philox(Words& x, u32 k0, u32 k1) {
    Lane w[4][LANES];
    for (int i = 0; i < 4; ++i)
        for (int l = 0; l < LANES; ++l) w[i][l] = x.w[i][l];
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 10
#endif
    for (int round = 0; round < 10; ++round) {
        for (int l = 0; l < LANES; ++l) {
            u64 a = u64(0xD2511F53u) * u32(w[0][l]), b = u64(0xCD9E8D57u) * u32(w[2][l]);
            Lane first = Lane(b >> 32) ^ w[1][l] ^ k0, third = Lane(a >> 32) ^ w[3][l] ^ k1;
            w[0][l] = first;
            w[1][l] = Lane(b);
            w[2][l] = third;
            w[3][l] = Lane(a);
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; ++i)
        for (int l = 0; l < LANES; ++l) x.w[i][l] = u32(w[i][l]);
}

// Normals ----------------------------------------------------------------------------------------------

// (log m) / s - 2 over t = s^2, s = (m-1)/(m+1): the sum of 2 t^K / (2K+1) from K = 1 on.
template <class T, int K = 1>
INLINE T log_series(T t) {
    if constexpr (K > Real<T>::log_terms)
        return T(0);
    else
        return t * (T(2.0 / (2 * K + 1)) + log_series<T, K + 1>(t));
}

constexpr double inverse_factorial(int n) { return n < 2 ? 1.0 : inverse_factorial(n - 1) / n; }

// The sum of (-s)^K / (2K + ODD)! over s = z^2 from K = 1 on: cos z - 1, or (sin z) / z - 1 for ODD = 1.
template <class T, int ODD, int K = 1>
INLINE T turn_series(T s) {
    if constexpr (K > Real<T>::turn_terms)
        return T(0);
    else
        return s * (T((K % 2 ? -1 : 1) * inverse_factorial(2 * K + ODD)) + turn_series<T, ODD, K + 1>(s));
}

// sqrt(-2 log u) of u in (0, 1].
template <class T>
INLINE T radius(T u) {
    using R = Real<T>;
    using B = typename R::Bits;
    B shifted = bits<B>(u) + (R::one - R::root_half);
    constexpr B fraction = (B(1) << R::fraction) - 1;
    constexpr B bias = (B(1) << R::fraction) + (R::one >> R::fraction);
    T exponent = bits<T>(B((shifted >> R::fraction) | R::integer)) - T(bias);
    T m = bits<T>(B((shifted & fraction) + R::root_half));  // in [sqrt(1/2), sqrt(2))
    T s = (m - 1) / (m + 1);
    T log_m = s * log_series<T>(s * s) + 2 * s;
    return std::sqrt(T(-2) * (exponent * T(0.69314718055994530942) + log_m));
}

// r cos and r sin of the angle quarter * pi/2 + z, |z| <= pi/4.
template <class T>
INLINE void polar(T r, u32 quarter, T z, T& x, T& y) {
    using B = typename Real<T>::Bits;
    constexpr int sign = 8 * sizeof(B) - 2;
    T s = z * z;
    B sine = bits<B>(z + z * turn_series<T, 1>(s)), cosine = bits<B>(1 + turn_series<T, 0>(s));
    B q = quarter, swap = B(0) - (q & 1);
    x = r * bits<T>(B(((cosine & ~swap) | (sine & swap)) ^ (((q + 1) & 2) << sign)));
    y = r * bits<T>(B(((sine & ~swap) | (cosine & swap)) ^ ((q & 2) << sign)));
}

constexpr double TURN = 6.283185307179586476925 / 4294967296.0;

INLINE void box_muller(const u32* a, const u32* b, float* x, float* y) {
    for (int l = 0; l < LANES; ++l) {
        float u = (float(i32(a[l] >> 16)) * 65536.0f + (float(i32(a[l] & 0xffffu)) + 0.5f)) * 0x1p-32f;
        u32 quarter = (b[l] + 0x20000000u) >> 30;
        polar(radius(u), quarter, float(i32(b[l] - (quarter << 30))) * float(TURN), x[l], y[l]);
    }
}

INLINE void normals(const Words& w, float* x) {
    box_muller(w.w[0], w.w[1], x, x + LANES);
    box_muller(w.w[2], w.w[3], x + 2 * LANES, x + 3 * LANES);
}

INLINE void normals(const Words& w, double* x) {
    for (int l = 0; l < LANES; ++l) {
        u32 a = w.w[0][l], b = w.w[1][l], c = w.w[2][l], d = w.w[3][l];
        double u = (double(i32(a >> 5)) * 0x1p26 + double(i32(b >> 6)) + 1) * 0x1p-53;
        u32 quarter = (c + 0x20000000u) >> 30;
        double z = (double(i32(c - (quarter << 30))) + double(i32(d >> 1)) * 0x1p-31) * TURN;
        polar(radius(u), quarter, z, x[l], x[l + LANES]);
    }
}

struct Draw {
    const u64* keys;  // [replicas]
    i64 replicas, size;
    u64 step;
    u32 slot;
};

template <class Lane, class T>
INLINE void draw(const Draw& d, u64 key, i64 block, u32 slot, T* x) {
    Words w;
    for (int l = 0; l < LANES; ++l) {
        w.w[0][l] = u32(block) * LANES + l;
        w.w[1][l] = u32(d.step);
        w.w[2][l] = u32(d.step >> 32);
        w.w[3][l] = slot;
    }
    philox<Lane>(w, u32(key), u32(key >> 32));
    normals(w, x);
}

// Updates ----------------------------------------------------------------------------------------------

template <class T>
INLINE void copy(T* to, const T* from, i64 count) {
    if (count == BLOCK<T>)
        std::memcpy(to, from, sizeof(T) * BLOCK<T>);
    else
        std::memcpy(to, from, sizeof(T) * count);
}

template <class T>
struct Normals {
    Draw d;
    T* out;

    template <class Lane>
    INLINE void block(u64 key, i64 block, i64 at, i64 count) const {
        T x[BLOCK<T>];
        draw<Lane>(d, key, block, d.slot, x);
        copy(out + at, x, count);
    }
};

// out = a x + s t xi + c f
template <class T>
struct Linear {
    Draw d;
    T* out;
    const T *x, *f;
    T a, c, s, t;

    template <class Lane>
    INLINE void block(u64 key, i64 block, i64 at, i64 count) const {
        T v[BLOCK<T>] = {}, g[BLOCK<T>] = {}, xi[BLOCK<T>];
        copy(v, x + at, count);
        draw<Lane>(d, key, block, d.slot, xi);
        for (int l = 0; l < BLOCK<T>; ++l) v[l] = a * v[l] + s * (t * xi[l]);
        if (f) {
            copy(g, f + at, count);
            for (int l = 0; l < BLOCK<T>; ++l) v[l] += c * g[l];
        }
        copy(out + at, v, count);
    }
};

// q' = q + free p + s (q1 xi1 + q2 xi2) + push f,    p' = w p + s (p1 xi1 + p2 xi2) + kick f
template <class T>
struct Kinetic {
    Draw d;
    T *q_out, *p_out;
    const T *q, *p, *f;
    T free, push, w, kick, s, q1, q2, p1, p2;

    template <class Lane>
    INLINE void block(u64 key, i64 block, i64 at, i64 count) const {
        T a[BLOCK<T>] = {}, b[BLOCK<T>] = {}, g[BLOCK<T>] = {}, x[BLOCK<T>], y[BLOCK<T>];
        copy(a, q + at, count);
        copy(b, p + at, count);
        draw<Lane>(d, key, block, d.slot, x);
        draw<Lane>(d, key, block, d.slot + 1, y);
        for (int l = 0; l < BLOCK<T>; ++l) {
            a[l] = a[l] + free * b[l] + s * (q1 * x[l] + q2 * y[l]);
            b[l] = w * b[l] + s * (p1 * x[l] + p2 * y[l]);
        }
        if (f) {
            copy(g, f + at, count);
            for (int l = 0; l < BLOCK<T>; ++l) {
                a[l] += push * g[l];
                b[l] += kick * g[l];
            }
        }
        copy(q_out + at, a, count);
        copy(p_out + at, b, count);
    }
};

template <class T, class Lane, class Job>
INLINE void blocks(const Job& job, i64 from, i64 to) {
    const i64 size = job.d.size, a_replica = (size + BLOCK<T> - 1) / BLOCK<T>;
    for (i64 i = from; i < to; ++i) {
        i64 replica = i / a_replica, block = i % a_replica, first = block * BLOCK<T>;
        const i64 count = std::min<i64>(BLOCK<T>, size - first);
        job.template block<Lane>(job.d.keys[replica], block, replica * size + first, count);
    }
}

// All blocks, by `threads` threads that call `part`.
template <class T, class Job>
void shared(const Job& job, i64 threads, void (*part)(const Job&, i64, i64)) {
    const i64 all = job.d.replicas * ((job.d.size + BLOCK<T> - 1) / BLOCK<T>);
    threads = std::max<i64>(1, std::min<i64>(threads, all / LEAST_BLOCKS));
    std::vector<std::thread> others;
    i64 begun = 0;
    for (i64 t = 1; t < threads; ++t) {
        i64 end = all * t / threads;
        try {
            others.emplace_back(part, std::cref(job), begun, end);
        } catch (...) {
            break;  // no more threads to be had: the rest is done here
        }
        begun = end;
    }
    part(job, begun, all);
    for (auto& other : others) other.join();
}

}  // namespace

#define DRAW const u64 *keys, i64 replicas, i64 size, u64 step, u32 slot, i32 threads
#define THE_DRAW {keys, replicas, size, step, slot}

#define INTERFACE(T, SUFFIX)                                                                                 \
    namespace {                                                                                              \
    PART(normals_##SUFFIX, T, Normals<T>)                                                                    \
    PART(linear_##SUFFIX, T, Linear<T>)                                                                      \
    PART(kinetic_##SUFFIX, T, Kinetic<T>)                                                                    \
    }                                                                                                        \
    EXPORT void sdeflow_normals_##SUFFIX(T* out, DRAW) {                                                     \
        shared<T>(Normals<T>{THE_DRAW, out}, threads, normals_##SUFFIX);                                     \
    }                                                                                                        \
    EXPORT void sdeflow_linear_##SUFFIX(                                                                     \
        T* out, const T* x, const T* f, double a, double c, double s, double t, DRAW                         \
    ) {                                                                                                      \
        Linear<T> job{THE_DRAW, out, x, f, T(a), T(c), T(s), T(t)};                                          \
        shared<T>(job, threads, linear_##SUFFIX);                                                            \
    }                                                                                                        \
    EXPORT void sdeflow_kinetic_##SUFFIX(                                                                    \
        T* q_out, T* p_out, const T* q, const T* p, const T* f, double free, double push, double w, double kick, \
        double s, double q1, double q2, double p1, double p2, DRAW                                           \
    ) {                                                                                                      \
        Kinetic<T> job{THE_DRAW, q_out, p_out, q,    p,     f,     T(free), T(push),                         \
                       T(w),     T(kick), T(s), T(q1), T(q2), T(p1), T(p2)};                                 \
        shared<T>(job, threads, kinetic_##SUFFIX);                                                           \
    }

INTERFACE(float, f32)
INTERFACE(double, f64)

// The library is opened by ctypes; as a Python module, which the build takes it for, it has nothing.
EXPORT void* PyInit__fused() { return nullptr; }
