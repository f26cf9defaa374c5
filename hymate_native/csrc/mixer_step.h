// The Mamba mixer event by event, for streams: few rows, whose states come from the events before. No weight is packed
// and no thread is started, since both cost more than the arithmetic of a few events.
#pragma once

#include "mixer.h"

namespace hymate {

// out = weight x + bias for one row; weight (outputs, inputs). x and out are padded to whole vectors with zeros.
inline void multiply_row(const float* weight, const float* bias, int64_t outputs, int64_t inputs, const float* x, float* out) {
    alignas(64) float sums[kLanes * kLanes];
    for (int64_t first = 0; first < outputs; first += kLanes) {
        const int64_t rows = minimum_of(kLanes, outputs - first);
        Vector sum[kLanes] = {};
        for (int64_t i = 0; i < inputs; i += kLanes) {
            const int count = (int)minimum_of(kLanes, inputs - i);
            const Vector factor = load(x + i);
            for (int64_t row = 0; row < rows; ++row) sum[row] += load(weight + (first + row) * inputs + i, count) * factor;
        }
        for (int row = 0; row < kLanes; ++row) store(sums + row * kLanes, sum[row]);
        const Vector total = take_row_sums(sums);
        store(out + first, bias == nullptr ? total : total + load(bias + first, (int)rows));
    }
}

template <typename T>
struct MixerStep {
    const MixerArguments& m;
    const int64_t state_width;  // state rounded up to whole vectors
    Arena arena;
    float *row, *normed, *projected, *convolved, *parameters, *delta, *gated, *out, *b, *c;

    explicit MixerStep(const MixerArguments& m_) : m(m_), state_width(round_up(m_.state, kLanes)), arena(arena_floats()) {
        if (!arena.ok()) return;
        row = arena.take(m.width + kLanes);
        normed = arena.take(m.width + kLanes);
        projected = arena.take(2 * m.inner + kLanes);
        convolved = arena.take(m.inner + kLanes);
        parameters = arena.take(m.rank + 2 * m.state + kLanes);
        delta = arena.take(m.inner + kLanes);
        gated = arena.take(m.inner + kLanes);
        out = arena.take(m.outputs + kLanes);
        b = arena.take(state_width);
        c = arena.take(state_width);
    }
    int64_t arena_floats() const {
        return 2 * m.width + m.outputs + 6 * m.inner + m.rank + 2 * m.state + 2 * state_width + 10 * (kLanes + 16);
    }
    bool ok() const { return arena.ok(); }

    // A record's window of inputs and its scan's state move on in place, in the tensors of final ones.
    void run(int64_t record) {
        float* window = m.conv_final + record * (m.kernel - 1) * m.inner;
        float* state = m.scan_final + record * m.inner * m.state;
        start_from(window, m.conv_initial, record, (m.kernel - 1) * m.inner);
        start_from(state, m.scan_initial, record, m.inner * m.state);
        const int64_t length = valid_length(m.lengths, record, m.length);
        for (int64_t t = 0; t < length; ++t) {
            exchange(row, m.rows.at<T>(record, t), m.width, [](float* near, T* far, int n) { store(near, load(far, n), n); });
            step(window, state);
            if (m.norm != nullptr) add_row(record);
            exchange(out, m.out.at<T>(record, t), m.outputs, [](float* near, T* far, int n) { store(far, load(near, n), n); });
        }
        for (int64_t t = length; t < m.length; ++t)  // what the other kernel gives as padding
            for (int64_t i = 0; i < m.outputs; i += kLanes) {
                const int n = (int)minimum_of(kLanes, m.outputs - i);
                const bool biased = m.out_weight != nullptr && m.out_bias != nullptr && m.norm == nullptr;
                store(m.out.at<T>(record, t) + i, biased ? load(m.out_bias + i, n) : Vector{}, n);
            }
    }

   private:
    static void start_from(float* target, const float* initial, int64_t record, int64_t floats) {
        if (floats == 0) return;
        if (initial == nullptr)
            memset(target, 0, floats * sizeof(float));
        else
            memcpy(target, initial + record * floats, floats * sizeof(float));
    }
    template <typename F>
    static void exchange(float* near, T* far, int64_t columns, F copy) {
        for (int64_t i = 0; i < columns; i += kLanes) copy(near + i, far + i, (int)minimum_of(kLanes, columns - i));
    }

