// The kernels against plain loops in double precision, without Python: for the sanitizers, and for processors that are
// only emulated here. Prints one line a case and fails if any error is above its tolerance.
#include <limits>

#include "../../hymate_native/csrc/convolution.h"
#include "../../hymate_native/csrc/mixer.h"
#include "../../hymate_native/csrc/scan_backward.h"
#include "checks.h"

using namespace hymate;
using namespace checks;

extern "C" {
int hymate_scan_forward(const ScanArguments*);
int hymate_scan_backward(const ScanArguments*);
int hymate_convolution_forward(const ConvolutionArguments*);
int hymate_convolution_backward(const ConvolutionArguments*);
int hymate_mixer_forward(const MixerArguments*);
int hymate_mixer_backward(const MixerArguments*);
int hymate_mixer_step(const MixerArguments*);
}

namespace {

using checks::compare;

// --------------------------------------------------------------------------------------------- numbers

double decode(const void* data, int64_t at, int64_t dtype) {
    if (dtype == kFloat32) return ((const float*)data)[at];
    const uint16_t bits = ((const uint16_t*)data)[at];
    if (dtype == kBfloat16) {
        const uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double size = exponent == 0    ? std::ldexp(fraction, -24)
                        : exponent == 31 ? (fraction ? NAN : INFINITY)
                                         : std::ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 ? -size : size;
}

void encode(void* data, int64_t at, int64_t dtype, double value) {
    if (dtype == kFloat32) {
        ((float*)data)[at] = (float)value;
        return;
    }
    // Test data are rounded to numbers of few bits, so truncating is exact.
    uint16_t bits;
    if (dtype == kBfloat16) {
        const float narrow = (float)value;
        uint32_t wide;
        memcpy(&wide, &narrow, 4);
        bits = (uint16_t)(wide >> 16);
    } else if (std::isnan(value)) {
        bits = 0x7e00;
    } else if (value == 0) {
        bits = 0;
    } else {
        int exponent;
        const double fraction = std::frexp(std::fabs(value), &exponent);
        bits = (uint16_t)(((exponent + 14) << 10) | ((int)std::lround(fraction * 2048) - 1024) | (value < 0 ? 0x8000 : 0));
    }
    ((uint16_t*)data)[at] = bits;
}

// ------------------------------------------------------------------------------------------------ rows

// A (batch, length, channels) tensor inside a wider buffer: what lies between its rows must not be touched.
struct Tensor {
    int64_t batch, length, channels, gap, dtype;
    std::vector<uint8_t> bytes;
    static constexpr uint8_t kGuard = 0xA5;

    Tensor(int64_t b, int64_t l, int64_t c, int64_t dtype_)
        : batch(b), length(l), channels(c), gap(1 + (int64_t)(engine() % 5)), dtype(dtype_),
          bytes((size_t)(b * l * (c + gap) * item()), kGuard) {}
    int64_t item() const { return dtype == kFloat32 ? 4 : 2; }
    int64_t index(int64_t b, int64_t t, int64_t c) const { return (b * length + t) * (channels + gap) + c; }
    double get(int64_t b, int64_t t, int64_t c) const { return decode(bytes.data(), index(b, t, c), dtype); }
    void set(int64_t b, int64_t t, int64_t c, double value) { encode(bytes.data(), index(b, t, c), dtype, value); }
    Rows rows() { return {bytes.data(), length * (channels + gap), channels + gap}; }

    // Random numbers up to each record's length, NaN after it: padding must not be read.
    void randomize(const std::vector<int64_t>& lengths) {
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t t = 0; t < length; ++t)
                for (int64_t c = 0; c < channels; ++c) set(b, t, c, t < lengths[(size_t)b] ? random_number() : NAN);
    }
    bool guards_hold() const {
        for (int64_t row = 0; row < batch * length; ++row)
            for (int64_t i = channels * item(); i < (channels + gap) * item(); ++i)
                if (bytes[(size_t)(row * (channels + gap) * item() + i)] != kGuard) return false;
        return true;
    }
};

Error compare(const Tensor& found, const std::vector<double>& expected) {
    Error error;
    for (int64_t b = 0, i = 0; b < found.batch; ++b)
        for (int64_t t = 0; t < found.length; ++t)
            for (int64_t c = 0; c < found.channels; ++c, ++i) error.add(expected[(size_t)i], found.get(b, t, c));
    failures += !found.guards_hold();
    if (!found.guards_hold()) printf("    wrote between the rows\n");
    return error;
}

double tolerance_of(int64_t dtype) { return dtype == kFloat32 ? 2e-6 : dtype == kBfloat16 ? 4e-3 : 5e-4; }

// ------------------------------------------------------------------------------------------------ scan

struct ScanCase {
    int64_t batch, length, inner, state, dtype, threads;
    bool optional, padded, softplus;
};

void check_scan(const ScanCase& k) {
    const int64_t B = k.batch, L = k.length, D = k.inner, N = k.state;
    const std::vector<int64_t> lengths = some_lengths(B, L, k.padded);
    Tensor u(B, L, D, k.dtype), delta(B, L, D, k.dtype), z(B, L, D, k.dtype), Bt(B, L, N, k.dtype), Ct(B, L, N, k.dtype),
        out(B, L, D, k.dtype), grad_out(B, L, D, k.dtype), grad_u(B, L, D, k.dtype), grad_delta(B, L, D, k.dtype),
        grad_z(B, L, D, k.dtype), grad_B(B, L, N, k.dtype), grad_C(B, L, N, k.dtype);
    for (Tensor* tensor : {&u, &delta, &z, &Bt, &Ct, &grad_out}) tensor->randomize(lengths);
    const std::vector<float> A = random_floats(D * N, -6, -0.1), skip = random_floats(D, -1, 1),
                             bias = random_floats(D, k.softplus ? -2 : 3, k.softplus ? 2 : 4),
                             initial = random_floats(B * D * N, -1, 1), grad_final = random_floats(B * D * N, -1, 1);
    std::vector<float> final((size_t)(B * D * N)), grad_A((size_t)(D * N)), grad_D((size_t)D), grad_bias((size_t)D),
        grad_initial((size_t)(B * D * N));
    std::vector<float> states((size_t)(B * ((L + kChunk - 1) / kChunk) * N * round_up(D, 16)));

    ScanArguments s{};
    s.batch = B, s.length = L, s.inner = D, s.state = N, s.dtype = k.dtype, s.softplus = k.softplus;
    s.threads = k.threads;
    s.u = u.rows(), s.delta = delta.rows(), s.B = Bt.rows(), s.C = Ct.rows(), s.A = A.data();
    s.lengths = k.padded ? lengths.data() : nullptr;
    s.out = out.rows(), s.final = final.data(), s.states = states.data(), s.bias = bias.data();
    s.grad_out = grad_out.rows(), s.grad_u = grad_u.rows(), s.grad_delta = grad_delta.rows();
    s.grad_B = grad_B.rows(), s.grad_C = grad_C.rows(), s.grad_A = grad_A.data(), s.grad_bias = grad_bias.data();
    if (k.optional) {
        s.z = z.rows(), s.grad_z = grad_z.rows(), s.D = skip.data(), s.grad_D = grad_D.data();
        s.initial = initial.data(), s.grad_initial = grad_initial.data(), s.grad_final = grad_final.data();
    }
    failures += hymate_scan_forward(&s) != kOk;
    failures += hymate_scan_backward(&s) != kOk;

    const auto zeros = [](int64_t count) { return std::vector<double>((size_t)count); };
    std::vector<double> y = zeros(B * L * D), du = y, dd = y, dz = y, dB = zeros(B * L * N), dC = dB, last = zeros(B * D * N),
                        dA = zeros(D * N), dD = zeros(D), dbias = dD, dinitial = last;
    for (int64_t b = 0; b < B; ++b)
        for (int64_t d = 0; d < D; ++d) {
            const int64_t length = lengths[(size_t)b];
            std::vector<double> h((size_t)((length + 1) * N)), grad((size_t)N);
            for (int64_t n = 0; n < N; ++n) h[(size_t)n] = k.optional ? initial[(size_t)((b * D + d) * N + n)] : 0;
            std::vector<double> plain((size_t)length), step((size_t)length), slope((size_t)length);
            for (int64_t t = 0; t < length; ++t) {
                const double raw = delta.get(b, t, d) + bias[(size_t)d], x = u.get(b, t, d);
                step[(size_t)t] = k.softplus ? std::log1p(std::exp(raw)) : raw;
                slope[(size_t)t] = k.softplus ? sigmoid(raw) : 1;
                double sum = k.optional ? skip[(size_t)d] * x : 0;
                for (int64_t n = 0; n < N; ++n) {
                    double& state = h[(size_t)((t + 1) * N + n)];
                    state = std::exp(step[(size_t)t] * A[(size_t)(d * N + n)]) * h[(size_t)(t * N + n)] +
                            step[(size_t)t] * x * Bt.get(b, t, n);
                    sum += state * Ct.get(b, t, n);
                }
                plain[(size_t)t] = sum;
                const double gate = k.optional ? z.get(b, t, d) : 0;
                y[(size_t)((b * L + t) * D + d)] = k.optional ? sum * gate * sigmoid(gate) : sum;
            }
            for (int64_t n = 0; n < N; ++n) {
                last[(size_t)((b * D + d) * N + n)] = h[(size_t)(length * N + n)];
                grad[(size_t)n] = k.optional ? grad_final[(size_t)((b * D + d) * N + n)] : 0;
            }
            for (int64_t t = length - 1; t >= 0; --t) {
                const size_t row = (size_t)((b * L + t) * D + d);
                const double x = u.get(b, t, d), gate = k.optional ? z.get(b, t, d) : 0, open = sigmoid(gate);
                double g = grad_out.get(b, t, d), grad_step = 0;
                if (k.optional) {
                    dz[row] = g * plain[(size_t)t] * open * (1 + gate * (1 - open));
                    g *= gate * open;
                    du[row] = g * skip[(size_t)d];
                    dD[(size_t)d] += g * x;
                }
                for (int64_t n = 0; n < N; ++n) {
                    const size_t bn = (size_t)((b * L + t) * N + n), an = (size_t)(d * N + n);
                    const double b_t = Bt.get(b, t, n), before = h[(size_t)(t * N + n)],
                                 decay = std::exp(step[(size_t)t] * A[an]);
                    dC[bn] += g * h[(size_t)((t + 1) * N + n)];
                    const double grad_h = grad[(size_t)n] + g * Ct.get(b, t, n);
                    dB[bn] += grad_h * step[(size_t)t] * x;
                    du[row] += grad_h * step[(size_t)t] * b_t;
                    grad_step += grad_h * (b_t * x + before * decay * A[an]);
                    dA[an] += grad_h * before * decay * step[(size_t)t];
                    grad[(size_t)n] = grad_h * decay;
                }
                dd[row] = grad_step * slope[(size_t)t];
                dbias[(size_t)d] += dd[row];
            }
            for (int64_t n = 0; n < N; ++n) dinitial[(size_t)((b * D + d) * N + n)] = grad[(size_t)n];
        }

    printf("scan batch %d length %d inner %d state %d dtype %d threads %d%s%s%s\n", (int)B, (int)L, (int)D, (int)N,
           (int)k.dtype, (int)k.threads, k.optional ? " optional" : "", k.padded ? " padded" : "",
           k.softplus ? "" : " plain steps");
    const double rows = tolerance_of(k.dtype), parameters = 2e-6;
    report("y", compare(out, y), rows);
    report("final", compare(final, last), parameters);
    report("grad u", compare(grad_u, du), rows);
    report("grad delta", compare(grad_delta, dd), rows);
    report("grad B", compare(grad_B, dB), rows);
    report("grad C", compare(grad_C, dC), rows);
    report("grad A", compare(grad_A, dA), parameters);
    report("grad bias", compare(grad_bias, dbias), parameters);
    if (!k.optional) return;
    report("grad z", compare(grad_z, dz), rows);
    report("grad D", compare(grad_D, dD), parameters);
    report("grad initial", compare(grad_initial, dinitial), parameters);
}

// ------------------------------------------------------------------------------------------ convolution

struct ConvolutionCase {
    int64_t batch, length, inner, kernel, dtype, threads;
    bool silu, padded;
};

void check_convolution(const ConvolutionCase& k) {
    const int64_t B = k.batch, L = k.length, D = k.inner, K = k.kernel;
    const std::vector<int64_t> lengths = some_lengths(B, L, k.padded);
    Tensor x(B, L, D, k.dtype), out(B, L, D, k.dtype), grad_out(B, L, D, k.dtype), grad_x(B, L, D, k.dtype);
    x.randomize(lengths);
    grad_out.randomize(lengths);
    const std::vector<float> weight = random_floats(D * K, -1, 1), bias = random_floats(D, -1, 1);
    std::vector<float> grad_weight((size_t)(D * K)), grad_bias((size_t)D);
    ConvolutionArguments c{};
    c.batch = B, c.length = L, c.inner = D, c.kernel = K, c.dtype = k.dtype, c.silu = k.silu, c.threads = k.threads;
    c.x = x.rows(), c.weight = weight.data(), c.bias = bias.data(), c.lengths = k.padded ? lengths.data() : nullptr;
    c.out = out.rows(), c.grad_out = grad_out.rows(), c.grad_x = grad_x.rows();
    c.grad_weight = grad_weight.data(), c.grad_bias = grad_bias.data();
    failures += hymate_convolution_forward(&c) != kOk;
    failures += hymate_convolution_backward(&c) != kOk;

    std::vector<double> y((size_t)(B * L * D)), dx = y, dw((size_t)(D * K)), db((size_t)D);
    for (int64_t b = 0; b < B; ++b)
        for (int64_t t = 0; t < lengths[(size_t)b]; ++t)
            for (int64_t d = 0; d < D; ++d) {
                double sum = bias[(size_t)d];
                for (int64_t i = 0; i < K; ++i)
                    if (t - (K - 1) + i >= 0) sum += weight[(size_t)(d * K + i)] * x.get(b, t - (K - 1) + i, d);
                const double open = sigmoid(sum);
                y[(size_t)((b * L + t) * D + d)] = k.silu ? sum * open : sum;
                const double grad = grad_out.get(b, t, d) * (k.silu ? open * (1 + sum * (1 - open)) : 1);
                db[(size_t)d] += grad;
                for (int64_t i = 0; i < K; ++i) {
                    const int64_t source = t - (K - 1) + i;
                    if (source < 0) continue;
                    dx[(size_t)((b * L + source) * D + d)] += grad * weight[(size_t)(d * K + i)];
                    dw[(size_t)(d * K + i)] += grad * x.get(b, source, d);
                }
            }
    printf("convolution batch %d length %d inner %d kernel %d dtype %d threads %d%s%s\n", (int)B, (int)L, (int)D, (int)K,
           (int)k.dtype, (int)k.threads, k.silu ? " silu" : "", k.padded ? " padded" : "");
    report("y", compare(out, y), tolerance_of(k.dtype));
    report("grad x", compare(grad_x, dx), tolerance_of(k.dtype));
    report("grad weight", compare(grad_weight, dw), 2e-6);
    report("grad bias", compare(grad_bias, db), 2e-6);
}

// ------------------------------------------------------------------------------------------------ matrices

// Rows of floats with gaps between them, as a Tensor of one record.
FloatRows float_rows(Tensor& tensor) { return {(float*)tensor.bytes.data(), tensor.rows().time_stride}; }

void check_matrices(int64_t rows, int64_t inputs, int64_t outputs) {
    const std::vector<int64_t> lengths{rows};
    Tensor x(1, rows, inputs, kFloat32), y(1, rows, outputs, kFloat32), grad_x(1, rows, inputs, kFloat32);
    for (Tensor* tensor : {&x, &y, &grad_x}) tensor->randomize(lengths);
    const std::vector<float> weight = random_floats(outputs * inputs, -1, 1), bias = random_floats(outputs, -1, 1);
    std::vector<double> product((size_t)(rows * outputs)), back((size_t)(rows * inputs)),
        sum((size_t)(outputs * inputs)), column((size_t)outputs);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < outputs; ++c) {
            double& value = product[(size_t)(r * outputs + c)];
            value = bias[(size_t)c];
            for (int64_t k = 0; k < inputs; ++k) value += x.get(0, r, k) * weight[(size_t)(c * inputs + k)];
        }
    printf("matrices rows %d inputs %d outputs %d\n", (int)rows, (int)inputs, (int)outputs);
    multiply_rows(Stripes(weight.data(), outputs, inputs, true, bias.data()), float_rows(x), float_rows(y), rows);
    report("product", compare(y, product), 2e-6);

