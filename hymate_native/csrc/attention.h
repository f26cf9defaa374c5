// A pre-norm Transformer layer across the tokens of each group, forward and backward:
//
//   y = x + dropout(o(attention(q(n), k(n), v(n)))), n = norm(x);   z = y + dropout(down(gelu(up(norm(y)))))
//
// About kBlockTokens tokens go through the whole layer together, so that all of their rows stay in the second-level
// cache; padding is left out. Backward keeps nothing but the input and goes through forward again. Within attention,
// lanes run over queries (and for the gradients of keys and values over keys), so that softmax needs no sums across
// lanes; that takes some rows transposed, (features, tokens).
#pragma once

#include "token_rows.h"

namespace hymate {

struct AttentionArguments {
    int64_t groups, tokens, width, heads, inside, threads, seed;  // width a multiple of heads; inside: of the up projection
    double eps, dropout, attention_dropout;
    const float* x;       // (groups, tokens, width)
    const uint8_t* mask;  // (groups, tokens)
    const float *attention_norm, *q_weight, *q_bias, *k_weight, *k_bias, *v_weight, *v_bias, *o_weight, *o_bias;
    const float *mlp_norm, *up_weight, *up_bias, *down_weight, *down_bias;  // weights are (outputs, inputs)
    float* out;
    // Backward only, of the shapes above.
    const float* grad_out;
    float* grad_x;
    float *grad_attention_norm, *grad_q_weight, *grad_q_bias, *grad_k_weight, *grad_k_bias, *grad_v_weight, *grad_v_bias;
    float *grad_o_weight, *grad_o_bias, *grad_mlp_norm, *grad_up_weight, *grad_up_bias, *grad_down_weight, *grad_down_bias;
};

struct AttentionWeights {
    Stripes q, k, v, o, up, down;
    Arena norms;
    float *attention_norm, *mlp_norm;  // padded with zeros

    AttentionWeights(const AttentionArguments& a, bool forward)
        : q(a.q_weight, a.width, a.width, forward, forward ? a.q_bias : nullptr),
          k(a.k_weight, a.width, a.width, forward, forward ? a.k_bias : nullptr),
          v(a.v_weight, a.width, a.width, forward, forward ? a.v_bias : nullptr),
          o(a.o_weight, a.width, a.width, forward, forward ? a.o_bias : nullptr),
          up(a.up_weight, a.inside, a.width, forward, forward ? a.up_bias : nullptr),
          down(a.down_weight, a.width, a.inside, forward, forward ? a.down_bias : nullptr),
          norms(2 * round_up(a.width, 16)) {
        if (!norms.ok()) return;
        attention_norm = norms.take(a.width);
        mlp_norm = norms.take(a.width);
        memcpy(attention_norm, a.attention_norm, a.width * sizeof(float));
        memcpy(mlp_norm, a.mlp_norm, a.width * sizeof(float));
    }
    bool ok() const {
        return q.arena.ok() && k.arena.ok() && v.arena.ok() && o.arena.ok() && up.arena.ok() && down.arena.ok() && norms.ok();
    }
};

struct AttentionSums {
    WeightGradient q, k, v, o, up, down;
    BiasGradient attention_norm, q_bias, k_bias, v_bias, o_bias, mlp_norm, up_bias, down_bias;

