// Vectors of float lanes as wide as the target's registers, and the few functions the kernels need on them.
//
// Everything rests on the vector extensions that GCC and Clang share, so one source serves every processor; intrinsics
// appear only where a single instruction replaces several. No function here may be compiled with -ffast-math: exp2
// rounds by adding and subtracting a large number, which that flag deletes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define HYMATE_INLINE inline __attribute__((always_inline))

// Loops over vectors in registers must vanish, whatever the compiler thinks of their size.
#if defined(__clang__)
#define HYMATE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HYMATE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace hymate {

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HYMATE_AVX512 1
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

constexpr int kLanes = kBytes / 4;

// States worked on together, with two vectors each in registers; and steps worked on together in long formulas.
#if defined(HYMATE_AVX512) || defined(__aarch64__)
constexpr int kForwardGroup = 8;
constexpr int kBackwardGroup = 4;
constexpr int kPack = 4;
#else
constexpr int kForwardGroup = 4;
constexpr int kBackwardGroup = 4;
constexpr int kPack = 2;
#endif

template <int N>
struct Constant {
    static constexpr int value = N;
};

typedef float Vector __attribute__((vector_size(kBytes)));
typedef int32_t Integers __attribute__((vector_size(kBytes)));
typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2)));
typedef float UnalignedVector __attribute__((vector_size(kBytes), aligned(4)));
typedef uint16_t UnalignedShorts __attribute__((vector_size(kBytes / 2), aligned(2)));

