// What the checks of the kernels share: random numbers, errors, and what is printed of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

namespace checks {

inline int failures = 0;
inline std::mt19937 engine(0);

inline double random_number() {  // seven bits: exact in every data type
    return std::round(std::normal_distribution<double>(0, 1)(engine) * 32 + 0.5) / 32;
}

inline std::vector<float> random_floats(int64_t count, double low, double high) {
    std::vector<float> values((size_t)count);
    for (float& value : values) value = (float)std::uniform_real_distribution<double>(low, high)(engine);
    return values;
}

struct Error {
    double largest = 0, difference = 0;
    void add(double expected, double found) {
        largest = std::fmax(largest, std::fabs(expected));
        const double error = std::fabs(expected - found);
        difference = error <= difference ? difference : error;  // NaN stays
    }
    double relative() const { return difference == 0 ? 0 : difference / std::fmax(largest, 1e-30); }
};

inline void report(const char* what, const Error& error, double tolerance, bool quiet = true) {
    const bool bad = !(error.relative() <= tolerance);
    failures += bad;
    if (bad || !quiet) printf("    %-14s %.1e%s\n", what, error.relative(), bad ? "  <-- too much" : "");
}

inline Error compare(const std::vector<float>& found, const std::vector<double>& expected) {
    Error error;
    for (size_t i = 0; i < found.size(); ++i) error.add(expected[i], found[i]);
    return error;
}

inline std::vector<int64_t> some_lengths(int64_t batch, int64_t length, bool padded) {
    std::vector<int64_t> lengths((size_t)batch, length);
    for (int64_t b = 1; padded && b < batch; ++b) lengths[(size_t)b] = b == 1 ? 0 : (int64_t)(engine() % (length + 1));
    return lengths;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

typedef std::vector<double> Doubles;

// An argument of a kernel: as float, its gradient, and in double precision.
struct Argument {
    std::vector<float> value, grad;
    Doubles exact;

    Argument(int64_t count, double low, double high) : value(random_floats(count, low, high)), grad(value.size()) {
        exact.assign(value.begin(), value.end());
    }
};

// A kernel's gradient of one argument against the loss, in double precision, along a random direction.
inline void check_gradient(const char* what, const std::function<double()>& loss, std::vector<double>& argument,
                           const std::vector<float>& gradient, double tolerance = 5e-6) {
    const std::vector<double> before = argument;
    std::vector<double> direction(argument.size());
    double predicted = 0, size = 0, difference = 0;
    const double step = 1e-5;
    for (size_t i = 0; i < argument.size(); ++i) {
        direction[i] = random_number();
        predicted += gradient[i] * direction[i];
        size += (double)gradient[i] * gradient[i];
    }
    for (double sign : {1.0, -1.0}) {
        for (size_t i = 0; i < argument.size(); ++i) argument[i] = before[i] + sign * step * direction[i];
        difference += sign * loss() / (2 * step);
    }
    argument = before;
    Error error;
    error.add(difference, predicted);
    error.largest = std::fmax(error.largest, std::fmax(std::sqrt(size), 1.0));
    report(what, error, tolerance);
}

void check_tokens();
void check_events();

}  // namespace checks
