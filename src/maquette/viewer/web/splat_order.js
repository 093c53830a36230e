// The order of Gaussians from back to front, found by a counting sort in a worker.

// Runs in the worker (its text travels there) or, where no worker can be made, here: it may use nothing from outside.
function makeSorter(centers) {
  const BINS = 1 << 18;
  const count = centers.length / 3;
  const depths = new Float32Array(count);
  const bins = new Uint32Array(count);
  const starts = new Uint32Array(BINS + 1);
  return (x, y, z) => {
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < count; i++) {
      const depth = x * centers[3 * i] + y * centers[3 * i + 1] + z * centers[3 * i + 2];
      depths[i] = depth;
      if (depth < low) low = depth;
      if (depth > high) high = depth;
    }
    const factor = high > low ? (BINS - 1) / (high - low) : 0;
    starts.fill(0);
    for (let i = 0; i < count; i++) {
      bins[i] = ((high - depths[i]) * factor) | 0;
      starts[bins[i] + 1]++;
    }
    for (let b = 0; b < BINS; b++) starts[b + 1] += starts[b];
    const order = new Uint32Array(count);
    for (let i = 0; i < count; i++) order[starts[bins[i]]++] = i;
    return order;
  };
}

// Calls back with every new order. While one is being found only the latest wish is kept.
class SplatOrder {
  constructor(centers, onOrder) {
    Object.assign(this, { onOrder, busy: false, wish: null, shown: null, waiting: [] });
    const program = `${makeSorter}
      let sort = null;
      onmessage = ({ data }) => {
        if (data.centers) sort = makeSorter(data.centers);
        else { const order = sort(...data); postMessage(order, [order.buffer]); }
      };`;
    try {
      const address = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
      this.worker = new Worker(address);
      this.worker.onmessage = ({ data }) => this.finish(data);
      this.worker.onerror = () => this.workHere(centers);
      this.worker.postMessage({ centers });
    } catch {
      this.workHere(centers);
    }
  }

  workHere(centers) {
    this.worker = null;
    this.sort = makeSorter(centers);
    const asked = this.wish ?? this.asked;
    this.busy = false;
    if (asked) this.ask(asked);
  }

  // Depth grows along `forward`; how far the camera stands does not matter.
  ask(forward) {
    const latest = this.wish ?? this.asked;
    if (latest && forward.every((value, i) => value === latest[i])) return;
    if (this.busy) {
      this.wish = forward;
      return;
    }
    this.asked = forward;
    this.busy = true;
    if (this.worker) this.worker.postMessage(forward);
    else setTimeout(() => this.finish(this.sort(...forward)));
  }

  finish(order) {
    this.busy = false;
    this.onOrder(order);
    if (this.wish) {
      const forward = this.wish;
      this.wish = null;
      this.ask(forward);
    }
    if (!this.busy) this.waiting.splice(0).forEach((resolve) => resolve());
  }

  // Resolves when the order fits the last question.
  settled() {
    return this.busy ? new Promise((resolve) => this.waiting.push(resolve)) : Promise.resolve();
  }
}