HYMATE_INLINE Vector broadcast(float value) { return Vector{} + value; }
HYMATE_INLINE Integers bits_of(Vector value) { return (Integers)value; }
HYMATE_INLINE Vector float_of(Integers bits) { return (Vector)bits; }
HYMATE_INLINE Vector select(Integers mask, Vector yes, Vector no) {
    return float_of((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

#if defined(HYMATE_AVX512)
HYMATE_INLINE Vector minimum(Vector a, Vector b) { return (Vector)_mm512_min_ps((__m512)a, (__m512)b); }
HYMATE_INLINE Vector maximum(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
HYMATE_INLINE Vector minimum(Vector a, Vector b) { return (Vector)_mm256_min_ps((__m256)a, (__m256)b); }
HYMATE_INLINE Vector maximum(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
HYMATE_INLINE Vector minimum(Vector a, Vector b) { return (Vector)_mm_min_ps((__m128)a, (__m128)b); }
HYMATE_INLINE Vector maximum(Vector a, Vector b) { return (Vector)_mm_max_ps((__m128)a, (__m128)b); }
#else
HYMATE_INLINE Vector minimum(Vector a, Vector b) { return select(a < b, a, b); }
HYMATE_INLINE Vector maximum(Vector a, Vector b) { return select(a > b, a, b); }
#endif

// ---------------------------------------------------------------------------------------------- memory

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

HYMATE_INLINE Vector load(const float* p) { return *(const UnalignedVector*)p; }
HYMATE_INLINE void store(float* p, Vector value) { *(UnalignedVector*)p = value; }

HYMATE_INLINE Vector load(const Bfloat16* p) {
    return float_of(__builtin_convertvector(*(const UnalignedShorts*)p, Integers) << 16);
}

HYMATE_INLINE void store(Bfloat16* p, Vector value) {
    const Integers bits = bits_of(value);
    const Integers rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    const Integers result = (value == value) ? rounded : Integers{} + 0x7fc0;
    *(UnalignedShorts*)p = __builtin_convertvector(result, Shorts);
}

#if defined(HYMATE_AVX512)
HYMATE_INLINE Vector load(const Float16* p) {
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
HYMATE_INLINE void store(Float16* p, Vector value) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__) && defined(__AVX2__)
HYMATE_INLINE Vector load(const Float16* p) { return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
HYMATE_INLINE void store(Float16* p, Vector value) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
}
#else
// In integers, and without a subnormal float on the way: the kernels run with those flushed to zero.
HYMATE_INLINE Vector load(const Float16* p) {
    const Integers half = __builtin_convertvector(*(const UnalignedShorts*)p, Integers);
    const Integers magnitude = half & 0x7fff;
    const Integers normal = (magnitude << 13) + (112 << 23);
    const Integers infinite = normal + (112 << 23);
    const Integers subnormal = bits_of(__builtin_convertvector(magnitude, Vector) * 0x1p-24f);
    const Integers finite = (magnitude < 0x400) ? subnormal : normal;
    return float_of(((magnitude >= 0x7c00) ? infinite : finite) | ((half & 0x8000) << 16));
}
HYMATE_INLINE void store(Float16* p, Vector value) {
    const Integers bits = bits_of(value);
    const Integers magnitude = bits & 0x7fffffff;
    const Integers rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    const Integers normal = (rounded - (112 << 23)) >> 13;
    const Integers subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;  // 0.5 has a last place of 2^-24
    Integers result = (magnitude < 0x38800000) ? subnormal : normal;
    result = (rounded >= 0x47800000) ? Integers{} + 0x7c00 : result;
    result = (magnitude > 0x7f800000) ? Integers{} + 0x7e00 : result;
    *(UnalignedShorts*)p = __builtin_convertvector(result | ((bits >> 16) & 0x8000), Shorts);
}
#endif

// The first `count` lanes; the others read as zero and are not written. A Constant says that all lanes are there.
template <typename T>
HYMATE_INLINE Vector load(const T* p, Constant<kLanes>) {
    return load(p);
}
template <typename T>
HYMATE_INLINE void store(T* p, Vector value, Constant<kLanes>) {
    store(p, value);
}

#if defined(HYMATE_AVX512)
HYMATE_INLINE __mmask16 first_lanes(int count) { return count > 0 ? (__mmask16)((1u << count) - 1) : (__mmask16)0; }
HYMATE_INLINE Vector load(const float* p, int count) {
    if (__builtin_expect(count >= kLanes, 1)) return load(p);
    return (Vector)_mm512_maskz_loadu_ps(first_lanes(count), p);
}
HYMATE_INLINE void store(float* p, Vector value, int count) {
    if (__builtin_expect(count >= kLanes, 1)) return store(p, value);
    _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)value);
}
#endif

template <typename T>
HYMATE_INLINE Vector load(const T* p, int count) {
    if (__builtin_expect(count >= kLanes, 1)) return load(p);
    T buffer[kLanes] = {};
    for (int i = 0; i < count; ++i) buffer[i] = p[i];
    return load(buffer);
}

template <typename T>
HYMATE_INLINE void store(T* p, Vector value, int count) {
    if (__builtin_expect(count >= kLanes, 1)) return store(p, value);
    T buffer[kLanes];
    store(buffer, value);
    for (int i = 0; i < count; ++i) p[i] = buffer[i];
}

// ------------------------------------------------------------------------------------------- functions

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLog2eLow = 1.92596299112661746887e-8f;  // what rounding log2(e) to float32 leaves out
constexpr float kLn2 = 0.69314718055994530942f;

// 2^r for |r| <= 1/2. Minimax in the relative error of 2^r - 1 (4.3e-7): a slow decay is as exact as a fast one.
HYMATE_INLINE Vector exp2_fraction(Vector r) {
    Vector p = r * 0.0013333539173072295f + 0.00966624541689738f;
    p = p * r + 0.0555050021238741f;
    p = p * r + 0.2402235134327651f;
    p = p * r + 0.6931471435065383f;
    return p * r + 1.0f;
}

constexpr float kRounder = 0x1.8p23f;  // x + kRounder - kRounder is the integer nearest to x

#if defined(HYMATE_AVX512)
HYMATE_INLINE Vector scale(Vector x, Vector exponent) {
    return (Vector)_mm512_scalef_ps((__m512)x, (__m512)exponent);
}
#else
HYMATE_INLINE Vector scale(Vector x, Vector rounded) {
    return float_of(bits_of(x) + (bits_of(rounded + kRounder) << 23));
}
#endif

// 2^(a b) for |a b| < 2^50: zero where that underflows, infinite (AVX-512) or about 2^127 where it overflows.
// Without AVX-512's scaling instruction, the bits of 1.0 minus 127 exponents are those of zero.
HYMATE_INLINE Vector exp2_product(Vector a, Vector b) {
#if defined(HYMATE_AVX512)
    const Vector whole = (a * b + kRounder) - kRounder;
    return scale(exp2_fraction(a * b - whole), whole);
#else
    const Vector x = minimum(maximum(a * b, broadcast(-127.0f)), broadcast(127.0f));
    const Vector shifted = x + kRounder;
    return float_of(bits_of(exp2_fraction(x - (shifted - kRounder))) + (bits_of(shifted) << 23));
#endif
}

// ------------------------------------------------------------------------------- functions of several vectors

// U vectors that go through a long formula side by side, so that none waits for its own last result.
template <int U>
struct Pack {
    Vector v[U];
};

#define HYMATE_EACH \
    HYMATE_UNROLL   \
    for (int i = 0; i < U; ++i)

#define HYMATE_PACK_OPERATOR(op)                                  \
    template <int U>                                              \
    HYMATE_INLINE Pack<U> operator op(Pack<U> a, const Pack<U>& b) { \
        HYMATE_EACH a.v[i] = a.v[i] op b.v[i];                    \
        return a;                                                 \
    }                                                             \
    template <int U>                                              \
    HYMATE_INLINE Pack<U> operator op(Pack<U> a, Vector b) {      \
        HYMATE_EACH a.v[i] = a.v[i] op b;                         \
        return a;                                                 \
    }                                                             \
    template <int U>                                              \
    HYMATE_INLINE Pack<U> operator op(Pack<U> a, float b) {       \
        return a op broadcast(b);                                 \
    }

HYMATE_PACK_OPERATOR(+)
HYMATE_PACK_OPERATOR(-)
HYMATE_PACK_OPERATOR(*)

template <int U>
HYMATE_INLINE Pack<U> maximum(Pack<U> a, float b) {
    HYMATE_EACH a.v[i] = maximum(a.v[i], broadcast(b));
    return a;
}

template <int U>
HYMATE_INLINE Pack<U> clamp(Pack<U> a, Vector limit) {
    HYMATE_EACH a.v[i] = maximum(minimum(a.v[i], limit), -limit);
    return a;
}

template <int U>
HYMATE_INLINE Pack<U> negative_magnitude(Pack<U> a) {
    HYMATE_EACH a.v[i] = float_of(bits_of(a.v[i]) | (int32_t)0x80000000);
    return a;
}

template <int U>
HYMATE_INLINE Pack<U> negate(Pack<U> a) {
    HYMATE_EACH a.v[i] = -a.v[i];
    return a;
}

// 1 / x for 1 <= x < 2^126.
template <int U>
HYMATE_INLINE Pack<U> reciprocal(Pack<U> x) {
#if defined(HYMATE_AVX512)
    Pack<U> r;
    HYMATE_EACH r.v[i] = (Vector)_mm512_rcp14_ps((__m512)x.v[i]);
    HYMATE_EACH r.v[i] = r.v[i] * (1.0f - x.v[i] * r.v[i]) + r.v[i];
    return r;
#else
    HYMATE_EACH x.v[i] = 1.0f / x.v[i];
    return x;
#endif
}

// e^x for x <= 87, as e^-87 below that.
template <int U>
HYMATE_INLINE Pack<U> exponential(Pack<U> x) {
    x = maximum(x, -87.0f);
    const Pack<U> shifted = x * kLog2e + kRounder, whole = shifted - kRounder;
    const Pack<U> r = (x * kLog2e - whole) + x * kLog2eLow;
    Pack<U> p = r * 0.0013333539173072295f + 0.00966624541689738f;
    p = p * r + 0.0555050021238741f;
    p = p * r + 0.2402235134327651f;
    p = p * r + 0.6931471435065383f;
    p = p * r + 1.0f;
    HYMATE_EACH p.v[i] = float_of(bits_of(p.v[i]) + (bits_of(shifted.v[i]) << 23));
    return p;
}

// log(1 + w) for 0 <= w <= 1, relative error 3e-8 before rounding.
template <int U>
HYMATE_INLINE Pack<U> log1p_unit(Pack<U> w) {
    Pack<U> p = w * 0.005232725941461257f - 0.029505496042321763f;
    p = p * w + 0.07822662919191047f;
    p = p * w - 0.1366333093058233f;
    p = p * w + 0.19106064491067346f;
    p = p * w - 0.2484300409222798f;
    p = p * w + 0.33319101373840454f;
    p = p * w - 0.4999949361446655f;
    return (p * w + 0.9999999700547058f) * w;
}

// e^-|x|, exactly zero for |x| > 87: no step at all is not a very small step.
template <int U>
HYMATE_INLINE Pack<U> exponential_of_magnitude(Pack<U> x) {
    x = negative_magnitude(x);
    Pack<U> w = exponential(x);
    HYMATE_EACH w.v[i] = float_of(bits_of(w.v[i]) & (x.v[i] >= -87.0f));
    return w;
}

template <int U>
HYMATE_INLINE Pack<U> softplus(Pack<U> x) {
    return log1p_unit(exponential_of_magnitude(x)) + maximum(x, 0.0f);
}

// softplus(x), and its derivative into `slope`.
template <int U>
HYMATE_INLINE Pack<U> softplus(Pack<U> x, Pack<U>& slope) {
    const Pack<U> w = exponential_of_magnitude(x);
    slope = reciprocal(w + 1.0f);
    HYMATE_EACH slope.v[i] *= select(x.v[i] >= 0.0f, broadcast(1.0f), w.v[i]);
    return log1p_unit(w) + maximum(x, 0.0f);
}

template <int U>
HYMATE_INLINE Pack<U> sigmoid(Pack<U> x) {
    return reciprocal(exponential(negate(maximum(x, -87.0f))) + 1.0f);
}

// The derivative of x sigmoid(x), given open = sigmoid(x).
template <int U>
HYMATE_INLINE Pack<U> silu_slope(Pack<U> x, Pack<U> open) {
    HYMATE_EACH open.v[i] *= x.v[i] * (1.0f - open.v[i]) + 1.0f;
    return open;
}

template <int U>
HYMATE_INLINE Pack<U> hyperbolic_tangent(Pack<U> x) {
    Pack<U> size = x, w;
    HYMATE_EACH size.v[i] = float_of(bits_of(x.v[i]) & 0x7fffffff);
    w = exponential(size * -2.0f);  // 1 .. 0
    Pack<U> quotient = w;
    const Pack<U> inverse = reciprocal(w + 1.0f);
    HYMATE_EACH quotient.v[i] = (1.0f - w.v[i]) * inverse.v[i];
    // near 0 the difference above loses its digits: x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315
    HYMATE_EACH {
        const Vector q = size.v[i] * size.v[i];
        const Vector series = size.v[i] * (1.0f + q * (-0.33333333f + q * (0.13333333f - q * 0.053968254f)));
        quotient.v[i] = select(size.v[i] < 0.15f, series, quotient.v[i]);
        quotient.v[i] = float_of(bits_of(quotient.v[i]) | (bits_of(x.v[i]) & (int32_t)0x80000000));
    }
    return quotient;
}

// U rows, `stride` elements apart; count as in load and store.
template <int U, typename T, typename Count>
HYMATE_INLINE Pack<U> load_rows(const T* p, int64_t stride, Count count) {
    Pack<U> rows;
    HYMATE_EACH rows.v[i] = load(p + i * stride, count);
    return rows;
}

template <int U, typename T, typename Count>
HYMATE_INLINE void store_rows(T* p, int64_t stride, const Pack<U>& rows, Count count) {
    HYMATE_EACH store(p + i * stride, rows.v[i], count);
}

// --------------------------------------------------------------------------------------- row sums

namespace detail {

template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
    typedef Sequence<I...> type;
};

// Lanes whose bit S is clear take from a, the others from b: first each lane's own partner, then the other one.
template <int S, int... I>
HYMATE_INLINE Vector fold(Vector a, Vector b, Sequence<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, ((I & S) ? kLanes + I - S : I)...) +
           __builtin_shufflevector(a, b, ((I & S) ? kLanes + I : I + S)...);
#else
    const Integers low = {((I & S) ? kLanes + I - S : I)...};
    const Integers high = {((I & S) ? kLanes + I : I + S)...};
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
#endif
}

template <int S>
struct RowSums {
    static HYMATE_INLINE Vector of(const float* rows) {
        return fold<S>(RowSums<S / 2>::of(rows), RowSums<S / 2>::of(rows + S * kLanes),
                       typename MakeSequence<kLanes>::type());
    }
};
template <>
struct RowSums<0> {
    static HYMATE_INLINE Vector of(const float* row) { return load(row); }
};

}  // namespace detail

// The sums of kLanes rows of kLanes floats each: lane i holds the sum of row i. The rows become zero.
HYMATE_INLINE Vector take_row_sums(float* rows) {
    const Vector sums = detail::RowSums<kLanes / 2>::of(rows);
    for (int i = 0; i < kLanes; ++i) store(rows + i * kLanes, Vector{});
    return sums;
}

// ------------------------------------------------------------------------------------------- control

// While one of these lives, its thread treats subnormal numbers as zero: decayed states would else cost 100 times
// more. The thread's own setting comes back afterwards.
class FlushSubnormals {
   public:
#if defined(__SSE2__)
    FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(saved_); }

   private:
    unsigned saved_;
#elif defined(__aarch64__)
    FlushSubnormals() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" : : "r"(saved_ | (1ull << 24)));
    }
    ~FlushSubnormals() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

   private:
    uint64_t saved_;
#else
    FlushSubnormals() {}
#endif
    FlushSubnormals(const FlushSubnormals&) = delete;
    void operator=(const FlushSubnormals&) = delete;
};

}  // namespace hymate
