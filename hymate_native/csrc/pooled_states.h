// The quantities of channels where nothing needs a gradient, from the states of events: norm and scores of the events as
// in events.h, softmax-weighted means of the normed states, and only then the projection to values, of the few means in
// place of all events. All else is as in running_quantities.h.
#pragma once

#include "events.h"
#include "running_quantities.h"

namespace hymate {

struct PooledArguments {
    ProjectionArguments projection;  // without parts; the scores go out
    RunningArguments running;        // without parts and scores
};

constexpr int32_t kPlainEvents = 64;  // of a channel that are summed before rounding errors are carried along

struct PooledForward {
    const RunningArguments& r;
    const ProjectionArguments& p;
    const ProjectionWeights& w;
    ProjectionForward events;
    Histories histories;
    const int64_t width, size;  // of a normed row, and of a channel's sums, (queries, width) and then (queries,)
    float *weights, *fresh, *sums, *carries, *means, *values;
    int32_t* pending;  // events of each channel in `fresh`, which are not in `sums` yet

    PooledForward(const PooledArguments& a, const ProjectionWeights& w_)
        : r(a.running), p(a.projection), w(w_), events(p, w_), histories(r), width(round_up(p.width, 16)),
          size(p.queries * width + round_up(p.queries, 16)) {}

    void place(Pieces& pieces) {
        events.place(pieces);
        histories.place(pieces);
        weights = pieces.take(kPiece * p.queries + 16);
        for (float** all : {&fresh, &sums, &carries}) *all = pieces.take(r.channels * size);
        means = pieces.take(p.queries * width), values = pieces.take(p.queries * width);
        pending = (int32_t*)pieces.take(r.channels);
    }

    void run(int64_t record) {
        const int64_t at = record * r.length;
        int64_t count = 0, scored = 0;
        while (count < r.length && r.slots[at + count] >= 0) ++count;
        clear_floats((float*)pending, r.channels);
        histories.walk(
            record, count,
            [&](int64_t i, int64_t channel) {
                if (i == scored) scored += weigh(at + i, minimum_of(kPiece, count - i));
                pool(channel, i % kPiece);
            },
            [&](int64_t channel, float* pooled, float* totals) { mean(channel, pooled, totals); });
        clear_floats(p.scores + (at + scored) * p.queries, (r.length - scored) * p.queries);
    }

    // The scores and weights of events, and their normed states.
    int64_t weigh(int64_t event, int64_t count) {
        events.score(event, count);
        for (int64_t i = 0; i < count * p.queries; i += kLanes) {
            const Vector score = load(events.raw.data + i) * (float)p.bound;
            store(p.scores + event * p.queries + i, score, (int)minimum_of(kLanes, count * p.queries - i));
            store(weights + i, exponential(Pack<1>{score}).v[0]);
        }
        return count;
    }

    void pool(int64_t channel, int64_t i) {
        float* to = fresh + channel * size;
        if (histories.of(channel).h.count == 0)
            for (float* all : {fresh, sums, carries}) clear_floats(all + channel * size, size);
        const float *row = events.normed.at(i), *weight = weights + i * p.queries;
        for (int64_t q = 0; q < p.queries; ++q) {
            for (int64_t k = 0; k < width; k += kLanes)
                store(to + q * width + k, load(to + q * width + k) + load(row + k) * weight[q]);
            to[p.queries * width + q] += weight[q];
        }
        if (++pending[channel] == kPlainEvents) settle(channel);
    }
    void settle(int64_t channel) {
        const int64_t first = channel * size;
        for (int64_t i = first; i < first + size; i += kLanes) add_compensated(sums + i, carries + i, load(fresh + i));
        clear_floats(fresh + first, size);
        pending[channel] = 0;
    }

    void mean(int64_t channel, float* pooled, float* totals) {
        if (histories.of(channel).h.count == 0) {
            clear_floats(pooled, p.width);
            return clear_floats(totals, p.queries);
        }
        settle(channel);
        const float *sum = sums + channel * size, *total = sum + p.queries * width;
        memcpy(totals, total, p.queries * sizeof(float));
        for (int64_t q = 0; q < p.queries; ++q)
            for (int64_t k = 0; k < width; k += kLanes)
                store(means + q * width + k, load(sum + q * width + k) * (1 / total[q]));
        multiply_rows(w.value, {means, width}, {values, width}, p.queries);
        const int64_t columns = p.width / p.queries;  // that a query fills
        for (int64_t q = 0; q < p.queries; ++q)
            memcpy(pooled + q * columns, values + q * width + q * columns, columns * sizeof(float));
    }
};

inline int pooled_forward(const PooledArguments& a) {
    const ProjectionWeights weights(a.projection, true);
    if (!weights.ok()) return kOutOfMemory;
    return walk_records<PooledForward>(a, a.running.batch, a.running.threads, weights);
}

}  // namespace hymate
