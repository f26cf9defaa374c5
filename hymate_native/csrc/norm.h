// Root mean square norms of rows, forward and backward.
#pragma once

#include "matrix.h"

namespace hymate {

// to = from * gain / sqrt(mean(from^2) + eps), and the inverse root of each row.
inline void normalize_rows(FloatRows from, const float* gain, int64_t width, double eps, int64_t count, FloatRows to,
                           float* inverse) {
    alignas(64) float squares[kLanes * kLanes];
    for (int64_t row = 0; row < count; row += kLanes) {
        const int rows = (int)minimum_of(kLanes, count - row);
        for (int i = 0; i < kLanes; ++i) {
            Vector sum{};
            for (int64_t k = 0; i < rows && k < width; k += kLanes) {
                const Vector x = load(from.at(row + i, k), (int)minimum_of(kLanes, width - k));
                sum += x * x;
            }
            store(squares + i * kLanes, sum);
        }
        alignas(64) float roots[kLanes];
        store(roots, take_row_sums(squares) * (1.0f / (float)width) + (float)eps);
        for (int i = 0; i < kLanes; ++i) roots[i] = 1.0f / __builtin_sqrtf(roots[i]);
        for (int i = 0; i < rows; ++i) {
            inverse[row + i] = roots[i];
            for (int64_t k = 0; k < width; k += kLanes) {
                const int lanes = (int)minimum_of(kLanes, width - k);
                store(to.at(row + i, k), load(from.at(row + i, k), lanes) * roots[i] * load(gain + k, lanes), lanes);
            }
        }
    }
}

// The gradients of what was normalized are added to `to`; each row's share of the gain's gradient goes into `shares`.
inline void normalize_backward(FloatRows from, FloatRows grad, const float* gain, const float* inverse, int64_t width,
                               int64_t count, FloatRows to, FloatRows shares) {
    alignas(64) float products[kLanes * kLanes];
    for (int64_t row = 0; row < count; row += kLanes) {
        const int rows = (int)minimum_of(kLanes, count - row);
        for (int i = 0; i < kLanes; ++i) {
            Vector sum{};
            for (int64_t k = 0; i < rows && k < width; k += kLanes) {
                const int lanes = (int)minimum_of(kLanes, width - k);
                const Vector share = load(from.at(row + i, k), lanes) * load(grad.at(row + i, k), lanes) * inverse[row + i];
                store(shares.at(row + i, k), share, lanes);
                sum += share * load(gain + k, lanes);
            }
            store(products + i * kLanes, sum);
        }
        alignas(64) float means[kLanes];
        store(means, take_row_sums(products) * (1.0f / (float)width));
        for (int i = 0; i < rows; ++i) {
            const float root = inverse[row + i], pull = means[i] * root * root;
            for (int64_t k = 0; k < width; k += kLanes) {
                const int lanes = (int)minimum_of(kLanes, width - k);
                const Vector own = load(grad.at(row + i, k), lanes) * load(gain + k, lanes) * root;
                store(to.at(row + i, k), load(to.at(row + i, k), lanes) + own - load(from.at(row + i, k), lanes) * pull, lanes);
            }
        }
    }
}

}  // namespace hymate
