// Blending front to back: colour, depth and alpha of every pixel.
#include "gaussian_stage.cuh"

namespace {

struct Pixel {
    float light, red, green, blue, depth;
    bool done;

    __device__ __forceinline__ void add(float log2_alpha, float4 b, float4 c) {
        const float alpha = fminf(c.w, exp2_fast(log2_alpha)), left = light * (1.0f - alpha);
        if (left < MIN_TRANSMITTANCE) {
            done = true;
            return;
        }
        const float weight = alpha * light;
        red = fmaf(weight, b.z, red);
        green = fmaf(weight, b.w, green);
        blue = fmaf(weight, c.x, blue);
        depth = fmaf(weight, c.y, depth);
        light = left;
    }

    __device__ __forceinline__ void write(float* color, float* depths, float* alphas, const float* background, int bv,
                                          const Image& image, int x, int y) const {
        if (x >= image.width || y >= image.height) return;
        const size_t pixel = (size_t)y * image.width + x, at = bv * image.pixels + pixel;
        float* out = color + 3 * bv * image.pixels + pixel;
        out[0] = fmaf(light, __ldg(background + 3 * bv), red);
        out[image.pixels] = fmaf(light, __ldg(background + 3 * bv + 1), green);
        out[2 * image.pixels] = fmaf(light, __ldg(background + 3 * bv + 2), blue);
        depths[at] = depth;
        alphas[at] = 1.0f - light;
    }
};

}  // namespace

// Renders colour (over the background), depth and alpha, planar: [BV, 3, H, W], [BV, H, W], [BV, H, W].
extern "C" __global__ void __launch_bounds__(128)
blend_forward(const float4* __restrict__ records, const float* __restrict__ colors, const float* __restrict__ background,
              const u32* __restrict__ pairs, const u32* __restrict__ starts, const u32* __restrict__ ends, float* color,
              float* depths, float* alphas, int count, int views, int tiles_x, int tiles_per_view, int width,
              int height) {
    __shared__ Stage stage;
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const Tile tile = load_tile(starts, ends, tiles_x, tiles_per_view);
    const Image image = {width, height, (size_t)width * height};
    const size_t first_color = (size_t)(tile.bv / views) * count;
    const u32 first_record = (u32)tile.bv * count;
    const int x = tile.x + (warp & 1) * 8 + (lane & 7), y = tile.y + (warp >> 1) * 8 + (lane >> 3);
    Pixel upper = {1, 0, 0, 0, 0, x >= width || y >= height}, lower = {1, 0, 0, 0, 0, x >= width || y + 4 >= height};

    u32 next = tile.start + tid < tile.end ? pairs[tile.start + tid] : 0;
    for (u32 first = tile.start; first < tile.end; first += BATCH) {
        if (__syncthreads_and(upper.done && lower.done)) break;
        if (first + tid < tile.end)
            stage_pair(stage, tid, next, records, colors, first_color, first_record, tile);
        else
            stage.quadrants[tid] = 0;
        if (first + BATCH + tid < tile.end) next = pairs[first + BATCH + tid];
        __syncthreads();
        for (int k = 0; k < BATCH && !__all_sync(FULL_WARP, upper.done && lower.done); k += 32) {
            u32 reaching = __ballot_sync(FULL_WARP, (stage.quadrants[k + lane] >> warp) & 1);
            for (; reaching; reaching &= reaching - 1) {
                const int slot = k + __ffs(reaching) - 1;
                const float4 a = stage.a[slot], b = stage.b[slot];
                const float4 c = stage.c[slot];
                const float2 power = log2_alphas(a, b, x + 0.5f, y + 0.5f);
                if (!upper.done && power.x >= LOG2_MIN_ALPHA) upper.add(power.x, b, c);
                if (!lower.done && power.y >= LOG2_MIN_ALPHA) lower.add(power.y, b, c);
            }
        }
    }
    upper.write(color, depths, alphas, background, tile.bv, image, x, y);
    lower.write(color, depths, alphas, background, tile.bv, image, x, y + 4);
}