    y.randomize(lengths);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < inputs; ++k) {
            double& value = back[(size_t)(r * inputs + k)];
            value = grad_x.get(0, r, k);
            for (int64_t c = 0; c < outputs; ++c) {
                value += y.get(0, r, c) * weight[(size_t)(c * inputs + k)];
                sum[(size_t)(c * inputs + k)] += y.get(0, r, c) * x.get(0, r, k);
            }
        }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < outputs; ++c) column[(size_t)c] += y.get(0, r, c);
    multiply_rows(Stripes(weight.data(), outputs, inputs, false), float_rows(y), float_rows(grad_x), rows, true);
    report("grad x", compare(grad_x, back), 2e-6);
    WeightGradient weight_gradient(outputs, inputs, 2);
    BiasGradient bias_gradient(outputs, 2);
    const int64_t half = rows / 2;
    for (int64_t part : {0, 1}) {
        const int64_t begin = part * half, count = part ? rows - half : half;
        const FloatRows grads{float_rows(y).at(begin), float_rows(y).stride}, inputs_of{float_rows(x).at(begin), float_rows(x).stride};
        weight_gradient.add(part, grads, inputs_of, count);
        bias_gradient.add(part, grads, count);
    }
    std::vector<float> grad_weight((size_t)(outputs * inputs)), grad_bias((size_t)outputs);
    weight_gradient.finish(grad_weight.data());
    bias_gradient.finish(grad_bias.data());
    report("grad weight", compare(grad_weight, sum), 2e-6);
    report("grad bias", compare(grad_bias, column), 2e-6);
}

