// What the kernels of the selective scan share: their geometry, the way through a chunk, and the staging of tiles.
//
// Sequences are token-major: x, delta, gate and the results `[batch, length, channels]`, B and C `[batch, length, N]`.
// A block owns 32 channels of one item over one chunk of the length; a lane is a channel, and a warp holds up to four
// of its states per group of states in registers. Tiles of positions are staged in shared memory, where every warp
// reads all of them. Values wait in registers for their tile in the type of memory: a conversion right after the load
// would wait for it.
//
// Macros: STATES = N, 1..64; REAL = 0 (float), 1 (half) or 2 (bfloat16), the type of the sequences; SOFTPLUS = 1 where
// step sizes are softplus(delta + bias), 0 where they are delta + bias; GATED = 1 where there is a gate, else 0.

#pragma once

#include "real.cuh"

#ifndef STATES
#define STATES 16
#endif
#ifndef SOFTPLUS
#define SOFTPLUS 1
#endif
#ifndef GATED
#define GATED 1
#endif

constexpr int LANES = 32;
constexpr int TILE = STATES > 16 ? 16 : 32;                     // positions staged at once
constexpr int GROUPS = STATES > 32 ? 4 : (STATES + 15) / 16;    // of states
constexpr int WARPS = (STATES + 4 * GROUPS - 1) / (4 * GROUPS);  // each with four states of every group
constexpr int THREADS = LANES * WARPS;
constexpr int SLOTS = 4 * GROUPS * WARPS;                      // states with padding
constexpr int ROWS = (TILE + WARPS - 1) / WARPS;  // positions of a tile that a warp stages
constexpr int PAIR_ROWS = THREADS / SLOTS;        // positions of B (of C) that the block stages side by side
constexpr int PAIRS = TILE / PAIR_ROWS;           // values of B (of C) that a thread stages

// Where a tensor [batch, length, columns] with dense columns lies.
#define LAYOUT(name) u64 name##_item, u64 name##_position

// log(1 + e^x) without branches: max(x, 0) + log(1 + u), u = e^-|x|, where log(1 + u) = 2 artanh(u / (2 + u)) as a
// series, whose argument is at most 1/3.
__device__ __forceinline__ float softplus(float x) {
    const float u = exp2_fast(-LOG2E * fabsf(x)), s = u * reciprocal(2.0f + u), z = s * s;
    float sum = fmaf(z, 1.0f / 13, 1.0f / 11);
    sum = fmaf(z, sum, 1.0f / 9), sum = fmaf(z, sum, 1.0f / 7), sum = fmaf(z, sum, 1.0f / 5);
    sum = fmaf(z, sum, 1.0f / 3), sum = fmaf(z, sum, 1.0f);
    return fmaf(2.0f * s, sum, fmaxf(x, 0.0f));
}

// The step size from delta + bias.
__device__ __forceinline__ float step_from(float raw) { return SOFTPLUS ? softplus(raw) : raw; }

// A row of four neighbouring states in shared memory.
__device__ __forceinline__ void load4(float (&to)[4], const float* from) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// A lane's place in the grid: blocks run over the channels first, then over the chunks, then over the items.
struct Place {
    int lane, warp, channel, item;
    bool inside;
    int chunk, chunks;
    int tiles, first, last;  // tiles of the whole length; the chunk's own are [first, last)
    int column;              // counts 32 channels of an item
};

__device__ __forceinline__ Place find_place(int channels, int length, int chunk_tiles) {
    const int across = (channels + LANES - 1) / LANES, tiles = (length + TILE - 1) / TILE;
    const int chunks = (tiles + chunk_tiles - 1) / chunk_tiles, row = blockIdx.x / across;
    const int item = row / chunks, chunk = row - item * chunks, group = blockIdx.x - row * across;
    const int lane = threadIdx.x % LANES, channel = group * LANES + lane, first = chunk * chunk_tiles;
    const int last = first + chunk_tiles < tiles ? first + chunk_tiles : tiles;
    return {lane,  (int)threadIdx.x / LANES, channel, item, channel < channels, chunk, chunks, tiles, first, last,
            item * across + group};
}

__device__ __forceinline__ int state_of(const Place& p, int group, int i) { return (group * WARPS + p.warp) * 4 + i; }

// Where a thread's four states of a group lie among those kept at the starts of tiles, or at the ends of chunks.
__device__ __forceinline__ u64 kept_at(u64 row, int group) { return (row * GROUPS + group) * THREADS + threadIdx.x; }

// A in base 2, zero for padding: such states never leave zero.
__device__ __forceinline__ void load_decay(float (&a)[GROUPS][4], const float* decay, const Place& p) {
#pragma unroll
    for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int n = state_of(p, g, i);
            a[g][i] = p.inside && n < STATES ? decay[(u64)p.channel * STATES + n] * LOG2E : 0.0f;
        }
}

// Takes what enters the chunk (the state, or backwards its gradient) through another one: by the states that this one
// ends with from zero, and by its sum of step sizes. A state of zero stays zero even where the decay overflows.
__device__ __forceinline__ void pass_chunk(float (&h)[GROUPS][4], const float (&a)[GROUPS][4], const float4* ends,
                                           const float* spans, u64 row, const Place& p) {
    const float span = spans[row * LANES + p.lane];
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        float end[4];
        load4(end, reinterpret_cast<const float*>(ends + kept_at(row, g)));
#pragma unroll
        for (int i = 0; i < 4; ++i)
            h[g][i] = h[g][i] == 0.0f ? end[i] : fmaf(exp2_fast(span * a[g][i]), h[g][i], end[i]);
    }
}

// A lane's share of a sequence in the tile at `start`: positions warp, warp + WARPS, ...; zero past the end.
__device__ __forceinline__ void fetch_rows(real (&to)[ROWS], const real* from, u64 stride, int start, int length,
                                           const Place& p) {
    const int rows = length - start < TILE ? length - start : TILE, left = p.inside ? rows - p.warp : 0;
    const u64 hop = WARPS * stride;
    from += (u64)(start + p.warp) * stride;
#pragma unroll
    for (int i = 0; i < ROWS; ++i, from += hop) to[i] = i * WARPS < left ? *from : real(0);
}

// A thread's share of B (or C) of the tile at `start`.
__device__ __forceinline__ void fetch_pairs(real (&to)[PAIRS], const real* from, u64 stride, int start, int length) {
    const int first = start + threadIdx.x / SLOTS, n = threadIdx.x % SLOTS, left = n < STATES ? length - first : 0;
    const u64 hop = PAIR_ROWS * stride;
    from += (u64)first * stride + n;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i, from += hop) to[i] = i * PAIR_ROWS < left ? *from : real(0);
}

__device__ __forceinline__ void stage_pairs(float* to, const real (&from)[PAIRS]) {
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) to[threadIdx.x + i * THREADS] = to_float(from[i]);
}

// Whether row i of a thread's share lies in the tile; always, where the warps divide it.
__device__ __forceinline__ bool in_tile(int i, const Place& p) { return TILE % WARPS == 0 || p.warp + i * WARPS < TILE; }