    explicit AttentionSums(const AttentionArguments& a)
        : q(a.width, a.width, a.threads), k(a.width, a.width, a.threads), v(a.width, a.width, a.threads),
          o(a.width, a.width, a.threads), up(a.inside, a.width, a.threads), down(a.width, a.inside, a.threads),
          attention_norm(a.width, a.threads), q_bias(a.width, a.threads), k_bias(a.width, a.threads),
          v_bias(a.width, a.threads), o_bias(a.width, a.threads), mlp_norm(a.width, a.threads),
          up_bias(a.inside, a.threads), down_bias(a.width, a.threads) {}
    bool ok() const {
        bool all = true;
        for (const WeightGradient* sum : {&q, &k, &v, &o, &up, &down}) all = all && sum->arena.ok();
        for (const BiasGradient* sum : {&attention_norm, &q_bias, &k_bias, &v_bias, &o_bias, &mlp_norm, &up_bias, &down_bias})
            all = all && sum->arena.ok();
        return all;
    }
    void finish(const AttentionArguments& a) {
        q.finish(a.grad_q_weight), k.finish(a.grad_k_weight), v.finish(a.grad_v_weight), o.finish(a.grad_o_weight);
        up.finish(a.grad_up_weight), down.finish(a.grad_down_weight);
        q_bias.finish(a.grad_q_bias), k_bias.finish(a.grad_k_bias), v_bias.finish(a.grad_v_bias);
        o_bias.finish(a.grad_o_bias), up_bias.finish(a.grad_up_bias), down_bias.finish(a.grad_down_bias);
        attention_norm.finish(a.grad_attention_norm), mlp_norm.finish(a.grad_mlp_norm);
    }
};

// dots[j] = the sum over features d of lanes(d) * rows(j, d), a vector each.
inline void dot_rows(FloatRows lanes, FloatRows rows, int64_t features, int64_t count, float* dots) {
    for_groups<8>(features, [&](auto size, int64_t d) {
        constexpr int G = decltype(size)::value;
        Vector x[G];
        HYMATE_UNROLL
        for (int g = 0; g < G; ++g) x[g] = load(lanes.at(d + g));
        for (int64_t j = 0; j < count; ++j) {
            const float* row = rows.at(j, d);
            Vector sum[2] = {d == 0 ? Vector{} : load(dots + j * kLanes), Vector{}};
            HYMATE_UNROLL
            for (int g = 0; g < G; ++g) sum[g % 2] += x[g] * row[g];
            store(dots + j * kLanes, sum[0] + sum[1]);
        }
    });
}

// to(d) (+)= the sum over j of weights[j] * rows(j, d).
inline void mix_rows(const float* weights, FloatRows rows, int64_t features, int64_t others, FloatRows to,
                     bool accumulate = false) {
    for_groups<8>(features, [&](auto size, int64_t d) {
        constexpr int G = decltype(size)::value;
        Vector sum[G] = {};
        if (accumulate) {
            HYMATE_UNROLL
            for (int g = 0; g < G; ++g) sum[g] = load(to.at(d + g));
        }
        for (int64_t j = 0; j < others; ++j) {
            const Vector weight = load(weights + j * kLanes);
            const float* row = rows.at(j, d);
            HYMATE_UNROLL
            for (int g = 0; g < G; ++g) sum[g] += weight * row[g];
        }
        HYMATE_UNROLL
        for (int g = 0; g < G; ++g) store(to.at(d + g), sum[g]);
    });
}

// The rows of one block on their way forward.
struct AttentionForward {
    const AttentionArguments& a;
    const AttentionWeights& w;
    const TokenGroups groups;
    const int64_t most, width, inside, head;  // tokens of a block at most; widths of rows; features of a head
    const float scale;
    const Dropout attention_dropout, dropout, mlp_dropout;
    FloatRows x, normed, projected, attended, y, mlp_normed, up, active, down;
    FloatRows queries, mixed;  // transposed
    float *inverse, *mlp_inverse, *highest, *inverse_sums, *scores, *block_memory;

    AttentionForward(const AttentionArguments& a_, const AttentionWeights& w_)
        : a(a_),
          w(w_),
          groups{a_.groups, a_.tokens, a_.width, a_.mask},
          most(groups.most()),
          width(round_up(a_.width, 16)),
          inside(round_up(a_.inside, 16)),
          head(a_.width / a_.heads),
          scale(1.0f / __builtin_sqrtf((float)head)),
          attention_dropout(a_.attention_dropout, a_.seed, 1),
          dropout(a_.dropout, a_.seed, 2),
          mlp_dropout(a_.dropout, a_.seed, 3) {}

    void place(Pieces& pieces) {
        const auto rows = [&](int64_t columns) { return FloatRows{pieces.take(most * columns), columns}; };
        x = rows(width), normed = rows(width), projected = rows(3 * width), attended = rows(width), y = rows(width);
        mlp_normed = rows(width), up = rows(inside), active = rows(inside), down = rows(width);
        queries = transposed(pieces), mixed = transposed(pieces);
        inverse = pieces.take(most), mlp_inverse = pieces.take(most);
        highest = pieces.take(a.heads * lanes()), inverse_sums = pieces.take(a.heads * lanes());
        scores = pieces.take(most * kLanes);
        block_memory = pieces.take(TokenBlock::floats(groups));
    }
    // Where lanes are tokens, the last vector of a group reaches into the next one, which comes later and overwrites it,
    // and that of the last group beyond the block.
    int64_t lanes() const { return most + 16; }
    FloatRows transposed(Pieces& pieces) const { return {pieces.take(width * lanes()), lanes()}; }

