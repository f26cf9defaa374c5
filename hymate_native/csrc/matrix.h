// Products of a tall matrix (one row per event) with a small one, in float32: what a Mamba layer's projections are.
//
// BLAS libraries are made for large square matrices, and PyTorch's (MKL) leaves AVX-512 alone on processors that are
// not Intel's. Here the small matrix stays in the cache, and a tile of the result in registers.
#pragma once

#include "tasks.h"

namespace hymate {

constexpr int kTileRows = 6;
#if defined(HYMATE_AVX512) || defined(__aarch64__)
constexpr int kTileVectors = 4;  // of 32 registers, 24 hold the tile
#else
constexpr int kTileVectors = 2;  // of 16 registers, 12
#endif
constexpr int kPiece = 64;  // rows multiplied together: few enough for a first-level cache

// Rows of floats whose columns are contiguous.
struct FloatRows {
    float* data;
    int64_t stride;

    HYMATE_INLINE float* at(int64_t row, int64_t column = 0) const { return data + row * stride + column; }
};

// U rows by V vectors of sums.
template <int U, int V>
struct Tile {
    Vector sum[U][V];

    HYMATE_INLINE void clear() {
        HYMATE_EACH HYMATE_UNROLL for (int j = 0; j < V; ++j) sum[i][j] = Vector{};
    }
    // sum[i][j] += left[i * stride] * right[j]
    HYMATE_INLINE void add(const float* left, int64_t stride, const float* right) {
        Vector vectors[V];
        HYMATE_UNROLL
        for (int j = 0; j < V; ++j) vectors[j] = load(right + j * kLanes);
        HYMATE_EACH {
            const Vector factor = broadcast(left[i * stride]);
            HYMATE_UNROLL
            for (int j = 0; j < V; ++j) sum[i][j] += factor * vectors[j];
        }
    }
    HYMATE_INLINE void add_to(float* out, int64_t stride, bool accumulate, int last) {
        HYMATE_EACH {
            HYMATE_UNROLL
            for (int j = 0; j < V; ++j) {
                float* p = out + i * stride + j * kLanes;
                const int count = j < V - 1 ? kLanes : last;
                store(p, accumulate ? sum[i][j] + load(p, count) : sum[i][j], count);
            }
        }
    }
};

// Calls visit(Constant<V>, first column, lanes of the last vector) for stripes of V vectors that cover all columns.
template <typename F>
HYMATE_INLINE void for_stripes(int64_t columns, F visit) {
    int64_t first = 0;
    for (; columns - first >= kTileVectors * kLanes; first += kTileVectors * kLanes)
        visit(Constant<kTileVectors>(), first, kLanes);
    const int rest = (int)(columns - first), vectors = (rest + kLanes - 1) / kLanes;
    const int last = rest - (vectors - 1) * kLanes;
    if (vectors == 4) visit(Constant<4>(), first, last);
    if (vectors == 3) visit(Constant<3>(), first, last);
    if (vectors == 2) visit(Constant<2>(), first, last);
    if (vectors == 1) visit(Constant<1>(), first, last);
}

// Calls visit(Constant<U>, first) for tiles of U rows that cover first .. end.
template <typename F>
HYMATE_INLINE void for_tiles(int64_t first, int64_t end, F visit) {
    for (; first + kTileRows <= end; first += kTileRows) visit(Constant<kTileRows>(), first);
    for (; first + 4 <= end; first += 4) visit(Constant<4>(), first);
    for (; first < end; ++first) visit(Constant<1>(), first);
}

// A linear layer's weight, (outputs, inputs), as the small matrix of a product: transposed where inputs become outputs,
// as it is where gradients go the other way. It lies in stripes, each (depth, its vectors), zeros beyond the last
// column; the bias is a row before them. An absent weight has no columns.
struct Stripes {
    int64_t depth, columns, width;
    Arena arena;
    float *bias, *data;

    Stripes(const float* weight, int64_t outputs, int64_t inputs, bool transposed, const float* bias_ = nullptr)
        : depth(transposed ? inputs : outputs),
          columns(weight == nullptr ? 0 : transposed ? outputs : inputs),
          width(round_up(columns, kLanes)),
          arena((depth + 1) * width + 16) {
        if (!arena.ok() || weight == nullptr) return;
        bias = arena.take(width);
        data = arena.take(depth * width);
        if (bias_ != nullptr) memcpy(bias, bias_, columns * sizeof(float));
        for_stripes(columns, [&](auto vectors, int64_t first, int) {
            const int64_t stripe = decltype(vectors)::value * kLanes, present = minimum_of(stripe, columns - first);
            float* packed = data + first * depth;
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t i = 0; i < present; ++i)
                    packed[k * stripe + i] = weight[transposed ? (first + i) * inputs + k : k * inputs + first + i];
        });
    }
};

// A row that will be needed soon, into the second-level cache.
HYMATE_INLINE void fetch_row(const float* row, int64_t columns) {
    for (int64_t i = 0; i < columns; i += 16) __builtin_prefetch((const char*)(row + i), 0, 2);
}

