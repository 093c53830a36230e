// Backward pass of blending: gradients of the visible Gaussians' records.
//
// It walks front to back as the forward pass does: what lies behind a Gaussian is the pixel's total minus what was
// passed. Sums over pixels run on the tensor cores: for 16 Gaussians at a time a warp writes dL/dlog(alpha) and the
// blend weight of its 64 pixels to shared memory and multiplies them by [1, x, y, x^2, xy, y^2] about the quadrant's
// centre and by the pixels' gradients. Every operand is split in two tf32 parts, which keeps float32 accuracy.
#include "gaussian_stage.cuh"

namespace {

constexpr int GROUP = 16;
constexpr int ROW = 20;  // floats of a Gaussian's sums: 8 moments, 8 colour sums and padding
constexpr float NEVER = 1e30f;

// Steps in memory from view to view, row to row and pixel to pixel.
struct Steps {
    int view, row, pixel;

    __device__ __forceinline__ long long at(int bv, int y, int x) const {
        return (long long)view * bv + (long long)row * y + (long long)pixel * x;
    }
};

// Gradients of the images, each of which may be null, wherever autograd has left their values.
struct Upstream {
    const float *color, *depth, *alpha;
    Steps color_steps, depth_steps, alpha_steps;
    int channel_step;
};

// One pixel on the way back: its gradients and what is still to come of sum(weight * value * gradient).
struct PixelGradient {
    float4 upstream;  // of red, green, blue, depth
    float light, behind;
    float least;  // log2(alpha) from which a Gaussian counts: NEVER once the pixel is done

    __device__ __forceinline__ bool done() const { return least == NEVER; }

    __device__ __forceinline__ void load(const float* color, const float* depths, const float* alphas,
                                         const Upstream& grad, int bv, const Image& image, int x, int y) {
        upstream = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        light = 1.0f;
        behind = 0.0f;
        least = x >= image.width || y >= image.height ? NEVER : LOG2_MIN_ALPHA;
        if (done()) return;
        const size_t pixel = (size_t)y * image.width + x, at = bv * image.pixels + pixel;
        const size_t red = 3 * bv * image.pixels + pixel, green = red + image.pixels, blue = green + image.pixels;
        if (grad.color) {
            const float* from = grad.color + grad.color_steps.at(bv, y, x);
            upstream.x = __ldg(from);
            upstream.y = __ldg(from + grad.channel_step);
            upstream.z = __ldg(from + 2 * (long long)grad.channel_step);
            behind = __ldg(color + red) * upstream.x + __ldg(color + green) * upstream.y +
                     __ldg(color + blue) * upstream.z;
        }
        if (grad.depth) {
            upstream.w = __ldg(grad.depth + grad.depth_steps.at(bv, y, x));
            behind += __ldg(depths + at) * upstream.w;
        }
        if (grad.alpha)
            behind -= __ldg(grad.alpha + grad.alpha_steps.at(bv, y, x)) * (1.0f - __ldg(alphas + at));
    }

    // Returns dL/dlog(alpha before the clamp) and the blend weight, and moves on behind the Gaussian.
    __device__ __forceinline__ float2 step(float log2_alpha, float4 b, float4 c) {
        const float reached = log2_alpha >= least ? fminf(c.z, exp2_fast(log2_alpha)) : 0.0f;
        const float alpha = fminf(MAX_ALPHA, reached), passed = 1.0f - alpha, left = light * passed;
        const bool stop = left < MIN_TRANSMITTANCE;
        const float raw = stop ? 0.0f : reached, weight = stop ? 0.0f : alpha * light;
        const float value = b.z * upstream.x + b.w * upstream.y + c.x * upstream.z + c.y * upstream.w;
        behind -= weight * value;
        const float slope = raw * (light * value - behind * reciprocal(passed));
        light = stop ? light : left;
        least = stop ? NEVER : least;
        return make_float2(slope, weight);
    }
};

__device__ __forceinline__ float tf32_high(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

#ifdef __CUDA_ARCH__  // tests that run on the CPU bring their own
// c += a b with a 16 x 8, b 8 x 8 in tf32.
__device__ __forceinline__ void multiply(float c[4], const float a[4], float2 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b.x)), "r"(__float_as_uint(b.y)));
}
#endif

