// Differentiable shading of rasterized meshes, forward and backward: the arithmetic of shading_cpu.py and
// antialias_cpu.py, one thread per pixel (or point), sums into vertices and texels by atomics.
// REAL is the type of colours, attributes and texels; positions are float64.

#ifndef REAL
#define REAL float
#endif

namespace {

constexpr int kHops = 32;  // as in shading_reference.py

__device__ long long thread_index() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }

struct Ray {
  double ray[3];
  double corners[3][3];
  double values[3];  // ray . (next x after next)
  double total;
};

// The ray of a pixel centre and its edge functions; `pixel` counts over all views.
__device__ Ray make_ray(const double* points, const long long* faces, const double* pinhole, long long num_vertices,
                        int height, int width, long long pixel, int triangle) {
  const long long per_view = static_cast<long long>(height) * width;
  const long long view = pixel / per_view, inside = pixel % per_view;
  const double* camera = pinhole + view * 4;
  Ray r;
  r.ray[0] = (static_cast<double>(inside % width) + 0.5 - camera[2]) / camera[0];
  r.ray[1] = (static_cast<double>(inside / width) + 0.5 - camera[3]) / camera[1];
  r.ray[2] = 1.0;
  for (int i = 0; i < 3; ++i) {
    const double* p = points + (view * num_vertices + faces[triangle * 3ll + i]) * 3;
    for (int axis = 0; axis < 3; ++axis) r.corners[i][axis] = p[axis];
  }
  r.total = 0.0;
  for (int i = 0; i < 3; ++i) {
    const double* p = r.corners[(i + 1) % 3];
    const double* q = r.corners[(i + 2) % 3];
    r.values[i] = r.ray[0] * (p[1] * q[2] - p[2] * q[1]) + r.ray[1] * (p[2] * q[0] - p[0] * q[2]) +
                  r.ray[2] * (p[0] * q[1] - p[1] * q[0]);
    r.total += r.values[i];
  }
  return r;
}

struct Footprint {
  double share, right, lower;
  long long where[4];
  int width, height;
};

__device__ long long wrapped(double value, int size) {
  const long long rest = static_cast<long long>(value) % size;
  return rest < 0 ? rest + size : rest;
}

// One of the two mip levels of a point.
__device__ Footprint make_footprint(const long long* sizes, int num_levels, double u, double v, double level,
                                    int upper) {
  level = fmin(fmax(level, 0.0), static_cast<double>(num_levels - 1));
  const int low = static_cast<int>(floor(level));
  const int chosen = low + upper < num_levels ? low + upper : num_levels - 1;
  long long start = 0;
  for (int i = 0; i < chosen; ++i) start += sizes[i * 2] * sizes[i * 2 + 1];
  Footprint f;
  f.share = upper ? level - low : 1.0 - (level - low);
  f.height = static_cast<int>(sizes[chosen * 2]);
  f.width = static_cast<int>(sizes[chosen * 2 + 1]);
  const double x = u * f.width - 0.5, y = v * f.height - 0.5;
  const double left = floor(x), top = floor(y);
  f.right = x - left;
  f.lower = y - top;
  for (int i = 0; i < 4; ++i) {
    f.where[i] = start + wrapped(top + i / 2, f.height) * f.width + wrapped(left + i % 2, f.width);
  }
  return f;
}

// A view of a mesh on the screen.
struct Screen {
  const double* points;  // pixel coordinates and depth, [N, 3]
  const long long* faces;
  const long long* neighbors;

  __device__ const double* corner(long long face, int i) const { return points + faces[face * 3 + i % 3] * 3; }

  __device__ bool facing(long long face) const {
    const double *a = corner(face, 0), *b = corner(face, 1), *c = corner(face, 2);
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0.0;
  }
};

struct Silhouette {
  double reach;  // from the centre of the near pixel to that of the other, 0..1; negative where there is none
  long long start, end;
};

// A pair of neighbouring pixels of one view that see different triangles.
struct Pair {
  bool useful;
  int axis, step;
  int near_row, near_column;
  long long near_pixel, other_pixel;
};

