// Binning: projects every Gaussian into every view, counts the Gaussians of each tile, gives each tile a segment of
// the pair list and writes the Gaussians into it, in no particular order (gaussian_sort.cu orders the segments).
#include "gaussian_common.cuh"

namespace {

// Atomics on one address wait for each other, so every tile has several counters, which the blocks take turns with.
constexpr u32 COPIES = 16;  // as in cuda_bins.py
constexpr int PARTS = 4;     // as in cuda_bins.py
constexpr float CULL_SLACK = 0.02f;  // in log2(alpha): culling errs on the side of keeping

// A float whose products and sums the compiler must not fuse: counting and writing must agree on every tile.
struct Real {
    float value;
};
__device__ __forceinline__ Real operator*(Real a, Real b) { return {__fmul_rn(a.value, b.value)}; }
__device__ __forceinline__ Real operator+(Real a, Real b) { return {__fadd_rn(a.value, b.value)}; }
__device__ __forceinline__ Real operator-(Real a, Real b) { return {__fadd_rn(a.value, -b.value)}; }
__device__ __forceinline__ Real operator/(Real a, Real b) { return {__fdiv_rn(a.value, b.value)}; }
__device__ __forceinline__ Real root(Real a) { return {__fsqrt_rn(fmaxf(a.value, 0.0f))}; }
__device__ __forceinline__ Real clamp(Real a, Real low, Real high) {
    return {fminf(fmaxf(a.value, low.value), high.value)};
}

// Where a Gaussian reaches alpha 1/255: the ellipse |.| <= reach about (u, v), cut to the tile rectangle [x0, x1) x
// [y0, y1). At height e above the centre it spans slope * e -+ sqrt((reach - e^2 / var_y) * width_scale); it is
// widest to the right at e = peak, to the left at -peak, and ends at e = -+top.
struct Footprint {
    Real u, v, reach, inv_var_y, width_scale, slope, peak, top;
    int x0, x1, y0, y1;
    u32 payload;
};

struct Grid {
    int width, height, tiles_x, tiles_y;
};

// Truncating conversion that stays in [0, limit] for every input, NaN and infinities included.
__device__ __forceinline__ int tile_index(Real pixels, int limit) {
    return (int)fminf(fmaxf(__fmul_rn(pixels.value, 1.0f / TILE), 0.0f), (float)limit);
}

// `variance_y` is the dilated variance along y in squared pixels.
__device__ __forceinline__ Footprint footprint(float4 r0, float4 r1, float variance_y, Grid grid) {
    Footprint f;
    const Real conic_xx = Real{r0.z} / Real{-HALF_LOG2E};
    f.u = {r0.x};
    f.v = {r0.y};
    const Real var_y = {variance_y};
    f.reach = (Real{r1.y} - Real{LOG2_MIN_ALPHA - CULL_SLACK}) / Real{HALF_LOG2E};
    f.inv_var_y = Real{1.0f} / var_y;
    f.width_scale = Real{1.0f} / conic_xx;
    f.slope = Real{r0.w} / (Real{-2.0f} * Real{r0.z});
    const Real var_x = Real{r1.x} / Real{r0.z} * var_y, cov = f.slope * var_y;
    f.peak = cov * root(f.reach / var_x);
    f.top = root(f.reach * var_y);
    // The rectangle of ceil(3 sigma) that decides visibility in the original renderer, in its pixel coordinates.
    const Real middle = Real{0.5f} * (var_x + var_y), det = var_x * var_y - cov * cov;
    const Real largest = middle + root(Real{fmaxf((middle * middle - det).value, 0.1f)});
    const Real radius = {ceilf((Real{3.0f} * root(largest)).value)};
    const Real x = f.u - Real{0.5f}, y = f.v - Real{0.5f}, up = Real{TILE - 1.0f};
    const Real right = root(f.reach * var_x), last = Real{1.0f * TILE};
    f.x0 = max(tile_index(x - radius, grid.tiles_x), tile_index(x - right, grid.tiles_x));
    f.x1 = min(tile_index(x + radius + up, grid.tiles_x), tile_index(x + right + last, grid.tiles_x));
    f.y0 = max(tile_index(y - radius, grid.tiles_y), tile_index(y - f.top, grid.tiles_y));
    f.y1 = min(tile_index(y + radius + up, grid.tiles_y), tile_index(y + f.top + last, grid.tiles_y));
    return f;
}

// Tile columns [x, y) of one tile row whose pixel centres the ellipse can reach.
__device__ __forceinline__ int2 columns(const Footprint& f, int row, Grid grid) {
    const Real half = {0.5f};
    const Real above = Real{row * TILE + 0.5f} - f.v;
    const Real below = Real{fminf(row * TILE + TILE - 0.5f, grid.height - 0.5f)} - f.v;
    const Real low = {fmaxf(above.value, -f.top.value)}, high = {fminf(below.value, f.top.value)};
    if (low.value > high.value) return make_int2(0, 0);
    const Real right_at = clamp(f.peak, low, high), left_at = clamp(Real{-f.peak.value}, low, high);
    const Real right_half = root((f.reach - right_at * right_at * f.inv_var_y) * f.width_scale);
    const Real left_half = root((f.reach - left_at * left_at * f.inv_var_y) * f.width_scale);
    const Real right = f.u + f.slope * right_at + right_half, left = f.u + f.slope * left_at - left_half;
    const float last = floorf((right - half).value), first = fmaxf(ceilf((left - half).value), 0.0f);
    if (!(first <= last)) return make_int2(0, 0);
    return make_int2(max(f.x0, tile_index({first}, grid.tiles_x)),
                     min(f.x1, tile_index({last + TILE}, grid.tiles_x)));
}

__device__ __forceinline__ Real from_lane(Real value, int lane) { return {__shfl_sync(FULL_WARP, value.value, lane)}; }

// The parts of another lane's footprint that `columns` and the loop below need.
__device__ __forceinline__ Footprint from_lane(const Footprint& f, int lane) {
    Footprint g;
    g.u = from_lane(f.u, lane);
    g.v = from_lane(f.v, lane);
    g.reach = from_lane(f.reach, lane);
    g.inv_var_y = from_lane(f.inv_var_y, lane);
    g.width_scale = from_lane(f.width_scale, lane);
    g.slope = from_lane(f.slope, lane);
    g.peak = from_lane(f.peak, lane);
    g.top = from_lane(f.top, lane);
    g.x0 = __shfl_sync(FULL_WARP, f.x0, lane);
    g.x1 = __shfl_sync(FULL_WARP, f.x1, lane);
    g.y0 = __shfl_sync(FULL_WARP, f.y0, lane);
    g.payload = __shfl_sync(FULL_WARP, f.payload, lane);
    return g;
}

// Calls visit(tile of the view, place in its rectangle, payload) for every tile that a live lane's Gaussian reaches. The warp shares the tiles
// of all its rectangles evenly, so all its lanes must come here.
template <class Visit>
__device__ __forceinline__ void for_each_tile(bool live, const Footprint& f, Grid grid, Visit visit) {
    const u32 lane = threadIdx.x & 31;
    const u32 own = live ? (u32)(f.x1 - f.x0) * (u32)(f.y1 - f.y0) : 0;
    u32 end = own;  // inclusive prefix sum over the lanes; the host limits images to 2^26 tiles
    for (int step = 1; step < 32; step *= 2) {
        const u32 other = __shfl_up_sync(FULL_WARP, end, step);
        if (lane >= step) end += other;
    }
    const u32 total = __shfl_sync(FULL_WARP, end, 31);
    for (u32 first = 0; first < total; first += 32) {
        const u32 item = first + lane;
        int owner = 0;  // the first lane whose end lies behind the item
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            if (__shfl_sync(FULL_WARP, end, owner + step - 1) <= item) owner += step;
        const Footprint g = from_lane(f, owner);
        const u32 within = item - __shfl_sync(FULL_WARP, end - own, owner);
        if (item >= total) continue;
        const u32 width = g.x1 - g.x0, row = within / width;
        const int y = g.y0 + (int)row, x = g.x0 + (int)(within - row * width);
        const int2 span = columns(g, y, grid);
        if (x >= span.x && x < span.y) visit((u32)(y * grid.tiles_x + x), within, g.payload);
    }
}

// The tiles of a Gaussian: the first tile of its rectangle and (bits 26-30) the rectangle's width less one; one bit for
// each of its tiles, row by row, that the ellipse reaches. A rectangle of more than 32 tiles is only marked, and the
// variance along y is kept instead.
constexpr u32 LARGE_RECTANGLE = 1u << 31;

__device__ __forceinline__ uint2 pack_tiles(const Footprint& f, u32 reached, float variance_y, Grid grid) {
    const u32 width = f.x1 - f.x0;
    if (width * (u32)(f.y1 - f.y0) > 32) return make_uint2(LARGE_RECTANGLE, __float_as_uint(variance_y));
    return make_uint2((u32)(f.y0 * grid.tiles_x + f.x0) | (width - 1) << 26, reached);
}

// Calls visit(tile of the view) for the tiles of a Gaussian that are not LARGE_RECTANGLE.
template <class Visit>
__device__ __forceinline__ void for_each_packed_tile(uint2 tiles, Grid grid, Visit visit) {
    const u32 first = tiles.x & 0x3ffffffu, width = ((tiles.x >> 26) & 31) + 1;
    const u32 inverse = (65535 + width) / width;  // (i * inverse) >> 16 is i / width for i < 32
    for (u32 rest = tiles.y; rest; rest &= rest - 1) {
        const u32 within = __ffs(rest) - 1, row = (within * inverse) >> 16;
        visit(first + row * grid.tiles_x + (within - row * width));
    }
}

// Zero times a finite number is zero; NaN and infinities survive the sum.
__device__ __forceinline__ float finite_probe(float3 p) { return p.x * 0.0f + p.y * 0.0f + p.z * 0.0f; }

// Consecutive slots for the threads of a block of 256 with `wanted`, from `first` on and a counter that several blocks
// share. From `capacity` on there are none.
__device__ __forceinline__ Ranked take_slots(bool wanted, u64* counter, u32 first, u32 capacity) {
    __shared__ u32 counts[8];
    __shared__ u32 base;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 takers = __ballot_sync(FULL_WARP, wanted);
    if (lane == 0) counts[warp] = __popc(takers);
    __syncthreads();
    u32 before = 0, all = 0;
    for (int i = 0; i < 8; ++i) {
        all += counts[i];
        if (i < warp) before += counts[i];
    }
    if (threadIdx.x == 0) base = all ? (u32)atomicAdd(counter, (u64)all) : 0;
    __syncthreads();
    const u32 start = base + before;
    const bool fits = start + __popc(takers & ((1u << lane) - 1)) < capacity;
    return {first + start, takers & __ballot_sync(FULL_WARP, fits)};
}

// The exclusive prefix sum of `value` over a block of 1024 threads; `total` receives the sum.
__device__ __forceinline__ u32 block_prefix(u32 value, u32* total) {
    __shared__ u32 sums[32];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u32 inclusive = value;
    for (int step = 1; step < 32; step *= 2) {
        const u32 other = __shfl_up_sync(FULL_WARP, inclusive, step);
        if (lane >= step) inclusive += other;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    u32 before = 0, all = 0;
    for (int i = 0; i < 32; ++i) {
        all += sums[i];
        if (i < warp) before += sums[i];
    }
    *total = all;
    return before + inclusive - value;
}

}  // namespace

// Writes the record of every visible Gaussian in every view and the bits of its depth (a sort key, since depths are
// positive), both by slot, and adds it to the counts of its tiles. The tiles are kept for write_pairs as pack_tiles says,
// none where the Gaussian is culled; `seen` tells every warp's slots. Each `images_per_part` views have `slots_per_part`;
// what is beyond counts as culled (the host then sees that there are more, and begins again).
// Blocks of 256 threads, `blocks_per_view` for a view. `totals` as in allocate_segments. `width` and `height` are those
// of the part of the image that is rendered, with the principal point moved by its origin; `image_*` of the whole.
extern "C" __global__ void __launch_bounds__(256)
project_and_count(const float* __restrict__ means, const float4* __restrict__ quats, const float* __restrict__ scales,
                  const float* __restrict__ opacities, const float* __restrict__ colors,
                  const float4* __restrict__ world_to_camera, const float* __restrict__ intrinsics, float4* records,
                  u32* depths, Ranked* seen, uint2* tiles, u32* counts, u64* totals, int count, int views,
                  int images_per_part, u32 slots_per_part, int blocks_per_view, int tiles_of_all, int width, int height,
                  int image_width, int image_height, int antialiased, float scale_modifier) {
    __shared__ u32 reached[256];
    const int bv = blockIdx.x / blocks_per_view;
    const int n = (blockIdx.x - bv * blocks_per_view) * 256 + threadIdx.x;
    const Grid grid = {width, height, (width + TILE - 1) / TILE, (height + TILE - 1) / TILE};
    const int part = bv / images_per_part;
    bool visible = false;
    float4 r0, r1;
    float variance_y = 0.0f;
    Footprint f = {};
    if (n < count) {
        const size_t source = (size_t)(bv / views) * count + n;
        const Camera camera = load_camera(world_to_camera, intrinsics, bv);
        const float3 mean = load3(means, source);
        const float opacity = __ldg(opacities + source);
        const float z = dot3(camera.z, mean) + camera.z.w;
        if (z > NEAR_Z && opacity >= MIN_ALPHA) {
            const float4 q = __ldg(quats + source);
            const float3 scale = load3(scales, source);
            const Axes axes = scaled_axes(
                q, make_float3(scale.x * scale_modifier, scale.y * scale_modifier, scale.z * scale_modifier));
            const Splat s = project(camera, mean, axes, image_width, image_height);
            const float det = determinant(s), w = inverse_w(s.p.z);
            const float kept = antialiased ? opacity * compensation(s, det) : opacity;
            const float u = camera.fx * s.p.x * w + camera.cx, v = camera.fy * s.p.y * w + camera.cy;
            r0 = make_float4(u, v, -HALF_LOG2E * (s.var_y / det), 2.0f * HALF_LOG2E * (s.cov / det));
            r1 = make_float4(-HALF_LOG2E * (s.var_x / det), log2f(kept), s.p.z, __uint_as_float(n));
            variance_y = s.var_y;
            const float probe = finite_probe(mean) + finite_probe(scale) + finite_probe(load3(colors, source)) +
                                finite_probe(make_float3(u, v, det)) + finite_probe(make_float3(q.x, q.y, q.z)) +
                                finite_probe(make_float3(q.w, opacity, r0.w));
            visible = probe == 0.0f && det > 0.0f && r0.z < 0.0f && r1.x < 0.0f && kept >= MIN_ALPHA;
            if (visible) {
                f = footprint(r0, r1, variance_y, grid);
                visible = f.x1 > f.x0 && f.y1 > f.y0;
            }
        }
    }
    const u32 lane = threadIdx.x & 31;
    const Ranked own = take_slots(visible, totals + 4 + part, part * slots_per_part, slots_per_part);
    if (lane == 0) seen[(size_t)blockIdx.x * 8 + (threadIdx.x >> 5)] = own;
    visible = own.has(lane);
    if (visible) {
        const size_t slot = own.number(lane);
        records[2 * slot] = r0;
        records[2 * slot + 1] = r1;
        depths[slot] = __float_as_uint(r1.z);
    }
    counts += (size_t)(blockIdx.x % COPIES) * tiles_of_all + (size_t)bv * (grid.tiles_x * grid.tiles_y);
    f.payload = threadIdx.x;
    reached[threadIdx.x] = 0;
    __syncwarp();
    for_each_tile(visible, f, grid, [=](u32 tile, u32 within, u32 thread) {
        atomicAdd(counts + tile, 1u);
        if (within < 32) atomicOr(reached + thread, 1u << within);
    });
    __syncwarp();
    if (n < count)
        tiles[(size_t)bv * count + n] =
            visible ? pack_tiles(f, reached[threadIdx.x], variance_y, grid) : make_uint2(0, 0);
}

// Gives every tile a segment of the pair list and turns its count into a write cursor. Segments follow one another in
// any order of the blocks of 1024 threads. Tiles of more than `medium` pairs are listed apart, and those of more than
// `large` with a segment of scratch space.
// totals: [0] pairs, [1] medium tiles, [2] large tiles, [3] pairs of large tiles, [4] and on: visible Gaussians of
// each part of the views.
extern "C" __global__ void __launch_bounds__(1024)
allocate_segments(u32* cursors, u32* starts, u64* totals, int* medium_tiles, int* large_tiles, u32* large_scratch,
                  int tiles, u32 medium, u32 large) {
    __shared__ u32 base;
    const int tile = blockIdx.x * 1024 + threadIdx.x;
    u32 counts[COPIES], pairs = 0;
#pragma unroll
    for (u32 i = 0; i < COPIES; ++i) {
        counts[i] = tile < tiles ? cursors[i * (size_t)tiles + tile] : 0;
        pairs += counts[i];
    }
    u32 total;
    const u32 before = block_prefix(pairs, &total);
    if (threadIdx.x == 0) base = (u32)atomicAdd(totals, (u64)total);
    __syncthreads();
    if (tile >= tiles) return;
    starts[tile] = base + before;
    u32 next = base + before;
#pragma unroll
    for (u32 i = 0; i < COPIES; ++i) {
        cursors[i * (size_t)tiles + tile] = next;
        next += counts[i];
    }
    if (pairs > large) {
        const int slot = (int)atomicAdd(totals + 2, 1ull);
        large_tiles[slot] = tile;
        large_scratch[slot] = (u32)atomicAdd(totals + 3, (u64)pairs);
    } else if (pairs > medium) {
        medium_tiles[atomicAdd(totals + 1, 1ull)] = tile;
    }
}

// Writes the slot of every visible Gaussian into the segments of its tiles; cursors end at segment ends. What
// lies behind `capacity` is left out: the host then sees that there are more pairs, and begins again. The totals land.
extern "C" __global__ void __launch_bounds__(256)
write_pairs(const float4* __restrict__ records, const Ranked* __restrict__ seen, const uint2* __restrict__ tiles,
            u32* cursors, u32* pairs, u32 capacity, const u64* totals, volatile u64* landing, u64 ticket,
            int count, int blocks_per_view, int tiles_of_all, int width, int height) {
    if (blockIdx.x == 0 && threadIdx.x == 0) land(landing, ticket, totals);
    const int bv = blockIdx.x / blocks_per_view;
    const int n = (blockIdx.x - bv * blocks_per_view) * 256 + threadIdx.x;
    const Grid grid = {width, height, (width + TILE - 1) / TILE, (height + TILE - 1) / TILE};
    const uint2 own = n < count ? tiles[(size_t)bv * count + n] : make_uint2(0, 0);
    const u32 slot = seen[(size_t)blockIdx.x * 8 + (threadIdx.x >> 5)].number(threadIdx.x);
    cursors += (size_t)(blockIdx.x % COPIES) * tiles_of_all + (size_t)bv * (grid.tiles_x * grid.tiles_y);
    const auto write = [=](u32 tile, u32 record) {
        const u32 place = atomicAdd(cursors + tile, 1u);
        if (place < capacity) pairs[place] = record;
    };
    const bool large = own.x & LARGE_RECTANGLE;
    if (!large) for_each_packed_tile(own, grid, [=](u32 tile) { write(tile, slot); });
    if (!__any_sync(FULL_WARP, large)) return;
    Footprint f = {};
    if (large) {
        const float4* record = records + 2 * (size_t)slot;
        f = footprint(__ldg(record), __ldg(record + 1), __uint_as_float(own.y), grid);
    }
    f.payload = slot;
    for_each_tile(large, f, grid, [=](u32 tile, u32, u32 record) { write(tile, record); });
}

// Numbers the rows of gradients of every part, given the bits of those slots that have one. The rows of the slots of a
// warp lie close together; otherwise they are in any order. `totals`, zero before, get the rows of every part, which
// land, and in [PARTS] the blocks that are done. Blocks of 1024 threads, one a word of 32 slots.
extern "C" __global__ void __launch_bounds__(1024)
number_rows(Ranked* rows, u64* totals, int words_per_part, int blocks_per_part, volatile u64* landing, u64 ticket) {
    __shared__ u32 base;
    const int part = blockIdx.x / blocks_per_part;
    const int word = (blockIdx.x - part * blocks_per_part) * 1024 + threadIdx.x;
    Ranked* own = rows + (size_t)part * words_per_part + word;
    u32 total;
    const u32 before = block_prefix(word < words_per_part ? __popc(own->bits) : 0, &total);
    if (threadIdx.x == 0) {
        base = (u32)atomicAdd(totals + part, (u64)total);
        __threadfence();
        if (atomicAdd(totals + PARTS, 1ull) == gridDim.x - 1) land(landing, ticket, totals);
    }
    __syncthreads();
    if (word < words_per_part) own->first = base + before;
}
