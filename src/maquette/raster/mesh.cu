// Mesh visibility: a 64-bit key (bits of the float32 depth, triangle id) per pixel, lowered by atomicMin.
// Same arithmetic as mesh_reference.py in float64 without fused multiply-adds, so that all backends round alike.

namespace {

constexpr double kNear = 1e-3;
constexpr double kMarginPx = 1e-6;
constexpr unsigned long long kEmpty = ~0ull;
constexpr double kLargest = 1.7976931348623157e308;
constexpr int kSmallPixels = 48;  // larger boxes go to a whole block

// A double whose products and sums the compiler must not fuse.
struct Real {
  double value;
};
__device__ Real operator*(Real p, Real q) { return Real{__dmul_rn(p.value, q.value)}; }
__device__ Real operator+(Real p, Real q) { return Real{__dadd_rn(p.value, q.value)}; }
__device__ Real operator-(Real p, Real q) { return Real{__dsub_rn(p.value, q.value)}; }
__device__ Real operator/(Real p, Real q) { return Real{__ddiv_rn(p.value, q.value)}; }
__device__ Real operator-(Real p) { return Real{-p.value}; }

struct Point {
  Real x, y, z;
};

struct Edges {
  Real a[3], b[3], c[3];
  Real det;
};

struct Box {
  int x0, x1, y0, y1;  // half open
};

__device__ void load_corners(const double* points, const long long* faces, long long num_vertices, long long view,
                             long long triangle, Point corners[3]) {
  for (int i = 0; i < 3; ++i) {
    const double* p = points + (view * num_vertices + faces[triangle * 3 + i]) * 3;
    corners[i] = Point{Real{p[0]}, Real{p[1]}, Real{p[2]}};
  }
}

__device__ Edges make_edges(const Point corners[3], const double* pinhole) {
  const Real focal_x{pinhole[0]}, focal_y{pinhole[1]}, center_x{pinhole[2]}, center_y{pinhole[3]};
  Edges e;
  for (int i = 0; i < 3; ++i) {
    const Point p = corners[(i + 1) % 3], q = corners[(i + 2) % 3];
    e.a[i] = (p.y * q.z - p.z * q.y) / focal_x;
    e.b[i] = (p.z * q.x - p.x * q.z) / focal_y;
    e.c[i] = ((p.x * q.y - p.y * q.x) - e.a[i] * center_x) - e.b[i] * center_y;
  }
  const Point r = corners[0], p = corners[1], q = corners[2];
  e.det = (r.x * (p.y * q.z - p.z * q.y) + r.y * (p.z * q.x - p.x * q.z)) + r.z * (p.x * q.y - p.y * q.x);
  if (e.det.value < 0.0) {
    for (int i = 0; i < 3; ++i) {
      e.a[i] = -e.a[i];
      e.b[i] = -e.b[i];
      e.c[i] = -e.c[i];
    }
    e.det = -e.det;
  }
  return e;
}

__device__ void extend(double u, double v, double bounds[4]) {
  bounds[0] = fmin(bounds[0], u);
  bounds[1] = fmax(bounds[1], u);
  bounds[2] = fmin(bounds[2], v);
  bounds[3] = fmax(bounds[3], v);
}

__device__ bool pixel_range(double low, double high, int size, int& start, int& stop) {
  const double first = fmax(0.0, ceil(low - 0.5 - kMarginPx));
  const double last = fmin(static_cast<double>(size), floor(high - 0.5 + kMarginPx) + 1.0);
  if (!(first < last)) return false;
  start = static_cast<int>(first);
  stop = static_cast<int>(last);
  return true;
}

// Box around the part of a triangle beyond the near plane; false when no pixel centre can be inside.
__device__ bool pixel_box(const Point corners[3], const double* pinhole, int height, int width, Box& box) {
  double bounds[4] = {1e300, -1e300, 1e300, -1e300};
  for (int i = 0; i < 3; ++i) {
    const double px = corners[i].x.value, py = corners[i].y.value, pz = corners[i].z.value;
    const Point q = corners[(i + 1) % 3];
    if (pz > kNear) extend(pinhole[0] * px / pz + pinhole[2], pinhole[1] * py / pz + pinhole[3], bounds);
    if ((pz > kNear) != (q.z.value > kNear)) {
      const double t = (kNear - pz) / (q.z.value - pz);
      extend(pinhole[0] * (px + t * (q.x.value - px)) / kNear + pinhole[2],
             pinhole[1] * (py + t * (q.y.value - py)) / kNear + pinhole[3], bounds);
    }
  }
  return pixel_range(bounds[0], bounds[1], width, box.x0, box.x1) &&
         pixel_range(bounds[2], bounds[3], height, box.y0, box.y1);
}

__device__ void evaluate(const Edges& e, int column, int row, Real values[3]) {
  const Real x{column + 0.5}, y{row + 0.5};
  for (int i = 0; i < 3; ++i) values[i] = (e.a[i] * x + e.b[i] * y) + e.c[i];
}

__device__ bool usable(const Edges& e) { return e.det.value > 0.0 && e.det.value <= kLargest; }

__device__ bool owns(Real value, Real a, Real b) {  // top-left rule
  return value.value > 0.0 || (value.value == 0.0 && (a.value > 0.0 || (a.value == 0.0 && b.value > 0.0)));
}

__device__ void test_pixel(const Edges& e, unsigned int triangle, int column, int row, unsigned long long* key) {
  Real v[3];
  evaluate(e, column, row, v);
  if (!(owns(v[0], e.a[0], e.b[0]) && owns(v[1], e.a[1], e.b[1]) && owns(v[2], e.a[2], e.b[2]))) return;
  const double z = (e.det / ((v[0] + v[1]) + v[2])).value;
  if (!(z > kNear)) return;
  const unsigned int bits = __float_as_uint(static_cast<float>(z));  // positive floats order like their bits
  const unsigned long long candidate = (static_cast<unsigned long long>(bits) << 32) | triangle;
  if (candidate < *static_cast<volatile unsigned long long*>(key)) atomicMin(key, candidate);
}

}  // namespace

