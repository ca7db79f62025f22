"""Judges an archive, ours or a stranger's, before TorchServe sees it; runs and unpacks nothing of it, needs no torch.

    entries ─► (files ─► pickles, tensors, nested)   our own reading of the zip, then of each entry's bytes
          ├──► manifest, source                      what TorchServe would load, and what its Python would do
          └──► modelaudit                            a second opinion, in a process of its own
    rules                                            the table of all rules; `findings` is what comes out

A scan finds what it knows to look for. That it finds nothing is no proof that code is harmless.
"""

from imgcls.archive.scanning.findings import Finding, Scanner, ScanReport, Severity, Waiver
from imgcls.archive.scanning.opinions import Opinions
from imgcls.archive.scanning.scan import refuse_findings, scan_archive
from imgcls.archive.scanning.second_opinion import ModelauditProcess

__all__ = [
    "Finding",
    "ModelauditProcess",
    "Opinions",
    "ScanReport",
    "Scanner",
    "Severity",
    "Waiver",
    "refuse_findings",
    "scan_archive",
]