// A sum of products a b in float32 accuracy, with b exact in tf32. High and low parts of a have sums of their own, so
// that fewer products wait for one another.
struct SplitSum {
    float high[4] = {0, 0, 0, 0}, low[4] = {0, 0, 0, 0};

    __device__ __forceinline__ void add(float4 a, float2 b) {
        const float a_high[4] = {tf32_high(a.x), tf32_high(a.y), tf32_high(a.z), tf32_high(a.w)};
        const float a_low[4] = {a.x - a_high[0], a.y - a_high[1], a.z - a_high[2], a.w - a_high[3]};
        multiply(high, a_high, b);
        multiply(low, a_low, b);
    }

    __device__ __forceinline__ float2 two(int first) const {
        return make_float2(high[first] + low[first], high[first + 1] + low[first + 1]);
    }
};

__device__ __forceinline__ void add4(float* target, float4 v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(target), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
#else
    atomicAdd(target, v.x);
    atomicAdd(target + 1, v.y);
    atomicAdd(target + 2, v.z);
    atomicAdd(target + 3, v.w);
#endif
}

__device__ __forceinline__ void add2(float* target, float2 v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v2.f32 [%0], {%1,%2};" ::"l"(target), "f"(v.x), "f"(v.y) : "memory");
#else
    atomicAdd(target, v.x);
    atomicAdd(target + 1, v.y);
#endif
}

// Of the Gaussians 2 i and 2 i + 1 of a group and the two pixels of a thread: (first, upper), (second, upper), (first,
// lower), (second, lower), which is a fragment of the matrix product. Stored at `fragment_place`.
struct Fragments {
    float4 slopes[GROUP / 2 * 32];   // dL/dlog(alpha)
    float4 weights[GROUP / 2 * 32];  // of the blend
};

// Avoids bank conflicts: the product reads four neighbouring lanes of eight rows at once.
__device__ __forceinline__ int fragment_place(int row, int lane) { return row * 32 + (lane ^ ((row & 1) << 2)); }

struct __align__(16) BackwardStage {
    Stage stage;
    u32 rows[BATCH];      // of the gradients
    float2 basis[8][32];  // [1, x, y, x^2, xy, y^2] in the order of the matrix product's fragments
    Fragments fragments[4];  // per warp
};

// The value of basis function `column` at pixel (x, y) of a quadrant.
__device__ __forceinline__ float basis_value(int column, int pixel_x, int pixel_y) {
    const float x = pixel_x - 3.5f, y = pixel_y - 3.5f;
    switch (column) {
        case 0: return 1.0f;
        case 1: return x;
        case 2: return y;
        case 3: return x * x;
        case 4: return x * y;
        case 5: return y * y;
        default: return 0.0f;
    }
}

// Where the gradients of the Gaussians are summed, by row.
struct Gradients {
    float* eight;  // dL/d(u, v, conic xx, conic xy), dL/d(red, green, blue, z)
    float* two;    // dL/d(conic yy, log opacity)
};

__device__ __forceinline__ bool is_anything(float4 a, float4 b) {
    const float sum = fabsf(a.x) + fabsf(a.y) + fabsf(a.z) + fabsf(a.w) + fabsf(b.x) + fabsf(b.y) + fabsf(b.z) + fabsf(b.w);
    return sum != 0.0f;  // NaN is something
}