// --------------------------------------------------------------------------------------------------- mixer

struct MixerCase {
    int64_t batch, length, width, inner, state, rank, kernel, outputs, dtype, threads;
    bool padded, projections, biases;
    bool residual = false;
};

constexpr double kEps = 1e-5, kFactor = 1.25;  // of the residual layer

enum Weight { kInW, kInB, kConvW, kConvB, kXW, kDtW, kDtB, kA, kD, kOutW, kOutB, kNorm, kWeights };

// The sum over outputs times `grad_out`, in double precision. `rows` are (batch, length, width).
double mixer_loss(const MixerCase& k, const std::vector<int64_t>& lengths, const std::vector<double>& rows,
                  const std::vector<double> (&w)[kWeights], const std::vector<double>& grad_out, std::vector<double>* out) {
    const int64_t L = k.length, D = k.inner, N = k.state, wide = k.rank + 2 * N, O = k.projections ? k.outputs : D;
    const auto weight = [&](Weight which, int64_t at) { return w[which].empty() ? 0.0 : w[which][(size_t)at]; };
    double loss = 0;
    for (int64_t b = 0; b < k.batch; ++b) {
        std::vector<double> x((size_t)(L * D)), state((size_t)(D * N));
        for (int64_t t = 0; t < L; ++t) {
            std::vector<double> u((size_t)D), gate((size_t)D), parameters((size_t)wide), y((size_t)D);
            const bool real = t < lengths[(size_t)b];
            const double* given = rows.data() + (b * L + t) * k.width;
            std::vector<double> row(given, given + k.width);
            if (k.residual) {
                double square = 0;
                for (double value : row) square += value * value / (double)k.width;
                for (int64_t i = 0; i < k.width; ++i) row[(size_t)i] *= weight(kNorm, i) / std::sqrt(square + kEps);
            }
            for (int64_t d = 0; real && d < 2 * D; ++d) {
                double value = k.projections ? weight(kInB, d) : row[(size_t)d];
                for (int64_t i = 0; k.projections && i < k.width; ++i) value += row[(size_t)i] * weight(kInW, d * k.width + i);
                (d < D ? x[(size_t)(t * D + d)] : gate[(size_t)(d - D)]) = value;
            }
            for (int64_t d = 0; real && d < D; ++d) {
                double value = weight(kConvB, d);
                for (int64_t i = 0; i < k.kernel; ++i) {
                    const int64_t source = t - (k.kernel - 1) + i;
                    if (source >= 0) value += weight(kConvW, d * k.kernel + i) * x[(size_t)(source * D + d)];
                }
                u[(size_t)d] = value * sigmoid(value);
            }
            for (int64_t j = 0; j < wide; ++j)
                for (int64_t d = 0; d < D; ++d) parameters[(size_t)j] += u[(size_t)d] * weight(kXW, j * D + d);
            for (int64_t d = 0; real && d < D; ++d) {
                double raw = weight(kDtB, d);
                for (int64_t r = 0; r < k.rank; ++r) raw += parameters[(size_t)r] * weight(kDtW, d * k.rank + r);
                const double step = std::log1p(std::exp(raw)), g = gate[(size_t)d];
                double value = weight(kD, d) * u[(size_t)d];
                for (int64_t n = 0; n < N; ++n) {
                    double& h = state[(size_t)(d * N + n)];
                    h = std::exp(step * weight(kA, d * N + n)) * h + step * u[(size_t)d] * parameters[(size_t)(k.rank + n)];
                    value += h * parameters[(size_t)(k.rank + N + n)];
                }
                y[(size_t)d] = value * g * sigmoid(g);
            }
            for (int64_t o = 0; o < O; ++o) {
                double value = k.projections ? weight(kOutB, o) : y[(size_t)o];
                for (int64_t d = 0; k.projections && d < D; ++d) value += y[(size_t)d] * weight(kOutW, o * D + d);
                if (k.residual) value = real ? given[o] + kFactor * value : 0;
                loss += value * grad_out[(size_t)((b * L + t) * O + o)];
                if (out != nullptr) (*out)[(size_t)((b * L + t) * O + o)] = value;
            }
        }
    }
    return loss;
}

