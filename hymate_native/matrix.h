// Products of a tall matrix (one row an event) with a small one, in float32: what a Mamba layer's projections are.
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
constexpr int64_t kNearFloats = 4096;  // of the tall matrix, worked on together: half of a small first-level cache
constexpr int64_t kNearRows = 64;      // of the tall matrices in a backward pass

// A matrix of any strides, which count elements.
struct Matrix {
    float* data;
    int64_t row_stride, column_stride;

    HYMATE_INLINE float* at(int64_t row, int64_t column) const { return data + row * row_stride + column * column_stride; }
};

struct ProductArguments {
    int64_t rows, depth, columns, accumulate, threads;
    Matrix tall;        // (rows, depth); columns contiguous
    Matrix small;       // (depth, columns)
    const float* bias;  // (columns,), may be absent
    Matrix out;         // (rows, columns); columns contiguous
};

// The backward pass of out = x small^T: two products that read the same gradients.
struct LinearBackwardArguments {
    ProductArguments product;  // of the gradients (tall) and the weight (small); out is the gradient of x
    Matrix x;                  // (rows, columns); columns contiguous
    float* grad_weight;        // (depth, columns), contiguous
};

// One step or two, the second of which takes what the first has made of the same rows while it is still near.
template <typename Arguments>
struct Steps {
    int64_t count;
    Arguments step[2];
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

// The small matrix in stripes, each (depth, its vectors), zeros beyond the last column; the bias is a row before them.
struct Stripes {
    int64_t width;
    Arena arena;
    float *bias, *data;

    explicit Stripes(const ProductArguments& p)
        : width(round_up(p.columns, kLanes)), arena((p.depth + 1) * width + 16) {
        if (!arena.ok()) return;
        bias = arena.take(width);
        data = arena.take(p.depth * width);
        if (p.bias != nullptr) memcpy(bias, p.bias, p.columns * sizeof(float));
        for_stripes(p.columns, [&](auto vectors, int64_t first, int) {
            const int64_t stripe = decltype(vectors)::value * kLanes;
            float* packed = data + first * p.depth;
            for (int64_t k = 0; k < p.depth; ++k)
                for (int64_t i = 0; i < minimum_of(stripe, p.columns - first); ++i)
                    packed[k * stripe + i] = *p.small.at(k, first + i);
        });
    }
};

// A row that will be needed soon, into the second-level cache.
HYMATE_INLINE void fetch_row(const Matrix& matrix, int64_t row, int64_t columns) {
    for (int64_t i = 0; i < columns; i += 16)
        __builtin_prefetch((const char*)matrix.data + (row * matrix.row_stride + i) * (int64_t)sizeof(float), 0, 2);
}

// While it multiplies, calls fetch(row) for each row of the next block, so that memory is busy all the time.
template <typename F>
HYMATE_INLINE void multiply_rows(const ProductArguments& p, const Stripes& stripes, int64_t begin, int64_t end, F fetch) {
    for_stripes(p.columns, [&](auto vectors, int64_t first, int last) {
        constexpr int V = decltype(vectors)::value;
        const float *packed = stripes.data + first * p.depth, *bias = stripes.bias + first;
        for_tiles(begin, end, [&](auto rows, int64_t row) {
            constexpr int U = decltype(rows)::value;
            const float* tall = p.tall.at(row, 0);
            if (first == 0) HYMATE_EACH fetch(row + i + (end - begin));
            Tile<U, V> tile;
            HYMATE_EACH HYMATE_UNROLL for (int j = 0; j < V; ++j) tile.sum[i][j] = load(bias + j * kLanes);
            for (int64_t k = 0; k < p.depth; ++k) tile.add(tall + k, p.tall.row_stride, packed + k * V * kLanes);
            tile.add_to(p.out.at(row, first), p.out.row_stride, p.accumulate, last);
        });
    });
}

struct ProductPass {
    const ProductArguments& p;
    Stripes stripes;

    explicit ProductPass(const ProductArguments& arguments) : p(arguments), stripes(arguments) {}
    bool ok() const { return stripes.arena.ok(); }
    void run(int64_t begin, int64_t end) const {
        multiply_rows(p, stripes, begin, end, [&](int64_t row) {
            fetch_row(p.tall, row, p.depth);
            fetch_row(p.out, row, p.columns);
        });
    }
};

template <int N>
int products(const ProductPass (&passes)[N]) {
    for (const ProductPass& pass : passes)
        if (!pass.ok()) return kOutOfMemory;
    const ProductArguments& p = passes[0].p;
    const int64_t near = round_up(kNearFloats / (p.depth + 1) + 1, kTileRows), blocks = (p.rows + near - 1) / near;
    const int threads = (int)minimum_of(p.threads, blocks > 0 ? blocks : 1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block)
        for (const ProductPass& pass : passes) pass.run(block * near, minimum_of((block + 1) * near, p.rows));
    return kOk;
}

// out (+)= tall small + bias, once or twice
inline int matrix_products(const Steps<ProductArguments>& s) {
    if (s.count == 1) return products({ProductPass(s.step[0])});
    return products({ProductPass(s.step[0]), ProductPass(s.step[1])});
}

// The sum of the outer products of rows of two tall matrices, in stripes of its columns, each (left columns, its
// vectors). Rows a power of two apart would push each other out of the cache, so the right matrix is copied, too.
struct Reduction {
    Matrix left, right;
    int64_t left_columns, right_columns;

