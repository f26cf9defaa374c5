// The selective scan's backward pass; scan.h says how the two go together.
#pragma once

#include "scan.h"

namespace hymate {

// The rows of one chunk of one vector of channels, kChunk vectors each.
enum Staged { kStep, kInput, kGrad, kOutput, kSlope, kGate, kGateGrad, kGradStep, kGradInput, kStagedRows };

// Floats between two arrays that are walked together, one stored to and one loaded from: a processor that compares the
// low twelve bits of addresses must not take a load for one that waits for the store just before it.
constexpr int kStagger = kBackwardGroup * kLanes;

HYMATE_INLINE float* staged_row(float* staged, int row, int t) { return staged + (row * kChunk + t) * kLanes; }

// One chunk of one vector of channels, G states: recomputes the states from the one kept at the chunk's start, then
// walks back. sums_B and sums_C (step, G, lanes) gather the gradients of B and C, still spread over the lanes.
template <int G>
__attribute__((noinline)) void backward_group(const float* decay, const float* kept, float* grad_state, float* grad_A,
                                              float* carry_A, int64_t width, int64_t kept_width, float* staged,
                                              const float* bc, int64_t states, float* decays, float* decayed,
                                              float* sums_B, float* sums_C, int steps, const Ahead* ahead) {
    Vector a[G];
    HYMATE_UNROLL
    for (int g = 0; g < G; ++g) a[g] = load(decay + g * width);
    {
        Vector h[G];
        HYMATE_UNROLL
        for (int g = 0; g < G; ++g) h[g] = load(kept + g * kept_width);
        for (int t = 0; t < steps; ++t) {
            const Vector dt = load(staged_row(staged, kStep, t)), input = load(staged_row(staged, kInput, t)),
                         grad = load(staged_row(staged, kGrad, t));
            Vector output[2] = {load(staged_row(staged, kOutput, t)), Vector{}};
            ahead[0].fetch(t);
            ahead[1].fetch(t);
            const float* B = bc + t * 2 * states;
            const float* C = B + states;
            const int64_t at = t * G * kLanes;
            HYMATE_UNROLL
            for (int g = 0; g < G; ++g) {
                const Vector e = exp2_product(dt, a[g]);
                const Vector p = e * h[g];
                store(decays + at + g * kLanes, e);
                store(decayed + at + g * kLanes, p);
                h[g] = p + input * B[g];
                output[g % 2] += h[g] * C[g];
                store(sums_C + at + g * kLanes, load(sums_C + at + g * kLanes) + grad * h[g]);
            }
            store(staged_row(staged, kOutput, t), output[0] + output[1]);
        }
    }
    Vector upstream[G], sum_A[G];
    HYMATE_UNROLL
    for (int g = 0; g < G; ++g) {
        upstream[g] = load(grad_state + g * width);
        sum_A[g] = Vector{};
    }
    for (int t = steps - 1; t >= 0; --t) {
        const Vector dt = load(staged_row(staged, kStep, t)), input = load(staged_row(staged, kInput, t)),
                     grad = load(staged_row(staged, kGrad, t));
        Vector grad_step[2] = {load(staged_row(staged, kGradStep, t)), Vector{}};
        Vector grad_input[2] = {load(staged_row(staged, kGradInput, t)), Vector{}};
        const float* B = bc + t * 2 * states;
        const float* C = B + states;
        const int64_t at = t * G * kLanes;
        ahead[2].fetch(t);
        ahead[3].fetch(t);
        HYMATE_UNROLL
        for (int g = 0; g < G; ++g) {
            const Vector grad_h = upstream[g] + grad * C[g];
            grad_input[g % 2] += grad_h * B[g];
            store(sums_B + at + g * kLanes, load(sums_B + at + g * kLanes) + grad_h * input);
            const Vector exponent = grad_h * load(decayed + at + g * kLanes);  // the gradient of dt A
            grad_step[g % 2] += exponent * a[g];
            sum_A[g] += exponent * dt;
            upstream[g] = grad_h * load(decays + at + g * kLanes);
        }
        store(staged_row(staged, kGradStep, t), grad_step[0] + grad_step[1]);
        store(staged_row(staged, kGradInput, t), grad_input[0] + grad_input[1]);
    }
    HYMATE_UNROLL
    for (int g = 0; g < G; ++g) {
        store(grad_state + g * width, upstream[g]);
        add_compensated(grad_A + g * width, carry_A + g * width, sum_A[g]);
    }
}

// The sums over records, in the parameters' gradients. Each slot gathers some of them, a record or more; in the end the
// slots are added in their order.
struct ScanSums {
    const int64_t slots, width, a_size;  // width: inner rounded up to 16
    Arena arena;
    float *A, *D, *bias;  // (slots, state, width), (slots, width) twice

