"""GLB files under the Khronos glTF validator: `npm install gltf-validator`, then NODE_PATH=.../node_modules pytest."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import maquette
from maquette.mesh import Material, Mesh

_SCRIPT = """
const bytes = new Uint8Array(require("fs").readFileSync(process.argv[1]));
require("gltf-validator").validateBytes(bytes).then((report) => console.log(JSON.stringify(report.issues)));
"""


def issues(path: Path) -> dict[str, int]:
    done = subprocess.run(["node", "-e", _SCRIPT, str(path)], capture_output=True, text=True, check=True)
    report: dict[str, int] = json.loads(done.stdout)
    return report


def validator_missing() -> str:
    if shutil.which("node") is None:
        return "needs node"
    found = subprocess.run(["node", "-e", "require('gltf-validator')"], capture_output=True, check=False)
    return "" if found.returncode == 0 else "needs the npm package gltf-validator on NODE_PATH"


@pytest.mark.skipif(bool(validator_missing()), reason=validator_missing())
@pytest.mark.parametrize("look", ["texture", "vertices", "plain"])
def test_validator_finds_nothing(look: str, tmp_path: Path) -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    normals = torch.nn.functional.normalize(vertices - 0.2, dim=1)
    mesh = Mesh(vertices, faces, normals=normals)
    if look == "texture":
        material = Material(base_color_texture=torch.rand(64, 64, 4))
        mesh = Mesh(vertices, faces, normals=normals, uvs=torch.rand(4, 2), materials=(material,))
    elif look == "vertices":
        mesh = Mesh(vertices, faces, normals=normals, vertex_colors=torch.rand(4, 4))
    maquette.write_mesh(tmp_path / "made.glb", mesh)
    found = issues(tmp_path / "made.glb")
    assert found["numErrors"] == 0 and found["numWarnings"] == 0, found
