// What is done to events one by one, forward and backward, in pieces of rows; padding is zero.
#pragma once

#include "division.h"
#include "norm.h"

namespace hymate {

// Of an event's variable, value and time (modeling_hymate/embedding.py):
//
//   factors * (variable + value_out . tanh(value_weight v + value_bias) + v vectors + time_out . tanh(time_weight t + ..))
//
// with `missing` in place of both terms of the value where there is no number.
struct EmbeddingArguments {
    int64_t batch, length, width, inside, variables, threads;  // inside: of the tanh of a number
    const float *values, *times;  // (batch, length)
    const int64_t* variable_ids;  // (batch, length)
    const uint8_t* value_mask;    // (batch, length)
    const int64_t* lengths;       // (batch,)
    const float *variable, *vectors;  // (variables, width); vectors may be absent
    const float *value_weight, *value_bias, *value_out, *time_weight, *time_bias, *time_out;  // (inside,) and (width, inside)
    const float *missing, *factors;  // (width,), (batch, width); factors may be absent
    float* out;                      // (batch, length, width)
    const float* grad_out;           // backward only
    float *grad_variable, *grad_vectors, *grad_value_weight, *grad_value_bias, *grad_value_out, *grad_time_weight;
    float *grad_time_bias, *grad_time_out, *grad_missing;
};

// Norm and projections for pooling: parts = value(norm(x)), scores = bound tanh(query(norm(x)) / bound).
struct ProjectionArguments {
    int64_t batch, length, width, queries, threads;
    double eps, bound;
    const float* x;          // (batch, length, width)
    const int64_t* lengths;  // (batch,)
    const float *norm, *query_weight, *value_weight, *value_bias;  // (width,), (queries, width), (width, width), (width,)
    float *parts, *scores;                                         // (batch, length, width), (batch, length, queries)
    const float *grad_parts, *grad_scores;                         // backward only; either may be absent
    float *grad_x, *grad_norm, *grad_query_weight, *grad_value_weight, *grad_value_bias;
};

inline FloatRows take_rows(Pieces& pieces, int64_t columns) {
    return {pieces.take(kPiece * round_up(columns, 16)), round_up(columns, 16)};
}

// Takes all records in pieces of kPiece events, in threads that have a worker each.
template <typename Worker, typename A, typename... W>
int walk_events(const A& a, W&... arguments) {
    int failed = 0;
    share_work(a.batch, a.threads, [&](int thread, int64_t first, int64_t end) {
        Worker worker(a, arguments...);
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
        for (int64_t record = first; record < end; ++record) {
            const int64_t count = valid_length(a.lengths, record, a.length);
            for (int64_t t = 0; t < count; t += kPiece)
                worker.run(record, record * a.length + t, minimum_of(kPiece, count - t), thread);
            worker.pad(record * a.length + count, a.length - count);
        }
    });
    return failed ? kOutOfMemory : kOk;
}

// ------------------------------------------------------------------------------------------- embedding

// Both matrices behind a tanh as one, (width, 2 inside), and the biases before it side by side; the weights, too, each
// with zeros where the others' are.
struct EmbeddingWeights {
    Arena arena;
    float *out, *of_value, *of_time, *bias;

    explicit EmbeddingWeights(const EmbeddingArguments& a) : arena(2 * a.inside * a.width + 4 * round_up(2 * a.inside, 16)) {
        if (!arena.ok()) return;
        out = arena.take(2 * a.inside * a.width);
        of_value = arena.take(2 * a.inside);
        of_time = arena.take(2 * a.inside);
        bias = arena.take(2 * a.inside);
        for (int64_t k = 0; k < a.width; ++k) {
            memcpy(out + 2 * k * a.inside, a.value_out + k * a.inside, a.inside * sizeof(float));
            memcpy(out + (2 * k + 1) * a.inside, a.time_out + k * a.inside, a.inside * sizeof(float));
        }
        memcpy(of_value, a.value_weight, a.inside * sizeof(float));
        memcpy(of_time + a.inside, a.time_weight, a.inside * sizeof(float));
        memcpy(bias, a.value_bias, a.inside * sizeof(float));
        memcpy(bias + a.inside, a.time_bias, a.inside * sizeof(float));
    }
};

struct EmbeddingForward {
    const EmbeddingArguments& a;
    const EmbeddingWeights& w;
    const Stripes& matrix;
    FloatRows bent;  // after tanh: of the value, zero where there is none, and of the time