    ScanSums(const ScanArguments& s, int64_t slots_)
        : slots(slots_), width(round_up(s.inner, 16)), a_size(s.state * width), arena((a_size + 2 * width) * (slots + 2)) {
        if (!arena.ok()) return;
        A = arena.take(a_size * (slots + 2));
        D = arena.take(width * (slots + 2));
        bias = arena.take(width * (slots + 2));
    }

    void finish(const ScanArguments& s) {
        float* sum = A + a_size * slots;
        sum_over_batch(A, slots, a_size, sum, sum + a_size);
        for (int64_t i = 0; i < s.inner; ++i)
            for (int64_t n = 0; n < s.state; ++n) s.grad_A[i * s.state + n] = sum[n * width + i];
        finish_vector(D, s.inner, s.grad_D);
        finish_vector(bias, s.inner, s.grad_bias);
    }

    void finish_vector(float* partial, int64_t inner, float* target) {
        if (target == nullptr) return;
        float* sum = partial + width * slots;
        sum_over_batch(partial, slots, width, sum, sum + width);
        memcpy(target, sum, inner * sizeof(float));
    }
};

// Where a record's channels are divided among tasks, each task leaves its share of the gradients of B and C in rows of
// its own, `shares`: (batch, splits) and time, B's states and then C's. This adds up one step's.
template <typename T>
void add_shares(const ScanArguments& s, const Rows& shares, int64_t splits, int64_t batch, int64_t t) {
    T* targets[2] = {s.grad_B.at<T>(batch, t), s.grad_C.at<T>(batch, t)};
    for (int which = 0; which < 2; ++which)
        for (int64_t n = 0; n < s.state; n += kLanes) {
            const int count = (int)minimum_of(kLanes, s.state - n);
            Vector sum{};
            for (int64_t split = 0; split < splits; ++split)
                sum += load(shares.at<float>(batch * splits + split, t) + which * s.state + n, count);
            store(targets[which] + n, sum, count);
        }
}

template <typename T>
struct ScanBackward {
    const ScanArguments& s;
    const Rows& shares;  // absent where a task has all channels of its record
    const int64_t splits, width, kept_width, chunks;
    Arena arena;
    ScanChannels channels;
    float *grad_state, *grad_A, *carry_A, *grad_D, *carry_D, *grad_bias, *carry_bias;
    float *bc, *grad_bc, *decays, *decayed, *sums_B, *sums_C, *staged;

    ScanBackward(const ScanArguments& s_, const Partition& partition, const Rows& shares_)
        : s(s_),
          shares(shares_),
          splits(partition.splits),
          width(partition.width),
          kept_width(round_up(s.inner, 16)),
          chunks((s.length + kChunk - 1) / kChunk),
          arena(arena_floats()),
          channels(arena, s, width) {
        grad_state = arena.take(s.state * width);
        grad_A = arena.take(s.state * width);
        carry_A = arena.take(s.state * width);
        grad_D = arena.take(width);
        carry_D = arena.take(width);
        grad_bias = arena.take(width);
        carry_bias = arena.take(width);
        bc = arena.take(kChunk * 2 * s.state);
        grad_bc = arena.take(kChunk * 2 * s.state);
        decays = arena.take(kChunk * kBackwardGroup * kLanes);
        decayed = arena.take(kChunk * kBackwardGroup * kLanes);
        arena.take(kStagger);
        sums_B = arena.take(kChunk * kBackwardGroup * kLanes);
        sums_C = arena.take(kChunk * kBackwardGroup * kLanes);
        staged = arena.take(kStagedRows * kChunk * width);
    }

    int64_t arena_floats() const {
        return ScanChannels::floats(s.state, width) + (3 * s.state + 4) * round_up(width, 16) +
               kStagger +
               kChunk * (4 * s.state + 4 * kBackwardGroup * kLanes + kStagedRows * width);
    }

    bool ok() const { return arena.ok(); }

    void run(const Partition::Task& task, ScanSums& sums) {
        const int64_t length = valid_length(s.lengths, task.batch, s.length);
        begin(task);
        clear_sums();
        go_back(task, 0, length);
        leave_sums(task, sums, task.batch);
        zero_padding(task, length);
        const int64_t offset = task.batch * s.inner * s.state;
        store_state(s.grad_initial ? s.grad_initial + offset : nullptr, s.state, task.begin, task.channels, grad_state,
                    width);
    }

    void begin(const Partition::Task& task) {
        channels.fill(s, task.begin, task.channels);
        const int64_t offset = task.batch * s.inner * s.state;
        load_state(s.grad_final ? s.grad_final + offset : nullptr, s.state, task.begin, task.channels, grad_state,
                   width);
    }