// The same records in pieces, each from the state that the one before left, by either kernel in turn.
void check_stream(MixerArguments m, Tensor& rows, Tensor& out, const std::vector<int64_t>& lengths,
                  const std::vector<double>& y) {
    const size_t window = (size_t)(m.batch * (m.kernel - 1) * m.inner), floats = (size_t)(m.batch * m.inner * m.state);
    std::vector<float> inputs[3], states[3];
    for (int i = 0; i < 3; ++i) inputs[i].resize(window), states[i].resize(floats);
    m.conv_final = inputs[2].data(), m.scan_final = states[2].data();
    failures += hymate_mixer_forward(&m) != kOk;
    report("whole", compare(out, y), tolerance_of(rows.dtype));
    const Rows all_rows = rows.rows(), all_out = out.rows();
    const int64_t length = m.length;
    std::vector<int64_t> left = lengths;
    m.lengths = left.data();
    for (int64_t start = 0, piece = 0, size = 1; start < length; start += size, ++piece) {
        size = minimum_of(piece % 3 == 0 ? 1 : 1 + (int64_t)(engine() % 90), length - start);
        for (size_t b = 0; b < left.size(); ++b) left[b] = lengths[b] - start;
        m.length = size;
        m.rows.data = (uint8_t*)all_rows.data + start * all_rows.time_stride * rows.item();
        m.out.data = (uint8_t*)all_out.data + start * all_out.time_stride * out.item();
        m.conv_initial = start == 0 ? nullptr : inputs[piece % 2].data();
        m.scan_initial = start == 0 ? nullptr : states[piece % 2].data();
        m.conv_final = inputs[(piece + 1) % 2].data(), m.scan_final = states[(piece + 1) % 2].data();
        failures += (piece % 2 ? hymate_mixer_forward(&m) : hymate_mixer_step(&m)) != kOk;
        if (start + size < length) continue;
        const std::vector<float>&last_inputs = inputs[(piece + 1) % 2], &last_states = states[(piece + 1) % 2];
        report("last inputs", compare(last_inputs, {inputs[2].begin(), inputs[2].end()}), 2e-6);
        report("last state", compare(last_states, {states[2].begin(), states[2].end()}), 2e-6);
    }
    report("in pieces", compare(out, y), tolerance_of(rows.dtype));
}