    EmbeddingForward(const EmbeddingArguments& a_, const EmbeddingWeights& w_, const Stripes& matrix_)
        : a(a_), w(w_), matrix(matrix_) {}
    void place(Pieces& pieces) { bent = take_rows(pieces, 2 * a.inside); }

    void bend(int64_t event, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            float* row = bent.at(i);
            const float value = a.value_mask[event + i] ? a.values[event + i] : 0.0f, time = a.times[event + i];
            for (int64_t j = 0; j < 2 * a.inside; j += kLanes) {
                const Vector sum = load(w.of_value + j) * value + load(w.of_time + j) * time + load(w.bias + j);
                store(row + j, hyperbolic_tangent(Pack<1>{sum}).v[0], (int)minimum_of(kLanes, 2 * a.inside - j));
            }
            if (!a.value_mask[event + i]) clear_floats(row, a.inside);
        }
    }

    void run(int64_t record, int64_t event, int64_t count, int) {
        bend(event, count);
        const FloatRows out{a.out + event * a.width, a.width};
        multiply_rows(matrix, bent, out, count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t variable = a.variable_ids[event + i];
            const bool is_number = a.value_mask[event + i];
            for (int64_t k = 0; k < a.width; k += kLanes) {
                const int lanes = (int)minimum_of(kLanes, a.width - k);
                Vector sum = load(out.at(i, k), lanes) + load(a.variable + variable * a.width + k, lanes);
                if (!is_number)
                    sum += load(a.missing + k, lanes);
                else if (a.vectors != nullptr)
                    sum += load(a.vectors + variable * a.width + k, lanes) * a.values[event + i];
                if (a.factors != nullptr) sum *= load(a.factors + record * a.width + k, lanes);
                store(out.at(i, k), sum, lanes);
            }
        }
    }
    void pad(int64_t event, int64_t count) { clear_floats(a.out + event * a.width, count * a.width); }
};

// Each thread's sums over events.
struct EmbeddingSums {
    const EmbeddingArguments& a;
    const int64_t width, inside, size;
    WeightGradient matrix;
    BiasGradient before, slopes;  // of the biases and of the weights before tanh
    Arena arena;                  // (variables, width) twice, and one row

    explicit EmbeddingSums(const EmbeddingArguments& a_)
        : a(a_), width(round_up(a.width, 16)), inside(2 * a.inside), size((2 * a.variables + 1) * width),
          matrix(a.width, inside, a.threads), before(inside, a.threads), slopes(inside, a.threads), arena(size * a.threads + inside * (a.width + 1)) {}
    bool ok() const { return matrix.arena.ok() && before.arena.ok() && slopes.arena.ok() && arena.ok(); }
    float* part(int64_t thread) { return arena.take(0) + thread * size; }

    void finish() {
        float* sums = part(0);
        for (int64_t thread = 1; thread < a.threads; ++thread)
            for (int64_t i = 0; i < size; i += kLanes) store(sums + i, load(sums + i) + load(part(thread) + i));
        for (int64_t v = 0; v < a.variables; ++v) {
            memcpy(a.grad_variable + v * a.width, sums + v * width, a.width * sizeof(float));
            if (a.grad_vectors != nullptr)
                memcpy(a.grad_vectors + v * a.width, sums + (a.variables + v) * width, a.width * sizeof(float));
        }
        memcpy(a.grad_missing, sums + 2 * a.variables * width, a.width * sizeof(float));
        float *out = part(a.threads), *row = out + inside * a.width;
        matrix.finish(out);
        for (int64_t k = 0; k < a.width; ++k) {
            memcpy(a.grad_value_out + k * a.inside, out + 2 * k * a.inside, a.inside * sizeof(float));
            memcpy(a.grad_time_out + k * a.inside, out + (2 * k + 1) * a.inside, a.inside * sizeof(float));
        }
        before.finish(row);
        memcpy(a.grad_value_bias, row, a.inside * sizeof(float));
        memcpy(a.grad_time_bias, row + a.inside, a.inside * sizeof(float));
        slopes.finish(row);
        memcpy(a.grad_value_weight, row, a.inside * sizeof(float));
        memcpy(a.grad_time_weight, row + a.inside, a.inside * sizeof(float));
    }
};

struct EmbeddingBackward {
    const EmbeddingArguments& a;
    const Stripes& back;
    EmbeddingSums& sums;
    EmbeddingForward forward;
    FloatRows grads, grad_bent;

