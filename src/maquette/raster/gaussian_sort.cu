// Orders the pairs of every tile front to back: by depth, then by the Gaussians' own order, so that the order is unique
// however slots were taken and pairs were written. `depths` holds, by slot, the bits of positive floats, which compare
// like the floats.
#include "gaussian_common.cuh"

namespace {

__device__ __forceinline__ u32 gaussian_of(const float4* __restrict__ records, u32 slot) {
    return __float_as_uint(__ldg(records + 2 * (size_t)slot + 1).w);
}

// How many of the (depth, slot) from `first` to `end` come before one of them: nearer ones, then those of Gaussians with
// smaller numbers.
__device__ __forceinline__ u32 count_before(const uint2* pairs, u32 first, u32 end, uint2 own,
                                            const float4* __restrict__ records) {
    u32 count = 0, equal = 0;
    for (u32 j = first; j < end; ++j) {
        count += pairs[j].x < own.x;
        equal += pairs[j].x == own.x;
    }
    if (equal == 1) return count;
    const u32 gaussian = gaussian_of(records, own.y);
    for (u32 j = first; j < end; ++j)
        if (pairs[j].x == own.x) count += gaussian_of(records, pairs[j].y) < gaussian;
    return count;
}

// Bucket sort of one segment of at most CAPACITY pairs in shared memory. Buckets split the segment's own range of
// depths evenly, so they hold few pairs each; within a bucket a pair's place is the number of smaller ones.
template <int CAPACITY, int THREADS, int LOG2_BUCKETS>
__device__ __forceinline__ void sort_segment(u32* segment, u32 pairs, const u32* __restrict__ depths,
                                             const float4* __restrict__ records) {
    constexpr int EACH = CAPACITY / THREADS, BUCKETS = 1 << LOG2_BUCKETS, SHARE = BUCKETS / THREADS;
    constexpr int WARPS = THREADS / 32;
    static_assert(CAPACITY % THREADS == 0 && BUCKETS % THREADS == 0, "threads must divide the work");
    __shared__ uint2 sorted[CAPACITY];
    __shared__ u32 ends[BUCKETS], lows[WARPS], highs[WARPS], sums[WARPS];
    const u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;

    u32 depth[EACH], index[EACH], low = 0xffffffffu, high = 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k)  // all loads of a kind before the first use of one
        index[k] = tid + k * THREADS < pairs ? segment[tid + k * THREADS] : 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) depth[k] = tid + k * THREADS < pairs ? __ldg(depths + index[k]) : 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        if (tid + k * THREADS >= pairs) continue;
        low = min(low, depth[k]);
        high = max(high, depth[k]);
    }
    low = __reduce_min_sync(FULL_WARP, low);
    high = __reduce_max_sync(FULL_WARP, high);
    if (lane == 0) {
        lows[warp] = low;
        highs[warp] = high;
    }
    for (int i = tid; i < BUCKETS; i += THREADS) ends[i] = 0;
    __syncthreads();
    for (int i = 0; i < WARPS; ++i) {
        low = min(low, lows[i]);
        high = max(high, highs[i]);
    }
    const int shift = max(32 - __clz(high - low) - LOG2_BUCKETS, 0);