    FloatRows keys() const { return {projected.data + width, projected.stride}; }
    FloatRows values() const { return {projected.data + 2 * width, projected.stride}; }

    // x is there already; y, and what leads to it.
    void attend(const TokenBlock& block) {
        const int64_t count = block.count;
        normalize_rows(x, w.attention_norm, a.width, a.eps, count, normed, inverse);
        multiply_rows(w.q, normed, projected, count);
        multiply_rows(w.k, normed, keys(), count);
        multiply_rows(w.v, normed, values(), count);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = 0; k < width; k += kLanes) store(projected.at(i, k), load(projected.at(i, k)) * scale);
        transpose(projected, count, a.width, queries);
        for_queries(block, [&](int64_t group, int64_t start, int64_t others, int64_t h, int64_t at) {
            dot_rows(at_head(queries, h, at), head_rows(keys(), h, start), head, others, scores);
            softmax(group, block, start, others, h, at);
            mix_rows(scores, head_rows(values(), h, start), head, others, at_head(mixed, h, at));
        });
        transpose(mixed, a.width, count, attended);
        multiply_rows(w.o, attended, y, count);
        drop_rows(dropout, block, y, a.width);
        add_rows(x, y, width, count);
    }

    // From y to the rows before the activation and after it.
    void expand(const TokenBlock& block) {
        normalize_rows(y, w.mlp_norm, a.width, a.eps, block.count, mlp_normed, mlp_inverse);
        multiply_rows(w.up, mlp_normed, up, block.count);
        for (int64_t i = 0; i < block.count; ++i)
            for (int64_t k = 0; k < inside; k += kPack * kLanes) {
                Pack<kPack> raw, bell;
                for (int u = 0; u < kPack; ++u) raw.v[u] = k + u * kLanes < inside ? load(up.at(i, k + u * kLanes)) : Vector{};
                const Pack<kPack> gelu = raw * normal_distribution(raw, bell);
                for (int u = 0; u < kPack; ++u)
                    if (k + u * kLanes < inside) store(active.at(i, k + u * kLanes), gelu.v[u]);
            }
    }

    void run(const TokenBlock& block) {
        block.read(a.x, x);
        attend(block);
        expand(block);
        multiply_rows(w.down, active, down, block.count);
        drop_rows(mlp_dropout, block, down, a.width);
        add_rows(y, down, width, block.count);
        block.write(a.out, down);
    }

    FloatRows at_head(FloatRows features, int64_t h, int64_t at) const {
        return {features.data + h * head * features.stride + at, features.stride};
    }
    FloatRows head_rows(FloatRows rows, int64_t h, int64_t start) const {
        return {rows.data + start * rows.stride + h * head, rows.stride};
    }

    // Calls visit(group, first token, tokens, head, first of a vector of them) for all vectors of queries.
    template <typename F>
    void for_queries(const TokenBlock& block, F visit) const {
        for (int64_t group = block.first; group < block.end; ++group) {
            const int64_t start = block.starts[group - block.first], end = block.starts[group - block.first + 1];
            for (int64_t h = 0; h < a.heads; ++h)
                for (int64_t at = start; at < end; at += kLanes)
                    visit(group, start, end - start, h, at);
        }
    }

    // Where lanes are queries: the weights of the keys in place of their scores.
    void softmax(int64_t group, const TokenBlock& block, int64_t start, int64_t others, int64_t h, int64_t at) {
        Vector high = load(scores);
        for (int64_t j = 1; j < others; ++j) high = maximum(high, load(scores + j * kLanes));
        Pack<1> sum{};
        for (int64_t j = 0; j < others; ++j) {
            const Pack<1> weight = exponential(Pack<1>{load(scores + j * kLanes) - high});
            store(scores + j * kLanes, weight.v[0]);
            sum = sum + weight;
        }
        const Vector inverse_sum = reciprocal(sum).v[0];
        store(highest + h * lanes() + at, high);
        store(inverse_sums + h * lanes() + at, inverse_sum);
        const Dropout::Row row = attention_dropout.row(group * a.heads + h);
        const Integers numbers = first_entries(block, at);
        for (int64_t j = 0; j < others; ++j) {
            Vector weight = load(scores + j * kLanes) * inverse_sum;
            if (attention_dropout.active())
                weight *= attention_dropout.factors(row, numbers + block.positions[start + j]);
            store(scores + j * kLanes, weight);
        }
    }

