// The whole Mamba mixer, forward and backward: projection to states and gate, convolution, projections to time step, B
// and C, gated scan, projection of the output.
//
// Time is worked on in stretches, and every stretch goes through all of these before the next, so that its rows stay in
// the second-level cache from the first product to the last. Only what backward reads again is kept: the projected and
// the convolved rows, (time step, B, C), and the scan's states; delta is multiplied once more, and the gated rows fall
// out of the scan's backward pass. All arithmetic is in float32; half types are those of rows in memory.
#pragma once

#include "division.h"
#include "norm.h"
#include "scan_backward.h"

namespace hymate {

struct ForwardWeights {
    Stripes in, x, dt, out;
    TapRows taps;

    ForwardWeights(const MixerArguments& m, const ConvolutionArguments& c)
        : in(m.in_weight, 2 * m.inner, m.width, true, m.in_bias),
          x(m.x_weight, m.rank + 2 * m.state, m.inner, true),
          dt(m.dt_weight, m.inner, m.rank, true),
          out(m.out_weight, m.outputs, m.inner, true, m.out_bias),
          taps(c) {}
    bool ok() const { return in.arena.ok() && x.arena.ok() && dt.arena.ok() && out.arena.ok() && taps.arena.ok(); }
};

inline ScanArguments scan_of(const MixerArguments& m) {
    ScanArguments s{};
    s.batch = m.batch, s.length = m.length, s.inner = m.inner, s.state = m.state, s.softplus = 1;
    s.A = m.A, s.D = m.D, s.bias = m.dt_bias, s.lengths = m.lengths, s.states = m.states;
    s.initial = m.scan_initial, s.final = m.scan_final;
    s.grad_A = m.grad_A, s.grad_D = m.grad_D, s.grad_bias = m.grad_dt_bias;
    return s;
}

inline ConvolutionArguments convolution_of(const MixerArguments& m) {
    ConvolutionArguments c{};
    c.batch = m.batch, c.length = m.length, c.inner = m.inner, c.kernel = m.kernel, c.silu = 1;
    c.weight = m.conv_weight, c.bias = m.conv_bias, c.lengths = m.lengths, c.initial = m.conv_initial;
    c.grad_weight = m.grad_conv_weight, c.grad_bias = m.grad_conv_bias;
    return c;
}

// One thread's room for a piece of rows of the residual layer around the mixer.
struct ResidualPiece {
    const MixerArguments& m;
    const int64_t width;
    Arena arena;
    FloatRows normed, grads, shares;
    float* inverse;

    explicit ResidualPiece(const MixerArguments& m_)
        : m(m_), width(round_up(m.width, 16)), arena(m.norm == nullptr ? 0 : kPiece * (3 * width + 1) + 64) {
        if (!arena.ok() || m.norm == nullptr) return;
        for (FloatRows* rows : {&normed, &grads, &shares}) *rows = {arena.take(kPiece * width), width};
        inverse = arena.take(kPiece);
    }
    // What the mixer sees of rows.
    FloatRows enter(FloatRows rows, int64_t count) const {
        if (m.norm == nullptr) return rows;
        normalize_rows(rows, m.norm, m.width, m.eps, count, normed, inverse);
        return normed;
    }
    HYMATE_INLINE Vector factor(int64_t record, int64_t k, int lanes) const {
        return m.factors == nullptr ? broadcast(1.0f) : load(m.factors + record * m.width + k, lanes);
    }
    void leave(int64_t record, FloatRows rows, FloatRows out, int64_t count) const {
        if (m.norm == nullptr) return;
        each(count, [&](int64_t i, int64_t k, int lanes) {
            store(out.at(i, k), load(rows.at(i, k), lanes) + load(out.at(i, k), lanes) * factor(record, k, lanes), lanes);
        });
    }
    // The gradients of what the mixer gave.
    FloatRows enter_backward(int64_t record, FloatRows grad_out, int64_t count) const {
        if (m.norm == nullptr || m.factors == nullptr) return grad_out;
        each(count, [&](int64_t i, int64_t k, int lanes) {
            store(grads.at(i, k), load(grad_out.at(i, k), lanes) * factor(record, k, lanes), lanes);
        });
        return grads;
    }
    // After `enter` for the same rows; `grads` holds the gradients of what the mixer saw.
    void leave_backward(FloatRows rows, FloatRows grad_out, FloatRows grad_rows, int64_t count) const {
        each(count, [&](int64_t i, int64_t k, int lanes) { store(grad_rows.at(i, k), load(grad_out.at(i, k), lanes), lanes); });
        normalize_backward(rows, grads, m.norm, inverse, m.width, count, grad_rows, shares);
    }

