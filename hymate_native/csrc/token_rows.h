// What the kernels on tokens share: rows of tokens packed without their padding, norms, dropout and transposition.
#pragma once

#include "division.h"
#include "norm.h"

namespace hymate {

constexpr int64_t kBlockTokens = 128;  // about as many tokens as are worked on together; a group is never divided

// Groups of tokens, (groups, tokens, width), contiguous; what the mask leaves out is not looked at.
struct TokenGroups {
    int64_t groups, tokens, width;
    const uint8_t* mask;  // (groups, tokens)

    int64_t count(int64_t group) const {
        int64_t valid = 0;
        for (int64_t i = 0; i < tokens; ++i) valid += mask[group * tokens + i] != 0;
        return valid;
    }
    int64_t most() const { return round_up(kBlockTokens > tokens ? kBlockTokens : tokens, 16); }
};

// Consecutive groups that are worked on together: their tokens, packed, and where each group begins among them.
struct TokenBlock {
    const TokenGroups& all;
    int64_t first = 0, end = 0, count = 0;  // groups first .. end with `count` tokens
    int64_t* places;                        // of each packed token among all tokens
    int64_t* starts;                        // of each group, and the end of the last
    int32_t* positions;                     // of each packed token in its group; readable for a vector more

    TokenBlock(const TokenGroups& groups, float* memory)
        : all(groups),
          places((int64_t*)memory),
          starts(places + groups.most()),
          positions((int32_t*)(starts + groups.most() + 1)) {}
    static int64_t floats(const TokenGroups& groups) { return 5 * groups.most() + 2 + 16; }

    // The block that begins with a group, of groups before `stop`.
    void gather(int64_t group, int64_t stop) {
        first = group, count = 0;
        while (group < stop && group - first < all.most()) {
            int64_t at = count;
            starts[group - first] = at;
            if (at + all.tokens > all.most() && at + all.count(group) > all.most()) break;
            for (int64_t i = 0; i < all.tokens; ++i) {
                if (!all.mask[group * all.tokens + i]) continue;
                places[at] = group * all.tokens + i;
                positions[at++] = (int32_t)i;
            }
            count = at;
            ++group;
        }
        starts[group - first] = count;
        end = group;
    }
    void read(const float* tensor, FloatRows rows) const {
        for (int64_t i = 0; i < count; ++i) memcpy(rows.at(i), tensor + places[i] * all.width, all.width * sizeof(float));
    }
    // Also puts zeros where the mask leaves tokens out.
    void write(float* tensor, FloatRows rows) const {
        int64_t next = 0;
        for (int64_t i = first * all.tokens; i < end * all.tokens; ++i) {
            if (next < count && places[next] == i)
                memcpy(tensor + i * all.width, rows.at(next++), all.width * sizeof(float));
            else
                memset(tensor + i * all.width, 0, all.width * sizeof(float));
        }
    }
};

// Takes all groups through workers, one a thread; visit(worker, block, thread).
template <typename Worker, typename F, typename... A>
int for_blocks(const TokenGroups& groups, int64_t threads, F visit, A&... arguments) {
    int failed = 0;
    share_work(groups.groups, threads, [&](int thread, int64_t first, int64_t end) {
        Worker worker(arguments...);
        Pieces sizes{nullptr};
        worker.place(sizes);
        const int64_t list = TokenBlock::floats(groups);
        Arena arena(sizes.floats + list);
        if (!arena.ok()) {
#pragma omp atomic write
            failed = 1;
            return;
        }
        Pieces pieces{arena.take(0)};
        worker.place(pieces);
        TokenBlock block(groups, arena.take(0) + sizes.floats);
        while (first < end) {
            block.gather(first, end);
            visit(worker, block, thread);
            first = block.end;
        }
    });
    return failed ? kOutOfMemory : kOk;
}

// --------------------------------------------------------------------------------------------- dropout

// Dropout whose choices are a function of a seed and a place, so that backward makes the same ones again.
struct Dropout {
    float scale;        // of what is kept; 1 where nothing is dropped
    int32_t threshold;  // of the upper 31 random bits, below which an entry is dropped
    uint32_t seed, salt;

    Dropout(double probability, int64_t seed_, uint32_t stream)
        : scale(probability > 0 ? (float)(1 / (1 - probability)) : 1.0f),
          threshold((int32_t)(probability * 0x1p31)),
          seed(scramble((uint32_t)seed_ ^ stream * 0x9e3779b9u)),
          salt(scramble((uint32_t)((uint64_t)seed_ >> 32) + stream)) {}
    bool active() const { return threshold > 0; }

    static uint32_t scramble(uint32_t x) {
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        return x ^ x >> 16;
    }

