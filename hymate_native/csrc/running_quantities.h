// Quantities of each channel (a variable observed in a record) as of prediction times, in one walk over a record's
// events: softmax-weighted means, forward and backward, and statistics. What each means stands in
// modeling_hymate/running_quantities.py.
//
// An event updates its channel alone; whatever did not change since the last prediction time is copied from there.
// Backward walks from the last event to the first with sums over the prediction times that see it.
#pragma once

#include <cmath>

#include "division.h"

namespace hymate {

constexpr int kQuantities = 13;       // those without half-lives
constexpr int kHalfLifeQuantities = 2;

struct RunningArguments {
    int64_t batch, length, predictions, channels, width, queries, half_lives, threads;  // width a multiple of queries
    const float *parts, *scores;  // (batch, length, width), (batch, length, queries)
    const float *values, *times;  // (batch, length); times ascending
    const uint8_t* value_mask;    // (batch, length)
    const int64_t* slots;         // (batch, length): each event's channel, or -1, after which there are no others
    const float* prediction_times;  // (batch, predictions), ascending
    const double* half_life;        // (half_lives,)
    float *pooled, *totals, *statistics;  // (batch, predictions, channels, width), (.., queries), (.., quantities)
    // Backward only; the first is there, the second may be absent.
    const float *grad_pooled, *grad_totals;
    float *grad_parts, *grad_scores;
    // For the shares of events only: those of channels, (batch, predictions, channels), and what comes of them,
    // (batch, predictions, length). Of the others, scores, times, slots, prediction times and totals are looked at.
    const float* channel_weights;
    float* event_weights;
};

// What is known of a channel. Behind it stand, for each half-life, the decayed count, weight and total.
struct ChannelHistory {
    double count, first_time, last_time;
    double numbers, number_time, total, squares, low, high, first, last, last_change, change_squares;
};
constexpr int kHistory = sizeof(ChannelHistory) / sizeof(double);
constexpr int kHalfLifeHistory = 3;

// The history that lies in some doubles.
struct History {
    ChannelHistory& h;
    double *recent, *decayed_weight, *decayed_total;  // (half_lives,)
    const double* half_life;
    const int64_t half_lives;

    History(double* numbers, const double* half_life_, int64_t half_lives_)
        : h(*(ChannelHistory*)numbers), recent(numbers + kHistory), decayed_weight(recent + half_lives_),
          decayed_total(decayed_weight + half_lives_), half_life(half_life_), half_lives(half_lives_) {}
    static int64_t size(int64_t half_lives) { return kHistory + kHalfLifeHistory * half_lives; }

    double fading(double hours, int64_t k) const { return hours <= 0 ? 1.0 : std::exp2(-hours / half_life[k]); }

    void note(double time, bool is_number, double value) const {
        if (h.count == 0) h.first_time = h.last_time = time;
        if (is_number && h.numbers == 0) h.number_time = time;
        for (int64_t k = 0; k < half_lives; ++k) {
            const double faded = fading(time - h.last_time, k);
            recent[k] = recent[k] * faded + 1;
            if (!is_number) continue;
            const double number_faded = h.number_time == h.last_time ? faded : fading(time - h.number_time, k);
            decayed_weight[k] = decayed_weight[k] * number_faded + 1;
            decayed_total[k] = decayed_total[k] * number_faded + value;
        }
        h.last_time = time;
        h.count += 1;
        if (!is_number) return;
        if (h.numbers == 0) {
            h.first = h.low = h.high = value;
        } else {
            h.last_change = value - h.last;
            h.change_squares += h.last_change * h.last_change;
            h.low = value < h.low ? value : h.low;
            h.high = value > h.high ? value : h.high;
        }
        h.last = value;
        h.number_time = time;
        h.total += value;
        h.squares += value * value;
        h.numbers += 1;
    }

