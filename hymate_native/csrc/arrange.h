// A batch's events in their canonical order (time, variable, value; masked ones last), checked and cleared, and the
// channels that they belong to: what modeling_hymate/inputs.py and channel_tokens.py do in many passes.
#pragma once

#include <algorithm>

#include "division.h"

namespace hymate {

struct ArrangeArguments {
    int64_t batch, length, variables, threads;
    const float *values, *times;  // all (batch, length)
    const int64_t* variable_ids;
    const uint8_t *mask, *value_mask;
    float *sorted_values, *sorted_times;
    int64_t* sorted_ids;
    uint8_t *sorted_mask, *sorted_value_mask;
    int64_t *order, *slots;               // where each event stood; its channel, -1 where it is masked
    int64_t *lengths, *channels, *moved;  // (batch,): numbers of events, of channels, and whether any event moved
    int64_t* channel_ids;                 // (batch, variables): variables observed, ascending, then -1
};

struct ArrangeRecord {
    const ArrangeArguments& a;
    int64_t *order, *ranks;  // (length,), (variables,)

    explicit ArrangeRecord(const ArrangeArguments& a_) : a(a_) {}
    void place(Pieces& pieces) {
        order = (int64_t*)pieces.take(2 * a.length);
        ranks = (int64_t*)pieces.take(2 * a.variables);
    }

    static int32_t bits_of_number(float x) {
        int32_t bits;
        memcpy(&bits, &x, sizeof(bits));
        return bits;
    }
    static bool is_finite(float x) { return (bits_of_number(x) & 0x7f800000) != 0x7f800000; }
    // Integers of the same order: a comparison of floats would take subnormal ones for zero here.
    static int32_t rank(float x) {
        const int32_t bits = bits_of_number(x);
        return bits >= 0 ? bits : bits == INT32_MIN ? 0 : bits ^ 0x7fffffff;
    }

    // Whether the event at `left` comes before that at `right`, which stood behind it.
    bool in_order(int64_t left, int64_t right) const {
        const int32_t earlier = rank(a.times[left]), later = rank(a.times[right]);
        if (earlier != later) return earlier < later;
        if (a.variable_ids[left] != a.variable_ids[right]) return a.variable_ids[left] < a.variable_ids[right];
        if (!a.value_mask[right]) return true;
        return a.value_mask[left] && rank(a.values[left]) <= rank(a.values[right]);
    }

    // False for a variable out of range, and for a time or a value that is not finite.
    bool run(int64_t record) {
        const int64_t start = record * a.length;
        int64_t count = 0;
        bool sorted = true;
        std::fill(ranks, ranks + a.variables, 0);
        for (int64_t i = start; i < start + a.length; ++i) {
            if (!a.mask[i]) continue;
            if (a.variable_ids[i] < 0 || a.variable_ids[i] >= a.variables || !is_finite(a.times[i])) return false;
            if (a.value_mask[i] && !is_finite(a.values[i])) return false;
            sorted = sorted && i == start + count && (count == 0 || in_order(i - 1, i));
            ranks[a.variable_ids[i]] = 1;
            order[count++] = i;
        }
        if (!sorted)
            std::sort(order, order + count, [&](int64_t left, int64_t right) {
                if (left < right) return in_order(left, right);
                return left > right && !in_order(right, left);
            });
        a.lengths[record] = count, a.moved[record] = !sorted;
        int64_t channels = 0, *ids = a.channel_ids + record * a.variables;
        for (int64_t v = 0; v < a.variables; ++v)
            if (ranks[v]) ids[channels] = v, ranks[v] = channels++;
        a.channels[record] = channels;
        std::fill(ids + channels, ids + a.variables, -1);
        for (int64_t i = 0; i < count; ++i) write(start + i, order[i]);
        for (int64_t i = start, next = count; i < start + a.length; ++i)  // those left out keep their order
            if (!a.mask[i]) clear(start + next++, i);
        return true;
    }

    void write(int64_t to, int64_t from) const {
        a.sorted_values[to] = a.value_mask[from] ? a.values[from] : 0.0f;
        a.sorted_times[to] = a.times[from];
        a.sorted_ids[to] = a.variable_ids[from];
        a.sorted_mask[to] = 1;
        a.sorted_value_mask[to] = a.value_mask[from] != 0;
        a.order[to] = from % a.length;
        a.slots[to] = ranks[a.variable_ids[from]];
    }
    void clear(int64_t to, int64_t from) const {
        a.sorted_values[to] = a.sorted_times[to] = 0;
        a.sorted_ids[to] = 0;
        a.sorted_mask[to] = a.sorted_value_mask[to] = 0;
        a.order[to] = from % a.length;
        a.slots[to] = -1;
    }
};

// kBadArgument where a number is not finite or a variable out of range.
inline int arrange_events(const ArrangeArguments& a) {
    int failed = 0, wrong = 0;
    share_work(a.batch, a.threads, [&](int, int64_t first, int64_t end) {
        ArrangeRecord worker(a);
        Pieces sizes{nullptr};
        worker.place(sizes);
        Arena arena(sizes.floats);
        if (!arena.ok()) {
#pragma omp atomic write
            failed = 1;
            return;
        }
        Pieces pieces{arena.take(0)};
        worker.place(pieces);
        for (int64_t record = first; record < end; ++record)
            if (!worker.run(record)) {
#pragma omp atomic write
                wrong = 1;
            }
    });
    return failed ? kOutOfMemory : wrong ? kBadArgument : kOk;
}

}  // namespace hymate
