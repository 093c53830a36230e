// The type of the sequences that a kernel reads and writes; arithmetic is in float.
// Macro: REAL = 0 (float), 1 (half) or 2 (bfloat16).

#pragma once

#include "fast_math.cuh"

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

// Stores where `there` holds, but computes x everywhere: the threads of a warp do not wait for a branch per value.
__device__ __forceinline__ void store_if(bool there, real* to, float x) {
    real y;
    store(&y, x);
#if !defined(__CUDA_ARCH__)
    if (there) *to = y;
#elif REAL == 0
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.f32 [%1], %2;}" ::"r"((int)there), "l"(to), "f"(y));
#else
    asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.global.u16 [%1], %2;}" ::"r"((int)there), "l"(to), "h"(y));
#endif
}

constexpr float LOG2E = 1.44269504f;

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-LOG2E * x)); }
