// The kernels of tsdf.py, the same results up to rounding: a thread for every voxel, or for every point.

typedef unsigned long long u64;

constexpr int THREADS = 128;

// A view: world to camera (the first three of four rows) and fx, fy, cx, cy.
struct View {
    const float *matrix, *pinhole;

    __device__ __forceinline__ float along(int row, float x, float y, float z) const {
        const float* m = matrix + 4 * row;
        return m[0] * x + m[1] * y + m[2] * z + m[3];
    }
};

__device__ __forceinline__ View view_of(const float* matrices, const float* pinhole, int view) {
    return {matrices + 16 * view, pinhole + 4 * view};
}

extern "C" __global__ void __launch_bounds__(THREADS)
    integrate(const float* depth, const float* alpha, const float* weights, const float* matrices,
              const float* pinhole, const float* reliance, const float* geometry, const float* settings,
              float* distance, int num_views, int height, int width, int size_x, int size_y, int size_z) {
    const u64 voxel = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (voxel >= (u64)size_x * size_y * size_z) return;
    const float truncation = settings[0], solid = settings[1], free_weight = settings[2], hidden_weight = settings[3];
    const float x = geometry[0] + geometry[3] * (float)(voxel / size_z / size_y);
    const float y = geometry[1] + geometry[3] * (float)(voxel / size_z % size_y);
    const float z = geometry[2] + geometry[3] * (float)(voxel % size_z);
    float sum = 0.0f, total = 0.0f;
    for (int index = 0; index < num_views; ++index) {
        const View view = view_of(matrices, pinhole, index);
        const float away = view.along(2, x, y, z), scale = 1.0f / away;
        const float column = floorf(view.pinhole[0] * view.along(0, x, y, z) * scale + view.pinhole[2]);
        const float row = floorf(view.pinhole[1] * view.along(1, x, y, z) * scale + view.pinhole[3]);
        const bool inside = column >= 0.0f && column < (float)width && row >= 0.0f && row < (float)height;
        const u64 pixel = inside ? ((u64)index * height + (int)row) * width + (int)column : 0;
        const float covered = inside ? alpha[pixel] / solid : 0.0f;
        float value = 1.0f, weight = free_weight * (1.0f - covered) * (1.0f - covered);
        if (!(covered < 1.0f)) {
            value = (depth[pixel] - away) / truncation;
            weight = weights[pixel] * reliance[index];
            if (value < -1.0f) {
                value = -1.0f, weight = hidden_weight;
            } else if (value > 1.0f) {
                value = 1.0f, weight *= free_weight;
            }
        }
        sum += weight * value;
        total += weight;
    }
    distance[voxel] = sum / (total > 1e-12f ? total : 1e-12f);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gather_colors(const float* points, const float* normals, const float* color, const float* depth,
                  const float* weights, const float* matrices, const float* pinhole, const float* positions,
                  float tolerance, float* sums, int num_points, int num_views, int height, int width) {
    const u64 point = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (point >= num_points) return;
    const float x = points[3 * point], y = points[3 * point + 1], z = points[3 * point + 2];
    const float *normal = normals + 3 * point;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int index = 0; index < num_views; ++index) {
        const float* position = positions + 3 * index;
        const float dx = position[0] - x, dy = position[1] - y, dz = position[2] - z;
        const float cosine = (dx * normal[0] + dy * normal[1] + dz * normal[2]) / sqrtf(dx * dx + dy * dy + dz * dz);
        if (cosine < 0.1f) continue;
        const View view = view_of(matrices, pinhole, index);
        const float away = view.along(2, x, y, z);
        const float px = view.pinhole[0] * view.along(0, x, y, z) / away + view.pinhole[2] - 0.5f;
        const float py = view.pinhole[1] * view.along(1, x, y, z) / away + view.pinhole[3] - 0.5f;
        const float left = floorf(px), top = floorf(py);
        if (!(left >= 0.0f && top >= 0.0f && left + 1.0f < (float)width && top + 1.0f < (float)height)) continue;
        const float trust = cosine * cosine * cosine * cosine;
        for (int corner = 0; corner < 4; ++corner) {
            const u64 pixel = ((u64)index * height + (int)top + corner / 2) * width + (int)left + corner % 2;
            if (fabsf(away - depth[pixel]) > tolerance) continue;
            const float across = corner % 2 ? px - left : 1.0f - (px - left);
            const float down = corner / 2 ? py - top : 1.0f - (py - top);
            const float weight = across * down * trust * weights[pixel];
            for (int i = 0; i < 3; ++i) sum[i] += weight * color[3 * pixel + i];
            sum[3] += weight;
        }
    }
    for (int i = 0; i < 4; ++i) sums[4 * point + i] = sum[i];
}