    // From `end`, where the last call began, back to `first`, the start of a chunk.
    void go_back(const Partition::Task& task, int64_t first, int64_t end) {
        for (int64_t start = first + round_up(end - first, kChunk) - kChunk; start >= first; start -= kChunk)
            chunk(task, start, (int)minimum_of(kChunk, end - start));
    }

    void clear_sums() { memset(grad_A, 0, (bc - grad_A) * sizeof(float)); }

    void leave_sums(const Partition::Task& task, ScanSums& sums, int64_t slot) const {
        const int64_t bytes = minimum_of(width, sums.width - task.begin) * (int64_t)sizeof(float);
        for (int64_t n = 0; n < s.state; ++n)
            memcpy(sums.A + (slot * s.state + n) * sums.width + task.begin, grad_A + n * width, bytes);
        memcpy(sums.D + slot * sums.width + task.begin, grad_D, bytes);
        memcpy(sums.bias + slot * sums.width + task.begin, grad_bias, bytes);
    }

    void zero_padding(const Partition::Task& task, int64_t length) const {
        for (const Rows& rows : {s.grad_u, s.grad_delta, s.grad_z})
            zero_rows<T>(rows, task.batch, length, s.length, task.begin, task.channels);
        if (shares.data != nullptr) return;
        for (const Rows& rows : {s.grad_B, s.grad_C}) zero_rows<T>(rows, task.batch, length, s.length, 0, s.state);
    }

    void chunk(const Partition::Task& task, int64_t start, int steps) {
        load_bc<T>(s, task.batch, start, steps, bc);
        for (int64_t i = 0; i < task.channels; i += kLanes)
            with_count(task.channels - i, [&](auto count) { stage(task, start, steps, i, count); });
        const float* kept = s.states + (task.batch * chunks + start / kChunk) * s.state * kept_width + task.begin;
        const auto ahead_of = [&](const Rows& rows) {
            return rows.data == nullptr ? Ahead()
                                        : Ahead(rows.at<T>(task.batch, start - kChunk) + task.begin, rows.time_stride);
        };
        // Of the chunk before: the first group of states fetches what is read, the second what is written.
        const Ahead ahead[3][4] = {{ahead_of(s.u), ahead_of(s.delta), ahead_of(s.z), ahead_of(s.grad_out)},
                                   {ahead_of(s.grad_u), ahead_of(s.grad_delta), ahead_of(s.grad_z),
                                    Ahead(kept - s.state * kept_width, kept_width)}};
        for_groups<kBackwardGroup>(s.state, [&](auto size, int64_t n) {
            constexpr int G = decltype(size)::value;
            const Ahead* columns = ahead[minimum_of(n / kBackwardGroup, 2)];
            for (int64_t i = 0; i < task.channels; i += kLanes) {
                const int64_t at = n * width + i;
                const Ahead shifted[4] = {columns[0].at(i), columns[1].at(i), columns[2].at(i), columns[3].at(i)};
                backward_group<G>(channels.decay + at, kept + n * kept_width + i, grad_state + at, grad_A + at,
                                  carry_A + at, width, kept_width, staged + i * kStagedRows * kChunk, bc + n, s.state,
                                  decays, decayed, sums_B, sums_C, steps, shifted);
            }
            float sums[2][kChunk * G];
            for (int row = 0; row < kChunk * G; row += kLanes) {
                store(sums[0] + row, take_row_sums(sums_B + row * kLanes));
                store(sums[1] + row, take_row_sums(sums_C + row * kLanes));
            }
            for (int t = 0; t < steps; ++t)
                HYMATE_UNROLL
                for (int g = 0; g < G; ++g) {
                    grad_bc[t * 2 * s.state + n + g] = sums[0][t * G + g];
                    grad_bc[(t * 2 + 1) * s.state + n + g] = sums[1][t * G + g];
                }
        });
        for (int64_t i = 0; i < task.channels; i += kLanes)
            with_count(task.channels - i, [&](auto count) { unstage(task, start, steps, i, count); });
        for (int t = 0; t < steps; ++t) store_bc(task, start + t, grad_bc + t * 2 * s.state);
    }

