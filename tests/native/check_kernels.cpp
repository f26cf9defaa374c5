// The kernels against plain loops in double precision, without Python: for the sanitizers, and for processors that are
// only emulated here. Prints one line a case and fails if any error is above its tolerance.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../../hymate_native/convolution.h"
#include "../../hymate_native/matrix.h"
#include "../../hymate_native/scan.h"

using namespace hymate;

extern "C" {
int hymate_scan_forward(const ScanArguments*);
int hymate_scan_backward(const ScanArguments*);
int hymate_convolution_forward(const ConvolutionArguments*);
int hymate_convolution_backward(const ConvolutionArguments*);
int hymate_matrix_products(const Steps<ProductArguments>*);
int hymate_linear_backwards(const Steps<LinearBackwardArguments>*);
}

namespace {

int failures = 0;
std::mt19937 engine(0);

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

double random_number() {  // seven bits: exact in every data type
    return std::round(std::normal_distribution<double>(0, 1)(engine) * 32 + 0.5) / 32;
}

std::vector<float> random_floats(int64_t count, double low, double high) {
    std::vector<float> values((size_t)count);
    for (float& value : values) value = (float)std::uniform_real_distribution<double>(low, high)(engine);
    return values;
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

struct Error {
    double largest = 0, difference = 0;
    void add(double expected, double found) {
        largest = std::fmax(largest, std::fabs(expected));
        const double error = std::fabs(expected - found);
        difference = error <= difference ? difference : error;  // NaN stays
    }
    double relative() const { return difference == 0 ? 0 : difference / std::fmax(largest, 1e-30); }
};

void report(const char* what, const Error& error, double tolerance, bool quiet = true) {
    const bool bad = !(error.relative() <= tolerance);
    failures += bad;
    if (bad || !quiet) printf("    %-14s %.1e%s\n", what, error.relative(), bad ? "  <-- too much" : "");
}

Error compare(const Tensor& found, const std::vector<double>& expected) {
    Error error;
    for (int64_t b = 0, i = 0; b < found.batch; ++b)
        for (int64_t t = 0; t < found.length; ++t)
            for (int64_t c = 0; c < found.channels; ++c, ++i) error.add(expected[(size_t)i], found.get(b, t, c));
    failures += !found.guards_hold();
    if (!found.guards_hold()) printf("    wrote between the rows\n");
    return error;
}

Error compare(const std::vector<float>& found, const std::vector<double>& expected) {
    Error error;
    for (size_t i = 0; i < found.size(); ++i) error.add(expected[i], found[i]);
    return error;
}

std::vector<int64_t> some_lengths(int64_t batch, int64_t length, bool padded) {
    std::vector<int64_t> lengths((size_t)batch, length);
    for (int64_t b = 1; padded && b < batch; ++b) lengths[(size_t)b] = b == 1 ? 0 : (int64_t)(engine() % (length + 1));
    return lengths;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

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

void check_matrices(int64_t rows, int64_t depth, int64_t columns, int64_t threads) {
    std::vector<float> tall = random_floats(rows * depth, -1, 1), small = random_floats(depth * columns, -1, 1);
    std::vector<float> bias = random_floats(columns, -1, 1), out = random_floats(rows * columns, -1, 1);
    ProductArguments p{};
    p.rows = rows, p.depth = depth, p.columns = columns, p.accumulate = 1, p.threads = threads;
    // the small matrix is handed over as its transpose
    p.tall = {tall.data(), depth, 1}, p.small = {small.data(), 1, depth}, p.bias = bias.data();
    p.out = {out.data(), columns, 1};
    std::vector<double> product((size_t)(rows * columns)), sum((size_t)(depth * columns));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) {
            double& y = product[(size_t)(r * columns + c)];
            y = (double)out[(size_t)(r * columns + c)] + bias[(size_t)c];
            for (int64_t k = 0; k < depth; ++k) y += (double)tall[(size_t)(r * depth + k)] * small[(size_t)(c * depth + k)];
        }
    printf("matrices rows %d depth %d columns %d threads %d\n", (int)rows, (int)depth, (int)columns, (int)threads);
    const Steps<ProductArguments> forward{1, {p, {}}};
    failures += hymate_matrix_products(&forward) != kOk;
    report("product", compare(out, product), 2e-6);

    std::vector<float> x = random_floats(rows * columns, -1, 1), grad_weight((size_t)(depth * columns));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t c = 0; c < columns; ++c)
                sum[(size_t)(k * columns + c)] += (double)tall[(size_t)(r * depth + k)] * x[(size_t)(r * columns + c)];
    p.accumulate = 0;
    const Steps<LinearBackwardArguments> backward{1, {{p, {x.data(), columns, 1}, grad_weight.data()}, {}}};
    failures += hymate_linear_backwards(&backward) != kOk;
    for (double& y : product) y = 0;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) {
            double& y = product[(size_t)(r * columns + c)];
            y = bias[(size_t)c];
            for (int64_t k = 0; k < depth; ++k) y += (double)tall[(size_t)(r * depth + k)] * small[(size_t)(c * depth + k)];
        }
    report("grad x", compare(out, product), 2e-6);
    report("grad weight", compare(grad_weight, sum), 2e-6);
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
    for (const auto& size : sizes) check_matrices(size[0], size[1], size[2], 1 + (int64_t)(engine() % 3));
    printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
    return failures != 0;
}
