// From the page's text to typed arrays. The counterpart of payload.py and gaussian_payload.py.

const ARRAY_TYPES = { Uint8Array, Int8Array, Uint16Array, Uint32Array, Float32Array };

async function readArrays(facts, text) {
  const stream = new Blob([bytesOfBase64(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const arrays = {};
  for (const { name, type, rows, stride, offset } of facts.arrays) {
    const joined = new Uint8Array(rows * stride);
    for (let place = 0; place < stride; place++) {
      const plane = offset + place * rows;
      for (let row = 0, at = place; row < rows; row++, at += stride) joined[at] = bytes[plane + row];
    }
    arrays[name] = new ARRAY_TYPES[type](joined.buffer);
  }
  return arrays;
}

function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// Two texels of four 32 bit numbers for every Gaussian (the position as floats, the rest as it came; splats.js unpacks
// it), and the positions alone for sorting.
function unpackGaussians(facts, { chunks, positions, scales, colors, rotations }) {
  const count = rotations.length;
  const { near, chunk } = facts;
  const nearChunks = Math.ceil(near / chunk);
  const columns = chunks.length / (nearChunks + Math.ceil((count - near) / chunk));
  const floats = new Float32Array(8 * count);
  const words = new Uint32Array(floats.buffer);
  const centers = new Float32Array(3 * count);
  for (let i = 0; i < count; i++) {
    const c = columns * (i < near ? Math.floor(i / chunk) : nearChunks + Math.floor((i - near) / chunk));
    for (let axis = 0; axis < 3; axis++) {
      const value = chunks[c + axis] + chunks[c + 3 + axis] * positions[3 * i + axis];
      floats[8 * i + axis] = centers[3 * i + axis] = value;
    }
    words[8 * i + 3] = colors[4 * i] | (colors[4 * i + 1] << 8) | (colors[4 * i + 2] << 16) | (colors[4 * i + 3] << 24);
    words[8 * i + 4] = rotations[i];
    const limit = Math.round((chunks[c + 8] - 1) * 64);
    words[8 * i + 5] = scales[3 * i] | (scales[3 * i + 1] << 8) | (scales[3 * i + 2] << 16) | (limit << 24);
    floats[8 * i + 6] = chunks[c + 6];
    floats[8 * i + 7] = chunks[c + 7];
  }
  return { count, words, centers };
}
