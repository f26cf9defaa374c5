// Causal depthwise convolution along time, with bias and an optional SiLU, forward and backward.
#pragma once

#include "tasks.h"

namespace hymate {

// A kernel is padded with zero taps to one of these sizes; the cost is the memory's, not the multiplications'.
constexpr int kSmallKernel = 4, kLargeKernel = 8;

struct ConvolutionArguments {
    int64_t batch, length, inner, kernel, dtype, silu, threads;
    Rows x;
    const float* weight;     // (inner, kernel), kernel at most kLargeKernel
    const float* bias;       // (inner,), may be absent
    const int64_t* lengths;  // (batch,), may be absent
    const float* initial;    // forward only; (batch, inner, kernel - 1): the inputs before the first, may be absent
    Rows out;
    Rows grad_out, grad_x;               // backward only
    float *grad_weight, *grad_bias;      // backward only; float32, grad_bias may be absent
};

inline int64_t padded_kernel(const ConvolutionArguments& c) {
    return c.kernel <= kSmallKernel ? kSmallKernel : kLargeKernel;
}

// Calls visit(Constant<K>) with the padded size of the kernel.
template <typename F>
HYMATE_INLINE void with_kernel(const ConvolutionArguments& c, F visit) {
    if (padded_kernel(c) == kSmallKernel)
        visit(Constant<kSmallKernel>());
    else
        visit(Constant<kLargeKernel>());
}

// All taps and then the bias, (K + 1, stride), channels contiguous; weight k is for the input K - 1 - k steps before.
struct TapRows {
    int64_t taps, stride;  // taps: K
    Arena arena;
    float* rows;

    explicit TapRows(const ConvolutionArguments& c)
        : taps(padded_kernel(c)),
          stride(round_up(c.inner, 16)),
          arena((taps + 1) * stride),
          rows(arena.take((taps + 1) * stride)) {
        if (!arena.ok()) return;
        for (int64_t i = 0; i < c.inner; ++i) {
            for (int k = 0; k < c.kernel; ++k) rows[(taps - c.kernel + k) * stride + i] = c.weight[i * c.kernel + k];
            if (c.bias != nullptr) rows[taps * stride + i] = c.bias[i];
        }
    }
};

// The taps of one vector of channels.
template <int K>
struct Taps {
    Vector weight[K], bias;

