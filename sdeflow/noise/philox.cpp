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
// lanes is written for the compiler to vectorise (sdeflow/noise/philox.hpp). Only correctly rounded operations are
// used, fused multiplication and addition among them, so that, built with -ffp-contract=off, each instruction
// set gives the same bits.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are taken by pairs, the low one first"
#endif

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
#if defined(__GNUC__) && !defined(__clang__)
#define SAME_PLACES _Pragma("GCC ivdep")  // an output that is an input is so place by place
#else
#define SAME_PLACES
#endif

using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;

namespace {

constexpr int LANES = 16, OUTPUTS = 2, INPUTS = 3;
constexpr i64 LEAST_BLOCKS = 1024;  // a thread is worth starting for
constexpr double EIGHTH = 0.785398163397448309616 / 2147483648.0;  // of a turn, pi/4, as 31 bits

template <class T>
struct Real;

template <>
struct Real<float> {
    using Bits = u32;
    static constexpr int normals = 4, bits = 31, fraction = 23, log_terms = 4, turn_terms = 4;
    static constexpr Bits one = 0x3f800000u, root_half = 0x3f3504f3u, integer = 0x4b000000u;
};

template <>
struct Real<double> {
    using Bits = u64;
    static constexpr int normals = 2, bits = 53, fraction = 52, log_terms = 10, turn_terms = 8;
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

constexpr double inverse_factorial(int n) { return n < 2 ? 1.0 : inverse_factorial(n - 1) / n; }

// Normals of elements first, first + 1, ..., first + size - 1 of each replica.
struct Draw {
    const u64* keys;  // [replicas]
    i64 replicas, size, first;
    u64 step;
    u32 slot;
};

// How many blocks the elements of a replica lie in; the first and the last may not be whole.
template <class T>
constexpr i64 blocks_of(const Draw& draw) {
    return (draw.first % BLOCK<T> + draw.size + BLOCK<T> - 1) / BLOCK<T>;
}

// What an update writes and reads; null where there is nothing.
template <class T>
struct Arrays {
    T* out[OUTPUTS];
    const T* in[INPUTS];
};

// The numbers of an update, in the order of kernel.py, which fills them.
template <class T>
struct LinearNumbers {
    T a, c, s, t;
};

template <class T>
struct KineticNumbers {
    T free, push, w, kick, s, q1, q2, p1, p2;
};

// An update of all replicas, whose numbers lie `stride` apart: 0 where they share them.
template <class T>
struct Task {
    Draw draw;
    Arrays<T> at;
    const T* numbers;
    i64 stride;
};

}  // namespace

// Instruction sets -------------------------------------------------------------------------------------

#define ISA baseline
#if defined(__AVX512F__)
#define WIDE_BYTES 64
#elif defined(__AVX2__)
#define WIDE_BYTES 32
#elif defined(__SSE2__) && defined(__GNUC__)
#define WIDE_BYTES 16
#else
#define WIDE_BYTES 8
#endif
#include "philox.hpp"

#if !defined(SDEFLOW_ONE_SET) && defined(__x86_64__) && defined(__GNUC__) && !defined(_WIN32)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define WIDE_BYTES 32
#include "philox.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define ISA avx512
#define WIDE_BYTES 64
#include "philox.hpp"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

#define BEST(NAME) (has_avx512() ? avx512::NAME : has_avx2() ? avx2::NAME : baseline::NAME)
#else
#define BEST(NAME) baseline::NAME

namespace {

bool has_avx2() { return false; }

}  // namespace
#endif

#if defined(__FMA__) || defined(__aarch64__) || defined(_M_ARM64)
constexpr bool FAST = true;
#else
constexpr bool FAST = false;
#endif

// Interface --------------------------------------------------------------------------------------------

namespace {

// All blocks, by `threads` threads that call `part`.
template <class T>
void shared(const Task<T>& task, i64 threads, void (*part)(const Task<T>&, i64, i64)) {
    const i64 all = task.draw.replicas * blocks_of<T>(task.draw);
    threads = std::max<i64>(1, std::min<i64>(threads, all / LEAST_BLOCKS));
    std::vector<std::thread> others;
    i64 begun = 0;
    for (i64 t = 1; t < threads; ++t) {
        i64 end = all * t / threads;
        try {
            others.emplace_back(part, std::cref(task), begun, end);
        } catch (...) {
            break;  // no more threads to be had: the rest is done here
        }
        begun = end;
    }
    part(task, begun, all);
    for (auto& other : others) other.join();
}

}  // namespace

#define DRAW const u64 *keys, i64 replicas, i64 size, i64 first, u64 step, u32 slot, i32 threads
#define THE_DRAW {keys, replicas, size, first, step, slot}

#define INTERFACE(T, SUFFIX)                                                                                 \
    EXPORT void sdeflow_normals_from_##SUFFIX(T* out, i64 steps, i64 slots, i64 apart, DRAW) {                    \
        Task<T> task{THE_DRAW, {{out}, {}}, nullptr, 0};                                                     \
        for (i64 k = 0; k < steps * slots; ++k, task.at.out[0] += replicas * size) {                         \
            task.draw.step = step + k / slots;                                                               \
            task.draw.slot = slot + u32(k % slots * apart);                                                  \
            shared<T>(task, threads, BEST(fill_##SUFFIX));                                                   \
        }                                                                                                    \
    }                                                                                                        \
    EXPORT void sdeflow_linear_from_##SUFFIX(                                                                     \
        T* out, const T* x, const T* f, const T* numbers, i64 stride, DRAW                                   \
    ) {                                                                                                      \
        shared<T>({THE_DRAW, {{out}, {x, f}}, numbers, stride}, threads, BEST(linear_##SUFFIX));             \
    }                                                                                                        \
    EXPORT void sdeflow_kinetic_from_##SUFFIX(                                                                    \
        T* q_out, T* p_out, const T* q, const T* p, const T* f, const T* numbers, i64 stride, DRAW           \
    ) {                                                                                                      \
        Task<T> task{THE_DRAW, {{q_out, p_out}, {q, p, f}}, numbers, stride};                                \
        shared<T>(task, threads, BEST(kinetic_##SUFFIX));                                                    \
    }

INTERFACE(float, f32)
INTERFACE(double, f64)

// Whether this processor multiplies and adds in one instruction, which a library does in many.
EXPORT i32 sdeflow_fast() { return FAST || has_avx2(); }

// The library is opened by ctypes; as a Python module, which the build takes it for, it has nothing.
EXPORT void* PyInit__philox() { return nullptr; }
