// The selective scan of Mamba, forward and backward.
//
//   d_t = softplus(delta_t + bias);   h_t = exp(d_t A) h_{t-1} + d_t B_t u_t;   y_t = (C_t . h_t + D u_t) silu(z_t)
//
// Lanes run over channels, so B and C are broadcasts and no tensor is transposed. Time is cut into chunks of kChunk
// steps; within a chunk, the states of one vector of channels are worked on in groups small enough for the registers.
// Training keeps the state at each chunk's start; backward recomputes the states inside a chunk from it, which costs
// two exponentials a state and step altogether. The sums over channels in the gradients of B and C are kept as vectors
// until all channels of a chunk are through, and only then added up across lanes.
#pragma once

#include "tasks.h"

namespace hymate {

struct ScanArguments {
    int64_t batch, length, inner, state, dtype, softplus, threads;
    Rows u, delta, z, B, C;  // z may be absent
    const float* A;          // (inner, state)
    const float *D, *bias;   // (inner,), may be absent
    const int64_t* lengths;  // (batch,), may be absent
    const float* initial;    // (batch, inner, state), may be absent
    Rows out;                // backward: where the gated output goes once more, may be absent; needs z
    float* final;            // (batch, inner, state), may be absent
    float* states;           // (batch, chunks, state, inner rounded up to 16): at each chunk's start; forward may lack it
    // Backward only. Row gradients take the dtype of the rows; the others are float32.
    Rows grad_out;
    const float* grad_final;  // may be absent
    Rows grad_u, grad_delta, grad_z, grad_B, grad_C;
    float *grad_A, *grad_D, *grad_bias, *grad_initial;  // all but grad_A may be absent
};

// The parameters of one task's channels, transposed so that channels are contiguous and padded with zeros.
struct ScanChannels {
    int64_t width;                        // channels rounded up to whole vectors
    float *decay, *limit, *D, *bias;      // decay: A log2(e), (state, width)

    static int64_t floats(int64_t state, int64_t width) { return (state + 4) * round_up(width, 16); }

    ScanChannels(Arena& arena, const ScanArguments& s, int64_t width_) : width(width_) {
        decay = arena.take(s.state * width);
        limit = arena.take(width);
        D = arena.take(width);
        bias = arena.take(width);
    }

    void fill(const ScanArguments& s, int64_t begin, int64_t channels) {
        for (int64_t i = 0; i < width; ++i) {
            const bool real = i < channels;
            float largest = 1.0f;
            for (int64_t n = 0; n < s.state; ++n) {
                const float value = real ? s.A[(begin + i) * s.state + n] * kLog2e : 0.0f;
                decay[n * width + i] = value;
                largest = __builtin_fmaxf(largest, __builtin_fabsf(value));
            }
            limit[i] = 0x1p50f / largest;  // beyond it exp2_product would overflow; every decay is long 0 there
            D[i] = real && s.D != nullptr ? s.D[begin + i] : 0.0f;
            bias[i] = real && s.bias != nullptr ? s.bias[begin + i] : 0.0f;
        }
    }
};

// (inner, state) <-> (state, width) for one task's channels.
inline void load_state(const float* source, int64_t states, int64_t begin, int64_t channels, float* state,
                       int64_t width) {
    memset(state, 0, states * width * sizeof(float));
    if (source == nullptr) return;
    for (int64_t i = 0; i < channels; ++i)
        for (int64_t n = 0; n < states; ++n) state[n * width + i] = source[(begin + i) * states + n];
}

inline void store_state(float* target, int64_t states, int64_t begin, int64_t channels, const float* state,
                        int64_t width) {
    if (target == nullptr) return;
    for (int64_t i = 0; i < channels; ++i)
        for (int64_t n = 0; n < states; ++n) target[(begin + i) * states + n] = state[n * width + i];
}

// A chunk's B and C as float32: bc[step][0] is B, bc[step][1] is C.
template <typename T>
HYMATE_INLINE void load_bc(const ScanArguments& s, int64_t batch, int64_t start, int steps, float* bc) {
    for (int t = 0; t < steps; ++t) {
        const T* B = s.B.at<T>(batch, start + t);
        const T* C = s.C.at<T>(batch, start + t);
        float* row = bc + t * 2 * s.state;
        for (int64_t n = 0; n < s.state; n += kLanes) {
            const int count = (int)minimum_of(kLanes, s.state - n);
            store(row + n, load(B + n, count), count);
            store(row + s.state + n, load(C + n, count), count);
        }
    }
}

// ---------------------------------------------------------------------------------------------- forward

// One chunk of one vector of channels, G states: state and output move on by `steps`.
template <int G>
__attribute__((noinline)) void forward_group(const float* decay, float* state, float* kept, int64_t width,
                                             int64_t kept_width, const float* step_sizes, const float* inputs,
                                             const float* bc, int64_t states, float* outputs, int steps, const Ahead* ahead) {
    Vector a[G], h[G];
    HYMATE_UNROLL
    for (int g = 0; g < G; ++g) {
        a[g] = load(decay + g * width);
        h[g] = load(state + g * width);
        if (kept != nullptr) store(kept + g * kept_width, h[g]);
    }
    for (int t = 0; t < steps; ++t) {
        const Vector dt = load(step_sizes + t * kLanes), input = load(inputs + t * kLanes);
        Vector output[2] = {load(outputs + t * kLanes), Vector{}};
        ahead[0].fetch(t);
        ahead[1].fetch(t);
        const float* B = bc + t * 2 * states;
        const float* C = B + states;
        HYMATE_UNROLL
        for (int g = 0; g < G; ++g) {
            h[g] = exp2_product(dt, a[g]) * h[g] + input * B[g];
            output[g % 2] += h[g] * C[g];
        }
        store(outputs + t * kLanes, output[0] + output[1]);
    }
    HYMATE_UNROLL
    for (int g = 0; g < G; ++g) store(state + g * width, h[g]);
}

template <typename T>
struct ScanForward {
    const ScanArguments& s;
    const int64_t width, kept_width, chunks;
    Arena arena;
    ScanChannels channels;
    float *state, *bc, *step_sizes, *inputs, *outputs;

