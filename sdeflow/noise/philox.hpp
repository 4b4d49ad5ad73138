// Normals and the updates that consume them, for the instruction set that the compiler is set to.
//
// sdeflow/noise/philox.cpp includes this once for each set, in a namespace ISA of its own. Whatever is called here
// from outside is inline: code for one set must not be shared with another.

namespace ISA {

// Philox -----------------------------------------------------------------------------------------------

// 64-bit numbers side by side, WIDE_BYTES of them, and the products of their low words.
#if WIDE_BYTES == 64
#define PRODUCT(x, m) Wide(_mm512_mul_epu32(__m512i(x), _mm512_set1_epi64(m)))
#elif WIDE_BYTES == 32
#define PRODUCT(x, m) Wide(_mm256_mul_epu32(__m256i(x), _mm256_set1_epi64x(m)))
#elif WIDE_BYTES == 16
#define PRODUCT(x, m) Wide(_mm_mul_epu32(__m128i(x), _mm_set1_epi64x(m)))
#else
#define PRODUCT(x, m) Wide(((x) & 0xffffffffu) * u64(m))
#endif
#if WIDE_BYTES == 8
using Wide = u64;
#else
typedef u64 Wide __attribute__((vector_size(WIDE_BYTES)));
#endif
constexpr int WIDE = sizeof(Wide) / sizeof(u64);

// Where a replica's normals come from: their block, and the keys of the ten rounds.
struct Source {
    i64 replica = -1, block = 0;
    Wide key[10][2] = {};