   private:
    template <typename F>
    HYMATE_INLINE void each(int64_t count, F visit) const {
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = 0; k < m.width; k += kLanes) visit(i, k, (int)minimum_of(kLanes, m.width - k));
    }
};

// What forward and backward share: one thread's walk over stretches of time, whose pieces (of rows) and tasks (of
// channels) it divides with the rest of its crew.
template <typename T>
struct MixerWalk {
    const MixerArguments& m;
    const Division& division;
    Crew crew;
    ScanArguments scan;
    ConvolutionArguments convolution;
    Stretch<T> rows, projected, convolved, parameters;
    Stretch<float> delta;

    MixerWalk(const MixerArguments& m_, const Division& d)
        : m(m_),
          division(d),
          crew(),
          scan(scan_of(m_)),
          convolution(convolution_of(m_)),
          rows(m_.rows, m_.width),
          projected(m_.in_weight ? m_.projected : m_.rows, 2 * m_.inner),
          convolved(m_.convolved, m_.inner),
          parameters(m_.parameters, m_.rank + 2 * m_.state),
          delta(Rows{}, m_.inner) {}

    int64_t valid(int64_t record) const { return valid_length(m.lengths, record, m.length); }

    void place(Pieces& pieces) {
        for (Stretch<T>* stretch : {&rows, &projected, &convolved, &parameters}) stretch->place(pieces, division);
        delta.place(pieces, division);
    }
    void move(int64_t start) {
        for (Stretch<T>* stretch : {&rows, &projected, &convolved, &parameters}) stretch->move(crew, start);
        delta.move(crew, start);
        convolution.x = projected.floats;
        scan.u = convolved.floats, scan.delta = delta.floats, scan.z = projected.from(m.inner);
        scan.B = parameters.from(m.rank), scan.C = parameters.from(m.rank + m.state);
    }

    // Calls visit(record, begin, middle, end) for pieces of the steps start .. stop; padding begins at `middle`.
    template <typename F>
    void for_pieces(int64_t start, int64_t stop, F visit) const {
        const int64_t pieces = (stop - start + kPiece - 1) / kPiece;
        crew.share((crew.end - crew.first) * pieces, [&](int64_t i) {
            const int64_t record = crew.first + i / pieces, begin = start + i % pieces * kPiece;
            const int64_t end = minimum_of(begin + kPiece, stop), real = minimum_of(end, valid(record));
            visit(record, begin, real < begin ? begin : real, end);
        });
        crew.wait();
    }
    // Calls visit(worker, task) for this thread's tasks, whose workers are its own, too.
    template <typename F>
    void for_tasks(F visit) const {
        const int64_t splits = division.tasks.splits;
        int64_t worker = 0;
        crew.share((crew.end - crew.first) * splits,
                   [&](int64_t i) { visit(worker++, division.tasks.task(crew.first * splits + i)); });
    }
    // The steps of a task's record that lie in start .. stop end here.
    int64_t end_of(const Partition::Task& task, int64_t stop) const { return minimum_of(stop, valid(task.batch)); }
};

template <typename T>
struct MixerForward : MixerWalk<T> {
    using Walk = MixerWalk<T>;
    using Walk::convolution, Walk::convolved, Walk::crew, Walk::delta, Walk::division, Walk::m, Walk::parameters;
    using Walk::projected, Walk::rows, Walk::scan;
    const ForwardWeights& w;
    Stretch<T> gated, out;
    Workers<ScanForward<float>> scans;
    ResidualPiece residual;

