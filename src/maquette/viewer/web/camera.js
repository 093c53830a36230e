// An upright orbit camera with maquette's conventions: azimuth 0 looks at the front (+Z) and grows to the object's
// left, elevation grows upwards, camera axes are OpenCV's (x right, y down, z forward), the field of view is vertical.

const ZOOM_RANGE = [0.05, 20];
const degrees = Math.PI / 180;

// How far from its middle a sphere fits into a window of which `shares` of width and height are free.
function fittedRadius(radius, fov, aspect, [wide, high]) {
  const tangent = Math.tan((fov * degrees) / 2) * Math.min(high, aspect * wide);
  return (1.03 * radius) / Math.sin(Math.atan(tangent));
}

function cameraAxes({ azimuth, elevation }) {
  const [ca, sa] = [Math.cos(azimuth * degrees), Math.sin(azimuth * degrees)];
  const [ce, se] = [Math.cos(elevation * degrees), Math.sin(elevation * degrees)];
  return { right: [ca, 0, -sa], up: [-se * sa, ce, -se * ca], backward: [ce * sa, se, ce * ca] };
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

// World to camera, column by column as WebGL takes it.
function viewMatrix(camera) {
  const { right, up, backward } = cameraAxes(camera);
  const position = backward.map((value, i) => value * camera.radius + camera.target[i]);
  const rows = [right, up.map((v) => -v), backward.map((v) => -v)];
  const matrix = new Float32Array(16);
  rows.forEach((row, r) => {
    for (let c = 0; c < 3; c++) matrix[4 * c + r] = row[c];
    matrix[12 + r] = -dot(row, position);
  });
  matrix[15] = 1;
  return matrix;
}

// A drag of the whole height of the window turns the camera by half a turn.
function orbited(camera, dx, dy, height) {
  const perPixel = 180 / height;
  const elevation = Math.max(-90, Math.min(90, camera.elevation + dy * perPixel));
  return { ...camera, azimuth: camera.azimuth - dx * perPixel, elevation };
}

function zoomed(camera, factor, size) {
  const radius = Math.max(ZOOM_RANGE[0] * size, Math.min(ZOOM_RANGE[1] * size, camera.radius * factor));
  return { ...camera, radius };
}

// The object follows the pointer.
function panned(camera, dx, dy, height) {
  const { right, up } = cameraAxes(camera);
  const perPixel = (2 * camera.radius * Math.tan((camera.fov * degrees) / 2)) / height;
  const target = camera.target.map((value, i) => value + perPixel * (dy * up[i] - dx * right[i]));
  return { ...camera, target };
}
