// Records read again without some of their events: a Mamba layer inside a residual layer, pooling, and the quantities of
// channels, as mixer.h, pooled_states.h and running_quantities.h have them for whole records.
//
// A record's versions share what does not change. They are taken in the order of their first absent event, and what
// comes before it is read once for all of them. Behind it, only the convolution of the few events that follow an absent
// one changes; the others keep their step sizes and decays, whose exponentials are most of a scan's work. Quantities
// change in the channels of absent events alone.
#pragma once

#include "mixer.h"
#include "pooled_states.h"

namespace hymate {

struct OcclusionArguments {
    MixerArguments mixer;            // its weights, the rows of whole records, and what forward keeps of them
    ProjectionArguments projection;  // its weights
    RunningArguments running;        // the events; pooled and statistics are those of versions: (versions, channels, ..)
    const int64_t* starts;           // (batch + 1,): the versions of a record are consecutive
    const uint8_t* absent;           // (versions, length)
    float* last_times;               // (versions,): of the last event that is there; 0 where there is none
};

struct OcclusionWeights {
    ForwardWeights mixer;
    ProjectionWeights projection;
    const ScanArguments scan;
    const int64_t inner;  // rounded up to whole vectors
    Arena arena;
    ScanChannels channels;
    float* taps;  // (kernel, inner)

    explicit OcclusionWeights(const OcclusionArguments& a)
        : mixer(a.mixer, convolution_of(a.mixer)), projection(a.projection, true), scan(scan_of(a.mixer)),
          inner(round_up(a.mixer.inner, 16)), arena(ScanChannels::floats(scan.state, inner) + a.mixer.kernel * inner),
          channels(arena, scan, inner), taps(arena.take(a.mixer.kernel * inner)) {
        if (!arena.ok()) return;
        channels.fill(scan, 0, scan.inner);
        for (int64_t i = 0; i < scan.inner; ++i)
            for (int64_t k = 0; k < a.mixer.kernel; ++k) taps[k * inner + i] = a.mixer.conv_weight[i * a.mixer.kernel + k];
    }
    bool ok() const { return mixer.ok() && projection.ok() && arena.ok(); }
};

// What the scan takes of some events.
struct ScanSteps {
    FloatRows parameters, inputs, skips;  // (time step, B, C), and per channel: step size times input, D times input
    float* decays;                        // (events, state, width)
};

struct OcclusionForward {
    // An event that is there.
    struct Step {
        int64_t event;
        const float *decays, *inputs, *skips, *B, *C;
    };
    // What has been read so far.
    struct Memory {
        float *state, *sums, *carries;  // (state, width) and (channels, size), as in PooledForward
    };

    const OcclusionArguments& a;
    const MixerArguments& m;
    const RunningArguments& r;
    ProjectionArguments p;  // of the rows in `mixed`
    const OcclusionWeights& w;
    ProjectionForward events;
    const ScanChannels& channels;
    const int64_t inner, hidden, size;  // rounded up to whole vectors; a channel's sums
    ScanSteps whole, changed;
    Memory before, memory;
    FloatRows gates, convolved, gated, mixed;
    float *delta, *outputs, *weights, *fresh, *means, *values;
    double *histories, *history;  // of the whole record's channels, and room for one more
    int64_t *first, *next, *kept;  // versions by their first absent event, as lists; events that are there
    Step* steps;
    uint8_t *touched, *affected;

    OcclusionForward(const OcclusionArguments& a_, const OcclusionWeights& w_)
        : a(a_), m(a.mixer), r(a.running), p(a.projection), w(w_), events(p, w.projection), channels(w.channels),
          inner(w.inner), hidden(round_up(p.width, 16)), size(p.queries * hidden + round_up(p.queries, 16)) {}