__device__ Pair make_pair(const int* triangle_id, const float* depth, int height, int width, int row, int column,
                          int axis) {
  Pair pair;
  pair.useful = false;
  pair.axis = axis;
  const int next_row = row + axis, next_column = column + 1 - axis;
  if (next_row >= height || next_column >= width) return pair;
  const long long here = static_cast<long long>(row) * width + column;
  const long long there = static_cast<long long>(next_row) * width + next_column;
  const int first = triangle_id[here], second = triangle_id[there];
  if (first == second) return pair;
  const bool swapped = second >= 0 && (first < 0 || depth[there] < depth[here]);
  pair.useful = true;
  pair.step = swapped ? -1 : 1;
  pair.near_row = swapped ? next_row : row;
  pair.near_column = swapped ? next_column : column;
  pair.near_pixel = swapped ? there : here;
  pair.other_pixel = swapped ? here : there;
  return pair;
}

// Walks from the near pixel's triangle over its neighbours towards the other pixel.
__device__ Silhouette find_silhouette(const Screen& screen, const Pair& pair, long long face) {
  const Silhouette none{-1.0, -1, -1};
  const int axis = pair.axis;
  const double x = pair.near_column + 0.5, y = pair.near_row + 0.5;
  const double line = axis == 0 ? y : x, origin = axis == 0 ? x : y;
  for (int hop = 0; hop < kHops; ++hop) {
    double distance = -1.0;
    int leaving = -1;
    for (int i = 0; i < 3; ++i) {
      const double *a = screen.corner(face, i), *b = screen.corner(face, i + 1);
      if (!(a[2] > 0.0)) return none;
      const double before = a[1 - axis] - line, after = b[1 - axis] - line;
      if ((before > 0.0) == (after > 0.0)) continue;
      const double position = a[axis] + before / (before - after) * (b[axis] - a[axis]);
      if ((position - origin) * pair.step > distance) {
        distance = (position - origin) * pair.step;
        leaving = i;
      }
    }
    if (leaving < 0 || !(distance >= 0.0 && distance <= 1.0)) return none;
    const long long following = screen.neighbors[face * 3 + leaving];
    if (following < 0 || screen.facing(following) != screen.facing(face)) {
      const double *p = screen.corner(face, leaving), *q = screen.corner(face, leaving + 1);
      const double run_x = fabs(q[0] - p[0]), run_y = fabs(q[1] - p[1]);
      if (axis == 0 ? run_x > run_y : run_y >= run_x) return none;
      return Silhouette{distance, screen.faces[face * 3 + leaving], screen.faces[face * 3 + (leaving + 1) % 3]};
    }
    face = following;
  }
  return none;
}

}  // namespace

extern "C" __global__ void shade_weights(const double* __restrict__ points, const long long* __restrict__ faces,
                                         const double* __restrict__ pinhole, const int* __restrict__ triangle_id,
                                         long long num_views, long long num_vertices, int height, int width,
                                         double* __restrict__ result) {
  const long long pixel = thread_index();
  if (pixel >= num_views * height * width || triangle_id[pixel] < 0) return;
  const Ray r = make_ray(points, faces, pinhole, num_vertices, height, width, pixel, triangle_id[pixel]);
  for (int i = 0; i < 3; ++i) result[pixel * 3 + i] = r.values[i] / r.total;
}

extern "C" __global__ void shade_weights_backward(const double* __restrict__ points,
                                                  const long long* __restrict__ faces,
                                                  const double* __restrict__ pinhole,
                                                  const int* __restrict__ triangle_id, long long num_views,
                                                  long long num_vertices, int height, int width,
                                                  const double* __restrict__ gradient, double* moved) {
  const long long pixel = thread_index();
  if (pixel >= num_views * height * width || triangle_id[pixel] < 0) return;
  const long long triangle = triangle_id[pixel];
  const long long view = pixel / (static_cast<long long>(height) * width);
  const Ray r = make_ray(points, faces, pinhole, num_vertices, height, width, pixel, triangle_id[pixel]);
  double mean = 0.0;
  for (int i = 0; i < 3; ++i) mean += gradient[pixel * 3 + i] * r.values[i] / r.total;
  for (int i = 0; i < 3; ++i) {
    // value i = p . (q x ray) = q . (ray x p) with p, q the corners i + 1, i + 2
    const int j = (i + 1) % 3, k = (i + 2) % 3;
    const double along = (gradient[pixel * 3 + i] - mean) / r.total;
    double* to_p = moved + (view * num_vertices + faces[triangle * 3 + j]) * 3;
    double* to_q = moved + (view * num_vertices + faces[triangle * 3 + k]) * 3;
    for (int axis = 0; axis < 3; ++axis) {
      const int b = (axis + 1) % 3, c = (axis + 2) % 3;
      atomicAdd(to_p + axis, along * (r.corners[k][b] * r.ray[c] - r.corners[k][c] * r.ray[b]));
      atomicAdd(to_q + axis, along * (r.ray[b] * r.corners[j][c] - r.ray[c] * r.corners[j][b]));
    }
  }
}

