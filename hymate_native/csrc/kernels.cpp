// The functions that Python calls. Each returns a Status; arguments are checked in Python.
#include "interface.h"
#include "mixer_step.h"

using namespace hymate;

#define HYMATE_EXPORT extern "C" __attribute__((visibility("default")))

#define HYMATE_BY_DTYPE(dtype, function, arguments)          \
    switch (dtype) {                                         \
        case kFloat32: return function<float>(arguments);    \
        case kBfloat16: return function<Bfloat16>(arguments); \
        case kFloat16: return function<Float16>(arguments);  \
        default: return kBadArgument;                        \
    }

HYMATE_EXPORT int hymate_scan_forward(const ScanArguments* s) { HYMATE_BY_DTYPE(s->dtype, scan_forward, *s) }
HYMATE_EXPORT int hymate_scan_backward(const ScanArguments* s) { HYMATE_BY_DTYPE(s->dtype, scan_backward, *s) }
HYMATE_EXPORT int hymate_convolution_forward(const ConvolutionArguments* c) {
    if (c->kernel > kLargeKernel) return kBadArgument;
    HYMATE_BY_DTYPE(c->dtype, convolution_forward, *c)
}
HYMATE_EXPORT int hymate_convolution_backward(const ConvolutionArguments* c) {
    if (c->kernel > kLargeKernel) return kBadArgument;
    HYMATE_BY_DTYPE(c->dtype, convolution_backward, *c)
}
HYMATE_EXPORT int hymate_mixer_forward(const MixerArguments* m) {
    if (m->kernel > kLargeKernel) return kBadArgument;
    HYMATE_BY_DTYPE(m->dtype, mixer_forward, *m)
}
HYMATE_EXPORT int hymate_mixer_backward(const MixerArguments* m) {
    if (m->kernel > kLargeKernel) return kBadArgument;
    HYMATE_BY_DTYPE(m->dtype, mixer_backward, *m)
}
HYMATE_EXPORT int hymate_mixer_step(const MixerArguments* m) {
    if (m->kernel > kLargeKernel) return kBadArgument;
    HYMATE_BY_DTYPE(m->dtype, mixer_step, *m)
}

// What Python compares with its own structures; the last entry has no name.
HYMATE_EXPORT const InterfaceEntry* hymate_interface() { return kInterface; }

// Whether this library may run here: 1 for the portable build, elsewhere by the level it was compiled for.
HYMATE_EXPORT int hymate_supports(int level) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return level <= 1 || (level == 2 && v2) || (level == 3 && v3) || (level == 4 && v4);
#else
    return level <= 1;
#endif
}

// Whether this processor has instructions for products of a half type.
HYMATE_EXPORT int hymate_multiplies(int dtype) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (dtype == kBfloat16) return __builtin_cpu_supports("avx512bf16") != 0;
    if (dtype == kFloat16) return __builtin_cpu_supports("avx512fp16") != 0;
#endif
    return 0;
}
