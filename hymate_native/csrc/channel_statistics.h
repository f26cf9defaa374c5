// Running quantities of channels brought to about the scale of standardized values, as channel_statistics.py says.
#pragma once

#include "channel_tokens.h"
#include "running_quantities.h"

namespace hymate {

constexpr float kStatisticLimit = 4.0f;       // LIMIT of channel_statistics.py
constexpr float kLeastVariance = 1e-6f;
constexpr int kCountedQuantities = 3;         // count and both ages, before those with half-lives

struct StatisticArguments {
    int64_t cells, half_lives, threads;
    double time_scale;        // hours in a unit of time
    const float* quantities;  // (cells, quantities), in the order of running_quantities.h
    float* statistics;        // (cells, statistics), as many
    uint8_t* present;         // of that shape
};

// log(1 + x) for 0 <= x < 2^126.
HYMATE_INLINE Vector log1p_positive(Vector x) {
    const Vector y = x + 1.0f;
    const Integers exponent = (bits_of(y) >> 23) - 127;
    const Vector fraction = float_of((bits_of(y) & 0x7fffff) | 0x3f800000) - 1.0f;
    const Vector rest = select(x < 1.0f, x, fraction), whole = __builtin_convertvector(exponent, Vector);
    return log1p_unit(Pack<1>{rest}).v[0] + select(x < 1.0f, Vector{}, whole * kLn2);
}

// How the counted quantities of a cell become statistics: log(1 + unit x) factor + shift.
struct CountScales {
    const int64_t width;  // their number rounded up to whole vectors
    Arena arena;
    float *unit, *factor;

    explicit CountScales(const StatisticArguments& s)
        : width(round_up(kCountedQuantities + s.half_lives, kLanes)), arena(2 * round_up(width, 16)) {
        if (!arena.ok()) return;
        unit = arena.take(width), factor = arena.take(width);
        for (int64_t i = 0; i < kCountedQuantities + s.half_lives; ++i) {
            const bool is_age = i == 1 || i == 2;
            unit[i] = is_age ? (float)s.time_scale : 1.0f;
            factor[i] = is_age ? (float)(2 * kOuterKnot / std::log1p(s.time_scale)) : 1.0f;
        }
    }
};

struct CellStatistics {
    const StatisticArguments& s;
    const CountScales& scales;
    float* logarithms;  // room for `scales.width`

    void run(int64_t cell) const {
        const int64_t K = s.half_lives, size = kQuantities + kHalfLifeQuantities * K, counted = kCountedQuantities + K;
        const float *from = s.quantities + cell * size, *decayed = from + kQuantities, *recent = decayed + K;
        float* to = s.statistics + cell * size;
        const auto put = [&](float x) { *to++ = x > kStatisticLimit ? kStatisticLimit : x < -kStatisticLimit ? -kStatisticLimit : x; };
        for (int i : {4, 5, 6, 7, 8, 10, 11}) put(from[i]);  // first, last, extremes, mean and both changes
        for (int64_t k = 0; k < K; ++k) put(decayed[k]);
        for (int i : {9, 12}) put(2 * std::sqrt(from[i] > kLeastVariance ? from[i] : kLeastVariance) - kOuterKnot);

        memcpy(logarithms, from, kCountedQuantities * sizeof(float));
        memcpy(logarithms + kCountedQuantities, recent, K * sizeof(float));
        for (int64_t i = 0; i < scales.width; i += kLanes)
            store(logarithms + i, log1p_positive(maximum(load(logarithms + i), Vector{}) * load(scales.unit + i)));
        for (int64_t i = 0; i < counted; ++i) put(logarithms[i] * scales.factor[i] - kOuterKnot);
        put(logarithms[0] - logarithms[1]);  // the rate

        uint8_t* present = s.present + cell * size;
        memset(present, from[3] > 0, size - counted - 1);
        memset(present + size - counted - 1, from[0] > 0, counted + 1);
    }
};

inline int channel_statistics(const StatisticArguments& s) {
    const CountScales scales(s);
    int failed = !scales.arena.ok();
    if (failed) return kOutOfMemory;
    share_work(s.cells, s.threads, [&](int, int64_t first, int64_t end) {
        Arena arena(scales.width);
        if (!arena.ok()) {
#pragma omp atomic write
            failed = 1;
            return;
        }
        const CellStatistics statistics{s, scales, arena.take(0)};
        for (int64_t cell = first; cell < end; ++cell) statistics.run(cell);
    });
    return failed ? kOutOfMemory : kOk;
}

}  // namespace hymate