    MixerForward(const MixerArguments& m_, const Division& d, int64_t workers, const ForwardWeights& weights)
        : Walk(m_, d),
          w(weights),
          gated(m_.out_weight ? Rows{} : m_.out, m_.inner),
          out(m_.out, m_.outputs),
          scans(workers, scan, d.tasks),
          residual(m_) {}

    bool ok() const { return scans.ok() && residual.arena.ok(); }

    void place(Pieces& pieces) {
        Walk::place(pieces);
        gated.place(pieces, division);
        out.place(pieces, division);
    }

    void run(int64_t) {
        this->for_tasks([&](int64_t worker, const Partition::Task& task) { scans[worker].begin(task); });
        for (int64_t start = 0; start < m.length; start += division.stretch)
            stretch(start, minimum_of(start + division.stretch, m.length));
        if (m.length == 0) crew.share(crew.end - crew.first, [&](int64_t i) { keep_inputs(crew.first + i, 0, 0); });
        this->for_tasks([&](int64_t worker, const Partition::Task& task) { scans[worker].end(task); });
    }

    // The last inputs of the convolution, if the record ends in the steps start .. stop.
    void keep_inputs(int64_t record, int64_t start, int64_t stop) const {
        const int64_t end = this->valid(record), window = m.kernel - 1;
        if (m.conv_final == nullptr || end > stop || (end <= start && start > 0)) return;
        for (int64_t column = 0; column < window; ++column) {
            const int64_t t = end - window + column;
            for (int64_t i = 0; i < m.inner; ++i) {
                const int64_t at = (record * m.inner + i) * window + column;
                const float before = m.conv_initial != nullptr && t < 0 ? m.conv_initial[at + end] : 0.0f;
                m.conv_final[at] = t < 0 ? before : projected.floats.template at<float>(record, t)[i];
            }
        }
    }

    void stretch(int64_t start, int64_t stop) {
        Walk::move(start);
        gated.move(crew, start);
        out.move(crew, start);
        convolution.out = convolved.floats;
        scan.out = gated.floats;
        this->for_pieces(start, stop, [&](int64_t record, int64_t begin, int64_t middle, int64_t) {
            if (m.in_weight == nullptr) return projected.read(record, begin, middle);
            rows.read(record, begin, middle);
            const FloatRows from = rows.at(record, begin), to = projected.at(record, begin);
            const int64_t count = middle - begin;
            multiply_rows(w.in, residual.enter(from, count), to, count, false, [&](int64_t i) {
                fetch_row(from.at(i + count), m.width);
                fetch_row(to.at(i + count), 2 * m.inner);
            });
            projected.write(record, begin, middle);
        });
        this->for_tasks([&](int64_t, const Partition::Task& task) {
            convolve<float>(convolution, w.taps, task, start, this->end_of(task, stop));
        });
        crew.wait();
        this->for_pieces(start, stop, [&](int64_t record, int64_t begin, int64_t middle, int64_t end) {
            convolved.write(record, begin, middle);
            multiply_rows(w.x, convolved.at(record, begin), parameters.at(record, begin), middle - begin);
            multiply_rows(w.dt, parameters.at(record, begin), delta.at(record, begin), middle - begin);
            parameters.write(record, begin, middle);
            if (m.convolved.data == nullptr) return;  // else a tensor of the caller's, whose padding shall not be garbage
            if (m.in_weight != nullptr) projected.fill(record, middle, end);
            convolved.fill(record, middle, end);
            parameters.fill(record, middle, end);
        });
        this->for_tasks([&](int64_t worker, const Partition::Task& task) {
            scans[worker].advance(task, start, this->end_of(task, stop));
        });
        crew.share(crew.end - crew.first, [&](int64_t i) {
            keep_inputs(crew.first + i, start, stop);
            projected.pass_on(crew.first + i, start, stop);
        });
        crew.wait();
        this->for_pieces(start, stop, [&](int64_t record, int64_t begin, int64_t middle, int64_t end) {
            if (m.out_weight == nullptr) {
                gated.write(record, begin, middle);
                gated.fill(record, middle, end);
            } else {
                multiply_rows(w.out, gated.at(record, begin), out.at(record, begin), middle - begin);
                residual.leave(record, rows.at(record, begin), out.at(record, begin), middle - begin);
                out.write(record, begin, middle);
                out.fill(record, middle, end, m.norm == nullptr ? m.out_bias : nullptr);
            }
        });
    }
    void finish(int64_t) {}
};