    void place(Pieces& pieces) {
        events.place(pieces);
        for (ScanSteps* some : {&whole, &changed}) {
            for (FloatRows* rows : {&some->inputs, &some->skips}) *rows = {pieces.take(r.length * inner), inner};
            some->decays = pieces.take(r.length * m.state * inner);
        }
        const int64_t columns = m.rank + 2 * m.state;
        changed.parameters = {pieces.take(r.length * columns + 16), columns};
        for (Memory* some : {&before, &memory}) {
            some->state = pieces.take(m.state * inner);
            some->sums = pieces.take(r.channels * size), some->carries = pieces.take(r.channels * size);
        }
        for (FloatRows* rows : {&gates, &convolved}) *rows = {pieces.take(r.length * inner), inner};
        gated = {pieces.take(kPiece * inner), inner}, mixed = {pieces.take(kPiece * p.width + 16), p.width};
        p.x = mixed.data;
        delta = pieces.take(kPiece * inner), outputs = pieces.take(kPiece * kLanes);
        weights = pieces.take(kPiece * p.queries + 16), fresh = pieces.take(r.channels * size);
        means = pieces.take(p.queries * hidden), values = pieces.take(p.queries * hidden);
        histories = (double*)pieces.take(2 * r.channels * History::size(r.half_lives));
        history = (double*)pieces.take(2 * History::size(r.half_lives));
        first = (int64_t*)pieces.take(2 * (r.length + 1)), kept = (int64_t*)pieces.take(2 * r.length);
        next = (int64_t*)pieces.take(2 * most_versions());
        steps = (Step*)pieces.take(kPiece * (int64_t)(sizeof(Step) / sizeof(float)));
        touched = (uint8_t*)pieces.take(r.channels / 4 + 1), affected = (uint8_t*)pieces.take(r.channels / 4 + 1);
    }
    int64_t most_versions() const {
        int64_t most = 0;
        for (int64_t b = 0; b < r.batch; ++b) most = most < a.starts[b + 1] - a.starts[b] ? a.starts[b + 1] - a.starts[b] : most;
        return most;
    }

    const int64_t* slots(int64_t record) const { return r.slots + record * r.length; }
    const uint8_t* absent(int64_t version) const { return a.absent + version * r.length; }

    void run(int64_t record) {
        int64_t count = 0;
        while (count < r.length && slots(record)[count] >= 0) ++count;
        for (int64_t t = 0; t <= count; ++t) first[t] = -1;
        for (int64_t version = a.starts[record + 1] - 1; version >= a.starts[record]; --version) {
            int64_t t = 0;
            while (t < count && !absent(version)[t]) ++t;
            next[version - a.starts[record]] = first[t];
            first[t] = version;
        }
        begin(record, count);
        int64_t read = 0;
        for (int64_t t = 0; t <= count; ++t)
            for (int64_t version = first[t]; version >= 0; version = next[version - a.starts[record]]) {
                take(record, t - read, [&](int64_t i) { return step_of(whole, read + i, read + i); }, before);
                read = t;
                read_without(record, version, t, count);
            }
    }

    // What is the same in all versions.
    void begin(int64_t record, int64_t count) {
        whole.parameters = {m.parameters.at<float>(record, 0), m.parameters.time_stride};
        prepare({m.convolved.at<float>(record, 0), m.convolved.time_stride}, count, whole);
        for (int64_t t = 0; t < count; ++t)
            for (int64_t i = 0; i < m.inner; i += kLanes) {
                const Pack<1> gate{load(m.projected.at<float>(record, t) + m.inner + i, (int)minimum_of(kLanes, m.inner - i))};
                store(gates.at(t, i), (gate * sigmoid(gate)).v[0]);
            }
        clear_floats(before.state, m.state * inner);
        clear_floats(before.sums, r.channels * size), clear_floats(before.carries, r.channels * size);
        clear_floats(fresh, r.channels * size);
        memset(touched, 0, r.channels);
        memset(histories, 0, r.channels * History::size(r.half_lives) * sizeof(double));
        for (int64_t t = 0; t < count; ++t) note(history_of(slots(record)[t]), record, t);
    }
    History history_of(int64_t channel) const {
        return {histories + channel * History::size(r.half_lives), r.half_life, r.half_lives};
    }
    void note(History to, int64_t record, int64_t event) const {
        const int64_t at = record * r.length + event;
        to.note(r.times[at], r.value_mask[at] != 0, r.values[at]);
    }

