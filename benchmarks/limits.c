/* What this machine can do at most: exponentials a second with the C library's vector expf, and bytes a second.
   A program of its own, since -ffast-math, which libmvec needs, changes the floating-point mode of a whole process. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define CACHED 4096
#define STREAMED (1 << 25)

int main(void) {
    double best_exp = 0, best_bytes = 0;
    float *from = malloc(sizeof(float) * STREAMED), *to = malloc(sizeof(float) * STREAMED);
#pragma omp parallel for
    for (long i = 0; i < STREAMED; i++) from[i] = to[i] = -1e-3f * (float)(i % 1000);
    for (int repeat = 0; repeat < 20; repeat++) {
        double started = omp_get_wtime(), count = 0;
#pragma omp parallel reduction(+ : count)
        {
            static _Thread_local float in[CACHED], out[CACHED];
            for (int i = 0; i < CACHED; i++) in[i] = -1e-3f * (float)i;
            for (int round = 0; round < 4000; round++) {
                for (int i = 0; i < CACHED; i++) out[i] = expf(in[i]);
                __asm__ volatile("" : : "r"(out) : "memory");
                count += CACHED;
            }
        }
        double rate = count / (omp_get_wtime() - started);
        if (rate > best_exp) best_exp = rate;
        started = omp_get_wtime();
#pragma omp parallel for
        for (long i = 0; i < STREAMED; i++) to[i] = from[i];
        __asm__ volatile("" : : "r"(to), "r"(from) : "memory");
        rate = 2.0 * sizeof(float) * STREAMED / (omp_get_wtime() - started);
        if (rate > best_bytes) best_bytes = rate;
    }
    printf("%.6e %.6e\n", best_exp, best_bytes);
    return 0;
}