extern "C" __global__ void shade_interpolate(const REAL* __restrict__ attributes, const long long* __restrict__ faces,
                                             const int* __restrict__ triangle_id, const REAL* __restrict__ weights,
                                             long long count, int channels, REAL* __restrict__ result) {
  const long long n = thread_index();
  if (n >= count || triangle_id[n] < 0) return;
  const long long* face = faces + triangle_id[n] * 3ll;
  for (int channel = 0; channel < channels; ++channel) {
    REAL sum = 0;
    for (int i = 0; i < 3; ++i) sum += weights[n * 3 + i] * attributes[face[i] * channels + channel];
    result[n * channels + channel] = sum;
  }
}

extern "C" __global__ void shade_interpolate_backward(const REAL* __restrict__ attributes,
                                                      const long long* __restrict__ faces,
                                                      const int* __restrict__ triangle_id,
                                                      const REAL* __restrict__ weights,
                                                      const REAL* __restrict__ gradient, long long count, int channels,
                                                      REAL* spread, REAL* __restrict__ slopes) {
  const long long n = thread_index();
  if (n >= count || triangle_id[n] < 0) return;
  for (int i = 0; i < 3; ++i) {
    const long long vertex = faces[triangle_id[n] * 3ll + i];
    REAL slope = 0;
    for (int channel = 0; channel < channels; ++channel) {
      const REAL change = gradient[n * channels + channel];
      slope += attributes[vertex * channels + channel] * change;
      atomicAdd(spread + vertex * channels + channel, weights[n * 3 + i] * change);
    }
    slopes[n * 3 + i] = slope;
  }
}

extern "C" __global__ void shade_texture(const REAL* __restrict__ texels, const long long* __restrict__ sizes,
                                         const REAL* __restrict__ uvs, const REAL* __restrict__ levels,
                                         long long count, int channels, int num_levels, REAL* __restrict__ result) {
  const long long n = thread_index();
  if (n >= count) return;
  for (int upper = 0; upper < 2; ++upper) {
    const Footprint f = make_footprint(sizes, num_levels, uvs[n * 2], uvs[n * 2 + 1], levels[n], upper);
    if (!(f.share > 0.0)) continue;
    for (int i = 0; i < 4; ++i) {
      const double across = i % 2 ? f.right : 1.0 - f.right, down = i / 2 ? f.lower : 1.0 - f.lower;
      const REAL weight = static_cast<REAL>(f.share * across * down);
      for (int channel = 0; channel < channels; ++channel) {
        result[n * channels + channel] += weight * texels[f.where[i] * channels + channel];
      }
    }
  }
}

extern "C" __global__ void shade_texture_backward(const REAL* __restrict__ texels, const long long* __restrict__ sizes,
                                                  const REAL* __restrict__ uvs, const REAL* __restrict__ levels,
                                                  const REAL* __restrict__ gradient, long long count, int channels,
                                                  int num_levels, REAL* spread, REAL* __restrict__ slopes) {
  const long long n = thread_index();
  if (n >= count) return;
  double slope_u = 0.0, slope_v = 0.0;
  for (int upper = 0; upper < 2; ++upper) {
    const Footprint f = make_footprint(sizes, num_levels, uvs[n * 2], uvs[n * 2 + 1], levels[n], upper);
    if (!(f.share > 0.0)) continue;
    for (int i = 0; i < 4; ++i) {
      const double across = i % 2 ? f.right : 1.0 - f.right, down = i / 2 ? f.lower : 1.0 - f.lower;
      const double along_u = (i % 2 ? 1.0 : -1.0) * down * f.width;
      const double along_v = (i / 2 ? 1.0 : -1.0) * across * f.height;
      for (int channel = 0; channel < channels; ++channel) {
        const double change = f.share * gradient[n * channels + channel];
        const double texel = texels[f.where[i] * channels + channel];
        atomicAdd(spread + f.where[i] * channels + channel, static_cast<REAL>(across * down * change));
        slope_u += along_u * change * texel;
        slope_v += along_v * change * texel;
      }
    }
  }
  slopes[n * 2] = static_cast<REAL>(slope_u);
  slopes[n * 2 + 1] = static_cast<REAL>(slope_v);
}