    void step(float* window, float* state) {
        const bool is_projected = m.in_weight == nullptr;
        if (is_projected)
            memcpy(projected, row, 2 * m.inner * sizeof(float));
        else
            multiply_row(m.in_weight, m.in_bias, 2 * m.inner, m.width, normalize(), projected);
        convolve_step(window);
        multiply_row(m.x_weight, nullptr, m.rank + 2 * m.state, m.inner, convolved, parameters);
        memcpy(b, parameters + m.rank, m.state * sizeof(float));
        memcpy(c, parameters + m.rank + m.state, m.state * sizeof(float));
        multiply_rank();
        scan_step(state);
        if (m.out_weight == nullptr)
            memcpy(out, gated, m.inner * sizeof(float));
        else
            multiply_row(m.out_weight, m.out_bias, m.outputs, m.inner, gated, out);
    }

    const float* normalize() {
        if (m.norm == nullptr) return row;
        float inverse;
        normalize_rows({row, m.width}, m.norm, m.width, m.eps, 1, {normed, m.width}, &inverse);
        return normed;
    }
    void add_row(int64_t record) {
        for (int64_t i = 0; i < m.width; ++i)
            out[i] = row[i] + out[i] * (m.factors == nullptr ? 1.0f : m.factors[record * m.width + i]);
    }

    void convolve_step(float* window) {
        const int64_t before = m.kernel - 1;
        for (int64_t i = 0; i < m.inner; ++i) {
            const float* taps = m.conv_weight + i * m.kernel;
            float sum = m.conv_bias == nullptr ? 0.0f : m.conv_bias[i];
            float* inputs = window + i * before;
            for (int64_t k = 0; k < before; ++k) sum += taps[k] * inputs[k];
            for (int64_t k = 0; k < before; ++k) inputs[k] = k + 1 < before ? inputs[k + 1] : projected[i];
            convolved[i] = sum + taps[before] * projected[i];
        }
        for (int64_t i = 0; i < m.inner; i += kLanes) {
            const int count = (int)minimum_of(kLanes, m.inner - i);
            const Pack<1> sum{load(convolved + i)};
            store(convolved + i, (sum * sigmoid(sum)).v[0], count);
        }
    }

    void multiply_rank() {  // the time step's projection has only a few inputs
        for (int64_t i = 0; i < m.inner; ++i) {
            float sum = m.dt_bias == nullptr ? 0.0f : m.dt_bias[i];
            for (int64_t k = 0; k < m.rank; ++k) sum += m.dt_weight[i * m.rank + k] * parameters[k];
            delta[i] = sum;
        }
    }

    void scan_step(float* state) {
        alignas(64) float sums[kLanes * kLanes], steps[kLanes], inputs[kLanes];
        for (int64_t first = 0; first < m.inner; first += kLanes) {
            const int channels = (int)minimum_of(kLanes, m.inner - first);
            const Pack<1> dt = softplus(Pack<1>{load(delta + first)});
            const Pack<1> u{load(convolved + first)}, gate{load(projected + m.inner + first)};
            store(steps, dt.v[0]);
            store(inputs, (dt * u).v[0]);
            memset(sums, 0, sizeof(sums));
            for (int i = 0; i < channels; ++i) {
                const int64_t at = (first + i) * m.state;
                Vector sum{};
                for (int64_t n = 0; n < m.state; n += kLanes) {
                    const int count = (int)minimum_of(kLanes, m.state - n);
                    const Vector rate = load(m.A + at + n, count) * kLog2e * steps[i];
                    const Vector decay = exp2_product(maximum(minimum(rate, broadcast(0x1p20f)), broadcast(-0x1p20f)), broadcast(1.0f));
                    const Vector h = decay * load(state + at + n, count) + load(b + n) * inputs[i];
                    store(state + at + n, h, count);
                    sum += h * load(c + n);
                }
                store(sums + i * kLanes, sum);
            }
            Pack<1> y{take_row_sums(sums)};
            y.v[0] += u.v[0] * load(m.D + first, channels);
            store(gated + first, (y * gate * sigmoid(gate)).v[0], channels);
        }
    }
};

template <typename T>
int mixer_step(const MixerArguments& m) {
    FlushSubnormals flush;
    MixerStep<T> step(m);
    if (!step.ok()) return kOutOfMemory;
    for (int64_t record = 0; record < m.batch; ++record) step.run(record);
    return kOk;
}

}  // namespace hymate