    // Where the weights of a vector of queries begin among those of a group and head, which dropout counts.
    Integers first_entries(const TokenBlock& block, int64_t at) const {
        Integers places;
        memcpy(&places, block.positions + at, sizeof(places));
        return places * (int32_t)a.tokens;
    }
};

// The rows of one block on their way back.
struct AttentionBackward {
    const AttentionArguments& a;
    const AttentionWeights &w, &back;
    AttentionSums& sums;
    AttentionForward forward;
    FloatRows grad, grad_down, grad_active, grad_normed, grad_attended, grad_projected, shares;
    FloatRows outputs, grad_lanes;  // transposed; outputs are the gradients of what attention gives
    float *slopes, *tile;

    AttentionBackward(const AttentionArguments& a_, const AttentionWeights& w_, const AttentionWeights& back_, AttentionSums& sums_)
        : a(a_), w(w_), back(back_), sums(sums_), forward(a_, w_) {}

    void place(Pieces& pieces) {
        forward.place(pieces);
        const int64_t most = forward.most, width = forward.width;
        const auto rows = [&](int64_t columns) { return FloatRows{pieces.take(most * columns), columns}; };
        grad = rows(width), grad_down = rows(width), grad_active = rows(forward.inside), grad_normed = rows(width);
        grad_attended = rows(width), grad_projected = rows(3 * width), shares = rows(width);
        outputs = forward.transposed(pieces);
        grad_lanes = FloatRows{pieces.take(3 * width * forward.lanes()), forward.lanes()};
        slopes = pieces.take(most * kLanes), tile = pieces.take(kLanes * kLanes);
    }

    void run(const TokenBlock& block, int64_t part) {
        const int64_t count = block.count, width = forward.width;
        block.read(a.x, forward.x);
        block.read(a.grad_out, grad);
        forward.attend(block);
        forward.expand(block);

        copy_rows(grad, grad_down, width, count);
        drop_rows(forward.mlp_dropout, block, grad_down, a.width);
        sums.down.add(part, grad_down, forward.active, count);
        sums.down_bias.add(part, grad_down, count);
        multiply_rows(back.down, grad_down, grad_active, count);
        activation_backward(count);
        sums.up.add(part, grad_active, forward.mlp_normed, count);
        sums.up_bias.add(part, grad_active, count);
        multiply_rows(back.up, grad_active, grad_normed, count);
        normalize_backward(forward.y, grad_normed, w.mlp_norm, forward.mlp_inverse, a.width, count, grad, shares);
        sums.mlp_norm.add(part, shares, count);

        copy_rows(grad, grad_down, width, count);
        drop_rows(forward.dropout, block, grad_down, a.width);
        sums.o.add(part, grad_down, forward.attended, count);
        sums.o_bias.add(part, grad_down, count);
        multiply_rows(back.o, grad_down, grad_attended, count);
        attend_backward(block);
        const FloatRows grad_keys{grad_projected.data + width, 3 * width}, grad_values{grad_keys.data + width, 3 * width};
        sums.q.add(part, grad_projected, forward.normed, count);
        sums.k.add(part, grad_keys, forward.normed, count);
        sums.v.add(part, grad_values, forward.normed, count);
        sums.q_bias.add(part, grad_projected, count);
        sums.k_bias.add(part, grad_keys, count);
        sums.v_bias.add(part, grad_values, count);
        multiply_rows(back.q, grad_projected, grad_normed, count);
        multiply_rows(back.k, grad_keys, grad_normed, count, true);
        multiply_rows(back.v, grad_values, grad_normed, count, true);
        normalize_backward(forward.x, grad_normed, w.attention_norm, forward.inverse, a.width, count, grad, shares);
        sums.attention_norm.add(part, shares, count);
        block.write(a.grad_x, grad);
    }

    static void copy_rows(FloatRows from, FloatRows to, int64_t width, int64_t count) {
        memcpy(to.data, from.data, count * width * sizeof(float));
    }

