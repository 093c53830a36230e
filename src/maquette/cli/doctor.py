"""`maquette doctor`: what this machine can do."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from tyro.conf import FlagCreatePairsOff


@dataclass(frozen=True)
class Args:
    """Says what this machine can do, checks that rendering works, and exits with 1 when something is broken."""

    json: FlagCreatePairsOff[bool] = False
    """Print the findings as JSON."""


def run(args: Args) -> int:
    """Prints the findings."""
    from maquette.doctor import examine, is_healthy, summary

    findings = examine()
    healthy = is_healthy(findings)
    if args.json:
        report = {"healthy": healthy, "findings": [dataclasses.asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
        for finding in findings:
            print(f"{finding.status:<5} {finding.name:<14} {finding.detail}")
        print(summary(findings))
    return 0 if healthy else 1
