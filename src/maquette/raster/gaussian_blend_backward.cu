// Backward pass of blending: gradients of the visible Gaussians' records.
//
// It walks front to back as the forward pass does: what lies behind a Gaussian is the pixel's total minus what was
// passed. Sums over pixels run on the tensor cores: for 16 Gaussians at a time a warp writes dL/dlog(alpha) and the
// blend weight of its 64 pixels to shared memory and multiplies them by [1, x, y, x^2, xy, y^2] about the quadrant's
// centre and by the pixels' gradients. Every operand is split in two tf32 parts, which keeps float32 accuracy.
#include "gaussian_stage.cuh"

namespace {

constexpr int GROUP = 16;
constexpr int ROW = 68;  // float2 per Gaussian of a group: 64 pixels and padding against bank conflicts

// One pixel on the way back: its gradients and what is still to come of sum(weight * value * gradient).
struct PixelGradient {
    float4 upstream;  // of red, green, blue, depth
    float light, behind;
    bool done;

    __device__ __forceinline__ void load(const float* color, const float* depths, const float* alphas,
                                         const float* grad_color, const float* grad_depth, const float* grad_alpha,
                                         int bv, const Image& image, int x, int y) {
        upstream = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        light = 1.0f;
        behind = 0.0f;
        done = x >= image.width || y >= image.height;
        if (done) return;
        const size_t pixel = (size_t)y * image.width + x, at = bv * image.pixels + pixel;
        const size_t red = 3 * bv * image.pixels + pixel, green = red + image.pixels, blue = green + image.pixels;
        if (grad_color) {
            upstream.x = __ldg(grad_color + red);
            upstream.y = __ldg(grad_color + green);
            upstream.z = __ldg(grad_color + blue);
            behind = __ldg(color + red) * upstream.x + __ldg(color + green) * upstream.y +
                     __ldg(color + blue) * upstream.z;
        }
        if (grad_depth) {
            upstream.w = __ldg(grad_depth + at);
            behind += __ldg(depths + at) * upstream.w;
        }
        if (grad_alpha) behind -= __ldg(grad_alpha + at) * (1.0f - __ldg(alphas + at));
    }