    ScanForward(const ScanArguments& s_, const Partition& partition)
        : s(s_),
          width(partition.width),
          kept_width(round_up(s.inner, 16)),
          chunks((s.length + kChunk - 1) / kChunk),
          arena(arena_floats()),
          channels(arena, s, width) {
        state = arena.take(s.state * width);
        bc = arena.take(kChunk * 2 * s.state);
        step_sizes = arena.take(kChunk * kLanes);
        inputs = arena.take(kChunk * kLanes);
        outputs = arena.take(kChunk * kLanes);
    }

    int64_t arena_floats() const {
        return ScanChannels::floats(s.state, width) + s.state * width + kChunk * (2 * s.state + 3 * kLanes);
    }

    bool ok() const { return arena.ok(); }

    void run(const Partition::Task& task) {
        const int64_t length = valid_length(s.lengths, task.batch, s.length);
        begin(task);
        advance(task, 0, length);
        zero_rows<T>(s.out, task.batch, length, s.length, task.begin, task.channels);
        end(task);
    }

    void begin(const Partition::Task& task) {
        channels.fill(s, task.begin, task.channels);
        const int64_t offset = task.batch * s.inner * s.state;
        load_state(s.initial ? s.initial + offset : nullptr, s.state, task.begin, task.channels, state, width);
    }

    void end(const Partition::Task& task) const {
        const int64_t offset = task.batch * s.inner * s.state;
        store_state(s.final ? s.final + offset : nullptr, s.state, task.begin, task.channels, state, width);
    }

    // Goes on from where `begin` or the last call ended, at the start of a chunk.
    void advance(const Partition::Task& task, int64_t first, int64_t end) {
        for (int64_t start = first; start < end; start += kChunk) {
            const int steps = (int)minimum_of(kChunk, end - start);
            load_bc<T>(s, task.batch, start, steps, bc);
            float* kept = s.states == nullptr ? nullptr
                                              : s.states + (task.batch * chunks + start / kChunk) * s.state * kept_width;
            for (int64_t i = 0; i < task.channels; i += kLanes)
                with_count(task.channels - i, [&](auto count) { block(task, start, steps, i, count, kept); });
        }
    }

    template <typename Count>
    void block(const Partition::Task& task, int64_t start, int steps, int64_t i, Count count, float* kept) {
        const int64_t channel = task.begin + i;
        const Vector limit = load(channels.limit + i), skip = load(channels.D + i), bias = load(channels.bias + i);
        const Column<T> u(s.u, task.batch, start, channel), delta(s.delta, task.batch, start, channel),
            z(s.z, task.batch, start, channel), out(s.out, task.batch, start, channel);
        for_steps(steps, [&](auto size, int t) {
            constexpr int U = decltype(size)::value;
            const Pack<U> input = u.load(size, t, count);
            Pack<U> dt = delta.load(size, t, count) + bias;
            if (s.softplus) dt = softplus(dt);
            store_rows(step_sizes + t * kLanes, kLanes, clamp(dt, limit), kFull);
            store_rows(inputs + t * kLanes, kLanes, dt * input, kFull);
            store_rows(outputs + t * kLanes, kLanes, input * skip, kFull);
        });
        const bool last = i + kLanes >= task.channels;
        const int64_t next_start = last ? start + kChunk : start, next_channel = last ? task.begin : channel + kLanes;
        const auto ahead_of = [&](const Rows& rows) {
            return rows.data == nullptr ? Ahead() : Ahead(rows.at<T>(task.batch, next_start) + next_channel, rows.time_stride);
        };
        const Ahead ahead[4] = {ahead_of(s.u), ahead_of(s.delta), ahead_of(s.z), ahead_of(s.out)};
        for_groups<kForwardGroup>(s.state, [&](auto size, int64_t n) {
            forward_group<decltype(size)::value>(channels.decay + n * width + i, state + n * width + i,
                                                 kept ? kept + n * kept_width + channel : nullptr, width, kept_width,
                                                 step_sizes, inputs, bc + n, s.state, outputs, steps,
                                                 ahead + (n == 0 ? 0 : 2));
        });
        for_steps(steps, [&](auto size, int t) {
            constexpr int U = decltype(size)::value;
            Pack<U> output = load_rows<U>(outputs + t * kLanes, kLanes, kFull);
            if (z.data != nullptr) {
                const Pack<U> gate = z.load(size, t, count);
                output = output * gate * sigmoid(gate);
            }
            out.store(t, output, count);
        });
    }
};

template <typename T>
int scan_forward(const ScanArguments& s) {
    const Partition partition(s.batch, s.inner, s.threads);
    int failed = 0;
#pragma omp parallel num_threads(partition.threads) reduction(| : failed)
    {
        FlushSubnormals flush;
        ScanForward<T> worker(s, partition);
        failed |= !worker.ok();
#pragma omp for schedule(dynamic, 1)
        for (int64_t index = 0; index < partition.tasks; ++index)
            if (worker.ok()) worker.run(partition.task(index));
    }
    return failed ? kOutOfMemory : kOk;
}

}  // namespace hymate
