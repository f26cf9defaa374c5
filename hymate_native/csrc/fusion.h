// Fusion attention, which pools the tokens of each group into one vector, forward and backward:
//
//   f = norm(x);   weights = softmax(u . tanh(projection(f))) among a group's tokens;   pooled = the sum of weights f
//
// In blocks like the Transformer layer before it (attention.h); backward goes through forward again.
#pragma once

#include "token_rows.h"

namespace hymate {

struct FusionArguments {
    int64_t groups, tokens, width, threads;
    double eps;
    const float* x;       // (groups, tokens, width)
    const uint8_t* mask;  // (groups, tokens)
    const float *norm, *weight, *bias, *score;  // (width,), (width, width), (width,), (width,)
    float *pooled, *weights;                    // (groups, width), (groups, tokens): 0 where there are no tokens
    // Backward only; either of the first two may be absent.
    const float *grad_pooled, *grad_weights;
    float *grad_x, *grad_norm, *grad_weight, *grad_bias, *grad_score;
};

struct FusionWeights {
    Stripes projection;
    Arena vectors;
    float *norm, *score;  // padded with zeros

    FusionWeights(const FusionArguments& a, bool forward)
        : projection(a.weight, a.width, a.width, forward, forward ? a.bias : nullptr), vectors(2 * round_up(a.width, 16)) {
        if (!vectors.ok()) return;
        norm = vectors.take(a.width);
        score = vectors.take(a.width);
        memcpy(norm, a.norm, a.width * sizeof(float));
        memcpy(score, a.score, a.width * sizeof(float));
    }
    bool ok() const { return projection.arena.ok() && vectors.ok(); }
};

struct FusionSums {
    WeightGradient weight;
    BiasGradient norm, bias, score;

    explicit FusionSums(const FusionArguments& a)
        : weight(a.width, a.width, a.threads), norm(a.width, a.threads), bias(a.width, a.threads), score(a.width, a.threads) {}
    bool ok() const { return weight.arena.ok() && norm.arena.ok() && bias.arena.ok() && score.arena.ok(); }
    void finish(const FusionArguments& a) {
        weight.finish(a.grad_weight), norm.finish(a.grad_norm), bias.finish(a.grad_bias), score.finish(a.grad_score);
    }
};

struct FusionForward {
    const FusionArguments& a;
    const FusionWeights& w;
    const TokenGroups groups;
    const int64_t most, width;
    FloatRows x, normed, projected;
    float *inverse, *weights;

    FusionForward(const FusionArguments& a_, const FusionWeights& w_)
        : a(a_), w(w_), groups{a_.groups, a_.tokens, a_.width, a_.mask}, most(groups.most()), width(round_up(a_.width, 16)) {}

    void place(Pieces& pieces) {
        for (FloatRows* rows : {&x, &normed, &projected}) *rows = {pieces.take(most * width), width};
        inverse = pieces.take(most), weights = pieces.take(most);
    }

    // x is there already; the projected rows after tanh, and the weights.
    void weigh(const TokenBlock& block) {
        normalize_rows(x, w.norm, a.width, a.eps, block.count, normed, inverse);
        multiply_rows(w.projection, normed, projected, block.count);
        for (int64_t i = 0; i < block.count; ++i)
            for (int64_t k = 0; k < width; k += kLanes)
                store(projected.at(i, k), hyperbolic_tangent(Pack<1>{load(projected.at(i, k))}).v[0]);
        dot_with(projected, block.count, [&](int64_t, int64_t k) { return load(w.score + k); }, weights);
        for_groups_of(block, [&](int64_t, int64_t start, int64_t end) {
            Vector high = broadcast(weights[start]), sum{};
            for (int64_t i = start; i < end; ++i) high = maximum(high, broadcast(weights[i]));
            for (int64_t i = start; i < end; ++i) {
                const Vector weight = exponential(Pack<1>{broadcast(weights[i]) - high}).v[0];
                store(weights + i, weight, 1);
                sum += weight;
            }
            for (int64_t i = start; i < end; ++i) weights[i] /= sum[0];
        });
    }

    void run(const TokenBlock& block) {
        block.read(a.x, x);
        weigh(block);
        clear_floats(a.pooled + block.first * a.width, (block.end - block.first) * a.width);
        clear_floats(a.weights + block.first * a.tokens, (block.end - block.first) * a.tokens);
        for_groups_of(block, [&](int64_t group, int64_t start, int64_t end) {
            for (int64_t i = start; i < end; ++i) a.weights[block.places[i]] = weights[i];
            for (int64_t k = 0; k < a.width; k += kLanes) {
                Vector sum{};
                for (int64_t i = start; i < end; ++i) sum += load(normed.at(i, k)) * weights[i];
                store(a.pooled + group * a.width + k, sum, (int)minimum_of(kLanes, a.width - k));
            }
        });
    }