    void open(u64 of) {
        for (auto& round : key) {
            round[0] = Wide{} + u32(of);
            round[1] = Wide{} + (of >> 32);
            of = u64(u32(of >> 32) + 0xBB67AE85u) << 32 | u32(u32(of) + 0x9E3779B9u);
        }
    }
};

// The words of one block: word i of lane l in w[i][l]. `even` and `odd` hold every other lane in their low
// words; what is in the high ones is never looked at.
INLINE void philox(const Source& from, u64 step, u32 slot, u32 w[4][LANES]) {
    for (int first = 0; first < LANES; first += 2 * WIDE) {
        u64 lanes[WIDE];
        for (int i = 0; i < WIDE; ++i) lanes[i] = u32(from.block) * LANES + first + 2 * i;
        Wide even[4], odd[4];
        std::memcpy(&even[0], lanes, sizeof(Wide));
        odd[0] = even[0] + 1;
        even[1] = odd[1] = Wide{} + u32(step);
        even[2] = odd[2] = Wide{} + (step >> 32);
        even[3] = odd[3] = Wide{} + slot;
#if defined(__GNUC__)
#pragma GCC unroll 10
#endif
        for (const Wide(&key)[2] : from.key) {
            for (Wide* x : {even, odd}) {
                Wide a = PRODUCT(x[0], 0xD2511F53u), b = PRODUCT(x[2], 0xCD9E8D57u);
                x[0] = (b >> 32) ^ x[1] ^ key[0];
                x[2] = (a >> 32) ^ x[3] ^ key[1];
                x[1] = b;
                x[3] = a;
            }
        }
        for (int i = 0; i < 4; ++i) {
            Wide both = (even[i] & 0xffffffffu) | (odd[i] << 32);
            std::memcpy(w[i] + first, &both, sizeof(Wide));
        }
    }
}

// Normals ----------------------------------------------------------------------------------------------

// (log m) / s over t = s^2, s = (m-1)/(m+1): the sum of 2 t^K / (2K+1), by Horner.
template <class T, int K = 0>
INLINE T log_series(T t) {
    constexpr T term = T(2.0 / (2 * K + 1));
    if constexpr (K == Real<T>::log_terms)
        return term;
    else
        return std::fma(t, log_series<T, K + 1>(t), term);
}

// cos z, or (sin z) / z for ODD = 1, over s = z^2: the sum of (-s)^K / (2K + ODD)!, by Horner.
template <class T, int ODD, int K = 0>
INLINE T turn_series(T s) {
    constexpr T term = T((K % 2 ? -1 : 1) * inverse_factorial(2 * K + ODD));
    if constexpr (K == Real<T>::turn_terms)
        return term;
    else
        return std::fma(s, turn_series<T, ODD, K + 1>(s), term);
}

// sqrt(-2 log u) of u in (0, 1], given u 2^bits.
template <class T>
INLINE T radius(T u) {
    using R = Real<T>;
    using B = typename R::Bits;
    B shifted = bits<B>(u) + (R::one - R::root_half);
    constexpr B fraction = (B(1) << R::fraction) - 1;
    constexpr B bias = (B(1) << R::fraction) + (R::one >> R::fraction) + R::bits;
    T exponent = bits<T>(B((shifted >> R::fraction) | R::integer)) - T(bias);
    T m = bits<T>(B((shifted & fraction) + R::root_half));  // in [sqrt(1/2), sqrt(2))
    T s = (m - 1) / (m + 1);
    T log_u = std::fma(exponent, T(0.69314718055994530942), s * log_series<T>(s * s));
    return std::sqrt(T(-2) * log_u);
}

// r cos and r sin of an angle that is z, |z| <= pi/4, turned about by the two highest bits of `turn`: the
// first swaps cosine and sine, the second is the cosine's sign.
template <class T>
INLINE void polar(T r, u32 turn, T z, T& x, T& y) {
    using B = typename Real<T>::Bits;
    constexpr int sign = 8 * sizeof(B) - 1;
    T s = z * z;
    T sine = z * turn_series<T, 1>(s), cosine = turn_series<T, 0>(s);
    cosine = bits<T>(B(bits<B>(cosine) ^ B(turn >> 30 & 1) << sign));
    x = r * (i32(turn) < 0 ? sine : cosine);
    y = r * (i32(turn) < 0 ? cosine : sine);
}

INLINE void box_muller(const u32* a, const u32* b, float* x, float* y) {
    for (int l = 0; l < LANES; ++l) {
        float u = float(i32(a[l] >> 1)) + 0.5f;
        polar(radius(u), b[l], float(i32(b[l] << 2)) * float(EIGHTH), x[l], y[l]);
    }
}

INLINE void normals(const u32 w[4][LANES], float* x) {
    box_muller(w[0], w[1], x, x + LANES);
    box_muller(w[2], w[3], x + 2 * LANES, x + 3 * LANES);
}

INLINE void normals(const u32 w[4][LANES], double* x) {
    for (int l = 0; l < LANES; ++l) {
        u32 a = w[0][l], b = w[1][l], c = w[2][l], d = w[3][l];
        double u = double(i32(a >> 5)) * 0x1p26 + double(i32(b >> 6)) + 1;
        double z = (double(i32(c << 2)) + double(i32(d >> 1)) * 0x1p-29) * EIGHTH;
        polar(radius(u), c, z, x[l], x[l + LANES]);
    }
}

// The normals of one block.
template <class T>
INLINE void draw(const Source& from, const Draw& d, u32 slot, T* xi) {
    u32 w[4][LANES];
    philox(from, d.step, slot, w);
    normals(w, xi);
}

// Updates of one block ---------------------------------------------------------------------------------

template <class Numbers, class T>
INLINE Numbers numbers_of(const T* number) {
    Numbers found;
    std::memcpy(&found, number, sizeof found);
    return found;
}

// out = xi
struct Fill {
    template <class T>
    INLINE void operator()(const Source& from, const Draw& d, const T*, const Arrays<T>& at) const {
        draw(from, d, d.slot, at.out[0]);
    }
};

// out = a x + s t xi + c f, by the numbers a, c, s, t
struct Linear {
    template <class T>
    INLINE void operator()(const Source& from, const Draw& d, const T* number, const Arrays<T>& at) const {
        const auto [a, c, s, t] = numbers_of<LinearNumbers<T>>(number);
        const T *x = at.in[0], *f = at.in[1];
        T xi[BLOCK<T>], *out = at.out[0];
        draw(from, d, d.slot, xi);
        SAME_PLACES
        for (int l = 0; l < BLOCK<T>; ++l) out[l] = a * x[l] + s * (t * xi[l]) + c * f[l];
    }
};

// q' = q + free p + s (q1 xi1 + q2 xi2) + push f,    p' = w p + s (p1 xi1 + p2 xi2) + kick f
struct Kinetic {
    template <class T>
    INLINE void operator()(const Source& from, const Draw& d, const T* number, const Arrays<T>& at) const {
        const auto [free, push, w, kick, s, q1, q2, p1, p2] = numbers_of<KineticNumbers<T>>(number);
        const T *q = at.in[0], *p = at.in[1], *f = at.in[2];
        T x[BLOCK<T>], y[BLOCK<T>], *q_out = at.out[0], *p_out = at.out[1];
        draw(from, d, d.slot, x);
        draw(from, d, d.slot + 1, y);
        SAME_PLACES
        for (int l = 0; l < BLOCK<T>; ++l) {
            T a = q[l] + free * p[l] + s * (q1 * x[l] + q2 * y[l]) + push * f[l];
            T b = w * p[l] + s * (p1 * x[l] + p2 * y[l]) + kick * f[l];
            q_out[l] = a;
            p_out[l] = b;
        }
    }
};

// All blocks -------------------------------------------------------------------------------------------

// An update on the blocks from `begin` up to `end`; one that is not whole gets room for a whole one.
template <class T, class Update>
INLINE void blocks(const Task<T>& task, const Update& update, i64 begin, i64 end) {
    static const T none[BLOCK<T>] = {};
    const i64 size = task.draw.size, a_replica = blocks_of<T>(task.draw), lead = task.draw.first % BLOCK<T>;
    Source from;
    for (i64 i = begin; i < end; ++i) {
        const i64 replica = i / a_replica, number = i % a_replica, first = number * BLOCK<T> - lead;
        if (from.replica != replica) from.open(task.draw.keys[from.replica = replica]);
        from.block = task.draw.first / BLOCK<T> + number;
        const i64 skip = first < 0 ? -first : 0, end_of = first + BLOCK<T>;
        const i64 count = (end_of < size ? end_of : size) - first - skip, place = replica * size + first + skip;
        const T* numbers = task.numbers + replica * task.stride;
        Arrays<T> at = task.at;
        for (T*& x : at.out) x = x ? x + place : x;
        for (const T*& x : at.in) x = x ? x + place : none;
        if (count == BLOCK<T>) {
            update(from, task.draw, numbers, at);
            continue;
        }
        T in[INPUTS][BLOCK<T>] = {}, out[OUTPUTS][BLOCK<T>];
        Arrays<T> room;
        for (int k = 0; k < INPUTS; ++k) {
            room.in[k] = in[k];
            std::memcpy(in[k] + skip, at.in[k], sizeof(T) * count);
        }
        for (int k = 0; k < OUTPUTS; ++k) room.out[k] = out[k];
        update(from, task.draw, numbers, room);
        for (int k = 0; k < OUTPUTS; ++k)
            if (at.out[k]) std::memcpy(at.out[k], out[k] + skip, sizeof(T) * count);
    }
}

#define PART(NAME, T, UPDATE) \
    void NAME(const Task<T>& task, i64 from, i64 to) { blocks(task, UPDATE(), from, to); }
PART(fill_f32, float, Fill)
PART(fill_f64, double, Fill)
PART(linear_f32, float, Linear)
PART(linear_f64, double, Linear)
PART(kinetic_f32, float, Kinetic)
PART(kinetic_f64, double, Kinetic)
#undef PART

}  // namespace ISA

#undef PRODUCT
#undef WIDE_BYTES
#undef ISA
