// The kernels on channels and their tokens against plain loops in double precision; see check_kernels.cpp.
#include "../../hymate_native/csrc/attention.h"
#include "../../hymate_native/csrc/channel_memory.h"
#include "../../hymate_native/csrc/channel_statistics.h"
#include "../../hymate_native/csrc/channel_tokens.h"
#include "../../hymate_native/csrc/fusion.h"
#include "../../hymate_native/csrc/running_quantities.h"
#include "checks.h"

using namespace hymate;

extern "C" {
int hymate_attention_forward(const AttentionArguments*);
int hymate_attention_backward(const AttentionArguments*);
int hymate_fusion_forward(const FusionArguments*);
int hymate_fusion_backward(const FusionArguments*);
int hymate_running_forward(const RunningArguments*);
int hymate_running_backward(const RunningArguments*);
int hymate_remember_channels(const MemoryArguments*);
int hymate_recall_channels(const MemoryArguments*);
int hymate_channel_statistics(const StatisticArguments*);
int hymate_tokens_forward(const TokenArguments*);
int hymate_tokens_backward(const TokenArguments*);
}

namespace checks {
namespace {

std::vector<uint8_t> random_mask(int64_t count, double share) {
    std::vector<uint8_t> mask((size_t)count);
    for (uint8_t& bit : mask) bit = std::uniform_real_distribution<double>(0, 1)(engine) < share;
    return mask;
}

double dot(const Doubles& a, const std::vector<float>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

Doubles normed(const double* row, const Doubles& gain, double eps) {
    const size_t width = gain.size();
    double square = 0;
    for (size_t i = 0; i < width; ++i) square += row[i] * row[i] / (double)width;
    Doubles result(width);
    for (size_t i = 0; i < width; ++i) result[i] = row[i] * gain[i] / std::sqrt(square + eps);
    return result;
}

Doubles linear(const Doubles& row, const Doubles& weight, const Doubles& bias) {
    Doubles result(bias);
    for (size_t o = 0; o < bias.size(); ++o)
        for (size_t i = 0; i < row.size(); ++i) result[o] += weight[o * row.size() + i] * row[i];
    return result;
}

// ------------------------------------------------------------------------------------- attention layer

struct LayerCase {
    int64_t groups, tokens, width, heads, inside, threads;
};

void check_layer(const LayerCase& k) {
    const int64_t H = k.width, F = k.inside, head = H / k.heads;
    const double eps = 1e-5, size = 1 / std::sqrt((double)H);
    std::vector<uint8_t> mask = random_mask(k.groups * k.tokens, 0.7);
    if (k.groups > 1) std::fill(mask.begin(), mask.begin() + k.tokens, 0);
    Argument x(k.groups * k.tokens * H, -1, 1), norm1(H, 0.5, 1.5), norm2(H, 0.5, 1.5);
    Argument q(H * H, -size, size), k_(H * H, -size, size), v(H * H, -size, size), o(H * H, -size, size);
    Argument up(F * H, -size, size), down(H * F, -size, size), q_bias(H, -1, 1), k_bias(H, -1, 1), v_bias(H, -1, 1);
    Argument o_bias(H, -1, 1), up_bias(F, -1, 1), down_bias(H, -1, 1);
    const std::vector<float> grad_out = random_floats((int64_t)x.value.size(), -1, 1);
    std::vector<float> out(x.value.size());
    AttentionArguments a{};
    a.groups = k.groups, a.tokens = k.tokens, a.width = H, a.heads = k.heads, a.inside = F, a.threads = k.threads, a.eps = eps;
    a.x = x.value.data(), a.mask = mask.data(), a.out = out.data(), a.grad_out = grad_out.data(), a.grad_x = x.grad.data();
    a.attention_norm = norm1.value.data(), a.grad_attention_norm = norm1.grad.data();
    a.mlp_norm = norm2.value.data(), a.grad_mlp_norm = norm2.grad.data();
    a.q_weight = q.value.data(), a.grad_q_weight = q.grad.data(), a.q_bias = q_bias.value.data(), a.grad_q_bias = q_bias.grad.data();
    a.k_weight = k_.value.data(), a.grad_k_weight = k_.grad.data(), a.k_bias = k_bias.value.data(), a.grad_k_bias = k_bias.grad.data();
    a.v_weight = v.value.data(), a.grad_v_weight = v.grad.data(), a.v_bias = v_bias.value.data(), a.grad_v_bias = v_bias.grad.data();
    a.o_weight = o.value.data(), a.grad_o_weight = o.grad.data(), a.o_bias = o_bias.value.data(), a.grad_o_bias = o_bias.grad.data();
    a.up_weight = up.value.data(), a.grad_up_weight = up.grad.data();
    a.up_bias = up_bias.value.data(), a.grad_up_bias = up_bias.grad.data();
    a.down_weight = down.value.data(), a.grad_down_weight = down.grad.data();
    a.down_bias = down_bias.value.data(), a.grad_down_bias = down_bias.grad.data();
    failures += hymate_attention_forward(&a) != kOk;
    failures += hymate_attention_backward(&a) != kOk;

    Doubles y(x.value.size());
    const auto run = [&] {
        std::fill(y.begin(), y.end(), 0.0);
        for (int64_t g = 0; g < k.groups; ++g) {
            std::vector<int64_t> places;
            for (int64_t i = g * k.tokens; i < (g + 1) * k.tokens; ++i)
                if (mask[(size_t)i]) places.push_back(i);
            std::vector<Doubles> queries, keys, values;
            for (int64_t i : places) {
                const Doubles row = normed(x.exact.data() + i * H, norm1.exact, eps);
                queries.push_back(linear(row, q.exact, q_bias.exact));
                keys.push_back(linear(row, k_.exact, k_bias.exact));
                values.push_back(linear(row, v.exact, v_bias.exact));
            }
            for (size_t i = 0; i < places.size(); ++i) {
                Doubles mixed((size_t)H);
                for (int64_t h = 0; h < k.heads; ++h) {
                    Doubles weights(places.size());
                    double sum = 0;
                    for (size_t j = 0; j < places.size(); ++j) {
                        double score = 0;
                        for (int64_t d = h * head; d < (h + 1) * head; ++d) score += queries[i][(size_t)d] * keys[j][(size_t)d];
                        sum += weights[j] = std::exp(score / std::sqrt((double)head));
                    }
                    for (size_t j = 0; j < places.size(); ++j)
                        for (int64_t d = h * head; d < (h + 1) * head; ++d) mixed[(size_t)d] += weights[j] / sum * values[j][(size_t)d];
                }
                Doubles row = linear(mixed, o.exact, o_bias.exact);
                for (int64_t d = 0; d < H; ++d) row[(size_t)d] += x.exact[(size_t)(places[i] * H + d)];
                Doubles inner = linear(normed(row.data(), norm2.exact, eps), up.exact, up_bias.exact);
                for (double& value : inner) value *= 0.5 * std::erfc(-value / std::sqrt(2.0));
                const Doubles last = linear(inner, down.exact, down_bias.exact);
                for (int64_t d = 0; d < H; ++d) y[(size_t)(places[i] * H + d)] = row[(size_t)d] + last[(size_t)d];
            }
        }
        return dot(y, grad_out);
    };
    run();
    printf("attention groups %d tokens %d width %d heads %d inside %d threads %d\n", (int)k.groups, (int)k.tokens, (int)H,
           (int)k.heads, (int)F, (int)k.threads);
    report("y", compare(out, y), 2e-6);
    const std::pair<const char*, Argument*> arguments[] = {
        {"x", &x}, {"norm", &norm1}, {"q", &q}, {"q bias", &q_bias}, {"k", &k_}, {"k bias", &k_bias}, {"v", &v},
        {"v bias", &v_bias}, {"o", &o}, {"o bias", &o_bias}, {"mlp norm", &norm2}, {"up", &up}, {"up bias", &up_bias},
        {"down", &down}, {"down bias", &down_bias}};
    for (const auto& [name, argument] : arguments) check_gradient(name, run, argument->exact, argument->grad, 1e-5);
}

// ------------------------------------------------------------------------------------ fusion attention

void check_fusion(int64_t groups, int64_t tokens, int64_t H, int64_t threads) {
    const double eps = 1e-5;
    std::vector<uint8_t> mask = random_mask(groups * tokens, 0.7);
    if (groups > 1) std::fill(mask.begin(), mask.begin() + tokens, 0);
    Argument x(groups * tokens * H, -1, 1), norm(H, 0.5, 1.5), weight(H * H, -0.5, 0.5), bias(H, -1, 1), score(H, -1, 1);
    const std::vector<float> grad_pooled = random_floats(groups * H, -1, 1), grad_weights = random_floats(groups * tokens, -1, 1);
    std::vector<float> pooled(grad_pooled.size()), weights(grad_weights.size());
    FusionArguments a{};
    a.groups = groups, a.tokens = tokens, a.width = H, a.threads = threads, a.eps = eps;
    a.x = x.value.data(), a.mask = mask.data(), a.norm = norm.value.data(), a.weight = weight.value.data();
    a.bias = bias.value.data(), a.score = score.value.data(), a.pooled = pooled.data(), a.weights = weights.data();
    a.grad_pooled = grad_pooled.data(), a.grad_weights = grad_weights.data(), a.grad_x = x.grad.data();
    a.grad_norm = norm.grad.data(), a.grad_weight = weight.grad.data(), a.grad_bias = bias.grad.data();
    a.grad_score = score.grad.data();
    failures += hymate_fusion_forward(&a) != kOk;
    failures += hymate_fusion_backward(&a) != kOk;

    Doubles exact_pooled(pooled.size()), exact_weights(weights.size());
    const auto run = [&] {
        std::fill(exact_pooled.begin(), exact_pooled.end(), 0.0);
        std::fill(exact_weights.begin(), exact_weights.end(), 0.0);
        for (int64_t g = 0; g < groups; ++g) {
            double sum = 0;
            for (int64_t i = g * tokens; i < (g + 1) * tokens; ++i) {
                if (!mask[(size_t)i]) continue;
                const Doubles bent = linear(normed(x.exact.data() + i * H, norm.exact, eps), weight.exact, bias.exact);
                double total = 0;
                for (int64_t d = 0; d < H; ++d) total += std::tanh(bent[(size_t)d]) * score.exact[(size_t)d];
                sum += exact_weights[(size_t)i] = std::exp(total);
            }
            for (int64_t i = g * tokens; i < (g + 1) * tokens; ++i) {
                if (!mask[(size_t)i]) continue;
                exact_weights[(size_t)i] /= sum;
                const Doubles row = normed(x.exact.data() + i * H, norm.exact, eps);
                for (int64_t d = 0; d < H; ++d) exact_pooled[(size_t)(g * H + d)] += exact_weights[(size_t)i] * row[(size_t)d];
            }
        }
        return dot(exact_pooled, grad_pooled) + dot(exact_weights, grad_weights);
    };
    run();
    printf("fusion groups %d tokens %d width %d threads %d\n", (int)groups, (int)tokens, (int)H, (int)threads);
    report("pooled", compare(pooled, exact_pooled), 5e-6);
    report("weights", compare(weights, exact_weights), 5e-6);
    const std::pair<const char*, Argument*> arguments[] = {{"x", &x}, {"norm", &norm}, {"weight", &weight}, {"bias", &bias},
                                                           {"score", &score}};
    for (const auto& [name, argument] : arguments) check_gradient(name, run, argument->exact, argument->grad, 1e-5);
}

// ---------------------------------------------------------------------------------- running quantities

void check_running(int64_t B, int64_t L, int64_t P, int64_t C, int64_t H, int64_t Q, int64_t threads) {
    const std::vector<int64_t> lengths = some_lengths(B, L, true);
    Argument parts(B * L * H, -1, 1), scores(B * L * Q, -8, 8);
    std::vector<float> values = random_floats(B * L, -2, 2), times((size_t)(B * L)), asked((size_t)(B * P));
    const std::vector<uint8_t> value_mask = random_mask(B * L, 0.8);
    std::vector<int64_t> slots((size_t)(B * L), -1);
    for (int64_t b = 0; b < B; ++b) {
        for (int64_t i = 0; i < lengths[(size_t)b]; ++i) {
            times[(size_t)(b * L + i)] = (float)(i / 2) / 8;  // events that share a time, and times that are asked for
            slots[(size_t)(b * L + i)] = (int64_t)(engine() % (uint64_t)C);
        }
        for (int64_t p = 0; p < P; ++p) asked[(size_t)(b * P + p)] = (float)(p - 1) * (float)L / (float)(16 * P);
    }
    const std::vector<double> half_life = {0.3, 2.0};
    const int64_t S = kQuantities + kHalfLifeQuantities * 2, cells = B * P * C;
    std::vector<float> pooled((size_t)(cells * H)), totals((size_t)(cells * Q)), statistics((size_t)(cells * S));
    const std::vector<float> grad_pooled = random_floats(cells * H, -1, 1), grad_totals = random_floats(cells * Q, -1e-3, 1e-3);
    RunningArguments r{};
    r.batch = B, r.length = L, r.predictions = P, r.channels = C, r.width = H, r.queries = Q, r.half_lives = 2, r.threads = threads;
    r.parts = parts.value.data(), r.scores = scores.value.data(), r.values = values.data(), r.times = times.data();
    r.value_mask = value_mask.data(), r.slots = slots.data(), r.prediction_times = asked.data(), r.half_life = half_life.data();
    r.pooled = pooled.data(), r.totals = totals.data(), r.statistics = statistics.data();
    r.grad_pooled = grad_pooled.data(), r.grad_totals = grad_totals.data();
    r.grad_parts = parts.grad.data(), r.grad_scores = scores.grad.data();
    failures += hymate_running_forward(&r) != kOk;
    failures += hymate_running_backward(&r) != kOk;

    Doubles exact_pooled(pooled.size()), exact_totals(totals.size()), counts((size_t)cells);
    const auto run = [&] {
        for (Doubles* sums : {&exact_pooled, &exact_totals, &counts}) std::fill(sums->begin(), sums->end(), 0.0);
        for (int64_t cell = 0; cell < cells; ++cell) {
            const int64_t b = cell / (P * C), channel = cell % C;
            for (int64_t i = b * L; i < (b + 1) * L; ++i) {
                if (slots[(size_t)i] != channel || times[(size_t)i] > asked[(size_t)(cell / C)]) continue;
                counts[(size_t)cell] += 1;
                for (int64_t h = 0; h < H; ++h)
                    exact_pooled[(size_t)(cell * H + h)] +=
                        std::exp(scores.exact[(size_t)(i * Q + h / (H / Q))]) * parts.exact[(size_t)(i * H + h)];
                for (int64_t q = 0; q < Q; ++q) exact_totals[(size_t)(cell * Q + q)] += std::exp(scores.exact[(size_t)(i * Q + q)]);
            }
            for (int64_t h = 0; h < H && counts[(size_t)cell] > 0; ++h)
                exact_pooled[(size_t)(cell * H + h)] /= exact_totals[(size_t)(cell * Q + h / (H / Q))];
        }
        return dot(exact_pooled, grad_pooled) + dot(exact_totals, grad_totals);
    };
    run();
    printf("running batch %d length %d predictions %d channels %d width %d queries %d threads %d\n", (int)B, (int)L, (int)P,
           (int)C, (int)H, (int)Q, (int)threads);
    Error counted;
    for (int64_t cell = 0; cell < cells; ++cell) counted.add(counts[(size_t)cell], statistics[(size_t)(cell * S)]);
    report("count", counted, 0);
    report("pooled", compare(pooled, exact_pooled), 2e-6);
    report("totals", compare(totals, exact_totals), 2e-6);
    check_gradient("parts", run, parts.exact, parts.grad, 1e-5);
    check_gradient("scores", run, scores.exact, scores.grad, 1e-5);
}

// -------------------------------------------------------------------------------------- channel memory

// What is known after events: what the kernel above says at that time.
void check_memory(int64_t B, int64_t L, int64_t V, int64_t H, int64_t Q, int64_t threads) {
    const std::vector<int64_t> lengths = some_lengths(B, L, true);
    const std::vector<float> parts = random_floats(B * L * H, -1, 1), scores = random_floats(B * L * Q, -8, 8);
    const std::vector<float> values = random_floats(B * L, -2, 2);
    const std::vector<uint8_t> value_mask = random_mask(B * L, 0.8);
    std::vector<float> times((size_t)(B * L)), now((size_t)B, (float)L);
    std::vector<int64_t> slots((size_t)(B * L), -1), variables((size_t)(B * L), 0), ids((size_t)(B * (V + 1)), -1);
    for (int64_t b = 0; b < B; ++b) {
        for (int64_t i = 0; i < L; ++i) times[(size_t)(b * L + i)] = (float)(i / 2);
        for (int64_t i = b * L; i < b * L + lengths[(size_t)b]; ++i)
            slots[(size_t)i] = variables[(size_t)i] = (int64_t)(engine() % (uint64_t)V);
        for (int64_t v = 0; v < V; ++v) ids[(size_t)(b * (V + 1) + v)] = v;  // and one of padding
    }
    const std::vector<double> half_life = {0.3, 2.0};
    const int64_t S = kQuantities + kHalfLifeQuantities * 2, numbers = History::size(2);
    std::vector<float> pooled((size_t)(B * V * H)), totals((size_t)(B * V * Q)), statistics((size_t)(B * V * S));
    RunningArguments r{};
    r.batch = B, r.length = L, r.predictions = 1, r.channels = V, r.width = H, r.queries = Q, r.half_lives = 2, r.threads = threads;
    r.parts = parts.data(), r.scores = scores.data(), r.values = values.data(), r.times = times.data();
    r.value_mask = value_mask.data(), r.slots = slots.data(), r.prediction_times = now.data(), r.half_life = half_life.data();
    r.pooled = pooled.data(), r.totals = totals.data(), r.statistics = statistics.data();
    failures += hymate_running_forward(&r) != kOk;

    std::vector<float> sums((size_t)(B * V * (H + Q))), next_sums(sums.size());
    Doubles history((size_t)(B * V * numbers)), next_history(history.size());
    MemoryArguments m{};
    m.batch = B, m.length = L, m.variables = V, m.width = H, m.queries = Q, m.half_lives = 2, m.threads = threads;
    m.half_life = half_life.data(), m.parts = parts.data(), m.scores = scores.data(), m.values = values.data();
    m.times = times.data(), m.value_mask = value_mask.data(), m.variable_ids = variables.data(), m.lengths = lengths.data();
    m.sums = sums.data(), m.history = history.data(), m.new_sums = next_sums.data(), m.new_history = next_history.data();
    failures += hymate_remember_channels(&m) != kOk;
    std::vector<float> recalled((size_t)(B * (V + 1) * H)), described((size_t)(B * (V + 1) * S));
    m.sums = next_sums.data(), m.history = next_history.data(), m.now = now.data(), m.channels = V + 1;
    m.channel_ids = ids.data(), m.pooled = recalled.data(), m.quantities = described.data();
    failures += hymate_recall_channels(&m) != kOk;
    Error means, quantities;
    for (int64_t cell = 0; cell < B * (V + 1); ++cell) {
        const int64_t b = cell / (V + 1), v = cell % (V + 1);
        for (int64_t h = 0; h < H; ++h)
            means.add(v < V ? pooled[(size_t)((b * V + v) * H + h)] : 0, recalled[(size_t)(cell * H + h)]);
        for (int64_t k = 0; k < S; ++k)
            quantities.add(v < V ? statistics[(size_t)((b * V + v) * S + k)] : 0, described[(size_t)(cell * S + k)]);
    }
    printf("memory batch %d length %d variables %d width %d queries %d threads %d\n", (int)B, (int)L, (int)V, (int)H, (int)Q,
           (int)threads);
    report("means", means, 2e-6);
    report("quantities", quantities, 0);

    std::vector<float> scaled(described.size());
    std::vector<uint8_t> present(described.size());
    StatisticArguments s{};
    s.cells = B * (V + 1), s.half_lives = 2, s.threads = threads, s.time_scale = 64;
    s.quantities = described.data(), s.statistics = scaled.data(), s.present = present.data();
    failures += hymate_channel_statistics(&s) != kOk;
    Error ages;
    for (int64_t cell = 0; cell < B * (V + 1); ++cell) {
        const double hours = 64 * (double)described[(size_t)(cell * S + 2)];  // since the last event
        const double age = std::fmin(4, std::log1p(hours) * 5 / std::log1p(64.0) - 2.5);
        ages.add(age, scaled[(size_t)(cell * S + 13)]);
        failures += present[(size_t)(cell * S + 13)] != (described[(size_t)(cell * S)] > 0);
    }
    report("ages", ages, 2e-6);
}

// -------------------------------------------------------------------------------------- channel tokens

void check_channel_tokens(int64_t B, int64_t P, int64_t C, int64_t H, int64_t S, int64_t bins, int64_t threads) {
    const int64_t V = 5, cells = B * P * C;
    const std::vector<uint8_t> mask = random_mask(cells, 0.8), present = random_mask(cells * S, 0.8);
    const std::vector<float> statistic = random_floats(cells * S, -4, 4), grad_out = random_floats(cells * H, -1, 1);
    std::vector<int64_t> ids((size_t)(B * C));
    for (int64_t& id : ids) id = (int64_t)(engine() % (uint64_t)V);
    Argument pooled(cells * H, -1, 1), embedding(V * H, -1, 1), knots(V * S * (bins + 1) * H, -1, 1);
    std::vector<float> out((size_t)(cells * H));
    TokenArguments a{};
    a.batch = B, a.predictions = P, a.channels = C, a.width = H, a.statistics = S, a.bins = bins, a.variables = V;
    a.threads = threads, a.pooled = pooled.value.data(), a.mask = mask.data(), a.statistic = statistic.data();
    a.present = present.data(), a.channel_ids = ids.data(), a.embedding = embedding.value.data(), a.knots = knots.value.data();
    a.out = out.data(), a.grad_out = grad_out.data(), a.grad_pooled = pooled.grad.data();
    a.grad_embedding = embedding.grad.data(), a.grad_knots = knots.grad.data();
    failures += hymate_tokens_forward(&a) != kOk;
    failures += hymate_tokens_backward(&a) != kOk;
    Doubles y(out.size());
    const auto run = [&] {
        for (int64_t cell = 0; cell < cells; ++cell)
            for (int64_t h = 0; h < H; ++h) {
                const int64_t variable = ids[(size_t)(cell / (P * C) * C + cell % C)];
                double sum = pooled.exact[(size_t)(cell * H + h)] + embedding.exact[(size_t)(variable * H + h)];
                for (int64_t s = 0; s < S; ++s) {
                    if (!present[(size_t)(cell * S + s)]) continue;
                    const double place = ((double)statistic[(size_t)(cell * S + s)] + 2.5) * (double)bins / 5;
                    const int64_t lower = (int64_t)std::fmin(std::fmax(std::floor(place), 0), (double)bins - 1);
                    const int64_t knot = ((variable * S + s) * (bins + 1) + lower) * H + h;
                    const double share = place - (double)lower;
                    sum += (1 - share) * knots.exact[(size_t)knot] + share * knots.exact[(size_t)(knot + H)];
                }
                y[(size_t)(cell * H + h)] = mask[(size_t)cell] ? sum : 0;
            }
        return dot(y, grad_out);
    };
    run();
    printf("tokens batch %d predictions %d channels %d width %d statistics %d bins %d threads %d\n", (int)B, (int)P, (int)C,
           (int)H, (int)S, (int)bins, (int)threads);
    report("y", compare(out, y), 2e-6);
    check_gradient("pooled", run, pooled.exact, pooled.grad);
    check_gradient("embedding", run, embedding.exact, embedding.grad);
    check_gradient("knots", run, knots.exact, knots.grad);
}

}  // namespace

void check_tokens() {
    check_layer({7, 25, 32, 4, 64, 2});
    check_layer({2, 150, 24, 3, 10, 1});
    check_layer({5, 1, 8, 2, 16, 3});
    check_layer({9, 9, 10, 5, 3, 2});
    check_layer({0, 9, 10, 5, 3, 2});
    check_fusion(7, 25, 32, 2);
    check_fusion(2, 150, 24, 1);
    check_fusion(9, 5, 6, 3);
    check_running(3, 40, 6, 4, 32, 4, 2);
    check_running(4, 17, 1, 3, 24, 3, 3);
    check_running(2, 30, 5, 2, 10, 1, 1);
    check_running(2, 0, 5, 2, 10, 1, 1);
    check_memory(3, 40, 4, 32, 4, 2);
    check_memory(4, 17, 3, 24, 3, 3);
    check_memory(2, 30, 2, 10, 1, 1);
    check_memory(2, 0, 2, 10, 1, 1);
    check_channel_tokens(3, 4, 5, 32, 7, 2, 2);
    check_channel_tokens(2, 1, 3, 70, 3, 4, 3);
    check_channel_tokens(1, 6, 2, 10, 2, 1, 1);
}

}  // namespace checks