// Adds the gradients of a group of up to 16 Gaussians. Row i and i + 8 of the products are the Gaussians 2 i and 2 i + 1
// of the group; lanes 2 i and 2 i + 1 hold the place of row i in the stage, NOTHING when there is none. `upstream` are
// the pixels' gradients as fragments, high parts in columns 0-3, low in 4-7.
__device__ __forceinline__ void flush(BackwardStage& s, int warp, int lane, int place, const float2 upstream[8],
                                      float center_x, float center_y, Gradients gradients) {
    __syncwarp();
    const int row = lane >> 2, column = lane & 3;
    Fragments& fragments = s.fragments[warp];
    SplitSum moments, colors;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const int at = fragment_place(row, 4 * k + column);
        const float4 slopes = fragments.slopes[at], weights = fragments.weights[at];
        moments.add(slopes, s.basis[k][lane]);
        colors.add(weights, upstream[k]);
    }
    __syncwarp();
    float* table = (float*)fragments.slopes;
    *(float2*)(table + row * ROW + 2 * column) = moments.two(0);
    *(float2*)(table + (row + 8) * ROW + 2 * column) = moments.two(2);
    *(float2*)(table + row * ROW + 8 + 2 * column) = colors.two(0);
    *(float2*)(table + (row + 8) * ROW + 8 + 2 * column) = colors.two(2);
    __syncwarp();
    const int part = lane & 1;  // neighbouring lanes add the two halves of one row of `eight`
    const float4 first = *(const float4*)(table + (lane >> 1) * ROW + 8 * part);
    const float4 second = *(const float4*)(table + (lane >> 1) * ROW + 8 * part + 4);
    if (place != NOTHING && is_anything(first, second)) {  // a tenth reaches the quadrant, but none of its pixels
        const size_t own = s.rows[place];
        float4 sums = make_float4(first.x + second.x, first.y + second.y, first.z + second.z, first.w + second.w);
        if (part == 0) {
            const float4 a = s.stage.a[place];
            const float conic_xx = -2.0f * LN2 * a.z, conic_xy = -LN2 * a.w, conic_yy = -2.0f * LN2 * s.stage.b[place].x;
            const float du = a.x - center_x, dv = a.y - center_y, sum = first.x;
            const float sum_x = du * sum - first.y, sum_y = dv * sum - first.z;
            const float sum_xx = du * (sum_x - first.y) + first.w;
            const float sum_yy = dv * (sum_y - first.z) + second.y;
            const float sum_xy = du * sum_y - dv * first.y + second.x;
            sums = make_float4(-(conic_xx * sum_x + conic_xy * sum_y), -(conic_yy * sum_y + conic_xy * sum_x),
                               -0.5f * sum_xx, -sum_xy);
            add2(gradients.two + 2 * own, make_float2(-0.5f * sum_yy, sum));
        }
        add4(gradients.eight + 8 * own + 4 * part, sums);
    }
    __syncwarp();
}

}  // namespace

