// What both directions of blending share: a block of 128 threads walks the pairs of one tile front to back.
//
// A warp owns one 8 x 8 quadrant of the tile and a thread two pixels, four rows apart. The tile's pairs are staged in
// shared memory in batches; while staging, one thread per Gaussian tests exactly which quadrants its ellipse reaches.
// A warp lists those that reach its own and walks them two at a time, without branches, so that the long chains of
// instructions of two Gaussians and two pixels overlap. Exponentials are in base 2.
#pragma once

#include "fast_math.cuh"
#include "gaussian_common.cuh"

constexpr int BATCH = 128;
constexpr int NOTHING = BATCH;  // place of a Gaussian that reaches no pixel, to make an odd list even
constexpr float CULL_SLACK = 0.01f;  // in log2(alpha), errs on the side of keeping

struct __align__(16) Stage {
    float4 a[BATCH + 1];  // u, v, A, B
    float4 b[BATCH + 1];  // C, log2 opacity, red, green
    float4 c[BATCH + 1];  // blue, z, opacity, opacity within the clamp
    unsigned char quadrants[BATCH];
    unsigned char reaching[4][BATCH];  // per warp, the places of the Gaussians that reach its quadrant, in order
};

struct Tile {
    int bv, x, y;  // view and first pixel
    u32 start, end;
};

struct Image {
    int width, height;
    size_t pixels;
};

__device__ __forceinline__ Tile load_tile(int index, const u32* starts, const u32* ends, int tiles_x,
                                          int tiles_per_view) {
    const int bv = index / tiles_per_view, tile = index - bv * tiles_per_view;
    const int row = tile / tiles_x;
    return {bv, (tile - row * tiles_x) * TILE, row * TILE, starts[index], ends[index]};
}

// Largest A dx^2 + B dx dy + C dy^2 (A, C < 0) over the pixel centres' box from (x, y) to (x + 7, y + 7).
__device__ __forceinline__ float largest_power(float4 a, float c, float slope_x, float slope_y, float x, float y) {
    const float near_x = fminf(fmaxf(a.x, x), x + 7.0f), near_y = fminf(fmaxf(a.y, y), y + 7.0f);
    const float dx = a.x - near_x, dy = a.y - near_y;
    float best = -1e30f;
    if (dx == 0.0f && dy == 0.0f) best = 0.0f;
    if (dx != 0.0f) {
        const float ey = a.y - fminf(fmaxf(a.y + slope_y * dx, y), y + 7.0f);
        best = a.z * dx * dx + a.w * dx * ey + c * ey * ey;
    }
    if (dy != 0.0f) {
        const float ex = a.x - fminf(fmaxf(a.x + slope_x * dy, x), x + 7.0f);
        best = fmaxf(best, a.z * ex * ex + a.w * ex * dy + c * dy * dy);
    }
    return best;
}

// Returns whether the Gaussian reaches the tile.
__device__ __forceinline__ bool stage_pair(Stage& stage, int place, u32 slot, const float4* __restrict__ records,
                                           const float* __restrict__ colors, size_t first_color, const Tile& tile) {
    const float4 r0 = __ldg(records + 2 * (size_t)slot), r1 = __ldg(records + 2 * (size_t)slot + 1);
    const float3 color = load3(colors, first_color + __float_as_uint(r1.w));
    stage.a[place] = r0;
    stage.b[place] = make_float4(r1.x, r1.y, color.x, color.y);
    const float opacity = exp2_fast(r1.y);
    stage.c[place] = make_float4(color.z, r1.z, opacity, fminf(opacity, MAX_ALPHA));
    const float least = LOG2_MIN_ALPHA - CULL_SLACK - r1.y;
    const float slope_x = __fdividef(r0.w, 2.0f * r0.z), slope_y = __fdividef(r0.w, 2.0f * r1.x);
    u32 quadrants = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float x = tile.x + (i & 1) * 8 + 0.5f, y = tile.y + (i >> 1) * 8 + 0.5f;
        if (largest_power(r0, r1.x, slope_x, slope_y, x, y) >= least) quadrants |= 1u << i;
    }
    stage.quadrants[place] = quadrants;
    return quadrants;
}

// Brings a record from memory to the L2 cache, ahead of staging it.
__device__ __forceinline__ void prefetch_record(const float4* records, u32 slot) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(records + 2 * (size_t)slot));
#endif
}

// By one thread, before the first batch.
__device__ __forceinline__ void stage_nothing(Stage& stage) {
    stage.a[NOTHING] = stage.c[NOTHING] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    stage.b[NOTHING] = make_float4(0.0f, -1e30f, 0.0f, 0.0f);
}

// Lists what reaches the warp's quadrant and returns the length of the list, which is followed by NOTHING when odd.
__device__ __forceinline__ int list_reaching(Stage& stage, int warp, int lane) {
    int length = 0;
#pragma unroll
    for (int k = 0; k < BATCH; k += 32) {
        const bool reaches = (stage.quadrants[k + lane] >> warp) & 1;
        const u32 all = __ballot_sync(FULL_WARP, reaches);
        if (reaches) stage.reaching[warp][length + __popc(all & ((1u << lane) - 1))] = k + lane;
        length += __popc(all);
    }
    if (lane == 0 && (length & 1)) stage.reaching[warp][length] = NOTHING;
    __syncwarp();
    return length;
}

// The places of list entries `index` (even) and `index + 1`.
__device__ __forceinline__ int2 two_reaching(const Stage& stage, int warp, int index) {
    const u32 both = *(const unsigned short*)(stage.reaching[warp] + index);
    return make_int2(both & 255, both >> 8);
}

// log2(alpha) of one Gaussian in a thread's two pixels. Rounding may lift it over the opacity; that is cut off later.
__device__ __forceinline__ float2 log2_alphas(float4 a, float4 b, float x, float y) {
    const float dx = a.x - x, dy0 = a.y - y, dy1 = dy0 - 4.0f;
    const float base = fmaf(a.z * dx, dx, b.y), skew = a.w * dx;
    return make_float2(fmaf(fmaf(b.x, dy0, skew), dy0, base), fmaf(fmaf(b.x, dy1, skew), dy1, base));
}