    // Convolved rows, whose parameters are there -> all else that the scan takes.
    void prepare(FloatRows rows, int64_t count, const ScanSteps& to) {
        for (int64_t t = 0; t < count; ++t) {
            if (t % kPiece == 0) {
                const FloatRows part{to.parameters.at(t), to.parameters.stride};
                multiply_rows(w.mixer.dt, part, {delta, inner}, minimum_of(kPiece, count - t));
            }
            for (int64_t i = 0; i < m.inner; i += kLanes) {
                const Vector input = load(rows.at(t, i), (int)minimum_of(kLanes, m.inner - i));
                const Pack<1> raw{load(delta + t % kPiece * inner + i) + load(channels.bias + i)};
                const Pack<1> step = softplus(raw);
                const Vector bounded = clamp(step, load(channels.limit + i)).v[0];
                store(to.inputs.at(t, i), step.v[0] * input);
                store(to.skips.at(t, i), load(channels.D + i) * input);
                for (int64_t n = 0; n < m.state; ++n)
                    store(to.decays + (t * m.state + n) * inner + i, exp2_product(bounded, load(channels.decay + n * inner + i)));
            }
        }
    }
    Step step_of(const ScanSteps& some, int64_t place, int64_t event) const {
        const float* B = some.parameters.at(place, m.rank);
        return {event, some.decays + place * m.state * inner, some.inputs.at(place), some.skips.at(place), B, B + m.state};
    }

    // Reads events, step(i) for each, a piece at a time.
    template <typename F>
    void take(int64_t record, int64_t count, F step, const Memory& to) {
        for (int64_t start = 0; start < count; start += kPiece) {
            const int64_t piece = minimum_of(kPiece, count - start);
            for (int64_t j = 0; j < piece; ++j) steps[j] = step(start + j);
            mix(record, piece, to.state);
            pool(record, piece, to);
        }
    }

    template <int G>
    __attribute__((noinline)) void advance(int64_t count, int64_t i, int64_t n, float* state) {
        Vector h[G];
        HYMATE_UNROLL
        for (int g = 0; g < G; ++g) h[g] = load(state + (n + g) * inner + i);
        for (int64_t j = 0; j < count; ++j) {
            const Step& step = steps[j];
            const float *decay = step.decays + n * inner + i, *B = step.B + n, *C = step.C + n;
            const Vector input = load(step.inputs + i);
            Vector output[2] = {load(outputs + j * kLanes), Vector{}};
            HYMATE_UNROLL
            for (int g = 0; g < G; ++g) {
                h[g] = load(decay + g * inner) * h[g] + input * B[g];
                output[g % 2] += h[g] * C[g];
            }
            store(outputs + j * kLanes, output[0] + output[1]);
        }
        HYMATE_UNROLL
        for (int g = 0; g < G; ++g) store(state + (n + g) * inner + i, h[g]);
    }

    // The layer's states of a piece, into `mixed`.
    void mix(int64_t record, int64_t count, float* state) {
        for (int64_t i = 0; i < m.inner; i += kLanes) {
            for (int64_t j = 0; j < count; ++j) store(outputs + j * kLanes, load(steps[j].skips + i));
            for_groups<kForwardGroup>(m.state, [&](auto group, int64_t n) {
                this->template advance<decltype(group)::value>(count, i, n, state);
            });
            for (int64_t j = 0; j < count; ++j)
                store(gated.at(j, i), load(outputs + j * kLanes) * load(gates.at(steps[j].event, i)));
        }
        multiply_rows(w.mixer.out, gated, mixed, count);
        for (int64_t j = 0; j < count; ++j)
            for (int64_t k = 0; k < m.width; k += kLanes) {
                const int lanes = (int)minimum_of(kLanes, m.width - k);
                const float* row = m.rows.at<float>(record, steps[j].event);
                store(mixed.at(j, k), load(mixed.at(j, k), lanes) + load(row + k, lanes), lanes);
            }
    }

    void pool(int64_t record, int64_t count, const Memory& to) {
        events.score(0, count);
        for (int64_t i = 0; i < count * p.queries; i += kLanes)
            store(weights + i, exponential(Pack<1>{load(events.raw.data + i) * (float)p.bound}).v[0]);
        for (int64_t j = 0; j < count; ++j) {
            const int64_t channel = slots(record)[steps[j].event];
            float* sum = fresh + channel * size;
            const float *row = events.normed.at(j), *weight = weights + j * p.queries;
            touched[channel] = 1;
            for (int64_t q = 0; q < p.queries; ++q) {
                for (int64_t k = 0; k < hidden; k += kLanes)
                    store(sum + q * hidden + k, load(sum + q * hidden + k) + load(row + k) * weight[q]);
                sum[p.queries * hidden + q] += weight[q];
            }
        }
        for (int64_t channel = 0; channel < r.channels; ++channel) {
            if (!touched[channel]) continue;
            const int64_t at = channel * size;
            for (int64_t i = at; i < at + size; i += kLanes)
                add_compensated(to.sums + i, to.carries + i, load(fresh + i));
            clear_floats(fresh + at, size);
            touched[channel] = 0;
        }
    }