    EmbeddingBackward(const EmbeddingArguments& a_, const EmbeddingWeights& w, const Stripes& matrix, const Stripes& back_,
                      EmbeddingSums& sums_)
        : a(a_), back(back_), sums(sums_), forward(a_, w, matrix) {}
    void place(Pieces& pieces) {
        forward.place(pieces);
        grads = take_rows(pieces, a.width);
        grad_bent = take_rows(pieces, 2 * a.inside);
    }

    void run(int64_t record, int64_t event, int64_t count, int thread) {
        float *variable = sums.part(thread), *vectors = variable + a.variables * sums.width;
        float* missing = variable + 2 * a.variables * sums.width;
        forward.bend(event, count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = a.variable_ids[event + i] * sums.width;
            const bool is_number = a.value_mask[event + i];
            for (int64_t k = 0; k < a.width; k += kLanes) {
                const int lanes = (int)minimum_of(kLanes, a.width - k);
                Vector grad = load(a.grad_out + (event + i) * a.width + k, lanes);
                if (a.factors != nullptr) grad *= load(a.factors + record * a.width + k, lanes);
                store(grads.at(i, k), grad);
                store(variable + row + k, load(variable + row + k) + grad);
                float* of_value = is_number ? vectors + row + k : missing + k;
                store(of_value, load(of_value) + (is_number ? grad * a.values[event + i] : grad));
            }
        }
        sums.matrix.add(thread, grads, forward.bent, count);
        multiply_rows(back, grads, grad_bent, count);
        for (int64_t i = 0; i < count; ++i)  // through tanh; no slope where there is no number
            for (int64_t j = 0; j < 2 * a.inside; ++j) {
                const float bent = forward.bent.at(i)[j];
                const bool counts = j >= a.inside || a.value_mask[event + i];
                grad_bent.at(i)[j] = counts ? grad_bent.at(i)[j] * (1 - bent * bent) : 0.0f;
            }
        sums.before.add(thread, grad_bent, count);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t j = 0; j < 2 * a.inside; ++j)
                grad_bent.at(i)[j] *= j >= a.inside ? a.times[event + i] : a.value_mask[event + i] ? a.values[event + i] : 0.0f;
        sums.slopes.add(thread, grad_bent, count);
    }
    void pad(int64_t, int64_t) {}
};

inline int embedding_forward(const EmbeddingArguments& a) {
    const EmbeddingWeights weights(a);
    if (!weights.arena.ok()) return kOutOfMemory;
    const Stripes matrix(weights.out, a.width, 2 * a.inside, true);
    if (!matrix.arena.ok()) return kOutOfMemory;
    return walk_events<EmbeddingForward>(a, weights, matrix);
}

inline int embedding_backward(const EmbeddingArguments& a) {
    const EmbeddingWeights weights(a);
    if (!weights.arena.ok()) return kOutOfMemory;
    const Stripes matrix(weights.out, a.width, 2 * a.inside, true), back(weights.out, a.width, 2 * a.inside, false);
    EmbeddingSums sums(a);
    if (!matrix.arena.ok() || !back.arena.ok() || !sums.ok()) return kOutOfMemory;
    const int status = walk_events<EmbeddingBackward>(a, weights, matrix, back, sums);
    if (status == kOk) sums.finish();
    return status;
}

// ------------------------------------------------------------------------------------------ projection

struct ProjectionWeights {
    Stripes query, value;

    ProjectionWeights(const ProjectionArguments& a, bool forward)
        : query(a.query_weight, a.queries, a.width, forward),
          value(a.value_weight, a.width, a.width, forward, forward ? a.value_bias : nullptr) {}
    bool ok() const { return query.arena.ok() && value.arena.ok(); }
};

struct ProjectionForward {
    const ProjectionArguments& a;
    const ProjectionWeights& w;
    FloatRows normed, raw;
    float* inverse;

    ProjectionForward(const ProjectionArguments& a_, const ProjectionWeights& w_) : a(a_), w(w_) {}
    void place(Pieces& pieces) {
        normed = take_rows(pieces, a.width);
        raw = {pieces.take(kPiece * a.queries + 16), a.queries};  // close together, so that few vectors hold them
        inverse = pieces.take(kPiece);
    }