struct BackwardWeights {
    Stripes in, x, dt, dt_forward, out;
    TapRows taps;

    BackwardWeights(const MixerArguments& m, const ConvolutionArguments& c)
        : in(m.in_weight, 2 * m.inner, m.width, false),
          x(m.x_weight, m.rank + 2 * m.state, m.inner, false),
          dt(m.dt_weight, m.inner, m.rank, false),
          dt_forward(m.dt_weight, m.inner, m.rank, true),
          out(m.out_weight, m.outputs, m.inner, false),
          taps(c) {}
    bool ok() const {
        return in.arena.ok() && x.arena.ok() && dt.arena.ok() && dt_forward.arena.ok() && out.arena.ok() && taps.arena.ok();
    }
};

// The sums over rows in the gradients of all weights. A thread adds to the part of its own number.
struct MixerSums {
    WeightGradient in, x, dt, out;
    BiasGradient in_bias, out_bias, norm;
    ConvolutionSums convolution;
    ScanSums scan;

    MixerSums(const MixerArguments& m, const Division& d, const ConvolutionArguments& c, const ScanArguments& s)
        : in(m.in_weight ? 2 * m.inner : 0, m.width, d.threads),
          x(m.rank + 2 * m.state, m.inner, d.threads),
          dt(m.inner, m.rank, d.threads),
          out(m.out_weight ? m.outputs : 0, m.inner, d.threads),
          in_bias(2 * m.inner, d.threads),
          out_bias(m.outputs, d.threads),
          norm(m.width, d.threads),
          convolution(c, d.apart ? d.crews : m.batch),
          scan(s, d.apart ? d.crews : m.batch) {}
    bool ok() const {
        return in.arena.ok() && x.arena.ok() && dt.arena.ok() && out.arena.ok() && in_bias.arena.ok() &&
               out_bias.arena.ok() && norm.arena.ok() && convolution.arena.ok() && scan.arena.ok();
    }
    void finish(const MixerArguments& m, const ConvolutionArguments& c, const ScanArguments& s) {
        in.finish(m.grad_in_weight);
        x.finish(m.grad_x_weight);
        dt.finish(m.grad_dt_weight);
        out.finish(m.grad_out_weight);
        in_bias.finish(m.grad_in_bias);
        out_bias.finish(m.grad_out_bias);
        norm.finish(m.grad_norm);
        convolution.finish(c);
        scan.finish(s);
    }
};

template <typename T>
struct MixerBackward : MixerWalk<T> {
    using Walk = MixerWalk<T>;
    using Walk::convolution, Walk::convolved, Walk::crew, Walk::delta, Walk::division, Walk::m, Walk::parameters;
    using Walk::projected, Walk::rows, Walk::scan;
    const BackwardWeights& w;
    MixerSums& sums;
    Stretch<T> grad_out, grad_rows, grad_projected, grad_gated;
    Stretch<float> gated, grad_convolved, grad_delta, grad_parameters;
    Rows shares{};
    float* share_buffer = nullptr;
    Workers<ScanBackward<float>> scans;
    ResidualPiece residual;

    MixerBackward(const MixerArguments& m_, const Division& d, int64_t workers, const BackwardWeights& weights,
                  MixerSums& sums_)
        : Walk(m_, d),
          w(weights),
          sums(sums_),
          grad_out(m_.grad_out, m_.outputs),
          grad_rows(m_.grad_rows, m_.width),
          grad_projected(m_.in_weight ? Rows{} : m_.grad_rows, 2 * m_.inner),
          grad_gated(m_.out_weight ? Rows{} : m_.grad_out, m_.inner),
          gated(Rows{}, m_.inner),
          grad_convolved(Rows{}, m_.inner),
          grad_delta(Rows{}, m_.inner),
          grad_parameters(Rows{}, m_.rank + 2 * m_.state),
          scans(workers, scan, d.tasks, shares),
          residual(m_) {}

    bool ok() const { return scans.ok() && residual.arena.ok(); }