    void describe(double now, float* to) const {
        clear_floats(to, kQuantities + kHalfLifeQuantities * half_lives);
        if (h.count == 0) return;
        float* decaying = to + kQuantities;
        to[0] = (float)h.count;
        to[1] = (float)(now - h.first_time);
        to[2] = (float)(now - h.last_time);
        for (int64_t k = 0; k < half_lives; ++k)
            decaying[half_lives + k] = (float)(recent[k] * fading(now - h.last_time, k));
        if (h.numbers == 0) return;
        const double mean = h.total / h.numbers, variance = h.squares / h.numbers - mean * mean;
        to[3] = (float)h.numbers;
        to[4] = (float)h.first, to[5] = (float)h.last, to[6] = (float)h.low, to[7] = (float)h.high;
        to[8] = (float)mean;
        to[9] = variance > 0 ? (float)variance : 0.0f;
        for (int64_t k = 0; k < half_lives; ++k)
            decaying[k] = (float)(decayed_total[k] / decayed_weight[k]);
        if (h.numbers < 2) return;
        const double changes = h.numbers - 1, mean_change = (h.last - h.first) / changes,
                     change_variance = h.change_squares / changes - mean_change * mean_change;
        to[10] = (float)mean_change;
        to[11] = (float)h.last_change;
        to[12] = change_variance > 0 ? (float)change_variance : 0.0f;
    }
};

struct RunningWalk {
    const RunningArguments& r;
    const int64_t width, columns;  // width rounded up to whole vectors; a part's columns
    float* weights;                // exponentials of a record's scores
    float* expanded[2];            // one number a query, repeated for its columns

    explicit RunningWalk(const RunningArguments& r_)
        : r(r_), width(round_up(r_.width, 16)), columns(r_.width / (r_.queries < 1 ? 1 : r_.queries)) {}

    void place(Pieces& pieces) {
        weights = pieces.take(r.length * r.queries + 16);
        for (float*& row : expanded) row = pieces.take(width);
    }

    int64_t events(int64_t record) const {
        int64_t count = 0;
        while (count < r.length && r.slots[record * r.length + count] >= 0) ++count;
        return count;
    }
    void exponentiate(int64_t record, int64_t events) {
        const float* scores = r.scores + record * r.length * r.queries;
        for (int64_t i = 0; i < events * r.queries; i += kLanes) {
            const int count = (int)minimum_of(kLanes, events * r.queries - i);
            store(weights + i, exponential(Pack<1>{load(scores + i, count)}).v[0], count);
        }
    }
    template <typename F>
    void expand(float* row, F number) const {
        for (int64_t q = 0; q < r.queries; ++q) {
            const float value = number(q);
            for (int64_t k = 0; k < columns; ++k) row[q * columns + k] = value;
        }
    }
    // The weights of an event, a step before they are loaded as vectors: a load that spans fresh stores waits for them.
    void expand_weights(int64_t event) const {
        expand(expanded[event % 2], [&](int64_t q) { return weights[event * r.queries + q]; });
    }
    int64_t cell(int64_t record, int64_t prediction) const { return (record * r.predictions + prediction) * r.channels; }
};

// The histories of a record's channels.
struct Histories {
    const RunningArguments& r;
    double* numbers;
    uint8_t* changed;  // since the last prediction time

    explicit Histories(const RunningArguments& r_) : r(r_) {}
    History of(int64_t channel) const {
        return {numbers + channel * History::size(r.half_lives), r.half_life, r.half_lives};
    }
    void place(Pieces& pieces) {
        numbers = (double*)pieces.take(2 * r.channels * History::size(r.half_lives));
        changed = (uint8_t*)pieces.take(r.channels / 4 + 1);
    }

    // Goes through a record's events once. Calls pool(event, channel) for those that a prediction time sees, in order,
    // and mean(channel, pooled, totals) wherever that has changed since the last prediction time.
    template <typename P, typename M>
    void walk(int64_t record, int64_t count, P pool, M mean) {
        memset(numbers, 0, r.channels * History::size(r.half_lives) * sizeof(double));
        memset(changed, 1, r.channels);
        const float *asked = r.prediction_times + record * r.predictions, *times = r.times + record * r.length;
        const int64_t at = record * r.length;
        int64_t prediction = 0;
        for (int64_t i = 0; i < count; ++i) {
            while (prediction < r.predictions && asked[prediction] < times[i]) answer(record, prediction++, mean);
            if (prediction == r.predictions) return;
            const int64_t channel = r.slots[at + i];
            pool(i, channel);
            of(channel).note(times[i], r.value_mask[at + i] != 0, r.values[at + i]);
            changed[channel] = 1;
        }
        while (prediction < r.predictions) answer(record, prediction++, mean);
    }