    void activation_backward(int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = 0; k < forward.inside; k += kLanes) {
                const Pack<1> raw{load(forward.up.at(i, k))};
                Pack<1> bell{};
                const Vector below = normal_distribution(raw, bell).v[0];
                const Vector slope = below + raw.v[0] * bell.v[0] * 0.39894228040143268f;
                store(grad_active.at(i, k), load(grad_active.at(i, k)) * slope);
            }
    }

    // Lanes are queries; for the gradients of keys and values, the weights are transposed, a tile at a time.
    void attend_backward(const TokenBlock& block) {
        const int64_t count = block.count, head = forward.head;
        transpose(grad_attended, count, a.width, outputs);
        const FloatRows lanes_q = grad_lanes;
        const FloatRows lanes_k{grad_lanes.data + forward.width * grad_lanes.stride, grad_lanes.stride};
        const FloatRows lanes_v{lanes_k.data + forward.width * grad_lanes.stride, grad_lanes.stride};
        forward.for_queries(block, [&](int64_t group, int64_t start, int64_t others, int64_t h, int64_t at) {
            weigh_backward(group, block, start, others, h, at);
            mix_rows(slopes, forward.head_rows(forward.keys(), h, start), head, others, forward.at_head(lanes_q, h, at));
            const FloatRows query_rows = forward.head_rows(forward.projected, h, at),
                            output_rows = forward.head_rows(grad_attended, h, at);
            const int64_t queries = minimum_of(kLanes, start + others - at);
            for (int64_t key = 0; key < others; key += kLanes) {
                const int64_t rows = minimum_of(kLanes, others - key);
                transpose_tile(forward.scores + key * kLanes, rows, tile);
                mix_rows(tile, output_rows, head, queries, forward.at_head(lanes_v, h, start + key), at > start);
                transpose_tile(slopes + key * kLanes, rows, tile);
                mix_rows(tile, query_rows, head, queries, forward.at_head(lanes_k, h, start + key), at > start);
            }
        });
        transpose(lanes_q, forward.width, count, grad_projected);
        transpose(lanes_k, forward.width, count, {grad_projected.data + forward.width, 3 * forward.width});
        transpose(lanes_v, forward.width, count, {grad_projected.data + 2 * forward.width, 3 * forward.width});
        for (int64_t i = 0; i < count; ++i)  // the queries were scaled before
            for (int64_t k = 0; k < forward.width; k += kLanes)
                store(grad_projected.at(i, k), load(grad_projected.at(i, k)) * forward.scale);
    }

    // The weights of a vector of queries once more, and the gradients of their scores in `slopes`.
    void weigh_backward(int64_t group, const TokenBlock& block, int64_t start, int64_t others, int64_t h, int64_t at) {
        const int64_t head = forward.head;
        Vector sum{};  // what the gradients of a query's scores have in common
        for (int64_t d = 0; d < head; ++d)
            sum += load(forward.at_head(forward.mixed, h, at).at(d)) * load(forward.at_head(outputs, h, at).at(d));
        dot_rows(forward.at_head(forward.queries, h, at), forward.head_rows(forward.keys(), h, start), head, others,
                 forward.scores);
        dot_rows(forward.at_head(outputs, h, at), forward.head_rows(forward.values(), h, start), head, others, slopes);
        const Vector high = load(forward.highest + h * forward.lanes() + at),
                     inverse = load(forward.inverse_sums + h * forward.lanes() + at);
        const Dropout::Row row = forward.attention_dropout.row(group * a.heads + h);
        const Integers numbers = forward.first_entries(block, at);
        for (int64_t j = 0; j < others; ++j) {
            const Vector weight = exponential(Pack<1>{load(forward.scores + j * kLanes) - high}).v[0] * inverse;
            Vector factor = broadcast(1.0f);
            if (forward.attention_dropout.active())
                factor = forward.attention_dropout.factors(row, numbers + block.positions[start + j]);
            store(forward.scores + j * kLanes, weight * factor);
            store(slopes + j * kLanes, weight * (load(slopes + j * kLanes) * factor - sum));
        }
    }
};

inline int attention_forward(const AttentionArguments& a) {
    const AttentionWeights weights(a, true);
    if (!weights.ok()) return kOutOfMemory;
    const TokenGroups groups{a.groups, a.tokens, a.width, a.mask};
    return for_blocks<AttentionForward>(
        groups, a.threads, [](AttentionForward& worker, const TokenBlock& block, int) { worker.run(block); }, a, weights);
}

inline int attention_backward(const AttentionArguments& a) {
    const AttentionWeights weights(a, true), back(a, false);
    AttentionSums sums(a);
    if (!weights.ok() || !back.ok() || !sums.ok()) return kOutOfMemory;
    const TokenGroups groups{a.groups, a.tokens, a.width, a.mask};
    const int status = for_blocks<AttentionBackward>(
        groups, a.threads,
        [](AttentionBackward& worker, const TokenBlock& block, int thread) { worker.run(block, thread); }, a, weights, back,
        sums);
    if (status == kOk) sums.finish(a);
    return status;
}

}  // namespace hymate