    void place(Pieces& pieces) {
        Walk::place(pieces);
        for (Stretch<T>* stretch : {&grad_out, &grad_rows, &grad_projected, &grad_gated}) stretch->place(pieces, division);
        for (Stretch<float>* stretch : {&gated, &grad_convolved, &grad_delta, &grad_parameters})
            stretch->place(pieces, division);
        const int64_t splits = division.tasks.splits;
        if (splits > 1) share_buffer = pieces.take(division.together * splits * division.stretch * 2 * m.state);
    }

    void move(int64_t start) {
        Walk::move(start);
        for (Stretch<T>* stretch : {&grad_out, &grad_rows, &grad_projected, &grad_gated}) stretch->move(crew, start);
        for (Stretch<float>* stretch : {&gated, &grad_convolved, &grad_delta, &grad_parameters})
            stretch->move(crew, start);
        const int64_t step = 2 * m.state, splits = division.tasks.splits;
        if (splits > 1)
            shares = {share_buffer - (crew.first * splits * division.stretch + start) * step, division.stretch * step, step};
        scan.grad_out = grad_gated.floats;
        scan.out = m.out_weight ? gated.floats : Rows{};
        scan.grad_u = grad_convolved.floats, scan.grad_delta = grad_delta.floats;
        scan.grad_z = grad_projected.from(m.inner);
        scan.grad_B = grad_parameters.from(m.rank), scan.grad_C = grad_parameters.from(m.rank + m.state);
        convolution.grad_out = grad_convolved.floats, convolution.grad_x = grad_projected.floats;
    }

    ConvolutionGradients tap_gradients(int64_t part, const Partition::Task& task) const {
        return sums.convolution.slot(division.apart ? part : task.batch);
    }

    void run(int64_t part) {
        this->for_tasks([&](int64_t worker, const Partition::Task& task) {
            scans[worker].begin(task);
            tap_gradients(part, task).begin(task);
        });
        if (m.length == 0) return;
        for (int64_t start = (m.length - 1) / division.stretch * division.stretch; start >= 0; start -= division.stretch)
            stretch(part, start, minimum_of(start + division.stretch, m.length));
    }

    void stretch(int64_t part, int64_t start, int64_t stop) {
        move(start);
        this->for_pieces(start, stop, [&](int64_t record, int64_t begin, int64_t middle, int64_t end) {
            const int64_t count = middle - begin;
            if (m.out_weight == nullptr) {
                grad_gated.read(record, begin, middle);
            } else {
                grad_out.read(record, begin, end);
                const FloatRows from = residual.enter_backward(record, grad_out.at(record, begin), count);
                if (m.grad_out_bias != nullptr) sums.out_bias.add(part, from, m.norm == nullptr ? end - begin : count);
                multiply_rows(w.out, from, grad_gated.at(record, begin), count);
            }
            const int64_t window = begin == start ? minimum_of(kWindow, start) : 0;
            projected.read(record, begin - window, middle);
            convolved.read(record, begin, middle);
            parameters.read(record, begin, middle);
            multiply_rows(w.dt_forward, parameters.at(record, begin), delta.at(record, begin), count);
        });
        this->for_tasks([&](int64_t worker, const Partition::Task& task) {
            scans[worker].go_back(task, start, this->end_of(task, stop));
        });
        crew.wait();
        this->for_pieces(start, stop, [&](int64_t record, int64_t begin, int64_t middle, int64_t) {
            const int64_t count = middle - begin;
            if (shares.data != nullptr)
                for (int64_t t = begin; t < middle; ++t) add_shares<float>(scan, shares, division.tasks.splits, record, t);
            const FloatRows parameter_grads = grad_parameters.at(record, begin), inputs = convolved.at(record, begin);
            const FloatRows step_grads = grad_delta.at(record, begin), input_grads = grad_convolved.at(record, begin);
            if (m.out_weight != nullptr)
                sums.out.add(part, residual.enter_backward(record, grad_out.at(record, begin), count),
                             gated.at(record, begin), count);
            multiply_rows(w.dt, step_grads, parameter_grads, count);
            sums.dt.add(part, step_grads, parameters.at(record, begin), count);
            multiply_rows(w.x, parameter_grads, input_grads, count, true);
            sums.x.add(part, parameter_grads, inputs, count);
        });
        this->for_tasks([&](int64_t, const Partition::Task& task) {
            convolve_backward<float>(convolution, w.taps, task, start, this->end_of(task, stop), tap_gradients(part, task));
        });
        crew.wait();
        this->for_pieces(start, stop, [&](int64_t record, int64_t begin, int64_t middle, int64_t end) {
            if (m.in_weight == nullptr) {
                grad_projected.write(record, begin, middle);
                grad_projected.fill(record, middle, end);
                return;
            }
            const int64_t count = middle - begin;
            const FloatRows grads = grad_projected.at(record, begin);
            rows.read(record, begin, middle);
            if (m.grad_in_bias != nullptr) sums.in_bias.add(part, grads, count);
            const FloatRows seen = residual.enter(rows.at(record, begin), count), result = grad_rows.at(record, begin);
            multiply_rows(w.in, grads, m.norm == nullptr ? result : residual.grads, count);
            sums.in.add(part, grads, seen, count);
            if (m.norm != nullptr) {
                residual.leave_backward(rows.at(record, begin), grad_out.at(record, begin), result, count);
                sums.norm.add(part, residual.shares, count);
            }
            grad_rows.write(record, begin, middle);
            grad_rows.fill(record, middle, end);
        });
    }

