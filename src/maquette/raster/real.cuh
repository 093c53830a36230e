// The type of the sequences that a kernel reads and writes; arithmetic is in float.
// Macro: REAL = 0 (float), 1 (half) or 2 (bfloat16).

#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#ifndef REAL
#define REAL 0
#endif
#if REAL == 0
typedef float real;
#else
typedef u16 real;
#endif

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(u16 x) {
    float y;
#if REAL == 1
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
#else
    y = __uint_as_float((u32)x << 16);
#endif
    return y;
}

__device__ __forceinline__ void store(float* to, float x) { *to = x; }

__device__ __forceinline__ void store(u16* to, float x) {
    u16 y;
#if REAL == 1
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
#endif
    *to = y;
}

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