   private:
    template <typename M>
    void answer(int64_t record, int64_t prediction, M mean) {
        const int64_t quantities = kQuantities + kHalfLifeQuantities * r.half_lives;
        const float* asked = r.prediction_times + record * r.predictions + prediction;
        const bool is_again = prediction > 0 && asked[0] == asked[-1];  // as padding is
        for (int64_t channel = 0; channel < r.channels; ++channel) {
            const int64_t at = (record * r.predictions + prediction) * r.channels + channel;
            float *statistics = r.statistics + at * quantities, *pooled = r.pooled + at * r.width, *totals = r.totals + at * r.queries;
            if (prediction > 0 && !changed[channel]) {
                memcpy(pooled, pooled - r.channels * r.width, r.width * sizeof(float));
                memcpy(totals, totals - r.channels * r.queries, r.queries * sizeof(float));
            } else {
                mean(channel, pooled, totals);
            }
            changed[channel] = 0;
            if (is_again)
                memcpy(statistics, statistics - r.channels * quantities, quantities * sizeof(float));
            else
                of(channel).describe(asked[0], statistics);
        }
    }
};

struct RunningForward : RunningWalk {
    Histories histories;
    float *sums, *carries, *total_sums, *total_carries;  // (channels, width), (channels, queries rounded up)
    float* inverse;                                      // of a channel's total, repeated

    explicit RunningForward(const RunningArguments& r_) : RunningWalk(r_), histories(r_) {}
    int64_t query_width() const { return round_up(r.queries, 16); }

    void place(Pieces& pieces) {
        RunningWalk::place(pieces);
        histories.place(pieces);
        sums = pieces.take(r.channels * width), carries = pieces.take(r.channels * width);
        total_sums = pieces.take(r.channels * query_width()), total_carries = pieces.take(r.channels * query_width());
        inverse = pieces.take(width);
    }

    void run(int64_t record) {
        clear();
        const int64_t count = events(record);
        exponentiate(record, count);
        if (count > 0) expand_weights(0);
        histories.walk(
            record, count,
            [&](int64_t i, int64_t channel) {
                if (i + 1 < count) expand_weights(i + 1);
                pool(channel, r.parts + (record * r.length + i) * r.width, weights + i * r.queries, expanded[i % 2]);
            },
            [&](int64_t channel, float* pooled, float* totals) {
                const float* total = total_sums + channel * query_width();
                expand(inverse, [&](int64_t q) { return total[q] > 0 ? 1 / total[q] : 0.0f; });
                for (int64_t k = 0; k < r.width; k += kLanes)
                    store(pooled + k, load(sums + channel * width + k) * load(inverse + k),
                          (int)minimum_of(kLanes, r.width - k));
                memcpy(totals, total, r.queries * sizeof(float));
            });
    }

    void clear() {
        clear_floats(sums, r.channels * width);
        clear_floats(carries, r.channels * width);
        clear_floats(total_sums, r.channels * query_width());
        clear_floats(total_carries, r.channels * query_width());
    }

    void pool(int64_t channel, const float* part, const float* weight, const float* repeated) {
        float *sum = sums + channel * width, *carry = carries + channel * width;
        for (int64_t k = 0; k < r.width; k += kLanes) {
            const Vector x = load(part + k, (int)minimum_of(kLanes, r.width - k));
            add_compensated(sum + k, carry + k, x * load(repeated + k));
        }
        float *total = total_sums + channel * query_width(), *total_carry = total_carries + channel * query_width();
        for (int64_t q = 0; q < r.queries; q += kLanes)
            add_compensated(total + q, total_carry + q, load(weight + q, (int)minimum_of(kLanes, r.queries - q)));
    }
};

struct RunningBackward : RunningWalk {
    float* inverse;                        // of a channel's total, repeated
    float *slopes, *pulls, *total_slopes;  // sums over prediction times: of G / total, of G pooled / total, of grad totals

    using RunningWalk::RunningWalk;

    void place(Pieces& pieces) {
        RunningWalk::place(pieces);
        slopes = pieces.take(r.channels * width), pulls = pieces.take(r.channels * width);
        total_slopes = pieces.take(r.channels * r.queries);
        inverse = pieces.take(width);
    }

    void run(int64_t record) {
        const int64_t count = events(record), at = record * r.length;
        exponentiate(record, count);
        clear_floats(slopes, r.channels * width);
        clear_floats(pulls, r.channels * width);
        clear_floats(total_slopes, r.channels * r.queries);
        clear_floats(r.grad_parts + (at + count) * r.width, (r.length - count) * r.width);
        clear_floats(r.grad_scores + (at + count) * r.queries, (r.length - count) * r.queries);
        const float* asked = r.prediction_times + record * r.predictions;
        int64_t prediction = r.predictions - 1;
        if (count > 0) expand_weights(count - 1);
        for (int64_t i = count - 1; i >= 0; --i) {
            while (prediction >= 0 && asked[prediction] >= r.times[at + i]) see(record, prediction--);
            if (i > 0) expand_weights(i - 1);
            hand_on(r.slots[at + i], at + i, weights + i * r.queries, expanded[i % 2]);
        }
    }

