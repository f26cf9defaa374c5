// What this library takes its arguments to look like: constants that Python shares, and the size of each structure and
// the place of each of its fields. Python compares all of it with its own (structures.py) before it calls a kernel, so
// that a library of another version is refused instead of reading wrong memory.
#pragma once

#include <cstddef>

#include "arrange.h"
#include "attention.h"
#include "channel_memory.h"
#include "channel_statistics.h"
#include "channel_tokens.h"
#include "events.h"
#include "fusion.h"
#include "mixer.h"
#include "occlusion.h"
#include "pooled_states.h"
#include "running_quantities.h"

namespace hymate {

struct InterfaceEntry {
    const char* name;
    int64_t value;
};

#define HYMATE_SIZE(structure) {"sizeof(" #structure ")", sizeof(structure)}
#define HYMATE_1(s, f) {#s "." #f, offsetof(s, f)}
#define HYMATE_2(s, f, ...) HYMATE_1(s, f), HYMATE_1(s, __VA_ARGS__)
#define HYMATE_3(s, f, ...) HYMATE_1(s, f), HYMATE_2(s, __VA_ARGS__)
#define HYMATE_4(s, f, ...) HYMATE_1(s, f), HYMATE_3(s, __VA_ARGS__)
#define HYMATE_5(s, f, ...) HYMATE_1(s, f), HYMATE_4(s, __VA_ARGS__)
#define HYMATE_6(s, f, ...) HYMATE_1(s, f), HYMATE_5(s, __VA_ARGS__)
#define HYMATE_7(s, f, ...) HYMATE_1(s, f), HYMATE_6(s, __VA_ARGS__)
#define HYMATE_8(s, f, ...) HYMATE_1(s, f), HYMATE_7(s, __VA_ARGS__)
#define HYMATE_PICK(a, b, c, d, e, f, g, h, chosen, ...) chosen
// The places of up to eight fields.
#define HYMATE_FIELDS(s, ...)                                                                                        \
    HYMATE_PICK(__VA_ARGS__, HYMATE_8, HYMATE_7, HYMATE_6, HYMATE_5, HYMATE_4, HYMATE_3, HYMATE_2, HYMATE_1, 0)     \
    (s, __VA_ARGS__)

constexpr InterfaceEntry kInterface[] = {
    {"version", 1},
    {"kChunk", kChunk},
    {"kLargeKernel", kLargeKernel},
    {"kQuantities", kQuantities},
    {"kHalfLifeQuantities", kHalfLifeQuantities},
    {"kHistory", kHistory},
    {"kHalfLifeHistory", kHalfLifeHistory},

    HYMATE_SIZE(Rows),
    HYMATE_FIELDS(Rows, data, batch_stride, time_stride),

    HYMATE_SIZE(ScanArguments),
    HYMATE_FIELDS(ScanArguments, batch, length, inner, state, dtype, softplus, threads),
    HYMATE_FIELDS(ScanArguments, u, delta, z, B, C, A, D, bias),
    HYMATE_FIELDS(ScanArguments, lengths, initial, out, final, states),
    HYMATE_FIELDS(ScanArguments, grad_out, grad_final, grad_u, grad_delta, grad_z, grad_B, grad_C),
    HYMATE_FIELDS(ScanArguments, grad_A, grad_D, grad_bias, grad_initial),

    HYMATE_SIZE(ConvolutionArguments),
    HYMATE_FIELDS(ConvolutionArguments, batch, length, inner, kernel, dtype, silu, threads),
    HYMATE_FIELDS(ConvolutionArguments, x, weight, bias, lengths, initial, out),
    HYMATE_FIELDS(ConvolutionArguments, grad_out, grad_x, grad_weight, grad_bias),

    HYMATE_SIZE(MixerArguments),
    HYMATE_FIELDS(MixerArguments, batch, length, width, inner, state, rank, kernel, outputs),
    HYMATE_FIELDS(MixerArguments, dtype, threads, rows, in_weight, in_bias, conv_weight, conv_bias, x_weight),
    HYMATE_FIELDS(MixerArguments, dt_weight, dt_bias, A, D, out_weight, out_bias, lengths),
    HYMATE_FIELDS(MixerArguments, eps, norm, factors),
    HYMATE_FIELDS(MixerArguments, conv_initial, scan_initial, conv_final, scan_final),
    HYMATE_FIELDS(MixerArguments, out, projected, convolved, parameters, states),
    HYMATE_FIELDS(MixerArguments, grad_out, grad_rows, grad_in_weight, grad_in_bias, grad_conv_weight, grad_conv_bias),
    HYMATE_FIELDS(MixerArguments, grad_x_weight, grad_dt_weight, grad_dt_bias, grad_A, grad_D, grad_out_weight),
    HYMATE_FIELDS(MixerArguments, grad_out_bias, grad_norm),

    HYMATE_SIZE(AttentionArguments),
    HYMATE_FIELDS(AttentionArguments, groups, tokens, width, heads, inside, threads, seed),
    HYMATE_FIELDS(AttentionArguments, eps, dropout, attention_dropout, x, mask),
    HYMATE_FIELDS(AttentionArguments, attention_norm, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, o_weight),
    HYMATE_FIELDS(AttentionArguments, o_bias, mlp_norm, up_weight, up_bias, down_weight, down_bias, out, grad_out),
    HYMATE_FIELDS(AttentionArguments, grad_x, grad_attention_norm, grad_q_weight, grad_q_bias, grad_k_weight),
    HYMATE_FIELDS(AttentionArguments, grad_k_bias, grad_v_weight, grad_v_bias, grad_o_weight, grad_o_bias),
    HYMATE_FIELDS(AttentionArguments, grad_mlp_norm, grad_up_weight, grad_up_bias, grad_down_weight, grad_down_bias),

    HYMATE_SIZE(FusionArguments),
    HYMATE_FIELDS(FusionArguments, groups, tokens, width, threads, eps, x, mask),
    HYMATE_FIELDS(FusionArguments, norm, weight, bias, score, pooled, weights, grad_pooled, grad_weights),
    HYMATE_FIELDS(FusionArguments, grad_x, grad_norm, grad_weight, grad_bias, grad_score),

    HYMATE_SIZE(RunningArguments),
    HYMATE_FIELDS(RunningArguments, batch, length, predictions, channels, width, queries, half_lives, threads),
    HYMATE_FIELDS(RunningArguments, parts, scores, values, times, value_mask, slots, prediction_times, half_life),
    HYMATE_FIELDS(RunningArguments, pooled, totals, statistics, grad_pooled, grad_totals, grad_parts, grad_scores),
    HYMATE_FIELDS(RunningArguments, channel_weights, event_weights),

    HYMATE_SIZE(MemoryArguments),
    HYMATE_FIELDS(MemoryArguments, batch, length, variables, channels, width, queries, half_lives, threads),
    HYMATE_FIELDS(MemoryArguments, half_life, sums, history, parts, scores, values, times, value_mask),
    HYMATE_FIELDS(MemoryArguments, variable_ids, lengths, new_sums, new_history, now, channel_ids, pooled, quantities),

    HYMATE_SIZE(StatisticArguments),
    HYMATE_FIELDS(StatisticArguments, cells, half_lives, threads, time_scale, quantities, statistics, present),

    HYMATE_SIZE(TokenArguments),
    HYMATE_FIELDS(TokenArguments, batch, predictions, channels, width, statistics, bins, variables, threads),
    HYMATE_FIELDS(TokenArguments, pooled, mask, statistic, present, channel_ids, embedding, knots, out),
    HYMATE_FIELDS(TokenArguments, grad_out, grad_pooled, grad_embedding, grad_knots),

    HYMATE_SIZE(EmbeddingArguments),
    HYMATE_FIELDS(EmbeddingArguments, batch, length, width, inside, variables, threads, values, times),
    HYMATE_FIELDS(EmbeddingArguments, variable_ids, value_mask, lengths, variable, vectors),
    HYMATE_FIELDS(EmbeddingArguments, value_weight, value_bias, value_out, time_weight, time_bias, time_out),
    HYMATE_FIELDS(EmbeddingArguments, missing, factors, out, grad_out, grad_variable, grad_vectors),
    HYMATE_FIELDS(EmbeddingArguments, grad_value_weight, grad_value_bias, grad_value_out, grad_time_weight),
    HYMATE_FIELDS(EmbeddingArguments, grad_time_bias, grad_time_out, grad_missing),

    HYMATE_SIZE(ProjectionArguments),
    HYMATE_FIELDS(ProjectionArguments, batch, length, width, queries, threads, eps, bound),
    HYMATE_FIELDS(ProjectionArguments, x, lengths, norm, query_weight, value_weight, value_bias, parts, scores),
    HYMATE_FIELDS(ProjectionArguments, grad_parts, grad_scores, grad_x, grad_norm, grad_query_weight),
    HYMATE_FIELDS(ProjectionArguments, grad_value_weight, grad_value_bias),

    HYMATE_SIZE(PooledArguments),
    HYMATE_FIELDS(PooledArguments, projection, running),

    HYMATE_SIZE(OcclusionArguments),
    HYMATE_FIELDS(OcclusionArguments, mixer, projection, running, starts, absent, last_times),

    HYMATE_SIZE(ArrangeArguments),
    HYMATE_FIELDS(ArrangeArguments, batch, length, variables, threads),
    HYMATE_FIELDS(ArrangeArguments, values, times, variable_ids, mask, value_mask, sorted_values, sorted_times),
    HYMATE_FIELDS(ArrangeArguments, sorted_ids, sorted_mask, sorted_value_mask, order, slots, lengths, channels, moved),
    HYMATE_FIELDS(ArrangeArguments, channel_ids),

    {nullptr, 0},
};

}  // namespace hymate
