// What a stream keeps of each variable of a record, moved on by further events, and what it says of the variables at a
// time. A variable's sums are those of its events' weighted parts and, behind them, of the weights; its history is as in
// running_quantities.h. What each means stands in modeling_hymate/running_quantities.py.
#pragma once

#include "running_quantities.h"

namespace hymate {

struct MemoryArguments {
    int64_t batch, length, variables, channels, width, queries, half_lives, threads;  // width a multiple of queries
    const double* half_life;  // (half_lives,)
    const float* sums;        // (batch, variables, width + queries)
    const double* history;    // (batch, variables, History::size)
    // Further events of each record, `lengths` of them; the memory after them is written elsewhere.
    const float *parts, *scores;   // (batch, length, width), (batch, length, queries)
    const float *values, *times;   // (batch, length); times ascending, none before those in the memory
    const uint8_t* value_mask;     // (batch, length)
    const int64_t *variable_ids, *lengths;  // (batch, length), each below `variables`; (batch,)
    float* new_sums;
    double* new_history;
    // What it says: of the variables with an event, ascending, at most `channels` of them.
    const float* now;                           // (batch,)
    const int64_t* channel_ids;                 // (batch, channels): each channel's variable, or -1
    float *pooled, *quantities;                 // (batch, channels, width), (.., quantities)
};

// Repeats a number of each query for the columns that are its own.
template <typename F>
inline void repeat_for_columns(const MemoryArguments& m, float* row, F number) {
    const int64_t columns = m.width / m.queries;
    for (int64_t q = 0; q < m.queries; ++q) {
        const float value = number(q);
        for (int64_t k = 0; k < columns; ++k) row[q * columns + k] = value;
    }
}

inline void remember_events(const MemoryArguments& m, int64_t record, float* factors) {
    const int64_t numbers = History::size(m.half_lives), floats = m.width + m.queries;
    float* sums = m.new_sums + record * m.variables * floats;
    double* history = m.new_history + record * m.variables * numbers;
    memcpy(sums, m.sums + record * m.variables * floats, m.variables * floats * sizeof(float));
    memcpy(history, m.history + record * m.variables * numbers, m.variables * numbers * sizeof(double));
    const int64_t end = record * m.length + valid_length(m.lengths, record, m.length);
    float* weights = factors + m.width;  // behind the factors of the columns: the sums of both are side by side, too
    for (int64_t event = record * m.length; event < end; ++event) {
        const int64_t variable = m.variable_ids[event];
        for (int64_t q = 0; q < m.queries; q += kLanes) {
            const int count = (int)minimum_of(kLanes, m.queries - q);
            store(weights + q, exponential(Pack<1>{load(m.scores + event * m.queries + q, count)}).v[0], count);
        }
        repeat_for_columns(m, factors, [&](int64_t q) { return weights[q]; });
        float* sum = sums + variable * floats;
        const float* part = m.parts + event * m.width;
        for (int64_t k = 0; k < m.width; ++k) sum[k] += part[k] * factors[k];
        for (int64_t q = 0; q < m.queries; ++q) sum[m.width + q] += weights[q];
        History(history + variable * numbers, m.half_life, m.half_lives)
            .note(m.times[event], m.value_mask[event] != 0, m.values[event]);
    }
}

inline void recall_channel(const MemoryArguments& m, int64_t record, int64_t channel, float* factors) {
    const int64_t at = record * m.channels + channel, row = record * m.variables + m.channel_ids[at];
    const int64_t quantities = kQuantities + kHalfLifeQuantities * m.half_lives;
    float* pooled = m.pooled + at * m.width;
    if (m.channel_ids[at] < 0) {
        clear_floats(pooled, m.width);
        clear_floats(m.quantities + at * quantities, quantities);
        return;
    }
    const float *sum = m.sums + row * (m.width + m.queries), *total = sum + m.width;
    repeat_for_columns(m, factors, [&](int64_t q) { return total[q] > 0 ? 1 / total[q] : 0.0f; });
    for (int64_t k = 0; k < m.width; ++k) pooled[k] = sum[k] * factors[k];
    History((double*)m.history + row * History::size(m.half_lives), m.half_life, m.half_lives)
        .describe(m.now[record], m.quantities + at * quantities);
}

// Calls visit(record, factors) for all records; there is room for a number a column and one a query.
template <typename F>
int for_memories(const MemoryArguments& m, F visit) {
    int failed = 0;
    share_work(m.batch, m.threads, [&](int, int64_t first, int64_t end) {
        Arena arena(m.width + m.queries);
        if (!arena.ok()) {
#pragma omp atomic write
            failed = 1;
            return;
        }
        for (int64_t record = first; record < end; ++record) visit(record, arena.take(0));
    });
    return failed ? kOutOfMemory : kOk;
}

inline int remember_channels(const MemoryArguments& m) {
    return for_memories(m, [&](int64_t record, float* factors) { remember_events(m, record, factors); });
}
inline int recall_channels(const MemoryArguments& m) {
    return for_memories(m, [&](int64_t record, float* factors) {
        for (int64_t channel = 0; channel < m.channels; ++channel) recall_channel(m, record, channel, factors);
    });
}

}  // namespace hymate