    void see(int64_t record, int64_t prediction) {
        for (int64_t channel = 0; channel < r.channels; ++channel) {
            const int64_t at = cell(record, prediction) + channel;
            const float *totals = r.totals + at * r.queries, *grad = r.grad_pooled + at * r.width, *pooled = r.pooled + at * r.width;
            if (!(totals[0] > 0)) continue;
            expand(inverse, [&](int64_t q) { return 1 / totals[q]; });
            float *slope = slopes + channel * width, *pull = pulls + channel * width;
            for (int64_t k = 0; k < r.width; k += kLanes) {
                const int lanes = (int)minimum_of(kLanes, r.width - k);
                const Vector share = load(grad + k, lanes) * load(inverse + k);
                store(slope + k, load(slope + k) + share);
                store(pull + k, load(pull + k) + share * load(pooled + k, lanes));
            }
            if (r.grad_totals == nullptr) continue;
            for (int64_t q = 0; q < r.queries; ++q)
                total_slopes[channel * r.queries + q] += r.grad_totals[at * r.queries + q];
        }
    }

    void hand_on(int64_t channel, int64_t event, const float* weight, const float* repeated) {
        const float *slope = slopes + channel * width, *pull = pulls + channel * width, *part = r.parts + event * r.width;
        float* grad = r.grad_parts + event * r.width;
        alignas(64) float gaps[kLanes];
        float *to = r.grad_scores + event * r.queries, sum = 0;
        int64_t q = 0, left = columns;
        for (int64_t k = 0; k < r.width; k += kLanes) {
            const int lanes = (int)minimum_of(kLanes, r.width - k);
            const Vector z = load(slope + k);
            store(grad + k, z * load(repeated + k), lanes);
            store(gaps, load(part + k, lanes) * z - load(pull + k));
            for (int i = 0; i < lanes; ++i) {
                sum += gaps[i];
                if (--left > 0) continue;
                to[q] = weight[q] * (sum + total_slopes[channel * r.queries + q]);
                sum = 0, left = columns, ++q;
            }
        }
    }
};

// An event has its part of what its channel has: the mean over queries of its share in the sum of the weights.
struct RunningShares : RunningWalk {
    float* shares;  // (channels, queries)

    using RunningWalk::RunningWalk;

    void place(Pieces& pieces) {
        RunningWalk::place(pieces);
        shares = pieces.take(r.channels * r.queries);
    }

    void run(int64_t record) {
        const int64_t count = events(record), at = record * r.length;
        exponentiate(record, count);
        for (int64_t p = 0; p < r.predictions; ++p) {
            const int64_t first = cell(record, p);
            for (int64_t channel = 0; channel < r.channels; ++channel)
                for (int64_t q = 0; q < r.queries; ++q) {
                    const float total = r.totals[(first + channel) * r.queries + q];
                    shares[channel * r.queries + q] =
                        total > 0 ? r.channel_weights[first + channel] / (total * (float)r.queries) : 0.0f;
                }
            float* to = r.event_weights + (record * r.predictions + p) * r.length;
            clear_floats(to, r.length);
            for (int64_t i = 0; i < count && r.times[at + i] <= r.prediction_times[record * r.predictions + p]; ++i)
                for (int64_t q = 0; q < r.queries; ++q)
                    to[i] += shares[r.slots[at + i] * r.queries + q] * weights[i * r.queries + q];
        }
    }
};

template <typename Walk, typename A, typename... W>
int walk_records(const A& arguments, int64_t batch, int64_t threads, const W&... weights) {
    int failed = 0;
    share_work(batch, threads, [&](int, int64_t first, int64_t end) {
        Walk walk(arguments, weights...);
        Pieces sizes{nullptr};
        walk.place(sizes);
        Arena arena(sizes.floats);
        if (!arena.ok()) {
#pragma omp atomic write
            failed = 1;
            return;
        }
        Pieces pieces{arena.take(0)};
        walk.place(pieces);
        for (int64_t record = first; record < end; ++record) walk.run(record);
    });
    return failed ? kOutOfMemory : kOk;
}

inline int running_forward(const RunningArguments& r) { return walk_records<RunningForward>(r, r.batch, r.threads); }
inline int running_backward(const RunningArguments& r) { return walk_records<RunningBackward>(r, r.batch, r.threads); }
inline int running_shares(const RunningArguments& r) { return walk_records<RunningShares>(r, r.batch, r.threads); }

}  // namespace hymate