    // The tanh of the scores stays in `raw`.
    void score(int64_t event, int64_t count) {
        normalize_rows({(float*)a.x + event * a.width, a.width}, a.norm, a.width, a.eps, count, normed, inverse);
        multiply_rows(w.query, normed, raw, count);
        for (int64_t i = 0; i < count * a.queries; i += kLanes)
            store(raw.data + i, hyperbolic_tangent(Pack<1>{load(raw.data + i) * (float)(1 / a.bound)}).v[0]);
    }
    void run(int64_t, int64_t event, int64_t count, int) {
        score(event, count);
        multiply_rows(w.value, normed, {a.parts + event * a.width, a.width}, count);
        for (int64_t i = 0; i < count * a.queries; i += kLanes)
            store(a.scores + event * a.queries + i, load(raw.data + i) * (float)a.bound,
                  (int)minimum_of(kLanes, count * a.queries - i));
    }
    void pad(int64_t event, int64_t count) {
        clear_floats(a.parts + event * a.width, count * a.width);
        clear_floats(a.scores + event * a.queries, count * a.queries);
    }
};

struct ProjectionSums {
    WeightGradient query, value;
    BiasGradient norm, value_bias;

    explicit ProjectionSums(const ProjectionArguments& a)
        : query(a.queries, a.width, a.threads), value(a.width, a.width, a.threads), norm(a.width, a.threads),
          value_bias(a.width, a.threads) {}
    bool ok() const { return query.arena.ok() && value.arena.ok() && norm.arena.ok() && value_bias.arena.ok(); }
    void finish(const ProjectionArguments& a) {
        query.finish(a.grad_query_weight), value.finish(a.grad_value_weight);
        norm.finish(a.grad_norm), value_bias.finish(a.grad_value_bias);
    }
};

struct ProjectionBackward {
    const ProjectionArguments& a;
    const ProjectionWeights& back;
    ProjectionSums& sums;
    ProjectionForward forward;
    FloatRows grad_raw, grad_normed, shares;

    ProjectionBackward(const ProjectionArguments& a_, const ProjectionWeights& w, const ProjectionWeights& back_,
                       ProjectionSums& sums_)
        : a(a_), back(back_), sums(sums_), forward(a_, w) {}
    void place(Pieces& pieces) {
        forward.place(pieces);
        grad_raw = take_rows(pieces, a.queries), grad_normed = take_rows(pieces, a.width), shares = take_rows(pieces, a.width);
    }

    void run(int64_t, int64_t event, int64_t count, int thread) {
        forward.score(event, count);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t q = 0; q < a.queries; q += kLanes) {
                const int lanes = (int)minimum_of(kLanes, a.queries - q);
                const Vector bent = load(forward.raw.at(i, q), lanes);
                const Vector grad = a.grad_scores == nullptr ? Vector{} : load(a.grad_scores + (event + i) * a.queries + q, lanes);
                store(grad_raw.at(i, q), grad * (1.0f - bent * bent));
            }
        multiply_rows(back.query, grad_raw, grad_normed, count);
        sums.query.add(thread, grad_raw, forward.normed, count);
        if (a.grad_parts != nullptr) {
            const FloatRows grad_parts{(float*)a.grad_parts + event * a.width, a.width};
            multiply_rows(back.value, grad_parts, grad_normed, count, true);
            sums.value.add(thread, grad_parts, forward.normed, count);
            sums.value_bias.add(thread, grad_parts, count);
        }
        const FloatRows grad_x{a.grad_x + event * a.width, a.width};
        pad(event, count);
        normalize_backward({(float*)a.x + event * a.width, a.width}, grad_normed, a.norm, forward.inverse, a.width, count,
                           grad_x, shares);
        sums.norm.add(thread, shares, count);
    }
    void pad(int64_t event, int64_t count) { clear_floats(a.grad_x + event * a.width, count * a.width); }
};

inline int projection_forward(const ProjectionArguments& a) {
    const ProjectionWeights weights(a, true);
    if (!weights.ok()) return kOutOfMemory;
    return walk_events<ProjectionForward>(a, weights);
}

inline int projection_backward(const ProjectionArguments& a) {
    const ProjectionWeights weights(a, true), back(a, false);
    ProjectionSums sums(a);
    if (!weights.ok() || !back.ok() || !sums.ok()) return kOutOfMemory;
    const int status = walk_events<ProjectionBackward>(a, weights, back, sums);
    if (status == kOk) sums.finish(a);
    return status;
}

}  // namespace hymate