// Adds the gradients of the Gaussians whose slots have rows to `eight` and `two`, zero before; the others cannot have any.
// Rows from `row_limit` on are left out: the host then sees that there are more, and begins again. A gradient image may
// be null. One block a tile, from `first_tile` on.
extern "C" __global__ void __launch_bounds__(128, 5)
blend_backward(const float4* __restrict__ records, const float* __restrict__ colors, const u32* __restrict__ pairs,
               const u32* __restrict__ starts, const u32* __restrict__ ends, const Ranked* __restrict__ rows,
               const float* __restrict__ color, const float* __restrict__ depths, const float* __restrict__ alphas,
               const float* __restrict__ grad_color, const float* __restrict__ grad_depth,
               const float* __restrict__ grad_alpha, int color_view, int channel, int color_row, int color_pixel,
               int depth_view, int depth_row, int depth_pixel, int alpha_view, int alpha_row, int alpha_pixel,
               float* eight, float* two, u32 row_limit, int first_tile, int count, int views, int tiles_x,
               int tiles_per_view, int width, int height) {
    __shared__ BackwardStage s;
    const Gradients gradients = {eight, two};
    const Tile tile = load_tile(first_tile + blockIdx.x, starts, ends, tiles_x, tiles_per_view);
    if (tile.start == tile.end) return;
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const Image image = {width, height, (size_t)width * height};
    const size_t first_color = (size_t)(tile.bv / views) * count;
    const int left = tile.x + (warp & 1) * 8, top = tile.y + (warp >> 1) * 8;
    const int x = left + (lane & 7), y = top + (lane >> 3);
    const Upstream grad = {grad_color, grad_depth, grad_alpha, {color_view, color_row, color_pixel},
                           {depth_view, depth_row, depth_pixel}, {alpha_view, alpha_row, alpha_pixel}, channel};
    PixelGradient upper, lower;
    upper.load(color, depths, alphas, grad, tile.bv, image, x, y);
    lower.load(color, depths, alphas, grad, tile.bv, image, x, y + 4);

    float2 upstream[8];
    {
        float4* staged = s.fragments[warp].slopes;  // the pixels' gradients, to be picked up as fragments
        staged[lane] = upper.upstream;
        staged[lane + 32] = lower.upstream;
        __syncwarp();
        const int column = lane >> 2;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const int from = 4 * k + (lane & 3);  // the thread of the two pixels
            const float first = ((const float*)(staged + from))[column & 3];
            const float second = ((const float*)(staged + from + 32))[column & 3];
            const float2 high = make_float2(tf32_high(first), tf32_high(second));
            upstream[k] = column < 4 ? high : make_float2(first - high.x, second - high.y);
        }
        for (int k = warp; k < 8; k += 4) {
            const int from = 4 * k + (lane & 3), from_x = from & 7, from_y = from >> 3;
            s.basis[k][lane] =
                make_float2(basis_value(column, from_x, from_y), basis_value(column, from_x, from_y + 4));
        }
        __syncwarp();
    }

    if (tid == 0) stage_nothing(s.stage);
    Fragments& fragments = s.fragments[warp];
    u32 next = tile.start + tid < tile.end ? pairs[tile.start + tid] : 0;
    u32 after = tile.start + BATCH + tid < tile.end ? pairs[tile.start + BATCH + tid] : 0;
    for (u32 first = tile.start; first < tile.end; first += BATCH) {
        if (__syncthreads_and(upper.done() && lower.done())) break;
        if (first + tid < tile.end) {
            stage_pair(s.stage, tid, next, records, colors, first_color, tile);
            const Ranked near = rows[next >> 5];
            const u32 row = near.number(next);
            s.rows[tid] = row;
            if (!near.has(next) || row >= row_limit) s.stage.quadrants[tid] = 0;
        } else {
            s.stage.quadrants[tid] = 0;
        }
        next = after;
        if (first + BATCH + tid < tile.end) prefetch_record(records, next);
        if (first + 2 * BATCH + tid < tile.end) after = pairs[first + 2 * BATCH + tid];
        __syncthreads();
        const int length = list_reaching(s.stage, warp, lane);
        for (int group = 0; group < length && !__all_sync(FULL_WARP, upper.done() && lower.done()); group += GROUP) {
            const int rows = (min(length - group, GROUP) + 1) / 2;
            int own = NOTHING;
            for (int row = 0; row < rows; ++row) {
                const int2 place = two_reaching(s.stage, warp, group + 2 * row);
                const float4 b0 = s.stage.b[place.x], b1 = s.stage.b[place.y];
                const float2 power0 = log2_alphas(s.stage.a[place.x], b0, x + 0.5f, y + 0.5f);
                const float2 power1 = log2_alphas(s.stage.a[place.y], b1, x + 0.5f, y + 0.5f);
                const float4 c0 = s.stage.c[place.x], c1 = s.stage.c[place.y];
                const float2 upper0 = upper.step(power0.x, b0, c0), lower0 = lower.step(power0.y, b0, c0);
                const float2 upper1 = upper.step(power1.x, b1, c1), lower1 = lower.step(power1.y, b1, c1);
                const int at = fragment_place(row, lane);
                fragments.slopes[at] = make_float4(upper0.x, upper1.x, lower0.x, lower1.x);
                fragments.weights[at] = make_float4(upper0.y, upper1.y, lower0.y, lower1.y);
                if (((lane >> 1) & 7) == row) own = lane < 16 ? place.x : place.y;
            }
            flush(s, warp, lane, own, upstream, left + 4.0f, top + 4.0f, gradients);
        }
    }
}