    void finish(int64_t part) {
        const auto leave = [&](int64_t worker, const Partition::Task& task, int64_t slot) {
            scans[worker].leave_sums(task, sums.scan, slot);
            scans[worker].clear_sums();
        };
        if (division.apart) return leave(0, division.tasks.task(0), part);
        this->for_tasks([&](int64_t worker, const Partition::Task& task) { leave(worker, task, task.batch); });
    }
};

// Walks through all records with every thread.
template <typename Walk, typename... A>
int walk_all(const MixerArguments& m, const Division& division, A&... arguments) {
    Pieces sizes{nullptr};
    Walk(m, division, 0, arguments...).place(sizes);
    Arena common(division.apart ? 0 : sizes.floats);
    int failed = !common.ok();
    float* buffers = common.take(0);
#pragma omp parallel num_threads(division.threads)
    {
#if defined(_OPENMP)
        const int rank = omp_get_thread_num(), size = omp_get_num_threads();
#else
        const int rank = 0, size = 1;
#endif
        FlushSubnormals flush;
        Arena own(division.apart ? sizes.floats : 0);
        Walk walk(m, division, division.apart ? 1 : (division.tasks.tasks + size - 1) / size, arguments...);
        if (!walk.ok() || !own.ok()) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
            Pieces pieces{division.apart ? own.take(0) : buffers};
            walk.place(pieces);
            if (division.apart) {
                for (int64_t part = rank; part < division.crews; part += size) {
                    const int64_t end = division.first_record(m, part + 1);
                    for (int64_t record = division.first_record(m, part); record < end; ++record) {
                        walk.crew = {0, 1, record, record + 1};
                        walk.run(part);
                    }
                    walk.finish(part);
                }
            } else {
                walk.crew = {rank, size, 0, m.batch};
                walk.run(rank);
                walk.finish(rank);
            }
        }
    }
    return failed ? kOutOfMemory : kOk;
}

template <typename T>
int mixer_forward(const MixerArguments& m) {
    const Division division(m);
    const ForwardWeights weights(m, convolution_of(m));
    if (!weights.ok()) return kOutOfMemory;
    return walk_all<MixerForward<T>>(m, division, weights);
}

template <typename T>
int mixer_backward(const MixerArguments& m) {
    const Division division(m);
    const ConvolutionArguments convolution = convolution_of(m);
    const ScanArguments scan = scan_of(m);
    const BackwardWeights weights(m, convolution);
    MixerSums sums(m, division, convolution, scan);
    if (!weights.ok() || !sums.ok()) return kOutOfMemory;
    if (walk_all<MixerBackward<T>>(m, division, weights, sums) != kOk) return kOutOfMemory;
    sums.finish(m, convolution, scan);
    return kOk;
}

}  // namespace hymate
