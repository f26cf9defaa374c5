// The functions of a Mamba layer that Python calls. Each returns a Status; arguments are checked in Python.
#include "exports.h"
#include "mixer_step.h"

using namespace hymate;

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