// Outputs directly; gradients along one random direction each, against the difference of the loss along it.
void check_mixer(const MixerCase& k) {
    const int64_t B = k.batch, L = k.length, D = k.inner, N = k.state, wide = k.rank + 2 * N;
    const int64_t O = k.projections ? k.outputs : D;
    const std::vector<int64_t> lengths = some_lengths(B, L, k.padded), full((size_t)B, L);
    Tensor rows(B, L, k.width, k.dtype), out(B, L, O, k.dtype), grad_out(B, L, O, k.dtype), grad_rows(B, L, k.width, k.dtype),
        projected(B, L, 2 * D, k.dtype), convolved(B, L, D, k.dtype), parameters(B, L, wide, k.dtype);
    rows.randomize(lengths);
    grad_out.randomize(full);
    const int64_t sizes[kWeights] = {k.projections ? 2 * D * k.width : 0, k.projections && k.biases ? 2 * D : 0, D * k.kernel,
                                     k.biases ? D : 0, wide * D, D * k.rank, k.biases ? D : 0, D * N, D,
                                     k.projections ? O * D : 0, k.projections && k.biases ? O : 0, k.residual ? k.width : 0};
    std::vector<float> weights[kWeights], grads[kWeights];
    std::vector<double> exact[kWeights];
    for (int i = 0; i < kWeights; ++i) {
        const double size = i == kInW ? std::sqrt(1.0 / (double)k.width) : i == kXW || i == kOutW ? std::sqrt(1.0 / (double)D) : 1;
        weights[i] = i == kA ? random_floats(sizes[i], -6, -0.1) : random_floats(sizes[i], -size, size);
        grads[i].resize((size_t)sizes[i]);
        exact[i].assign(weights[i].begin(), weights[i].end());
    }
    std::vector<float> states((size_t)(B * ((L + kChunk - 1) / kChunk) * N * round_up(D, 16)));
    const auto data = [](std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
    MixerArguments m{};
    m.batch = B, m.length = L, m.width = k.width, m.inner = D, m.state = N, m.rank = k.rank, m.kernel = k.kernel;
    m.outputs = O, m.dtype = k.dtype, m.threads = k.threads, m.rows = rows.rows(), m.out = out.rows();
    m.lengths = k.padded ? lengths.data() : nullptr;
    m.in_weight = data(weights[kInW]), m.in_bias = data(weights[kInB]), m.conv_weight = data(weights[kConvW]);
    m.conv_bias = data(weights[kConvB]), m.x_weight = data(weights[kXW]), m.dt_weight = data(weights[kDtW]);
    m.dt_bias = data(weights[kDtB]), m.A = data(weights[kA]), m.D = data(weights[kD]);
    m.out_weight = data(weights[kOutW]), m.out_bias = data(weights[kOutB]);
    std::vector<float> factors((size_t)(B * k.width), (float)kFactor);
    if (k.residual) m.eps = kEps, m.norm = data(weights[kNorm]), m.factors = factors.data(), m.grad_norm = data(grads[kNorm]);
    failures += hymate_mixer_forward(&m) != kOk;
    std::vector<double> wide_rows((size_t)(B * L * k.width)), wide_grads((size_t)(B * L * O)), y((size_t)(B * L * O));
    for (int64_t b = 0, i = 0, j = 0; b < B; ++b)
        for (int64_t t = 0; t < L; ++t) {
            const bool real = t < lengths[(size_t)b];
            for (int64_t c = 0; c < k.width; ++c, ++i) wide_rows[(size_t)i] = real ? rows.get(b, t, c) : 0;
            for (int64_t c = 0; c < O; ++c, ++j) wide_grads[(size_t)j] = grad_out.get(b, t, c);
        }
    mixer_loss(k, lengths, wide_rows, exact, wide_grads, &y);
    printf("mixer batch %d length %d width %d inner %d state %d rank %d kernel %d dtype %d threads %d%s%s%s\n", (int)B, (int)L,
           (int)k.width, (int)D, (int)N, (int)k.rank, (int)k.kernel, (int)k.dtype, (int)k.threads, k.padded ? " padded" : "",
           k.projections ? " projections" : "", k.biases ? " biases" : "");
    report("inference", compare(out, y), tolerance_of(k.dtype));
    check_stream(m, rows, out, lengths, y);
    m.projected = projected.rows(), m.convolved = convolved.rows(), m.parameters = parameters.rows();
    m.states = states.data();
    failures += hymate_mixer_forward(&m) != kOk;
    report("y", compare(out, y), tolerance_of(k.dtype));

    m.grad_out = grad_out.rows(), m.grad_rows = grad_rows.rows();
    m.grad_in_weight = data(grads[kInW]), m.grad_in_bias = data(grads[kInB]), m.grad_conv_weight = data(grads[kConvW]);
    m.grad_conv_bias = data(grads[kConvB]), m.grad_x_weight = data(grads[kXW]), m.grad_dt_weight = data(grads[kDtW]);
    m.grad_dt_bias = data(grads[kDtB]), m.grad_A = data(grads[kA]), m.grad_D = data(grads[kD]);
    m.grad_out_weight = data(grads[kOutW]), m.grad_out_bias = data(grads[kOutB]);
    failures += hymate_mixer_backward(&m) != kOk;
    for (const Tensor* tensor : {&out, &grad_rows, &projected, &convolved, &parameters}) failures += !tensor->guards_hold();
    const double step = 1e-5, tolerance = k.dtype == kFloat32 ? 5e-6 : k.dtype == kBfloat16 ? 2e-2 : 3e-3;
    for (int i = -1; i < kWeights; ++i) {
        std::vector<double>& argument = i < 0 ? wide_rows : exact[i];
        double predicted = 0, size = 0, difference = 0;
        std::vector<double> before = argument, direction(argument.size());
        for (int64_t j = 0; j < (int64_t)argument.size(); ++j) {
            const int64_t row = j / k.width;
            const double grad = i < 0 ? grad_rows.get(row / L, row % L, j % k.width) : grads[i][(size_t)j];
            direction[(size_t)j] = random_number();
            predicted += grad * direction[(size_t)j];
            size += grad * grad;
        }
        for (double sign : {1.0, -1.0}) {
            for (size_t j = 0; j < argument.size(); ++j) argument[j] = before[j] + sign * step * direction[j];
            difference += sign * mixer_loss(k, lengths, wide_rows, exact, wide_grads, nullptr) / (2 * step);
        }
        argument = before;
        Error error;
        error.add(difference, predicted);
        error.largest = std::fmax(error.largest, std::sqrt(size));
        static const char* const names[] = {"rows", "in weight", "in bias", "conv weight", "conv bias", "x weight",
                                            "dt weight", "dt bias", "A", "D", "out weight", "out bias", "norm"};
        report(names[i + 1], error, tolerance);
    }
}

}  // namespace