    int64_t size() const { return left_columns * round_up(right_columns, kLanes); }

    void add(int64_t begin, int64_t end, float* sum) const {
        for_stripes(right_columns, [&](auto vectors, int64_t first, int last) {
            constexpr int V = decltype(vectors)::value;
            alignas(64) float packed[kNearRows * V * kLanes];
            for (int64_t row = begin; row < end; ++row) {
                HYMATE_UNROLL
                for (int j = 0; j < V; ++j)
                    store(packed + ((row - begin) * V + j) * kLanes,
                          load(right.at(row, first) + j * kLanes, j < V - 1 ? kLanes : last));
            }
            for_tiles(0, left_columns, [&](auto tile_rows, int64_t column) {
                constexpr int U = decltype(tile_rows)::value;
                Tile<U, V> tile;
                tile.clear();
                for (int64_t row = begin; row < end; ++row)
                    tile.add(left.at(row, column), 1, packed + (row - begin) * V * kLanes);
                tile.add_to(sum + first * left_columns + column * V * kLanes, V * kLanes, true, kLanes);
            });
        });
    }
    // Calls visit(left column, right column, sum) for all of them.
    template <typename F>
    void read(const float* sum, F visit) const {
        for_stripes(right_columns, [&](auto vectors, int64_t first, int) {
            const int64_t width = decltype(vectors)::value * kLanes, present = minimum_of(width, right_columns - first);
            for (int64_t row = 0; row < left_columns; ++row)
                for (int64_t i = 0; i < present; ++i)
                    visit(row, first + i, sum[first * left_columns + row * width + i]);
        });
    }
};

struct BackwardPass {
    const ProductArguments& p;
    const LinearBackwardArguments& a;
    bool swap;  // the vectors lie along the wider one of the two matrices
    Reduction reduction;
    Stripes stripes;
    Arena arena;
    float* sums;  // one for each part of the rows

    BackwardPass(const LinearBackwardArguments& arguments, int64_t parts)
        : p(arguments.product), a(arguments), swap(p.depth > p.columns),
          reduction(swap ? Reduction{a.x, p.tall, p.columns, p.depth} : Reduction{p.tall, a.x, p.depth, p.columns}),
          stripes(p), arena(parts * reduction.size() + 16) {
        if (arena.ok()) sums = arena.take(parts * reduction.size());
    }
    bool ok() const { return arena.ok() && stripes.arena.ok(); }
    void run(int64_t begin, int64_t end, int64_t part) const {
        multiply_rows(p, stripes, begin, end, [&](int64_t row) {
            fetch_row(p.tall, row, p.depth);
            fetch_row(p.out, row, p.columns);
            fetch_row(a.x, row, p.columns);
        });
        reduction.add(begin, end, sums + part * reduction.size());
    }
    void finish(int64_t parts) const {
        const int64_t size = reduction.size();
        for (int64_t part = 1; part < parts; ++part)
            for (int64_t i = 0; i < size; i += kLanes) store(sums + i, load(sums + i) + load(sums + part * size + i));
        reduction.read(sums, [&](int64_t row, int64_t column, float sum) {
            a.grad_weight[swap ? column * p.columns + row : row * p.columns + column] = sum;
        });
    }
};

// Threads sum ranges of rows of their own, which are then added in a fixed order.
template <int N>
int backwards(const BackwardPass (&passes)[N], int64_t blocks, int64_t parts) {
    for (const BackwardPass& pass : passes)
        if (!pass.ok()) return kOutOfMemory;
    const int64_t rows = passes[0].p.rows;
#pragma omp parallel for num_threads((int)parts) schedule(static)
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
            for (const BackwardPass& pass : passes)
                pass.run(block * kNearRows, minimum_of((block + 1) * kNearRows, rows), part);
    for (const BackwardPass& pass : passes) pass.finish(parts);
    return kOk;
}

inline int linear_backwards(const Steps<LinearBackwardArguments>& s) {
    const ProductArguments& p = s.step[0].product;
    const int64_t blocks = (p.rows + kNearRows - 1) / kNearRows, parts = minimum_of(p.threads, blocks > 0 ? blocks : 1);
    if (s.count == 1) return backwards({BackwardPass(s.step[0], parts)}, blocks, parts);
    return backwards({BackwardPass(s.step[0], parts), BackwardPass(s.step[1], parts)}, blocks, parts);
}

}  // namespace hymate