#pragma unroll
    for (int k = 0; k < EACH; ++k)
        if (tid + k * THREADS < pairs) atomicAdd(ends + ((depth[k] - low) >> shift), 1u);
    __syncthreads();

    u32 share[SHARE], sum = 0;  // exclusive prefix sum over the buckets
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
        share[i] = sum;
        sum += ends[tid * SHARE + i];
    }
    u32 inclusive = sum;
    for (int step = 1; step < 32; step *= 2) {
        const u32 other = __shfl_up_sync(FULL_WARP, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    u32 before = inclusive - sum;
    for (int i = 0; i < WARPS; ++i)
        if (i < warp) before += sums[i];
#pragma unroll
    for (int i = 0; i < SHARE; ++i) ends[tid * SHARE + i] = before + share[i];
    __syncthreads();

#pragma unroll
    for (int k = 0; k < EACH; ++k)  // turns the starts into ends
        if (tid + k * THREADS < pairs)
            sorted[atomicAdd(ends + ((depth[k] - low) >> shift), 1u)] = make_uint2(depth[k], index[k]);
    __syncthreads();

    for (u32 i = tid; i < pairs; i += THREADS) {
        const uint2 own = sorted[i];
        const u32 bucket = (own.x - low) >> shift;
        const u32 first = bucket ? ends[bucket - 1] : 0, end = ends[bucket];
        segment[first + count_before(sorted, first, end, own, records)] = own.y;
    }
}

constexpr int LARGE_THREADS = 1024, LARGE_BUCKETS = 8192, LOG2_LARGE_BUCKETS = 13;
constexpr u32 FULL_BUCKET = 1024;

// The same for a segment of any size, by way of `scratch` in global memory; `ends` has room for LARGE_BUCKETS. Returns
// false, with the segment as it was, when a bucket holds so many pairs that comparing them all would take too long.
__device__ __forceinline__ bool sort_by_buckets(u32* segment, uint2* scratch, u32 pairs,
                                                const u32* __restrict__ depths,
                                                const float4* __restrict__ records, u32* ends) {
    constexpr int WARPS = LARGE_THREADS / 32, SHARE = LARGE_BUCKETS / LARGE_THREADS;
    __shared__ u32 lows[WARPS], highs[WARPS], sums[WARPS];
    const u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    u32 low = 0xffffffffu, high = 0;
    for (u32 i = tid; i < pairs; i += LARGE_THREADS) {
        const u32 depth = __ldg(depths + segment[i]);
        low = min(low, depth);
        high = max(high, depth);
    }
    low = __reduce_min_sync(FULL_WARP, low);
    high = __reduce_max_sync(FULL_WARP, high);
    if (lane == 0) {
        lows[warp] = low;
        highs[warp] = high;
    }
    for (int i = tid; i < LARGE_BUCKETS; i += LARGE_THREADS) ends[i] = 0;
    __syncthreads();
    for (int i = 0; i < WARPS; ++i) {
        low = min(low, lows[i]);
        high = max(high, highs[i]);
    }
    const int shift = max(32 - __clz(high - low) - LOG2_LARGE_BUCKETS, 0);
    for (u32 i = tid; i < pairs; i += LARGE_THREADS)
        atomicAdd(ends + ((__ldg(depths + segment[i]) - low) >> shift), 1u);
    __syncthreads();

    u32 share[SHARE], sum = 0, fullest = 0;  // exclusive prefix sum over the buckets
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
        const u32 here = ends[tid * SHARE + i];
        share[i] = sum;
        sum += here;
        fullest = max(fullest, here);
    }
    if (__syncthreads_or(fullest > FULL_BUCKET)) return false;
    u32 inclusive = sum;
    for (int step = 1; step < 32; step *= 2) {
        const u32 other = __shfl_up_sync(FULL_WARP, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    u32 before = inclusive - sum;
    for (int i = 0; i < WARPS; ++i)
        if (i < warp) before += sums[i];
#pragma unroll
    for (int i = 0; i < SHARE; ++i) ends[tid * SHARE + i] = before + share[i];
    __syncthreads();

    for (u32 i = tid; i < pairs; i += LARGE_THREADS) {  // turns the starts into ends
        const u32 index = segment[i], depth = __ldg(depths + index);
        scratch[atomicAdd(ends + ((depth - low) >> shift), 1u)] = make_uint2(depth, index);
    }
    __syncthreads();
    for (u32 i = tid; i < pairs; i += LARGE_THREADS) {
        const uint2 own = scratch[i];
        const u32 bucket = (own.x - low) >> shift;
        const u32 first = bucket ? ends[bucket - 1] : 0, end = ends[bucket];
        segment[first + count_before(scratch, first, end, own, records)] = own.y;
    }
    return true;
}

}  // namespace

// One block a tile; tiles of more pairs than fit are left to the kernels below. Segments that end behind `capacity` were
// not written whole (the host begins again then).
extern "C" __global__ void __launch_bounds__(128)
sort_small(u32* pairs, const u32* depths, const float4* records, const u32* starts, const u32* ends,
           u32 capacity) {
    const u32 start = starts[blockIdx.x], end = ends[blockIdx.x], size = end - start;
    if (size > 1 && size <= 1024 && start < end && end <= capacity)
        sort_segment<1024, 128, 10>(pairs + start, size, depths, records);
}

// One block a listed tile; those of more pairs than fit are listed apart.
extern "C" __global__ void __launch_bounds__(512, 3)
sort_medium(u32* pairs, const u32* depths, const float4* records, const u32* starts, const u32* ends,
            const int* tiles) {
    const u32 start = starts[tiles[blockIdx.x]], end = ends[tiles[blockIdx.x]];
    sort_segment<4096, 512, 11>(pairs + start, end - start, depths, records);
}

// One block a listed tile of any size: by buckets, or, where many depths are nearly equal, a stable radix sort by the
// bytes of the Gaussian, then of the depth, between the segment and scratch space for as many (depth, slot). Bytes that
// are equal throughout cost one pass of reading.
extern "C" __global__ void __launch_bounds__(1024)
sort_large(u32* pairs, uint2* scratch, const u32* depths, const float4* records, const u32* starts, const u32* ends,
           const int* tiles, const u32* scratch_starts) {
    __shared__ u32 shared[LARGE_BUCKETS];
    static_assert(LARGE_BUCKETS == 32 * 256, "the buckets and the digits share their room");
    u32(*places)[256] = (u32(*)[256])shared;  // of the digits within a round, per warp
    __shared__ u32 offsets[256], counts[256];
    const u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const u32 start = starts[tiles[blockIdx.x]], size = ends[tiles[blockIdx.x]] - start;
    u32* from = pairs + start;
    uint2* room = scratch + scratch_starts[blockIdx.x];
    if (sort_by_buckets(from, room, size, depths, records, shared)) return;
    u32* to = (u32*)room;

    for (int pass = 0; pass < 8; ++pass) {
        const int shift = (pass & 3) * 8;
        if (tid < 256) counts[tid] = 0;
        __syncthreads();
        for (u32 i = tid; i < size; i += 1024) {
            const u32 key = pass < 4 ? gaussian_of(records, from[i]) : __ldg(depths + from[i]);
            atomicAdd(counts + ((key >> shift) & 255), 1u);
        }
        __syncthreads();
        if (__syncthreads_or(tid < 256 && counts[tid] == size)) continue;
        if (tid < 256) {
            u32 before = 0;
            for (int i = 0; i < tid; ++i) before += counts[i];
            offsets[tid] = before;
        }
        for (u32 round = 0; round < size; round += 1024) {
            for (int i = tid; i < 32 * 256; i += 1024) shared[i] = 0;
            __syncthreads();
            const bool live = round + tid < size;
            const u32 value = live ? from[round + tid] : 0;
            const u32 key = !live ? 0 : pass < 4 ? gaussian_of(records, value) : __ldg(depths + value);
            const u32 digit = live ? (key >> shift) & 255 : 256;
            const u32 peers = __match_any_sync(FULL_WARP, digit);
            const u32 rank = __popc(peers & ((1u << lane) - 1));
            if (live && rank == 0) places[warp][digit] = __popc(peers);
            __syncthreads();
            if (tid < 256) {
                u32 place = offsets[tid];
                for (int i = 0; i < 32; ++i) {
                    const u32 here = places[i][tid];
                    places[i][tid] = place;
                    place += here;
                }
                offsets[tid] = place;
            }
            __syncthreads();
            if (live) to[places[warp][digit] + rank] = value;
            __syncthreads();
        }
        u32* swap = from;
        from = to;
        to = swap;
    }
    if (from != pairs + start)
        for (u32 i = tid; i < size; i += 1024) to[i] = from[i];
}
