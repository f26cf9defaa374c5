// What the mixer is given, and how the work on it is divided: among crews of threads, and into stretches of time, whose
// rows have a place to be worked on.
#pragma once

#include <new>
#include <type_traits>

#include "convolution.h"
#include "matrix.h"

namespace hymate {

struct MixerArguments {
    int64_t batch, length, width, inner, state, rank, kernel, outputs, dtype, threads;
    Rows rows;                            // (batch, length, width): what is projected, or already is, (.., 2 inner)
    const float *in_weight, *in_bias;     // (2 inner, width), (2 inner,); each bias may be absent
    const float *conv_weight, *conv_bias;  // (inner, kernel), (inner,)
    const float* x_weight;                // (rank + 2 state, inner)
    const float *dt_weight, *dt_bias;     // (inner, rank), (inner,)
    const float *A, *D;                   // (inner, state), (inner,)
    const float *out_weight, *out_bias;   // (outputs, inner), (outputs,); without a weight the gated rows go out
    const int64_t* lengths;               // (batch,), may be absent
    // Where there is a norm, the mixer is inside a residual layer: rows + factors * mixer(norm(rows)), zero at padding.
    double eps;
    const float *norm, *factors;  // (width,), and (batch, width), which may be absent; outputs are of this width, too
    // Forward only: what a record's earlier events left behind, and what this call's leave; each may be absent. The
    // last inputs of the convolution, (batch, inner, kernel - 1), and the scan's state, (batch, inner, state).
    const float *conv_initial, *scan_initial;
    float *conv_final, *scan_final;
    Rows out;
    Rows projected, convolved, parameters;  // kept for backward, or absent; projected only with an in_weight
    float* states;                          // as in ScanArguments
    // Backward only. Row gradients take the dtype of the rows; the others, of the shapes above, are float32, and absent
    // where what they belong to is.
    Rows grad_out, grad_rows;
    float *grad_in_weight, *grad_in_bias, *grad_conv_weight, *grad_conv_bias, *grad_x_weight, *grad_dt_weight;
    float *grad_dt_bias, *grad_A, *grad_D, *grad_out_weight, *grad_out_bias, *grad_norm;
};

constexpr int64_t kStretchFloats = 98304;  // of all rows of a stretch, about 12 inner widths; but at least a piece
constexpr int64_t kWindow = kLargeKernel;  // steps before a stretch that its convolution may see

// How a batch is divided among threads: each is a crew of its own, with records of its own, or, where there are too few
// records for that, all threads are one crew that works on all of them together.
struct Division {
    bool apart;
    int threads;
    int64_t crews, together, stretch;  // records of a crew that are worked on together; steps of a stretch
    Partition tasks;

    explicit Division(const MixerArguments& m)
        : apart(m.batch % m.threads == 0 || m.batch >= 2 * m.threads),
          threads((int)(!apart ? m.threads : m.batch < 1 ? 1 : minimum_of(m.batch, m.threads))),
          crews(apart ? threads : 1),
          together(apart ? 1 : m.batch),
          tasks(m.batch, m.inner, apart ? 1 : m.threads) {
        stretch = round_up(kStretchFloats / (12 * m.inner), kChunk);
        stretch = stretch < kPiece ? kPiece : minimum_of(stretch, 4 * kPiece);
        if (!apart) {
            stretch *= (m.threads + together - 1) / together;
            const int64_t pieces = together * ((m.length + kPiece - 1) / kPiece);
            threads = (int)minimum_of(threads, pieces > tasks.tasks ? pieces : tasks.tasks);
        }
        stretch = minimum_of(stretch, round_up(m.length, kChunk));
    }

    // Records are shared out in order, each to the crew in whose share of all steps its middle lies.
    int64_t first_record(const MixerArguments& m, int64_t crew) const {
        const auto steps = [&](int64_t record) { return valid_length(m.lengths, record, m.length) + 1; };
        int64_t all = 0, before = 0, record = 0;
        for (int64_t b = 0; b < m.batch; ++b) all += steps(b);
        while (record < m.batch && (2 * before + steps(record)) * crews < 2 * all * crew) before += steps(record++);
        return record;
    }
};

// One thread's place in a crew, and the records that the crew works on together.
struct Crew {
    int rank, size;
    int64_t first, end;