// out (+)= tall small + bias for `count` rows. Calls fetch(row) once for each of them, so that what is needed next
// comes while memory would else be idle.
template <typename F>
HYMATE_INLINE void multiply_rows(const Stripes& small, FloatRows tall, FloatRows out, int64_t count, bool accumulate,
                                 F fetch) {
    for_stripes(small.columns, [&](auto vectors, int64_t first, int last) {
        constexpr int V = decltype(vectors)::value;
        const float *packed = small.data + first * small.depth, *bias = small.bias + first;
        for_tiles(0, count, [&](auto rows, int64_t row) {
            constexpr int U = decltype(rows)::value;
            const float* left = tall.at(row);
            if (first == 0) HYMATE_EACH fetch(row + i);
            Tile<U, V> tile;
            HYMATE_EACH HYMATE_UNROLL for (int j = 0; j < V; ++j) tile.sum[i][j] = load(bias + j * kLanes);
            for (int64_t k = 0; k < small.depth; ++k) tile.add(left + k, tall.stride, packed + k * V * kLanes);
            tile.add_to(out.at(row, first), out.stride, accumulate, last);
        });
    });
}

HYMATE_INLINE void multiply_rows(const Stripes& small, FloatRows tall, FloatRows out, int64_t count,
                                 bool accumulate = false) {
    multiply_rows(small, tall, out, count, accumulate, [](int64_t) {});
}

// The gradient of a linear layer's weight, (outputs, inputs): the sum over rows of the outer products of the outputs'
// gradients and the inputs. Each part of the rows has a sum of its own, and these are added in a fixed order. A sum lies
// in stripes along the wider of the two matrices, each (the other one's columns, its vectors).
struct WeightGradient {
    int64_t outputs, inputs, parts, wide, narrow, size;
    Arena arena;
    float* sums;

    WeightGradient(int64_t outputs_, int64_t inputs_, int64_t parts_)
        : outputs(outputs_),
          inputs(inputs_),
          parts(parts_),
          wide(inputs < outputs ? outputs : inputs),
          narrow(minimum_of(inputs, outputs)),
          size(round_up(narrow * round_up(wide, kLanes), 16)),
          arena(parts * size),
          sums(arena.take(parts * size)) {}

    void add(int64_t part, FloatRows grad, FloatRows x, int64_t count) {
        const bool swap = outputs > inputs;
        const FloatRows left = swap ? x : grad, right = swap ? grad : x;
        for (int64_t row = 0; row < count; row += kPiece)
            add_piece(sums + part * size, {left.at(row), left.stride}, {right.at(row), right.stride},
                      minimum_of(kPiece, count - row));
    }

    // Rows a power of two apart would push each other out of the cache, so the wide matrix is copied.
    void add_piece(float* sum, FloatRows left, FloatRows right, int64_t count) {
        for_stripes(wide, [&](auto vectors, int64_t first, int last) {
            constexpr int V = decltype(vectors)::value;
            alignas(64) float packed[kPiece * V * kLanes];
            for (int64_t row = 0; row < count; ++row) {
                HYMATE_UNROLL
                for (int j = 0; j < V; ++j)
                    store(packed + (row * V + j) * kLanes,
                          load(right.at(row, first + j * kLanes), j < V - 1 ? kLanes : last));
            }
            for_tiles(0, narrow, [&](auto tile_rows, int64_t column) {
                constexpr int U = decltype(tile_rows)::value;
                Tile<U, V> tile;
                tile.clear();
                for (int64_t row = 0; row < count; ++row)
                    tile.add(left.at(row, column), 1, packed + row * V * kLanes);
                tile.add_to(sum + first * narrow + column * V * kLanes, V * kLanes, true, kLanes);
            });
        });
    }

    void finish(float* target) {
        if (target == nullptr) return;
        for (int64_t part = 1; part < parts; ++part)
            for (int64_t i = 0; i < size; i += kLanes) store(sums + i, load(sums + i) + load(sums + part * size + i));
        const bool swap = outputs > inputs;
        for_stripes(wide, [&](auto vectors, int64_t first, int) {
            const int64_t width = decltype(vectors)::value * kLanes, present = minimum_of(width, wide - first);
            for (int64_t row = 0; row < narrow; ++row)
                for (int64_t i = 0; i < present; ++i)
                    target[swap ? (first + i) * inputs + row : row * inputs + first + i] =
                        sums[first * narrow + row * width + i];
        });
    }
};

// The gradient of a linear layer's bias: the sum of the outputs' gradients over rows, in parts as above.
struct BiasGradient {
    int64_t outputs, parts, size;
    Arena arena;
    float *sums, *carries;

    BiasGradient(int64_t outputs_, int64_t parts_)
        : outputs(outputs_),
          parts(parts_),
          size(round_up(outputs, 16)),
          arena(2 * (parts + 1) * size),
          sums(arena.take((parts + 1) * size)),
          carries(arena.take((parts + 1) * size)) {}

    void add(int64_t part, FloatRows grad, int64_t count) {
        for (int64_t i = 0; i < outputs; i += kLanes) {
            const int lanes = (int)minimum_of(kLanes, outputs - i);
            Vector sum{};
            for (int64_t row = 0; row < count; ++row) sum += load(grad.at(row, i), lanes);
            add_compensated(sums + part * size + i, carries + part * size + i, sum);
        }
    }

    void finish(float* target) {
        if (target == nullptr) return;
        sum_over_batch(sums, parts, size, sums + parts * size, carries + parts * size);
        memcpy(target, sums + parts * size, outputs * sizeof(float));
    }
};

}  // namespace hymate