    Taps(const TapRows& taps, int64_t channel) {
        for (int k = 0; k < K; ++k) weight[k] = load(taps.rows + k * taps.stride + channel);
        bias = load(taps.rows + K * taps.stride + channel);
    }
    // The outputs before SiLU of U steps, the first of which sees inputs[0 .. K - 1].
    template <int U>
    HYMATE_INLINE Pack<U> apply(const Vector* inputs) const {
        Pack<U> sum;
        HYMATE_EACH {
            sum.v[i] = bias;
            HYMATE_UNROLL
            for (int k = 0; k < K; ++k) sum.v[i] += weight[k] * inputs[i + k];
        }
        return sum;
    }
};

// The inputs of the K - 1 steps before the column's start; before the record there are the initial ones or nothing.
template <int K, typename T, typename Count>
HYMATE_INLINE void load_window(const ConvolutionArguments& c, const Column<T>& x, int64_t batch, int64_t start,
                               int64_t channel, Count count, Vector* inputs) {
    for (int k = 0; k < K - 1; ++k) {
        const int t = k - (K - 1);
        const int64_t column = c.kernel - 1 + start + t;  // of the initial inputs
        if (start + t >= 0) {
            inputs[k] = x.load(Constant<1>(), t, count).v[0];
        } else if (c.initial != nullptr && column >= 0) {
            float lanes[kLanes] = {};
            for (int i = 0; i < minimum_of(kLanes, c.inner - channel); ++i)
                lanes[i] = c.initial[(batch * c.inner + channel + i) * (c.kernel - 1) + column];
            inputs[k] = load(lanes);
        } else {
            inputs[k] = Vector{};
        }
    }
}

template <int K, typename T, typename Count>
void convolve_block(const ConvolutionArguments& c, const TapRows& all_taps, int64_t batch, int64_t start, int steps,
                    int64_t channel, Count count) {
    const Taps<K> taps(all_taps, channel);
    const Column<T> x(c.x, batch, start, channel), out(c.out, batch, start, channel);
    Vector inputs[kChunk + K - 1];
    load_window<K>(c, x, batch, start, channel, count, inputs);
    for_steps(steps, [&](auto size, int t) {
        constexpr int U = decltype(size)::value;
        const Pack<U> fresh = x.load(size, t, count);
        x.fetch(size, t + kChunk);
        HYMATE_EACH inputs[K - 1 + t + i] = fresh.v[i];
        Pack<U> y = taps.template apply<U>(inputs + t);
        if (c.silu) y = y * sigmoid(y);
        out.store(t, y, count);
    });
}

// The steps first .. end of one task, `first` at the start of a chunk.
template <typename T>
void convolve(const ConvolutionArguments& c, const TapRows& taps, const Partition::Task& task, int64_t first, int64_t end) {
    with_kernel(c, [&](auto kernel) {
        for (int64_t start = first; start < end; start += kChunk) {
            const int steps = (int)minimum_of(kChunk, end - start);
            for (int64_t i = 0; i < task.channels; i += kLanes)
                with_count(task.channels - i, [&](auto count) {
                    convolve_block<decltype(kernel)::value, T>(c, taps, task.batch, start, steps, task.begin + i, count);
                });
        }
    });
}

// Where the gradients of the taps and the bias gather, (K + 1, stride), their rounding errors beside them; and, while
// time is walked backwards, the gradients before SiLU of the K - 1 steps after the chunk.
struct ConvolutionGradients {
    float *sum, *carry, *future;
    int64_t taps, stride;

    // Before a record's last step, for one task's channels.
    void begin(const Partition::Task& task) const {
        for (int64_t k = 0; k < taps; ++k) memset(future + k * stride + task.begin, 0, task.channels * sizeof(float));
    }
};

// As in ScanSums, slots that each gather some records and are added in their order.
struct ConvolutionSums {
    const int64_t slots, taps, stride, size;
    Arena arena;
    float *sums, *carries, *futures;

    ConvolutionSums(const ConvolutionArguments& c, int64_t slots_)
        : slots(slots_),
          taps(padded_kernel(c)),
          stride(round_up(c.inner, 16)),
          size((taps + 1) * stride),
          arena(2 * size * (slots + 1) + taps * stride * slots),
          sums(arena.take(size * (slots + 1))),
          carries(arena.take(size * (slots + 1))),
          futures(arena.take(taps * stride * slots)) {}

    ConvolutionGradients slot(int64_t index) const {
        return {sums + index * size, carries + index * size, futures + index * taps * stride, taps, stride};
    }

