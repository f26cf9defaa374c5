// One token per channel and prediction time: what was pooled of its events, its variable's embedding, and a sum of
// piecewise-linear functions of its statistics, each of which interpolates between vectors at knots; forward and
// backward. Cells that the mask leaves out are zero.
#pragma once

#include "division.h"

namespace hymate {

constexpr float kOuterKnot = 2.5f;  // knots lie evenly from minus this to this; BOUND of channel_statistics.py

struct TokenArguments {
    int64_t batch, predictions, channels, width, statistics, bins, variables, threads;
    const float* pooled;         // (batch, predictions, channels, width)
    const uint8_t* mask;         // (batch, predictions, channels)
    const float* statistic;      // (batch, predictions, channels, statistics)
    const uint8_t* present;      // of the same shape: which of them count
    const int64_t* channel_ids;  // (batch, channels): each channel's variable, 0 .. variables
    const float* embedding;      // (variables, width)
    const float* knots;          // (variables, statistics, bins + 1, width)
    float* out;                  // (batch, predictions, channels, width)
    // Backward only. The gradient of what was pooled is that of the tokens, zero outside of the mask.
    const float* grad_out;
    float *grad_pooled, *grad_embedding, *grad_knots;
};

// Calls visit(knot, share) for the statistics of a cell: a function's lower knot, and the upper one's share.
template <typename F>
HYMATE_INLINE void for_statistics(const TokenArguments& a, int64_t cell, int64_t variable, F visit) {
    const float scale = (float)a.bins / (2 * kOuterKnot);
    for (int64_t s = 0; s < a.statistics; ++s) {
        if (!a.present[cell * a.statistics + s]) continue;
        const float place = (a.statistic[cell * a.statistics + s] + kOuterKnot) * scale;
        int64_t lower = place > 0 ? (int64_t)place : 0;
        lower = minimum_of(lower, a.bins - 1);
        visit((variable * a.statistics + s) * (a.bins + 1) + lower, place - (float)lower);
    }
}

// Calls visit(cell, variable) for the cells of predictions begin .. end of all records that the mask keeps, and pad(cell)
// for the others.
template <typename F, typename P>
HYMATE_INLINE void for_cells(const TokenArguments& a, int64_t begin, int64_t end, F visit, P pad) {
    for (int64_t prediction = begin; prediction < end; ++prediction) {
        const int64_t *ids = a.channel_ids + prediction / a.predictions * a.channels, first = prediction * a.channels;
        for (int64_t channel = 0; channel < a.channels; ++channel) {
            if (a.mask[first + channel])
                visit(first + channel, ids[channel]);
            else
                pad(first + channel);
        }
    }
}

// V vectors of columns of one cell's token.
template <int V>
HYMATE_INLINE void make_token(const TokenArguments& a, int64_t cell, int64_t variable, int64_t first, int last) {
    Vector sum[V];
    const auto lanes = [&](int j) { return j < V - 1 ? kLanes : last; };
    HYMATE_UNROLL
    for (int j = 0; j < V; ++j)
        sum[j] = load(a.pooled + cell * a.width + first + j * kLanes, lanes(j)) +
                 load(a.embedding + variable * a.width + first + j * kLanes, lanes(j));
    for_statistics(a, cell, variable, [&](int64_t knot, float share) {
        const float *lower = a.knots + knot * a.width + first, *upper = lower + a.width;
        HYMATE_UNROLL
        for (int j = 0; j < V; ++j)
            sum[j] += (1.0f - share) * load(lower + j * kLanes, lanes(j)) + share * load(upper + j * kLanes, lanes(j));
    });
    HYMATE_UNROLL
    for (int j = 0; j < V; ++j) store(a.out + cell * a.width + first + j * kLanes, sum[j], lanes(j));
}

template <int V>
HYMATE_INLINE void spread_gradient(const TokenArguments& a, int64_t cell, int64_t variable, int64_t first, int last,
                                   float* embedding, float* knots, int64_t width) {
    Vector grad[V];
    HYMATE_UNROLL
    for (int j = 0; j < V; ++j) grad[j] = load(a.grad_out + cell * a.width + first + j * kLanes, j < V - 1 ? kLanes : last);
    const auto add = [&](float* to, float factor) {
        HYMATE_UNROLL
        for (int j = 0; j < V; ++j) store(to + j * kLanes, load(to + j * kLanes) + factor * grad[j]);
    };
    add(embedding + variable * width + first, 1.0f);
    for_statistics(a, cell, variable, [&](int64_t knot, float share) {
        add(knots + knot * width + first, 1.0f - share);
        add(knots + (knot + 1) * width + first, share);
    });
}

inline int tokens_forward(const TokenArguments& a) {
    share_work(a.batch * a.predictions, a.threads, [&](int, int64_t begin, int64_t end) {
        for_cells(
            a, begin, end,
            [&](int64_t cell, int64_t variable) {
                for_stripes(a.width, [&](auto vectors, int64_t first, int last) {
                    make_token<decltype(vectors)::value>(a, cell, variable, first, last);
                });
            },
            [&](int64_t cell) { clear_floats(a.out + cell * a.width, a.width); });
    });
    return kOk;
}

// Each thread has sums of its own, which are added in the threads' order.
inline int tokens_backward(const TokenArguments& a) {
    const int64_t width = round_up(a.width, 16), knots = a.variables * a.statistics * (a.bins + 1);
    const int64_t size = (a.variables + knots) * width;
    Arena arena(size * a.threads);
    if (!arena.ok()) return kOutOfMemory;
    float* sums = arena.take(0);
    share_work(a.batch * a.predictions, a.threads, [&](int thread, int64_t begin, int64_t end) {
        float *embedding = sums + thread * size, *own_knots = embedding + a.variables * width;
        for_cells(
            a, begin, end,
            [&](int64_t cell, int64_t variable) {
                memcpy(a.grad_pooled + cell * a.width, a.grad_out + cell * a.width, a.width * sizeof(float));
                for_stripes(a.width, [&](auto vectors, int64_t first, int last) {
                    spread_gradient<decltype(vectors)::value>(a, cell, variable, first, last, embedding, own_knots, width);
                });
            },
            [&](int64_t cell) { clear_floats(a.grad_pooled + cell * a.width, a.width); });
    });
    for (int64_t row = 0; row < a.variables + knots; ++row) {
        float* to = row < a.variables ? a.grad_embedding + row * a.width : a.grad_knots + (row - a.variables) * a.width;
        for (int64_t k = 0; k < a.width; ++k) {
            float sum = 0;
            for (int64_t thread = 0; thread < a.threads; ++thread) sum += sums[thread * size + row * width + k];
            to[k] = sum;
        }
    }
    return kOk;
}

}  // namespace hymate