    // Returns dL/dlog(alpha before the clamp) and the blend weight, and moves on behind the Gaussian.
    __device__ __forceinline__ float2 step(float log2_alpha, float4 b, float4 c) {
        const float raw = fminf(c.z, exp2_fast(log2_alpha)), alpha = fminf(MAX_ALPHA, raw);
        const float passed = 1.0f - alpha, left = light * passed;
        if (left < MIN_TRANSMITTANCE) {
            done = true;
            return make_float2(0.0f, 0.0f);
        }
        const float weight = alpha * light;
        const float value = b.z * upstream.x + b.w * upstream.y + c.x * upstream.z + c.y * upstream.w;
        behind -= weight * value;
        const float slope = raw * (light * value - __fdividef(behind, passed));
        light = left;
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

struct __align__(16) BackwardStage {
    Stage stage;
    u32 slots[BATCH];                  // rows of the gradients
    float2 basis[8][32];               // [1, x, y, x^2, xy, y^2] in the order of the matrix product's fragments
    float2 slopes[4][GROUP * ROW];     // per warp: (dL/dlog(alpha), weight) of Gaussian i, pixel j at i * ROW + j
};

// The value of basis function `column` at pixel `pixel` of a quadrant.
__device__ __forceinline__ float basis_value(int column, int pixel) {
    const float x = (pixel & 7) - 3.5f, y = (pixel >> 3) - 3.5f;
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

// Where the gradients of the visible Gaussians are summed, by slot.
struct Gradients {
    float* eight;  // dL/d(u, v, conic xx, conic xy), dL/d(red, green, blue, z)
    float* two;    // dL/d(conic yy, log opacity)
};

// Adds the gradients of a group of `size` Gaussians. Lane i and lane i + 16 hold the place in the stage of Gaussian i; `upstream` are the pixels' gradients as fragments, high parts in columns 0-3, low in 4-7.
__device__ __forceinline__ void flush(BackwardStage& s, int warp, int lane, int place, int size,
                                      const float2 upstream[8], float center_x, float center_y, Gradients gradients) {
    __syncwarp();
    const int row = lane >> 2, column = lane & 3;
    const float2* values = s.slopes[warp] + row * ROW + column;
    float moments[4] = {0, 0, 0, 0}, colors[4] = {0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const float2 v[4] = {values[k * 8], values[8 * ROW + k * 8], values[k * 8 + 4], values[8 * ROW + k * 8 + 4]};
        float high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            high[i] = tf32_high(v[i].x);
            low[i] = v[i].x - high[i];
        }
        const float2 basis = s.basis[k][lane];
        multiply(moments, high, basis);
        multiply(moments, low, basis);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            high[i] = tf32_high(v[i].y);
            low[i] = v[i].y - high[i];
        }
        multiply(colors, high, upstream[k]);
        multiply(colors, low, upstream[k]);
    }
    __syncwarp();
    float* table = (float*)s.slopes[warp];  // 16 rows of 20: 8 moments, 8 colour sums
    *(float2*)(table + row * 20 + 2 * column) = make_float2(moments[0], moments[1]);
    *(float2*)(table + (row + 8) * 20 + 2 * column) = make_float2(moments[2], moments[3]);
    *(float2*)(table + row * 20 + 8 + 2 * column) = make_float2(colors[0], colors[1]);
    *(float2*)(table + (row + 8) * 20 + 8 + 2 * column) = make_float2(colors[2], colors[3]);
    __syncwarp();
    const int own = lane & 15;
    if (own < size) {
        const size_t slot = s.slots[place];
        float* target = gradients.eight + 8 * slot;
        const float4 first = *(const float4*)(table + own * 20 + (lane < 16 ? 0 : 8));
        const float4 second = *(const float4*)(table + own * 20 + (lane < 16 ? 4 : 12));
        if (lane >= 16) {
            add4(target + 4, make_float4(first.x + second.x, first.y + second.y, first.z + second.z,
                                         first.w + second.w));
        } else {
            const float4 a = s.stage.a[place];
            const float conic_xx = -2.0f * LN2 * a.z, conic_xy = -LN2 * a.w, conic_yy = -2.0f * LN2 * s.stage.b[place].x;
            const float du = a.x - center_x, dv = a.y - center_y, sum = first.x;
            const float sum_x = du * sum - first.y, sum_y = dv * sum - first.z;
            const float sum_xx = du * (sum_x - first.y) + first.w;
            const float sum_yy = dv * (sum_y - first.z) + second.y;
            const float sum_xy = du * sum_y - dv * first.y + second.x;
            add4(target, make_float4(-(conic_xx * sum_x + conic_xy * sum_y), -(conic_yy * sum_y + conic_xy * sum_x),
                                     -0.5f * sum_xx, -sum_xy));
            add2(gradients.two + 2 * slot, make_float2(-0.5f * sum_yy, sum));
        }
    }
    __syncwarp();
}

}  // namespace

// Adds the gradients of the visible Gaussians to `eight` and `two`, zero before. A gradient image may be null.
extern "C" __global__ void __launch_bounds__(128, 5)
blend_backward(const float4* __restrict__ records, const float* __restrict__ colors, const u32* __restrict__ pairs,
               const u32* __restrict__ starts, const u32* __restrict__ ends, const float* __restrict__ color,
               const float* __restrict__ depths, const float* __restrict__ alphas,
               const float* __restrict__ grad_color, const float* __restrict__ grad_depth,
               const float* __restrict__ grad_alpha, const u32* __restrict__ slots, float* eight, float* two, int count, int views, int tiles_x,
               int tiles_per_view, int width, int height) {
    __shared__ BackwardStage s;
    const Gradients gradients = {eight, two};
    const Tile tile = load_tile(starts, ends, tiles_x, tiles_per_view);
    if (tile.start == tile.end) return;
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const Image image = {width, height, (size_t)width * height};
    const size_t first_color = (size_t)(tile.bv / views) * count;
    const u32 first_record = (u32)tile.bv * count;
    const int left = tile.x + (warp & 1) * 8, top = tile.y + (warp >> 1) * 8;
    const int x = left + (lane & 7), y = top + (lane >> 3);
    PixelGradient upper, lower;
    upper.load(color, depths, alphas, grad_color, grad_depth, grad_alpha, tile.bv, image, x, y);
    lower.load(color, depths, alphas, grad_color, grad_depth, grad_alpha, tile.bv, image, x, y + 4);

    float2 upstream[8];
    {
        float4* staged = (float4*)s.slopes[warp];  // the pixels' gradients, to be picked up as fragments
        staged[lane] = upper.upstream;
        staged[lane + 32] = lower.upstream;
        __syncwarp();
        const int column = lane >> 2, pixel = lane & 3;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            const float first = ((const float*)(staged + k * 8 + pixel))[column & 3];
            const float second = ((const float*)(staged + k * 8 + pixel + 4))[column & 3];
            const float2 high = make_float2(tf32_high(first), tf32_high(second));
            upstream[k] = column < 4 ? high : make_float2(first - high.x, second - high.y);
        }
        for (int k = warp; k < 8; k += 4)
            s.basis[k][lane] = make_float2(basis_value(column, k * 8 + pixel), basis_value(column, k * 8 + pixel + 4));
    }