    template <typename Count>
    void stage(const Partition::Task& task, int64_t start, int steps, int64_t i, Count count) {
        const int64_t channel = task.begin + i;
        const Vector limit = load(channels.limit + i), skip = load(channels.D + i), bias = load(channels.bias + i);
        const Column<T> u(s.u, task.batch, start, channel), delta(s.delta, task.batch, start, channel),
            z(s.z, task.batch, start, channel), grad_out(s.grad_out, task.batch, start, channel);
        float* rows = staged + i * kStagedRows * kChunk;
        for_steps(steps, [&](auto size, int t) {
            constexpr int U = decltype(size)::value;
            const Pack<U> input = u.load(size, t, count);
            Pack<U> dt = delta.load(size, t, count) + bias;
            if (s.softplus) {
                Pack<U> slope;
                dt = softplus(dt, slope);
                store_rows(staged_row(rows, kSlope, t), kLanes, slope, kFull);
            }
            store_rows(staged_row(rows, kStep, t), kLanes, clamp(dt, limit), kFull);
            store_rows(staged_row(rows, kInput, t), kLanes, dt * input, kFull);
            Pack<U> grad = grad_out.load(size, t, count);
            if (z.data != nullptr) {
                const Pack<U> gate = z.load(size, t, count), open = sigmoid(gate);
                store_rows(staged_row(rows, kOutput, t), kLanes, input * skip, kFull);
                store_rows(staged_row(rows, kGate, t), kLanes, gate * open, kFull);
                store_rows(staged_row(rows, kGateGrad, t), kLanes, grad * silu_slope(gate, open), kFull);
                grad = grad * gate * open;
            }
            store_rows(staged_row(rows, kGrad, t), kLanes, grad, kFull);
            store_rows(staged_row(rows, kGradStep, t), kLanes, Pack<U>{}, kFull);
            store_rows(staged_row(rows, kGradInput, t), kLanes, Pack<U>{}, kFull);
        });
    }

    template <typename Count>
    void unstage(const Partition::Task& task, int64_t start, int steps, int64_t i, Count count) {
        const int64_t channel = task.begin + i;
        const Vector skip = load(channels.D + i);
        const Column<T> u(s.u, task.batch, start, channel), grad_u(s.grad_u, task.batch, start, channel),
            grad_delta(s.grad_delta, task.batch, start, channel), grad_z(s.grad_z, task.batch, start, channel),
            out(s.out, task.batch, start, channel);
        const float* rows = staged + i * kStagedRows * kChunk;
        Vector sum_D{}, sum_bias{};
        for_steps(steps, [&](auto size, int t) {
            constexpr int U = decltype(size)::value;
            const auto row = [=](int which) {
                return load_rows<U>(rows + (which * kChunk + t) * kLanes, kLanes, kFull);
            };
            const Pack<U> input = u.load(size, t, count), grad = row(kGrad), from_input = row(kGradInput);
            Pack<U> from_step = row(kGradStep) * kLn2 + from_input * input;
            if (s.softplus) from_step = from_step * row(kSlope);
            grad_u.store(t, from_input * row(kStep) + grad * skip, count);
            grad_delta.store(t, from_step, count);
            if (grad_z.data != nullptr) {
                grad_z.store(t, row(kGateGrad) * row(kOutput), count);
                if (out.data != nullptr) out.store(t, row(kGate) * row(kOutput), count);
            }
            HYMATE_EACH {
                sum_D += grad.v[i] * input.v[i];
                sum_bias += from_step.v[i];
            }
        });
        add_compensated(grad_D + i, carry_D + i, sum_D);
        add_compensated(grad_bias + i, carry_bias + i, sum_bias);
    }

    void store_bc(const Partition::Task& task, int64_t t, const float* row) {
        if (shares.data != nullptr) {
            memcpy(shares.at<float>(task.batch * splits + task.split, t), row, 2 * s.state * sizeof(float));
            return;
        }
        T* grad_B = s.grad_B.at<T>(task.batch, t);
        T* grad_C = s.grad_C.at<T>(task.batch, t);
        for (int64_t n = 0; n < s.state; n += kLanes) {
            const int count = (int)minimum_of(kLanes, s.state - n);
            store(grad_B + n, load(row + n, count), count);
            store(grad_C + n, load(row + s.state + n, count), count);
        }
    }
};

template <typename T>
int scan_backward(const ScanArguments& s) {
    const Partition partition(s.batch, s.inner, s.threads);
    const int64_t share = s.length * 2 * s.state;
    Arena arena(partition.splits == 1 ? 0 : s.batch * partition.splits * share);
    ScanSums sums(s, s.batch);
    if (!arena.ok() || !sums.arena.ok()) return kOutOfMemory;
    const Rows shares{partition.splits == 1 ? nullptr : arena.take(0), share, 2 * s.state};
    int failed = 0;
#pragma omp parallel num_threads(partition.threads) reduction(| : failed)
    {
        FlushSubnormals flush;
        {
            ScanBackward<T> worker(s, partition, shares);
            failed |= !worker.ok();
#pragma omp for schedule(dynamic, 1)
            for (int64_t index = 0; index < partition.tasks; ++index)
                if (worker.ok()) worker.run(partition.task(index), sums);
        }
        if (shares.data != nullptr) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < s.batch * s.length; ++row)
                add_shares<T>(s, shares, partition.splits, row / s.length, row % s.length);
        }
#pragma omp single
        sums.finish(s);
    }
    return failed ? kOutOfMemory : kOk;
}

}  // namespace hymate