    // sums[i] = the sum over columns of rows(i, k) * factor(i, k)
    template <typename F>
    void dot_with(FloatRows rows, int64_t count, F factor, float* sums) const {
        alignas(64) float products[kLanes * kLanes];
        for (int64_t row = 0; row < count; row += kLanes) {
            for (int i = 0; i < kLanes; ++i) {
                Vector sum{};
                for (int64_t k = 0; row + i < count && k < width; k += kLanes)
                    sum += load(rows.at(row + i, k)) * factor(row + i, k);
                store(products + i * kLanes, sum);
            }
            store(sums + row, take_row_sums(products));
        }
    }
    // Calls visit(group, first token, end) for groups that have tokens.
    template <typename F>
    static void for_groups_of(const TokenBlock& block, F visit) {
        for (int64_t group = block.first; group < block.end; ++group) {
            const int64_t start = block.starts[group - block.first], end = block.starts[group - block.first + 1];
            if (start < end) visit(group, start, end);
        }
    }
};

struct FusionBackward {
    const FusionArguments& a;
    const FusionWeights &w, &back;
    FusionSums& sums;
    FusionForward forward;
    FloatRows incoming, grad_projected, grad_normed, grad, shares;
    float* slopes;

    FusionBackward(const FusionArguments& a_, const FusionWeights& w_, const FusionWeights& back_, FusionSums& sums_)
        : a(a_), w(w_), back(back_), sums(sums_), forward(a_, w_) {}

    void place(Pieces& pieces) {
        forward.place(pieces);
        for (FloatRows* rows : {&incoming, &grad_projected, &grad_normed, &grad, &shares})
            *rows = {pieces.take(forward.most * forward.width), forward.width};
        slopes = pieces.take(forward.most);
    }

    void run(const TokenBlock& block, int64_t part) {
        const int64_t count = block.count, width = forward.width;
        block.read(a.x, forward.x);
        forward.weigh(block);
        clear_floats(incoming.data, count * width);
        if (a.grad_pooled != nullptr)
            for (int64_t i = 0; i < count; ++i)
                memcpy(incoming.at(i), a.grad_pooled + block.places[i] / a.tokens * a.width, a.width * sizeof(float));
        forward.dot_with(forward.normed, count, [&](int64_t i, int64_t k) { return load(incoming.at(i, k)); }, slopes);
        FusionForward::for_groups_of(block, [&](int64_t, int64_t start, int64_t end) {
            float mean = 0;
            for (int64_t i = start; i < end; ++i) {
                if (a.grad_weights != nullptr) slopes[i] += a.grad_weights[block.places[i]];
                mean += forward.weights[i] * slopes[i];
            }
            for (int64_t i = start; i < end; ++i) slopes[i] = forward.weights[i] * (slopes[i] - mean);
        });
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = 0; k < width; k += kLanes) {
                const Vector tangent = load(forward.projected.at(i, k));
                store(shares.at(i, k), tangent * slopes[i]);
                store(grad_projected.at(i, k), load(w.score + k) * slopes[i] * (1.0f - tangent * tangent));
                store(grad_normed.at(i, k), load(incoming.at(i, k)) * forward.weights[i]);
            }
        sums.score.add(part, shares, count);
        sums.bias.add(part, grad_projected, count);
        sums.weight.add(part, grad_projected, forward.normed, count);
        multiply_rows(back.projection, grad_projected, grad_normed, count, true);
        clear_floats(grad.data, count * width);
        normalize_backward(forward.x, grad_normed, w.norm, forward.inverse, a.width, count, grad, shares);
        sums.norm.add(part, shares, count);
        block.write(a.grad_x, grad);
    }
};

inline int fusion_forward(const FusionArguments& a) {
    const FusionWeights weights(a, true);
    if (!weights.ok()) return kOutOfMemory;
    return for_blocks<FusionForward>(
        {a.groups, a.tokens, a.width, a.mask}, a.threads,
        [](FusionForward& worker, const TokenBlock& block, int) { worker.run(block); }, a, weights);
}

inline int fusion_backward(const FusionArguments& a) {
    const FusionWeights weights(a, true), back(a, false);
    FusionSums sums(a);
    if (!weights.ok() || !back.ok() || !sums.ok()) return kOutOfMemory;
    const int status = for_blocks<FusionBackward>(
        {a.groups, a.tokens, a.width, a.mask}, a.threads,
        [](FusionBackward& worker, const TokenBlock& block, int thread) { worker.run(block, thread); }, a, weights, back, sums);
    if (status == kOk) sums.finish(a);
    return status;
}

}  // namespace hymate