    void finish(const ConvolutionArguments& c) const {
        float* sum = sums + size * slots;
        sum_over_batch(sums, slots, size, sum, carries + size * slots);
        for (int64_t i = 0; i < c.inner; ++i)
            for (int k = 0; k < c.kernel; ++k)
                c.grad_weight[i * c.kernel + k] = sum[(taps - c.kernel + k) * stride + i];
        if (c.grad_bias != nullptr) memcpy(c.grad_bias, sum + taps * stride, c.inner * sizeof(float));
    }
};

template <int K, typename T, typename Count>
void convolve_block_backward(const ConvolutionArguments& c, const TapRows& all_taps, int64_t batch, int64_t start,
                             int steps, int64_t channel, Count count, const ConvolutionGradients& gradients) {
    const Taps<K> taps(all_taps, channel);
    const Column<T> x(c.x, batch, start, channel), grad_out(c.grad_out, batch, start, channel),
        grad_x(c.grad_x, batch, start, channel);
    Vector inputs[kChunk + K - 1], grads[kChunk + K - 1], sums[K + 1] = {};
    load_window<K>(c, x, batch, start, channel, count, inputs);
    for (int k = 0; k < K - 1; ++k) grads[steps + k] = load(gradients.future + k * gradients.stride + channel);
    for_steps(steps, [&](auto size, int t) {
        constexpr int U = decltype(size)::value;
        const Pack<U> fresh = x.load(size, t, count);
        Pack<U> grad = grad_out.load(size, t, count);
        x.fetch(size, t - kChunk);
        grad_out.fetch(size, t - kChunk);
        grad_x.fetch(size, t - kChunk);
        HYMATE_EACH inputs[K - 1 + t + i] = fresh.v[i];
        if (c.silu) {
            const Pack<U> y = taps.template apply<U>(inputs + t);
            grad = grad * silu_slope(y, sigmoid(y));
        }
        HYMATE_EACH grads[t + i] = grad.v[i];
    });
    for (int t = 0; t < steps; ++t) {
        Vector grad{};
        HYMATE_UNROLL
        for (int k = 0; k < K; ++k) {
            grad += taps.weight[K - 1 - k] * grads[t + k];
            sums[k] += grads[t] * inputs[t + k];
        }
        sums[K] += grads[t];
        grad_x.store(t, Pack<1>{grad}, count);
    }
    for (int k = 0; k < K - 1; ++k) store(gradients.future + k * gradients.stride + channel, grads[k]);
    for (int k = 0; k <= K; ++k) {
        const int64_t at = k * gradients.stride + channel;
        add_compensated(gradients.sum + at, gradients.carry + at, sums[k]);
    }
}

// The steps of one task from `end`, where the last call began, back to `first`, the start of a chunk.
template <typename T>
void convolve_backward(const ConvolutionArguments& c, const TapRows& taps, const Partition::Task& task, int64_t first,
                       int64_t end, const ConvolutionGradients& gradients) {
    with_kernel(c, [&](auto kernel) {
        for (int64_t start = first + round_up(end - first, kChunk) - kChunk; start >= first; start -= kChunk) {
            const int steps = (int)minimum_of(kChunk, end - start);
            for (int64_t i = 0; i < task.channels; i += kLanes)
                with_count(task.channels - i, [&](auto count) {
                    convolve_block_backward<decltype(kernel)::value, T>(c, taps, task.batch, start, steps, task.begin + i,
                                                                        count, gradients);
                });
        }
    });
}

template <typename T>
int convolution_forward(const ConvolutionArguments& c) {
    const Partition partition(c.batch, c.inner, c.threads);
    const TapRows taps(c);
    if (!taps.arena.ok()) return kOutOfMemory;
#pragma omp parallel num_threads(partition.threads)
    {
        FlushSubnormals flush;
#pragma omp for schedule(dynamic, 1)
        for (int64_t index = 0; index < partition.tasks; ++index) {
            const Partition::Task task = partition.task(index);
            const int64_t length = valid_length(c.lengths, task.batch, c.length);
            convolve<T>(c, taps, task, 0, length);
            zero_rows<T>(c.out, task.batch, length, c.length, task.begin, task.channels);
        }
    }
    return kOk;
}

template <typename T>
int convolution_backward(const ConvolutionArguments& c) {
    const Partition partition(c.batch, c.inner, c.threads);
    const TapRows taps(c);
    const ConvolutionSums sums(c, c.batch);
    if (!taps.arena.ok() || !sums.arena.ok()) return kOutOfMemory;
#pragma omp parallel num_threads(partition.threads)
    {
        FlushSubnormals flush;
#pragma omp for schedule(dynamic, 1)
        for (int64_t index = 0; index < partition.tasks; ++index) {
            const Partition::Task task = partition.task(index);
            const int64_t length = valid_length(c.lengths, task.batch, c.length);
            const ConvolutionGradients gradients = sums.slot(task.batch);
            gradients.begin(task);
            convolve_backward<T>(c, taps, task, 0, length, gradients);
            zero_rows<T>(c.grad_x, task.batch, length, c.length, task.begin, task.channels);
        }
    }
    sums.finish(c);
    return kOk;
}

}  // namespace hymate