    void wait() const {
        if (size == 1) return;
#pragma omp barrier
    }
    template <typename F>
    void share(int64_t count, F visit) const {
        for (int64_t i = rank; i < count; i += size) visit(i);
    }
};

// Calls visit(thread, first, end) for contiguous shares of some items: the same ones for the same number of threads.
template <typename F>
inline void share_work(int64_t items, int64_t threads, F visit) {
    const int used = (int)minimum_of(threads, items > 0 ? items : 1);
#pragma omp parallel for num_threads(used) schedule(static, 1)
    for (int thread = 0; thread < used; ++thread) {
        FlushSubnormals flush;
        visit(thread, items * thread / used, items * (thread + 1) / used);
    }
}

// Hands out pieces of memory, or only counts them where there is none yet.
struct Pieces {
    float* data;
    int64_t floats = 0;

    float* take(int64_t count) {
        const int64_t at = floats;
        floats += round_up(count, 16);
        return data == nullptr ? nullptr : data + at;
    }
};

// The rows of a stretch as float32: where the tensor holds float32 they are worked on in place, else in a buffer that
// `read` and `write` exchange with the tensor, if there is one.
template <typename T>
class Stretch {
   public:
    Stretch(const Rows& tensor, int64_t columns)
        : tensor_(tensor),
          in_place_(std::is_same<T, float>::value && tensor.data != nullptr),
          columns_(columns),
          stride_(round_up(columns, 16)) {}

    void place(Pieces& pieces, const Division& division) {
        steps_ = division.stretch + kWindow;
        if (!in_place_) buffer_ = pieces.take(division.together * steps_ * stride_);
    }
    void move(const Crew& crew, int64_t start) {
        floats = in_place_ ? tensor_
                           : Rows{buffer_ + (kWindow - start - crew.first * steps_) * stride_, steps_ * stride_, stride_};
    }
    FloatRows at(int64_t record, int64_t t) const { return {floats.at<float>(record, t), floats.time_stride}; }
    Rows from(int64_t column) const { return {(float*)floats.data + column, floats.batch_stride, floats.time_stride}; }

    void read(int64_t record, int64_t begin, int64_t end) const {
        if (in_place_ || tensor_.data == nullptr) return;
        exchange(record, begin, end, [](float* near, T* far, int count) { store(near, load(far, count), count); });
    }
    void write(int64_t record, int64_t begin, int64_t end) const {
        if (in_place_ || tensor_.data == nullptr) return;
        exchange(record, begin, end, [](float* near, T* far, int count) { store(far, load(near, count), count); });
    }
    // Puts zeros, or a bias, into rows of the tensor.
    void fill(int64_t record, int64_t begin, int64_t end, const float* row = nullptr) const {
        for (int64_t t = begin; t < end; ++t) {
            float* near = floats.at<float>(record, t);
            if (row == nullptr)
                memset(near, 0, columns_ * sizeof(float));
            else
                memcpy(near, row, columns_ * sizeof(float));
        }
        write(record, begin, end);
    }
    // Keeps the last steps of the stretch start .. stop for the next one.
    void pass_on(int64_t record, int64_t start, int64_t stop) const {
        if (in_place_) return;
        memmove(floats.at<float>(record, start - kWindow), floats.at<float>(record, stop - kWindow),
                kWindow * stride_ * sizeof(float));
    }

    Rows floats{};

   private:
    template <typename F>
    void exchange(int64_t record, int64_t begin, int64_t end, F copy) const {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t i = 0; i < columns_; i += kLanes)
                copy(floats.at<float>(record, t) + i, tensor_.at<T>(record, t) + i, (int)minimum_of(kLanes, columns_ - i));
    }

    Rows tensor_;
    bool in_place_;
    int64_t columns_, stride_, steps_ = 0;
    float* buffer_ = nullptr;
};

// Workers of one kind, built in place.
template <typename W>
class Workers {
   public:
    template <typename... A>
    explicit Workers(int64_t count, const A&... arguments) : arena_(count * kFloats), count_(arena_.ok() ? count : 0) {
        items_ = (W*)arena_.take(count * kFloats);
        for (int64_t i = 0; i < count_; ++i) new (items_ + i) W(arguments...);
    }
    ~Workers() {
        for (int64_t i = 0; i < count_; ++i) items_[i].~W();
    }
    bool ok() const {
        for (int64_t i = 0; i < count_; ++i)
            if (!items_[i].ok()) return false;
        return arena_.ok();
    }
    W& operator[](int64_t index) { return items_[index]; }
    Workers(const Workers&) = delete;
    void operator=(const Workers&) = delete;

   private:
    static constexpr int64_t kFloats = (sizeof(W) + sizeof(float) - 1) / sizeof(float);
    static_assert(sizeof(W) % sizeof(float) == 0, "items follow each other");
    Arena arena_;
    int64_t count_;
    W* items_;
};

}  // namespace hymate
