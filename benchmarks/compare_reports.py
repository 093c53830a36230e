"""Several reports of `maquette evaluate` in one table: python benchmarks/compare_reports.py REPORT.json... -o TABLE.md

They must be of the same objects and the same protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from maquette.io.atomic import atomic_write_text


def table(reports: list[dict[str, Any]]) -> str:
    """One row per report.

    Raises:
        SystemExit: the reports are of different objects or protocols.
    """
    first = reports[0]
    for report in reports[1:]:
        same = [item["id"] for item in report["objects"]] == [item["id"] for item in first["objects"]]
        if not same or report["protocol"] != first["protocol"]:
            sys.exit(f"{report['model']} was measured on other objects or with another protocol than {first['model']}")
    devices = list(dict.fromkeys(report["device"] for report in reports))
    lines = [
        f"{first['num_objects']} objects of the split {first['split']}, {first['protocol']['name']}: "
        f"{first['protocol']['num_targets']} novel views of {first['protocol']['image_size']} px; "
        f"device: {', '.join(devices)}; seconds cover network and rendering of one object.",
        "",
        "| way | input | PSNR dB | SSIM | alpha IoU | s per object |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for report in reports:
        mean, generator = report["mean"]["all"], report.get("generator")
        weights = Path(report["weights"]).stem
        model = report["model"] if weights == report["model"] else f"{report['model']} ({weights} weights)"
        way = f"{generator}, {model}" if generator else model
        given = "front" if report["input_views"] == 1 else "four views"
        seconds = f"{report['seconds'] / report['num_objects']:.2f}"
        if len(devices) > 1:
            seconds += f" ({report['device']})"
        row = f"{mean['psnr']:.2f} | {mean['ssim']:.3f} | {mean['alpha_iou']:.3f} | {seconds}"
        lines.append(f"| {way} | {given} | {row} |")
    nearest = first["baselines"]["nearest input view"]
    row = f"{nearest['psnr']:.2f} | {nearest['ssim']:.3f} | {nearest['alpha_iou']:.3f} | "
    lines.append(f"| for comparison: nearest of the four true views | four views | {row} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the arguments, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    text = table([json.loads(path.read_text()) for path in args.reports])
    atomic_write_text(args.output, text)
    print(text)


if __name__ == "__main__":
    main()
