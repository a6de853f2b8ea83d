// The processor probe, and what makes the shared library an importable module (its functions are called by ctypes).
#include "cpu.h"

#if defined(NW_WITH_PYTHON)
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, NULL, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
#endif

static int forced = -1;

static int found_level(void) {
#if NW_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return PORTABLE;
    int wide = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
    return wide ? LEVEL_VNNI : LEVEL_AVX2;
#elif defined(__aarch64__)
    return LEVEL_NEON;
#else
    return PORTABLE;
#endif
}

EXPORT int nw_level(void) {
    static int known = -1;
    if (known < 0) known = found_level();
    return forced >= 0 && forced < known ? forced : known;
}

// For tests: use no more than these instructions; -1 uses all there are.
EXPORT void nw_force_level(int level) { forced = level; }