    int size = 0, own = 0;
    u32 next = tile.start + tid < tile.end ? pairs[tile.start + tid] : 0;
    for (u32 first = tile.start; first < tile.end; first += BATCH) {
        if (__syncthreads_and(upper.done && lower.done)) break;
        if (first + tid < tile.end) {
            stage_pair(s.stage, tid, next, records, colors, first_color, first_record, tile);
            s.slots[tid] = __ldg(slots + next);
        } else {
            s.stage.quadrants[tid] = 0;
        }
        if (first + BATCH + tid < tile.end) next = pairs[first + BATCH + tid];
        __syncthreads();
        for (int k = 0; k < BATCH && !__all_sync(FULL_WARP, upper.done && lower.done); k += 32) {
            u32 reaching = __ballot_sync(FULL_WARP, (s.stage.quadrants[k + lane] >> warp) & 1);
            for (; reaching; reaching &= reaching - 1) {
                const int slot = k + __ffs(reaching) - 1;
                const float4 a = s.stage.a[slot], b = s.stage.b[slot];
                const float4 c = s.stage.c[slot];
                const float2 power = log2_alphas(a, b, x + 0.5f, y + 0.5f);
                const bool in_upper = !upper.done && power.x >= LOG2_MIN_ALPHA;
                const bool in_lower = !lower.done && power.y >= LOG2_MIN_ALPHA;
                if (!__any_sync(FULL_WARP, in_upper || in_lower)) continue;
                float2 slope_upper = make_float2(0.0f, 0.0f), slope_lower = make_float2(0.0f, 0.0f);
                if (in_upper) slope_upper = upper.step(power.x, b, c);
                if (in_lower) slope_lower = lower.step(power.y, b, c);
                float2* slopes = s.slopes[warp] + size * ROW;
                slopes[lane] = slope_upper;
                slopes[lane + 32] = slope_lower;
                if ((lane & 15) == size) own = slot;
                if (++size == GROUP) {
                    flush(s, warp, lane, own, GROUP, upstream, left + 4.0f, top + 4.0f, gradients);
                    size = 0;
                }
            }
        }
        if (size) flush(s, warp, lane, own, size, upstream, left + 4.0f, top + 4.0f, gradients);
        size = 0;  // slots refer to this batch
    }
}
