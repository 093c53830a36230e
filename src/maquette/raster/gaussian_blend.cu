// Blending front to back: colour, depth and alpha of every pixel.
#include "gaussian_stage.cuh"

namespace {

constexpr float NEVER = 1e30f;

struct Pixel {
    float light, red, green, blue, depth;
    float least;  // log2(alpha) from which a Gaussian counts: NEVER once the pixel is done

    __device__ __forceinline__ bool done() const { return least == NEVER; }

    __device__ __forceinline__ void add(float log2_alpha, float4 b, float4 c) {
        const float alpha = log2_alpha >= least ? fminf(c.w, exp2_fast(log2_alpha)) : 0.0f;
        const float left = light * (1.0f - alpha);
        const bool stop = left < MIN_TRANSMITTANCE;
        const float weight = stop ? 0.0f : alpha * light;
        red = fmaf(weight, b.z, red);
        green = fmaf(weight, b.w, green);
        blue = fmaf(weight, c.x, blue);
        depth = fmaf(weight, c.y, depth);
        light = stop ? light : left;
        least = stop ? NEVER : least;
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

// Renders colour (over the background), depth and alpha, planar: [BV, 3, H, W], [BV, H, W], [BV, H, W]. Where `rows` is not
// null, it sets the bits of the slots that are staged and reach the tile, for blend_backward.
extern "C" __global__ void __launch_bounds__(128)
blend_forward(const float4* __restrict__ records, const float* __restrict__ colors, const float* __restrict__ background,
              const u32* __restrict__ pairs, const u32* __restrict__ starts, const u32* __restrict__ ends, Ranked* rows,
              float* color, float* depths, float* alphas, int count, int views, int tiles_x, int tiles_per_view,
              int width, int height) {
    __shared__ Stage stage;
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const Tile tile = load_tile(blockIdx.x, starts, ends, tiles_x, tiles_per_view);
    const Image image = {width, height, (size_t)width * height};
    const size_t first_color = (size_t)(tile.bv / views) * count;
    const int x = tile.x + (warp & 1) * 8 + (lane & 7), y = tile.y + (warp >> 1) * 8 + (lane >> 3);
    const bool beside = x >= width;
    Pixel upper = {1, 0, 0, 0, 0, beside || y >= height ? NEVER : LOG2_MIN_ALPHA};
    Pixel lower = {1, 0, 0, 0, 0, beside || y + 4 >= height ? NEVER : LOG2_MIN_ALPHA};

    if (tid == 0) stage_nothing(stage);
    u32 next = tile.start + tid < tile.end ? pairs[tile.start + tid] : 0;
    u32 after = tile.start + BATCH + tid < tile.end ? pairs[tile.start + BATCH + tid] : 0;
    for (u32 first = tile.start; first < tile.end; first += BATCH) {
        if (__syncthreads_and(upper.done() && lower.done())) break;
        if (first + tid < tile.end) {
            const bool reaches = stage_pair(stage, tid, next, records, colors, first_color, tile);
            if (rows && reaches) atomicOr(&rows[next >> 5].bits, 1u << (next & 31));
        } else {
            stage.quadrants[tid] = 0;
        }
        next = after;
        if (first + BATCH + tid < tile.end) prefetch_record(records, next);
        if (first + 2 * BATCH + tid < tile.end) after = pairs[first + 2 * BATCH + tid];
        __syncthreads();
        const int length = list_reaching(stage, warp, lane);
        for (int group = 0; group < length && !__all_sync(FULL_WARP, upper.done() && lower.done()); group += 16) {
            const int end = min(group + 16, length);
            for (int i = group; i < end; i += 2) {
                const int2 place = two_reaching(stage, warp, i);
                const float4 b0 = stage.b[place.x], b1 = stage.b[place.y];
                const float2 power0 = log2_alphas(stage.a[place.x], b0, x + 0.5f, y + 0.5f);
                const float2 power1 = log2_alphas(stage.a[place.y], b1, x + 0.5f, y + 0.5f);
                const float4 c0 = stage.c[place.x], c1 = stage.c[place.y];
                upper.add(power0.x, b0, c0);
                lower.add(power0.y, b0, c0);
                upper.add(power1.x, b1, c1);
                lower.add(power1.y, b1, c1);
            }
        }
    }
    upper.write(color, depths, alphas, background, tile.bv, image, x, y);
    lower.write(color, depths, alphas, background, tile.bv, image, x, y + 4);
}
