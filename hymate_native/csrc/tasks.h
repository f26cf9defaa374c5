// What the kernels share: tensors handed over from Python, the division of labor among threads, and scratch memory.
#pragma once

#include <cstdlib>
#include <initializer_list>

#include "vector.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace hymate {

constexpr int kChunk = 16;  // steps between two kept states, and steps worked on together

enum DType { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
enum Status { kOk = 0, kOutOfMemory = 1, kBadArgument = 2 };

// A (batch, length, channels) tensor whose channels are contiguous. Strides count elements.
struct Rows {
    void* data;
    int64_t batch_stride, time_stride;

    template <typename T>
    HYMATE_INLINE T* at(int64_t batch, int64_t time) const {
        return data == nullptr ? nullptr : (T*)data + batch * batch_stride + time * time_stride;
    }
};

constexpr Constant<kLanes> kFull;

// One vector of channels in the rows of one batch entry, steps counted from `start`. Absent rows have no data.
template <typename T>
struct Column {
    T* data;
    int64_t stride;

    Column(const Rows& rows, int64_t batch, int64_t start, int64_t channel)
        : data(rows.data == nullptr ? nullptr : rows.at<T>(batch, start) + channel), stride(rows.time_stride) {}

    template <int U, typename Count>
    HYMATE_INLINE Pack<U> load(Constant<U>, int t, Count count) const {
        return load_rows<U>(data + t * stride, stride, count);
    }
    // Asks for rows that will be needed soon; there may be none.
    template <int U>
    HYMATE_INLINE void fetch(Constant<U>, int t) const {
        HYMATE_EACH __builtin_prefetch((const char*)data + (t + i) * stride * (int64_t)sizeof(T));
    }
    template <int U, typename Count>
    HYMATE_INLINE void store(int t, const Pack<U>& rows, Count count) const {
        store_rows(data + t * stride, stride, rows, count);
    }
};

// A column of rows that will be needed soon. The kernels touch one of its rows per step while they compute, so that
// memory is busy all the time instead of only between two stretches of arithmetic.
struct Ahead {
    const char* row;
    int64_t stride, item;

    Ahead() : row((const char*)this), stride(0), item(0) {}  // nothing to fetch
    template <typename T>
    Ahead(const T* first, int64_t row_stride)
        : row((const char*)first), stride(row_stride * (int64_t)sizeof(T)), item(sizeof(T)) {}

    HYMATE_INLINE Ahead at(int64_t channel) const {
        Ahead column = *this;
        column.row += channel * item;
        return column;
    }
    HYMATE_INLINE void fetch(int t) const { __builtin_prefetch(row + t * stride); }
};

HYMATE_INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
HYMATE_INLINE int64_t minimum_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Zeroes floats, of which there may be none, nowhere.
HYMATE_INLINE void clear_floats(float* first, int64_t count) {
    if (count > 0) memset(first, 0, (size_t)count * sizeof(float));
}

HYMATE_INLINE int64_t valid_length(const int64_t* lengths, int64_t batch, int64_t length) {
    return lengths == nullptr ? length : minimum_of(lengths[batch] < 0 ? 0 : lengths[batch], length);
}

// Every (batch entry, range of channels) is a task. Channels are divided only where the batch alone would leave
// threads idle: then into as few ranges as give each thread the same number of tasks, or enough of them.
struct Partition {
    int64_t batch, inner, splits, width, tasks;
    int threads;

    Partition(int64_t batch_, int64_t inner_, int64_t threads_) : batch(batch_), inner(inner_) {
        const int64_t blocks = (inner + kLanes - 1) / kLanes;
        splits = 1;
        while (splits < blocks && (batch * splits) % threads_ != 0 && batch * splits < 4 * threads_) ++splits;
        width = (blocks + splits - 1) / splits * kLanes;
        splits = (inner + width - 1) / width;
        tasks = batch * splits;
        threads = (int)minimum_of(threads_, tasks > 0 ? tasks : 1);
    }

    struct Task {
        int64_t batch, split, begin, channels;  // channels begin .. begin + channels
    };
    Task task(int64_t index) const {
        const int64_t split = index % splits, begin = split * width;
        return {index / splits, split, begin, minimum_of(width, inner - begin)};
    }
};

// Zeroed floats, aligned to a cache line, handed out piece by piece.
class Arena {
   public:
    explicit Arena(int64_t floats) : used_(0), size_(round_up(floats, 16) + 1024) {
        data_ = (float*)aligned_alloc(64, (size_t)size_ * sizeof(float));
        if (data_ != nullptr) memset(data_, 0, (size_t)size_ * sizeof(float));
    }
    ~Arena() { free(data_); }
    bool ok() const { return data_ != nullptr; }
    float* take(int64_t floats) {
        float* piece = data_ + used_;
        used_ += round_up(floats, 16);
        return piece;
    }
    Arena(const Arena&) = delete;
    void operator=(const Arena&) = delete;

   private:
    float* data_;
    int64_t used_, size_;
};

// sum += x, with the rounding error carried along: sums over thousands of chunks stay exact.
HYMATE_INLINE void add_compensated(float* sum, float* carry, Vector x) {
    const Vector old = load(sum), corrected = x - load(carry), total = old + corrected;
    store(carry, (total - old) - corrected);
    store(sum, total);
}

template <typename T>
HYMATE_INLINE void zero_rows(const Rows& rows, int64_t batch, int64_t begin, int64_t end, int64_t channel,
                             int64_t channels) {
    if (rows.data == nullptr) return;
    for (int64_t t = begin; t < end; ++t) memset((void*)(rows.at<T>(batch, t) + channel), 0, channels * sizeof(T));
}

// out[i] = the sum over b of partial[b][i], in the order of b.
inline void sum_over_batch(const float* partial, int64_t batch, int64_t stride, float* sum, float* carry) {
    for (int64_t i = 0; i < stride; i += kLanes) {
        store(sum + i, Vector{});
        store(carry + i, Vector{});
        for (int64_t b = 0; b < batch; ++b) add_compensated(sum + i, carry + i, load(partial + b * stride + i));
    }
}

// Calls visit(Constant<U>, first) for packs of steps that together are all steps.
template <typename F>
HYMATE_INLINE void for_steps(int steps, F visit) {
    int t = 0;
    for (; t + kPack <= steps; t += kPack) visit(Constant<kPack>(), t);
    for (; t < steps; ++t) visit(Constant<1>(), t);
}

// Calls visit(count), count a constant where all lanes of a vector are there.
template <typename F>
HYMATE_INLINE void with_count(int64_t channels, F visit) {
    if (channels >= kLanes)
        visit(Constant<kLanes>());
    else
        visit((int)channels);
}

// Calls visit(Constant<G>, first) for groups of G states that together are all states, the widest groups first.
template <int Widest, typename F>
HYMATE_INLINE void for_groups(int64_t states, F visit) {
    int64_t n = 0;
    for (; states - n >= Widest; n += Widest) visit(Constant<Widest>(), n);
    if (Widest > 4 && states - n >= 4) {
        visit(Constant<4>(), n);
        n += 4;
    }
    if (states - n >= 2) {
        visit(Constant<2>(), n);
        n += 2;
    }
    if (states - n >= 1) visit(Constant<1>(), n);
}

}  // namespace hymate