    void read_without(int64_t record, int64_t version, int64_t begins, int64_t count) {
        memcpy(memory.state, before.state, m.state * inner * sizeof(float));
        memcpy(memory.sums, before.sums, r.channels * size * sizeof(float));
        memcpy(memory.carries, before.carries, r.channels * size * sizeof(float));
        memset(affected, 0, r.channels);
        const uint8_t* is_absent = absent(version);
        int64_t there = 0, moved = 0, unlike = 0;  // events; those whose convolution changes, which come next
        for (int64_t t = 0; t < begins; ++t) kept[there++] = t;
        for (int64_t t = begins; t < count; ++t) {
            if (is_absent[t]) {
                affected[slots(record)[t]] = 1;
                unlike = m.kernel - 1;
                continue;
            }
            kept[there++] = t;
            if (unlike > 0) convolve_again(record, there, moved++), --unlike;
        }
        multiply_rows(w.mixer.x, convolved, changed.parameters, moved);
        prepare(convolved, moved, changed);
        int64_t place = 0, expected = begins;
        unlike = 0;
        const auto step = [&](int64_t i) {
            const int64_t event = kept[begins + i];
            if (event > expected) unlike = m.kernel - 1;
            expected = event + 1;
            if (unlike == 0) return step_of(whole, event, event);
            --unlike;
            return step_of(changed, place++, event);
        };
        take(record, there - begins, step, memory);
        const float now = there > 0 ? r.times[record * r.length + kept[there - 1]] : 0.0f;
        a.last_times[version] = now;
        answer(record, version, there, now);
    }

    // The convolution of the last of the first `count` events that are there.
    void convolve_again(int64_t record, int64_t count, int64_t place) {
        for (int64_t i = 0; i < m.inner; i += kLanes) {
            const int lanes = (int)minimum_of(kLanes, m.inner - i);
            Pack<1> sum{m.conv_bias == nullptr ? Vector{} : load(m.conv_bias + i, lanes)};
            for (int64_t k = m.kernel - 1; k >= 0; --k) {
                const int64_t at = count - m.kernel + k;
                if (at < 0) break;
                sum.v[0] += load(w.taps + k * inner + i) * load(m.projected.at<float>(record, kept[at]) + i, lanes);
            }
            store(convolved.at(place, i), (sum * sigmoid(sum)).v[0]);
        }
    }

    void answer(int64_t record, int64_t version, int64_t there, float now) {
        const int64_t quantities = kQuantities + kHalfLifeQuantities * r.half_lives, columns = p.width / p.queries;
        for (int64_t channel = 0; channel < r.channels; ++channel) {
            History known = history_of(channel);
            if (affected[channel]) {
                memset(history, 0, History::size(r.half_lives) * sizeof(double));
                const History anew(history, r.half_life, r.half_lives);
                for (int64_t i = 0; i < there; ++i)
                    if (slots(record)[kept[i]] == channel) note(anew, record, kept[i]);
                anew.describe(now, r.statistics + (version * r.channels + channel) * quantities);
            } else {
                known.describe(now, r.statistics + (version * r.channels + channel) * quantities);
            }
            float* pooled = r.pooled + (version * r.channels + channel) * p.width;
            const float *sum = memory.sums + channel * size, *total = sum + p.queries * hidden;
            if (!(total[0] > 0)) {
                clear_floats(pooled, p.width);
                continue;
            }
            for (int64_t q = 0; q < p.queries; ++q)
                for (int64_t k = 0; k < hidden; k += kLanes)
                    store(means + q * hidden + k, load(sum + q * hidden + k) * (1 / total[q]));
            multiply_rows(w.projection.value, {means, hidden}, {values, hidden}, p.queries);
            for (int64_t q = 0; q < p.queries; ++q)
                memcpy(pooled + q * columns, values + q * hidden + q * columns, columns * sizeof(float));
        }
    }
};

inline int occlusion_forward(const OcclusionArguments& a) {
    const OcclusionWeights weights(a);
    if (!weights.ok()) return kOutOfMemory;
    return walk_records<OcclusionForward>(a, a.running.batch, a.running.threads, weights);
}

}  // namespace hymate