// Adds to `result`, a copy of the colours.
extern "C" __global__ void shade_antialias(const REAL* __restrict__ color, const double* __restrict__ screen,
                                           const long long* __restrict__ faces,
                                           const long long* __restrict__ neighbors,
                                           const int* __restrict__ triangle_id, const float* __restrict__ depth,
                                           long long num_views, long long num_vertices, int height, int width,
                                           int channels, REAL* result) {
  const long long pixel = thread_index(), per_view = static_cast<long long>(height) * width;
  if (pixel >= num_views * per_view) return;
  const long long view = pixel / per_view, first = view * per_view;
  const int row = static_cast<int>((pixel % per_view) / width), column = static_cast<int>(pixel % width);
  const Screen mesh{screen + view * num_vertices * 3, faces, neighbors};
  for (int axis = 0; axis < 2; ++axis) {
    const Pair pair = make_pair(triangle_id + first, depth + first, height, width, row, column, axis);
    if (!pair.useful) continue;
    const Silhouette found = find_silhouette(mesh, pair, triangle_id[first + pair.near_pixel]);
    if (found.reach < 0.0) continue;
    const REAL* near = color + (first + pair.near_pixel) * channels;
    const REAL* other = color + (first + pair.other_pixel) * channels;
    REAL* changed = result + (first + (found.reach < 0.5 ? pair.near_pixel : pair.other_pixel)) * channels;
    const REAL part = static_cast<REAL>(found.reach - 0.5);
    for (int channel = 0; channel < channels; ++channel) {
      atomicAdd(changed + channel, part * (near[channel] - other[channel]));
    }
  }
}

// Adds to `spread`, a copy of the gradient.
extern "C" __global__ void shade_antialias_backward(
    const REAL* __restrict__ color, const double* __restrict__ screen, const long long* __restrict__ faces,
    const long long* __restrict__ neighbors, const int* __restrict__ triangle_id, const float* __restrict__ depth,
    const REAL* __restrict__ gradient, long long num_views, long long num_vertices, int height, int width, int channels,
    REAL* spread, double* moved) {
  const long long pixel = thread_index(), per_view = static_cast<long long>(height) * width;
  if (pixel >= num_views * per_view) return;
  const long long view = pixel / per_view, first = view * per_view;
  const int row = static_cast<int>((pixel % per_view) / width), column = static_cast<int>(pixel % width);
  const Screen mesh{screen + view * num_vertices * 3, faces, neighbors};
  for (int axis = 0; axis < 2; ++axis) {
    const Pair pair = make_pair(triangle_id + first, depth + first, height, width, row, column, axis);
    if (!pair.useful) continue;
    const Silhouette found = find_silhouette(mesh, pair, triangle_id[first + pair.near_pixel]);
    if (found.reach < 0.0) continue;
    const long long near = (first + pair.near_pixel) * channels, other = (first + pair.other_pixel) * channels;
    const REAL* slopes = gradient + (found.reach < 0.5 ? near : other);
    const REAL part = static_cast<REAL>(found.reach - 0.5);
    double along = 0.0;
    for (int channel = 0; channel < channels; ++channel) {
      along += static_cast<double>(slopes[channel]) * (color[near + channel] - color[other + channel]);
      atomicAdd(spread + near + channel, slopes[channel] * part);
      atomicAdd(spread + other + channel, -slopes[channel] * part);
    }
    along *= pair.step;
    const double line = (axis == 0 ? pair.near_row : pair.near_column) + 0.5;
    const double *a = mesh.points + found.start * 3, *b = mesh.points + found.end * 3;
    const double run = b[axis] - a[axis], rise = b[1 - axis] - a[1 - axis];
    const double share = (line - a[1 - axis]) / rise;
    double* to_a = moved + (view * num_vertices + found.start) * 3;
    double* to_b = moved + (view * num_vertices + found.end) * 3;
    atomicAdd(to_a + axis, along * (1.0 - share));
    atomicAdd(to_b + axis, along * share);
    atomicAdd(to_a + 1 - axis, -along * (1.0 - share) * run / rise);
    atomicAdd(to_b + 1 - axis, -along * share * run / rise);
  }
}
