// The processor probe, and what makes the shared library an importable module (its functions are called by ctypes).
#include "cpu.h"

#if defined(NW_WITH_PYTHON)
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, NULL, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
#endif

static int forced = -1;

static int has(int level) {
#if NW_X86
    if (level == LEVEL_AVX512_VNNI)
        return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vnni");
    if (level == LEVEL_AVX_VNNI) return __builtin_cpu_supports("avxvnni");
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#elif defined(__aarch64__)
    return level == LEVEL_NEON;
#else
    (void)level;
    return 0;
#endif
}

static int best_level(int most) {
#if NW_X86
    __builtin_cpu_init();
    if (!has(LEVEL_AVX2)) return PORTABLE;
#endif
    while (most > PORTABLE && !has(most)) most--;
    return most;
}

EXPORT int nw_level(void) {
    static int known = -1;
    if (known < 0) known = best_level(LEVEL_AVX512_VNNI);
    return forced >= 0 && forced < known ? best_level(forced) : known;
}

// For tests: use no more than these instructions; -1 uses all there are.
EXPORT void nw_force_level(int level) { forced = level; }
