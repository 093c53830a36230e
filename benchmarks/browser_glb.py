"""GLB files in a real browser: python benchmarks/browser_glb.py FILE.glb... --gaussians FILE.ply... --node-modules DIR.

Validates each file (npm gltf-validator) and opens it in headless Chromium with three.js and <model-viewer> (npm three,
@google/model-viewer), served from 127.0.0.1. Colours without light are compared with renders of the Gaussians that the
files were made of, from the same cameras, so that colour space, axes and sides are measured; the screenshot is to look
at. Exits with 1 when the validator or the browser reports an error, a file looks unlike its Gaussians (PSNR), or more
than one pixel in a thousand shows the back of a triangle (those that fold over along sharp edges show single pixels).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from maquette.cameras import Cameras
from maquette.gaussians import Gaussians
from maquette.io import read_gaussians
from maquette.io.atomic import atomic_path, atomic_write_text
from maquette.raster import render_gaussians
from maquette.raster.bench_report import machine

PAGE = Path(__file__).with_name("browser_glb.html")
SIZE, FOV_DEG, TIMEOUT_S = 400, 49.1, 300
AZIMUTHS = [30.0, 75.0, 120.0, 165.0, 210.0, 255.0, 300.0, 345.0]
ELEVATIONS = [20.0, -20.0] * 4
ORBIT = "30deg 70deg auto"
"""model-viewer's words for the first camera: azimuth, angle from straight above, distance that fits the object."""
BACKGROUND = 224 / 255
LEAST_PSNR_DB, MOST_BACKS = 25.0, 0.001
COLUMNS = (
    {"title": "Gaussians (maquette)", "look": "gaussians", "view": 0},
    {"title": "three.js, colours alone", "look": "unlit", "view": 0},
    {"title": "three.js, lit", "look": "lit", "view": 0},
    {"title": "lit, from behind", "look": "lit", "view": 4},
    {"title": "lit, from below", "look": "lit", "view": 7},
    {"title": "normals", "look": "normals", "view": 0},
    {"title": "<model-viewer>", "look": "viewer", "view": 0},
)
CELL, GAP, LABEL = 200, 4, 18
FLAGS = ("--headless=new", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
VALIDATE = """
const validator = require("gltf-validator");
const bytes = new Uint8Array(require("fs").readFileSync(process.argv[1]));
validator.validateBytes(bytes, { maxIssues: 0 }).then((r) =>
  console.log(JSON.stringify({ version: validator.version(), ...r.issues, triangles: r.info.totalTriangleCount })));
"""
Picture = NDArray[np.uint8]


class Exchange:
    """What the page asks for and what it sends back.

    Args:
        files: the GLB files.
        gaussians: for every file, renders of its Gaussians from every camera, `[H, W, 3]` each.
        node_modules: the folder that npm filled.
        positions: of the cameras, in the world.
    """

    def __init__(
        self, files: list[Path], gaussians: list[list[Picture]], node_modules: Path, positions: list[list[float]]
    ) -> None:
        self.files, self.gaussians, self.node_modules = files, gaussians, node_modules
        job = {"size": SIZE, "fov_deg": FOV_DEG, "orbit": ORBIT, "columns": COLUMNS, "positions": positions}
        job["background"] = BACKGROUND
        self.job = json.dumps({**job, "names": [file.name for file in files]}).encode()
        self.pictures: dict[str, Picture] = {}
        self.facts: dict[str, Any] = {}
        self.done = threading.Event()

    def answer(self, path: str) -> tuple[bytes, str]:
        """Content and type of one address; FileNotFoundError when there is none."""
        head, *rest = path.strip("/").split("/")
        if path == "/":
            return PAGE.read_bytes(), "text/html; charset=utf-8"
        if path == "/job.json":
            return self.job, "application/json"
        if path == "/wait.png":
            self.done.wait(TIMEOUT_S)
            return _png(np.full((1, 1, 3), 255, np.uint8)), "image/png"
        if head == "gaussians":
            return _png(self.gaussians[int(rest[0])][int(Path(rest[1]).stem)]), "image/png"
        if head == "file":
            return self.files[int(Path(rest[0]).stem)].read_bytes(), "model/gltf-binary"
        if head == "node_modules":
            file = self.node_modules.joinpath(*rest).resolve()
            if file.is_relative_to(self.node_modules) and file.is_file():
                return file.read_bytes(), SimpleHTTPRequestHandler.extensions_map.get(file.suffix, "text/javascript")
        raise FileNotFoundError(path)

    def receive(self, path: str, body: bytes) -> None:
        """Takes a picture (/picture/FILE/LOOK/VIEW) or the last word (/done)."""
        if path == "/done":
            self.facts = json.loads(body)
            self.done.set()
        else:
            self.pictures[path] = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def handler(exchange: Exchange) -> type[SimpleHTTPRequestHandler]:
    """A request handler that serves `exchange` and nothing else."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                content, kind = exchange.answer(unquote(urlsplit(self.path).path))
            except FileNotFoundError as error:
                return self.send_error(404, str(error))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            exchange.receive(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: what fails is in the report."""

    return Handler


def _png(pixels: Picture) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def render(gaussians: Gaussians, cameras: Cameras) -> list[Picture]:
    """Pictures on `BACKGROUND`, twice the size and averaged: meshes are drawn with four samples a pixel."""
    large = cameras.resized(2 * SIZE, 2 * SIZE)
    with torch.no_grad():
        color = render_gaussians(gaussians, large, background=(BACKGROUND,) * 3).color
    halved = torch.nn.functional.avg_pool2d(color, 2).clamp(0, 1).permute(0, 2, 3, 1)
    return list((halved * 255).round().to(torch.uint8).numpy())


def browse(exchange: Exchange, chromium: str, screenshot: Path) -> None:
    """Opens the page and takes its screenshot; SystemExit when the page did not finish."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(exchange))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    width = 2 * GAP + LABEL + len(COLUMNS) * (CELL + GAP)
    height = 2 * GAP + LABEL + len(exchange.files) * (CELL + GAP)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", "--no-first-run", "--hide-scrollbars"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--window-size={width},{height}", f"--screenshot={screenshot}"]
        command += [f"http://127.0.0.1:{server.server_port}/"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    server.shutdown()
    if not exchange.facts or not screenshot.is_file():
        raise SystemExit(f"{chromium} did not finish the page (exit status {ran.returncode}):\n{ran.stderr[-2000:]}")


def validate(file: Path, node_modules: Path) -> dict[str, Any]:
    """The validator's version, counts and messages."""
    environment = {**os.environ, "NODE_PATH": str(node_modules)}
    command = ["node", "-e", VALIDATE, str(file)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise SystemExit(f"gltf-validator failed on {file}:\n{ran.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def judge(exchange: Exchange, index: int) -> dict[str, Any]:
    """What the pictures of one file measure, against the Gaussians' renders."""
    decibels, inside, backs, pixels = [], [], 0, 0
    for view, wanted in enumerate(exchange.gaussians[index]):
        shown = exchange.pictures[f"/picture/{index}/unlit/{view}"].astype(np.float64)
        sides = exchange.pictures[f"/picture/{index}/sides/{view}"].astype(int)
        decibels.append(10 * np.log10(255**2 / np.mean((shown - wanted) ** 2)))
        covered = sides[..., 2] < 128
        inside.append((shown - wanted)[covered].sum(axis=0))
        backs += int((covered & (sides[..., 0] > sides[..., 1])).sum())
        pixels += int(covered.sum())
    if pixels == 0:
        raise SystemExit(f"{exchange.files[index]}: no view shows the mesh")
    shift = [float(value) for value in np.sum(inside, axis=0) / pixels]
    return {"psnr_db": float(np.mean(decibels)), "mean_difference_rgb": shift, "backs": backs / pixels}


def is_bad(row: dict[str, Any]) -> bool:
    """True when the validator or one of the measures objects."""
    return bool(row["validator"]["numErrors"] or row["psnr_db"] < LEAST_PSNR_DB or row["backs"] > MOST_BACKS)


def version_of(package: Path) -> str:
    return str(json.loads((package / "package.json").read_text())["version"])


def report(rows: list[dict[str, Any]], where: dict[str, str], versions: dict[str, str], warnings: list[str]) -> str:
    """The Markdown table."""
    lines = [
        "GLB files under the Khronos glTF validator and in a browser; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; commit {where['commit']}, {where['date']}",
        "",
        f"PSNR and mean difference of red, green and blue (of 255, where the mesh is): the file's colours in three.js "
        f"without light against the Gaussians, {len(AZIMUTHS)} views of {SIZE} px. Backs: share of the mesh's pixels "
        "that show the inner side of a triangle. Gaussians let some of the light background through, meshes do not: "
        "they are a little darker.",
        "",
        "| file | triangles | errors | warnings | infos | hints | PSNR dB | mean difference | backs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        found = row["validator"]
        counts = " | ".join(str(found[name]) for name in ("numErrors", "numWarnings", "numInfos", "numHints"))
        shift = ", ".join(f"{value:+.1f}" for value in row["mean_difference_rgb"])
        lines.append(
            f"| {row['file']} | {found['triangles']:,} | {counts} | {row['psnr_db']:.2f} | {shift} "
            f"| {row['backs']:.4%} |"
        )
    told = [f"{text} ({warnings.count(text)}x)" for text in dict.fromkeys(warnings)]
    lines += ["", "Browser's warnings: " + ("; ".join(told) if warnings else "none") + "."]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="GLB files")
    parser.add_argument("--gaussians", type=Path, nargs="+", required=True, help=".ply of each file, or one for all")
    parser.add_argument("--node-modules", type=Path, required=True, help="what npm install filled")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--picture", type=Path, help="the screenshot (.png, .jpg); default OUTPUT/glb_browser.png")
    parser.add_argument("--note", default="", help="what was seen in the screenshot, for the report")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if len(args.gaussians) == 1:
        args.gaussians *= len(args.files)
    if len(args.gaussians) != len(args.files):
        parser.error(f"--gaussians takes one file or {len(args.files)}, got {len(args.gaussians)}")
    return args


def main() -> int:
    args = arguments()
    modules = args.node_modules.resolve()
    cameras = Cameras.orbit(AZIMUTHS, ELEVATIONS, fov_deg=FOV_DEG, height=SIZE, width=SIZE)
    rendered = {source: render(read_gaussians(source), cameras) for source in set(args.gaussians)}
    pictures = [rendered[source] for source in args.gaussians]
    exchange = Exchange(args.files, pictures, modules, cameras.positions.tolist())
    found = [validate(file, modules) for file in args.files]
    with tempfile.TemporaryDirectory() as folder:
        screenshot = Path(folder) / "screenshot.png"
        browse(exchange, args.chromium, screenshot)
        with atomic_path(args.picture or args.output / "glb_browser.png") as path:
            Image.open(screenshot).convert("RGB").save(path, quality=75, optimize=True)
    warnings = [text.removeprefix("warn: ") for text in exchange.facts["messages"] if text.startswith("warn: ")]
    errors = [text for text in exchange.facts["messages"] if not text.startswith("warn: ")]
    if errors:
        raise SystemExit("the browser reports:\n" + "\n".join(errors))
    rows = [
        {"file": file.name, "validator": issues, **judge(exchange, index)}
        for index, (file, issues) in enumerate(zip(args.files, found, strict=True))
    ]
    browser = subprocess.run([args.chromium, "--version"], capture_output=True, text=True, check=True)
    versions = {
        "gltf-validator": found[0]["version"],
        "three": version_of(modules / "three"),
        "@google/model-viewer": version_of(modules / "@google/model-viewer"),
        "browser": browser.stdout.strip(),
        "WebGL": exchange.facts["renderer"],
    }
    text = report(rows, machine(torch.device("cpu")), versions, warnings)
    text += f"\n\nSeen in the screenshot: {args.note}" if args.note else ""
    atomic_write_text(args.output / "glb_browser.md", text + "\n")
    print(text)
    bad = [row["file"] for row in rows if is_bad(row)]
    print("not good: " + ", ".join(bad) if bad else "all good", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
