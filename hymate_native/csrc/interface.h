// What this library takes its arguments to look like: constants that Python shares, and the size of each structure and
// the place of each of its fields. Python compares all of it with its own (structures.py) before it calls a kernel, so
// that a library of another version is refused instead of reading wrong memory.
#pragma once

#include <cstddef>

#include "mixer.h"

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
    HYMATE_FIELDS(MixerArguments, conv_initial, scan_initial, conv_final, scan_final),
    HYMATE_FIELDS(MixerArguments, out, projected, convolved, parameters, states),
    HYMATE_FIELDS(MixerArguments, grad_out, grad_rows, grad_in_weight, grad_in_bias, grad_conv_weight, grad_conv_bias),
    HYMATE_FIELDS(MixerArguments, grad_x_weight, grad_dt_weight, grad_dt_bias, grad_A, grad_D, grad_out_weight),
    HYMATE_FIELDS(MixerArguments, grad_out_bias),

    {nullptr, 0},
};

}  // namespace hymate