int main() {
    const int64_t shapes[][4] = {{1, 1, 1, 1}, {2, 37, 19, 7}, {1, 50, 33, 64}, {3, 16, 16, 16}, {2, 18, 5, 128}, {4, 40, 70, 3}};
    for (const auto& shape : shapes)
        for (int64_t dtype : {kFloat32, kBfloat16, kFloat16})
            for (bool optional : {false, true}) {
                const int64_t threads = 1 + (int64_t)(engine() % 3);
                check_scan({shape[0], shape[1], shape[2], shape[3], dtype, threads, optional, optional, true});
                check_convolution({shape[0], shape[1], shape[2], 1 + (int64_t)(engine() % 8), dtype, threads, optional, !optional});
            }
    check_scan({2, 37, 19, 7, kFloat32, 2, true, true, false});
    check_scan({0, 5, 3, 2, kFloat32, 2, true, false, true});
    check_scan({2, 0, 3, 2, kFloat32, 2, true, false, true});
    check_convolution({0, 5, 3, 2, kFloat32, 2, true, false});
    check_convolution({2, 0, 3, 2, kFloat32, 2, true, true});
    const int64_t sizes[][3] = {{1, 1, 1}, {7, 5, 3}, {200, 36, 128}, {97, 130, 37}, {333, 64, 100}, {0, 3, 2}};
    for (const auto& size : sizes) check_matrices(size[0], size[1], size[2]);
    for (int64_t dtype : {kFloat32, kBfloat16, kFloat16})
        for (bool flag : {false, true}) {
            check_mixer({4, 150, 12, 20, 4, 2, 4, 9, dtype, 1 + flag, flag, true, flag});
            check_mixer({1, 200, 34, 17, 3, 1, 5, 1, dtype, 3, false, flag, true});
            check_mixer({3, 70, 10, 5, 1, 3, 1, 6, dtype, 2, true, !flag, flag});
            check_mixer({5, 33, 70, 35, 7, 4, 8, 3, dtype, 2, true, flag, true});
            check_mixer({1, 700, 80, 40, 3, 2, 8, 4, dtype, 2, false, flag, true});  // several stretches of time,
            check_mixer({3, 200, 140, 70, 2, 3, 4, 5, dtype, 2 + flag, true, !flag, true});  // together and apart
        }
    check_mixer({4, 150, 12, 20, 4, 2, 4, 12, kFloat32, 2, true, true, true, true});
    check_mixer({1, 700, 80, 40, 3, 2, 8, 80, kFloat32, 3, false, true, false, true});
    check_mixer({0, 5, 3, 2, 2, 1, 4, 3, kFloat32, 2, true, true, true});
    check_mixer({2, 0, 3, 2, 2, 1, 4, 3, kFloat32, 3, true, true, true});
    check_tokens();
    check_events();
    printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
    return failures != 0;
}
