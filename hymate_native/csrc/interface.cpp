// What Python asks a library before it calls its kernels.
#include "interface.h"

#include "exports.h"

using namespace hymate;

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