    // The keys of a row, and the factors of its entries `index`.
    struct Row {
        int32_t key, salt;
    };
    Row row(int64_t number) const {
        const uint32_t key = scramble(seed + (uint32_t)number);
        return {(int32_t)key, (int32_t)scramble(key ^ salt)};
    }
    HYMATE_INLINE Vector factors(Row row, Integers index) const {
        typedef uint32_t Unsigned __attribute__((vector_size(kBytes)));
        Unsigned x = (Unsigned)index + (uint32_t)row.key;
        x ^= x >> 16;
        x *= 0x7feb352du;
        x ^= (uint32_t)row.salt;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        const Integers kept = (Integers)(x >> 1) >= threshold;
        return float_of(bits_of(broadcast(scale)) & kept);
    }
};

template <int... I>
HYMATE_INLINE Integers lane_numbers(detail::Sequence<I...>) {
    return Integers{I...};
}
HYMATE_INLINE Integers lane_numbers() { return lane_numbers(detail::MakeSequence<kLanes>::type()); }

// rows *= factors; row numbers are those of all tokens.
inline void drop_rows(const Dropout& dropout, const TokenBlock& block, FloatRows rows, int64_t width) {
    if (!dropout.active()) return;
    for (int64_t i = 0; i < block.count; ++i) {
        const Dropout::Row row = dropout.row(block.places[i]);
        for (int64_t k = 0; k < width; k += kLanes)
            store(rows.at(i, k), load(rows.at(i, k)) * dropout.factors(row, lane_numbers() + (int32_t)k));
    }
}

inline void add_rows(FloatRows from, FloatRows to, int64_t width, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < width; k += kLanes) store(to.at(i, k), load(to.at(i, k)) + load(from.at(i, k)));
}

// --------------------------------------------------------------------------------------- transposition

namespace detail {

// Swaps the lanes of a whose bit S is set with those of b whose bit S is clear.
template <int S, int... I>
HYMATE_INLINE void swap_lanes(Vector& a, Vector& b, Sequence<I...>) {
#if defined(__clang__)
    const Vector low = __builtin_shufflevector(a, b, ((I & S) ? kLanes + I - S : I)...);
    b = __builtin_shufflevector(a, b, ((I & S) ? kLanes + I : I + S)...);
#else
    const Integers low_lanes = {((I & S) ? kLanes + I - S : I)...};
    const Integers high_lanes = {((I & S) ? kLanes + I : I + S)...};
    const Vector low = __builtin_shuffle(a, b, low_lanes);
    b = __builtin_shuffle(a, b, high_lanes);
#endif
    a = low;
}

template <int S>
HYMATE_INLINE void transpose_stage(Vector* rows) {
    HYMATE_UNROLL
    for (int i = 0; i < kLanes; ++i)
        if ((i & S) == 0) swap_lanes<S>(rows[i], rows[i + S], typename MakeSequence<kLanes>::type());
}

HYMATE_INLINE void transpose(Vector* tile) {
    transpose_stage<1>(tile);
    transpose_stage<2>(tile);
    if (kLanes > 4) transpose_stage<(kLanes > 4 ? 4 : 1)>(tile);
    if (kLanes > 8) transpose_stage<(kLanes > 8 ? 8 : 1)>(tile);
}

}  // namespace detail

// The first `rows` vectors as columns of a tile, zeros behind them.
inline void transpose_tile(const float* vectors, int64_t rows, float* to) {
    Vector tile[kLanes];
    HYMATE_UNROLL
    for (int i = 0; i < kLanes; ++i) tile[i] = i < rows ? load(vectors + i * kLanes) : Vector{};
    detail::transpose(tile);
    HYMATE_UNROLL
    for (int i = 0; i < kLanes; ++i) store(to + i * kLanes, tile[i]);
}

// to(column, row) = from(row, column) for whole tiles: both have room for sizes rounded up to whole vectors.
inline void transpose(FloatRows from, int64_t rows, int64_t columns, FloatRows to) {
    for (int64_t row = 0; row < rows; row += kLanes)
        for (int64_t column = 0; column < columns; column += kLanes) {
            Vector tile[kLanes];
            HYMATE_UNROLL
            for (int i = 0; i < kLanes; ++i) tile[i] = load(from.at(row + i, column));
            detail::transpose(tile);
            HYMATE_UNROLL
            for (int i = 0; i < kLanes; ++i) store(to.at(column + i, row), tile[i]);
        }
}

// ------------------------------------------------------------------------------------------- functions

// The standard normal distribution function at x, and with it exp(-x^2 / 2) (Abramowitz and Stegun, 7.1.26: 1.5e-7).
template <int U>
HYMATE_INLINE Pack<U> normal_distribution(Pack<U> x, Pack<U>& bell) {
    Pack<U> z = x, t = x;
    HYMATE_EACH {
        z.v[i] = float_of(bits_of(x.v[i]) & 0x7fffffff) * 0.70710678118654752f;  // of the error function
        t.v[i] = 1.0f + 0.3275911f * z.v[i];
    }
    t = reciprocal(t);
    bell = exponential(negate(z * z));
    Pack<U> p = t * 1.061405429f - broadcast(1.453152027f);
    p = p * t + 1.421413741f;
    p = p * t - broadcast(0.284496736f);
    p = p * t + 0.254829592f;
    p = p * t * bell * 0.5f;  // the upper tail
    HYMATE_EACH p.v[i] = select(x.v[i] > 0.0f, 1.0f - p.v[i], p.v[i]);
    return p;
}

}  // namespace hymate