// One thread per (view, triangle): small boxes are filled at once, large ones are queued.
extern "C" __global__ void mesh_small(const double* __restrict__ points, const long long* __restrict__ faces,
                                      const double* __restrict__ pinhole, long long num_views, long long num_vertices,
                                      long long num_faces, int height, int width, unsigned long long* keys,
                                      long long* queue, unsigned long long* queue_size) {
  const long long item = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= num_views * num_faces) return;
  const long long view = item / num_faces, triangle = item % num_faces;
  Point corners[3];
  load_corners(points, faces, num_vertices, view, triangle, corners);
  Box box;
  if (!pixel_box(corners, pinhole + view * 4, height, width, box)) return;
  if (static_cast<long long>(box.x1 - box.x0) * (box.y1 - box.y0) > kSmallPixels) {
    queue[atomicAdd(queue_size, 1ull)] = item;
    return;
  }
  const Edges edges = make_edges(corners, pinhole + view * 4);
  if (!usable(edges)) return;
  unsigned long long* picture = keys + view * height * width;
  for (int row = box.y0; row < box.y1; ++row) {
    for (int column = box.x0; column < box.x1; ++column) {
      test_pixel(edges, static_cast<unsigned int>(triangle), column, row,
                 picture + static_cast<long long>(row) * width + column);
    }
  }
}

// One block per queued triangle, blocks striding over the queue.
extern "C" __global__ void mesh_large(const double* __restrict__ points, const long long* __restrict__ faces,
                                      const double* __restrict__ pinhole, long long num_vertices, long long num_faces,
                                      int height, int width, unsigned long long* keys,
                                      const long long* __restrict__ queue, const unsigned long long* queue_size) {
  for (unsigned long long slot = blockIdx.x; slot < *queue_size; slot += gridDim.x) {
    const long long item = queue[slot];
    const long long view = item / num_faces, triangle = item % num_faces;
    Point corners[3];
    load_corners(points, faces, num_vertices, view, triangle, corners);
    Box box;
    if (!pixel_box(corners, pinhole + view * 4, height, width, box)) continue;
    const Edges edges = make_edges(corners, pinhole + view * 4);
    if (!usable(edges)) continue;
    unsigned long long* picture = keys + view * height * width;
    const int columns = box.x1 - box.x0;
    const long long pixels = static_cast<long long>(columns) * (box.y1 - box.y0);
    for (long long pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) {
      const int column = box.x0 + static_cast<int>(pixel % columns), row = box.y0 + static_cast<int>(pixel / columns);
      test_pixel(edges, static_cast<unsigned int>(triangle), column, row,
                 picture + static_cast<long long>(row) * width + column);
    }
  }
}

// One thread per pixel: the winner's id, barycentrics and depth.
extern "C" __global__ void mesh_resolve(const double* __restrict__ points, const long long* __restrict__ faces,
                                        const double* __restrict__ pinhole, long long num_views,
                                        long long num_vertices, int height, int width,
                                        const unsigned long long* __restrict__ keys, int* __restrict__ triangle_id,
                                        float* __restrict__ barycentrics, float* __restrict__ depth) {
  const long long pixel = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const long long per_view = static_cast<long long>(height) * width;
  if (pixel >= num_views * per_view) return;
  const unsigned long long key = keys[pixel];
  int winner = -1;
  float weights[3] = {0.0f, 0.0f, 0.0f};
  float z = 0.0f;
  if (key != kEmpty) {
    const long long view = pixel / per_view;
    winner = static_cast<int>(key & 0xffffffffull);
    z = __uint_as_float(static_cast<unsigned int>(key >> 32));
    Point corners[3];
    load_corners(points, faces, num_vertices, view, winner, corners);
    const Edges e = make_edges(corners, pinhole + view * 4);
    Real v[3];
    evaluate(e, static_cast<int>(pixel % width), static_cast<int>((pixel % per_view) / width), v);
    const Real total = (v[0] + v[1]) + v[2];
    for (int i = 0; i < 3; ++i) weights[i] = static_cast<float>((v[i] / total).value);
  }
  triangle_id[pixel] = winner;
  depth[pixel] = z;
  for (int i = 0; i < 3; ++i) barycentrics[pixel * 3 + i] = weights[i];
}
