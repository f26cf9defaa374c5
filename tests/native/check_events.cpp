// The kernels on events against plain loops in double precision; see check_kernels.cpp.
#include "../../hymate_native/csrc/events.h"
#include "checks.h"

using namespace hymate;

extern "C" {
int hymate_embedding_forward(const EmbeddingArguments*);
int hymate_embedding_backward(const EmbeddingArguments*);
int hymate_projection_forward(const ProjectionArguments*);
int hymate_projection_backward(const ProjectionArguments*);
}

namespace checks {
namespace {

void check_embedding(int64_t B, int64_t L, int64_t H, int64_t inside, int64_t threads) {
    const int64_t V = 5;
    const std::vector<int64_t> lengths = some_lengths(B, L, true);
    Argument variable(V * H, -1, 1), vectors(V * H, -1, 1), missing(H, -1, 1), value_weight(inside, -1, 1);
    Argument value_bias(inside, -1, 1), value_out(H * inside, -1, 1), time_weight(inside, -1, 1), time_bias(inside, -1, 1);
    Argument time_out(H * inside, -1, 1);
    std::vector<float> values = random_floats(B * L, -2, 2), times = random_floats(B * L, 0, 1), factors = random_floats(B * H, 0, 2);
    std::vector<uint8_t> value_mask((size_t)(B * L));
    std::vector<int64_t> ids((size_t)(B * L));
    for (uint8_t& bit : value_mask) bit = engine() % 4 != 0;
    for (int64_t& id : ids) id = (int64_t)(engine() % (uint64_t)V);
    const std::vector<float> grad_out = random_floats(B * L * H, -1, 1);
    std::vector<float> out((size_t)(B * L * H));
    EmbeddingArguments e{};
    e.batch = B, e.length = L, e.width = H, e.inside = inside, e.variables = V, e.threads = threads;
    e.values = values.data(), e.times = times.data(), e.variable_ids = ids.data(), e.value_mask = value_mask.data();
    e.lengths = lengths.data(), e.variable = variable.value.data(), e.vectors = vectors.value.data();
    e.value_weight = value_weight.value.data(), e.value_bias = value_bias.value.data(), e.value_out = value_out.value.data();
    e.time_weight = time_weight.value.data(), e.time_bias = time_bias.value.data(), e.time_out = time_out.value.data();
    e.missing = missing.value.data(), e.factors = factors.data(), e.out = out.data(), e.grad_out = grad_out.data();
    e.grad_variable = variable.grad.data(), e.grad_vectors = vectors.grad.data(), e.grad_missing = missing.grad.data();
    e.grad_value_weight = value_weight.grad.data(), e.grad_value_bias = value_bias.grad.data();
    e.grad_value_out = value_out.grad.data(), e.grad_time_weight = time_weight.grad.data();
    e.grad_time_bias = time_bias.grad.data(), e.grad_time_out = time_out.grad.data();
    failures += hymate_embedding_forward(&e) != kOk;
    failures += hymate_embedding_backward(&e) != kOk;
    Doubles y(out.size());
    const auto number = [&](double x, const Argument& weight, const Argument& bias, const Argument& behind, int64_t h) {
        double sum = 0;
        for (int64_t j = 0; j < inside; ++j)
            sum += std::tanh(weight.exact[(size_t)j] * x + bias.exact[(size_t)j]) * behind.exact[(size_t)(h * inside + j)];
        return sum;
    };
    const auto run = [&] {
        double loss = 0;
        for (int64_t i = 0; i < B * L; ++i)
            for (int64_t h = 0; h < H; ++h) {
                const size_t at = (size_t)(i * H + h), of_variable = (size_t)(ids[(size_t)i] * H + h);
                const double value = values[(size_t)i];
                double sum = variable.exact[of_variable] + number(times[(size_t)i], time_weight, time_bias, time_out, h);
                if (value_mask[(size_t)i])
                    sum += number(value, value_weight, value_bias, value_out, h) + value * vectors.exact[of_variable];
                else
                    sum += missing.exact[(size_t)h];
                y[at] = i % L < lengths[(size_t)(i / L)] ? sum * factors[(size_t)(i / L * H + h)] : 0;
                loss += y[at] * grad_out[at];
            }
        return loss;
    };
    run();
    printf("embedding batch %d length %d width %d inside %d threads %d\n", (int)B, (int)L, (int)H, (int)inside, (int)threads);
    report("y", compare(out, y), 2e-6);
    const std::pair<const char*, Argument*> arguments[] = {
        {"variable", &variable}, {"vectors", &vectors}, {"missing", &missing}, {"value weight", &value_weight},
        {"value bias", &value_bias}, {"value out", &value_out}, {"time weight", &time_weight}, {"time bias", &time_bias},
        {"time out", &time_out}};
    for (const auto& [name, argument] : arguments) check_gradient(name, run, argument->exact, argument->grad);
}

void check_projection(int64_t B, int64_t L, int64_t H, int64_t Q, int64_t threads) {
    const std::vector<int64_t> lengths = some_lengths(B, L, true);
    Argument x(B * L * H, -1, 1), norm(H, 0.5, 1.5), query(Q * H, -3, 3), value(H * H, -0.3, 0.3), bias(H, -1, 1);
    const std::vector<float> grad_parts = random_floats(B * L * H, -1, 1), grad_scores = random_floats(B * L * Q, -1, 1);
    std::vector<float> parts(grad_parts.size()), scores(grad_scores.size());
    ProjectionArguments p{};
    p.batch = B, p.length = L, p.width = H, p.queries = Q, p.threads = threads, p.eps = 1e-5, p.bound = 10;
    p.x = x.value.data(), p.lengths = lengths.data(), p.norm = norm.value.data(), p.query_weight = query.value.data();
    p.value_weight = value.value.data(), p.value_bias = bias.value.data(), p.parts = parts.data(), p.scores = scores.data();
    p.grad_parts = grad_parts.data(), p.grad_scores = grad_scores.data(), p.grad_x = x.grad.data();
    p.grad_norm = norm.grad.data(), p.grad_query_weight = query.grad.data(), p.grad_value_weight = value.grad.data();
    p.grad_value_bias = bias.grad.data();
    failures += hymate_projection_forward(&p) != kOk;
    failures += hymate_projection_backward(&p) != kOk;
    Doubles exact_parts(parts.size()), exact_scores(scores.size());
    const auto run = [&] {
        double loss = 0;
        for (int64_t i = 0; i < B * L; ++i) {
            if (i % L >= lengths[(size_t)(i / L)]) continue;
            double square = 0;
            for (int64_t h = 0; h < H; ++h) square += std::pow(x.exact[(size_t)(i * H + h)], 2) / (double)H;
            Doubles row((size_t)H);
            for (int64_t h = 0; h < H; ++h)
                row[(size_t)h] = x.exact[(size_t)(i * H + h)] * norm.exact[(size_t)h] / std::sqrt(square + 1e-5);
            for (int64_t o = 0; o < H; ++o) {
                double sum = bias.exact[(size_t)o];
                for (int64_t h = 0; h < H; ++h) sum += value.exact[(size_t)(o * H + h)] * row[(size_t)h];
                exact_parts[(size_t)(i * H + o)] = sum;
                loss += sum * grad_parts[(size_t)(i * H + o)];
            }
            for (int64_t q = 0; q < Q; ++q) {
                double sum = 0;
                for (int64_t h = 0; h < H; ++h) sum += query.exact[(size_t)(q * H + h)] * row[(size_t)h];
                exact_scores[(size_t)(i * Q + q)] = 10 * std::tanh(sum / 10);
                loss += exact_scores[(size_t)(i * Q + q)] * grad_scores[(size_t)(i * Q + q)];
            }
        }
        return loss;
    };
    run();
    printf("projection batch %d length %d width %d queries %d threads %d\n", (int)B, (int)L, (int)H, (int)Q, (int)threads);
    report("parts", compare(parts, exact_parts), 2e-6);
    report("scores", compare(scores, exact_scores), 2e-6);
    const std::pair<const char*, Argument*> arguments[] = {{"x", &x}, {"norm", &norm}, {"query", &query}, {"value", &value},
                                                           {"bias", &bias}};
    for (const auto& [name, argument] : arguments) check_gradient(name, run, argument->exact, argument->grad);
}

}  // namespace

void check_events() {
    check_embedding(3, 150, 32, 6, 2);
    check_embedding(4, 33, 24, 5, 3);
    check_embedding(2, 9, 6, 3, 1);
    check_embedding(2, 0, 6, 3, 1);
    check_projection(3, 150, 32, 4, 2);
    check_projection(4, 33, 24, 3, 3);
    check_projection(2, 9, 70, 20, 1);
}

}  // namespace checks
