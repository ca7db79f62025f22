"""Every rule of our own, with its severity and the reason for it; rules named `modelaudit/…` are modelaudit's.

critical: no honest archive has it, or what is inside cannot be seen. warning: honest archives have it, and somebody has
to decide. info: good to know, never stops anything. What Python source may not do stands in `source_rules`.
"""

from imgcls.archive.scanning.findings import Finding, Severity

C, W, I = Severity.CRITICAL, Severity.WARNING, Severity.INFO  # noqa: E741 (columns of a table)

RULES = {
    # The zip. TorchServe unpacks the local headers in sequence, most tools read the central directory.
    "broken-zip": (C, "the zip's own structure cannot be read"),
    "unsafe-name": (C, "unpacking it would write outside the model's folder, or two readers see two names"),
    "ambiguous-name": (W, "readers decode the name differently"),
    "symlink": (C, "unpacked as a link, it reads or writes somewhere else"),
    "special-file": (C, "a device, pipe or socket"),
    "duplicate-entry": (C, "which of the two is unpacked depends on the reader or the file system"),
    "encrypted-entry": (C, "cannot be judged, nor read by TorchServe"),
    "unknown-compression": (C, "cannot be judged, nor read by TorchServe"),
    "damaged-entry": (C, "does not unpack to what its header says"),
    "smuggled-entry": (C, "TorchServe unpacks it, and it is not in the list that other tools read"),
    "hidden-entry": (C, "it is in the list that tools read, and TorchServe does not unpack it"),
    "header-mismatch": (C, "its two headers disagree, so two readers see two entries"),
    "ambiguous-header": (C, "readers take its header for different things, so two readers see two entries"),
    "overlapping-entries": (C, "two entries share bytes, as in a zip bomb"),
    "outside-data": (W, "bytes that belong to no entry"),
    "size-bomb": (C, "unpacks to far more than it takes"),
    "too-many-entries": (C, "more entries than any model has"),
    "executable-bit": (I, "marked as executable; TorchServe drops the mark when it unpacks"),
    # What an entry is, by its bytes first and its name second.
    "disguised-file": (C, "its bytes are something that its name does not say"),
    "native-code": (W, "compiled code that the model's process can load"),
    "script": (W, "a program for a shell or another interpreter"),
    "bytecode": (W, "compiled Python, which nobody can read before it runs"),
    "startup-hook": (C, "Python runs it at start, before any handler"),
    "install-hook": (W, "code that runs when something installs it"),
    "requirements": (W, "TorchServe pip-installs it when install_py_dep_per_model is set"),
    "shadowed-module": (W, "a worker finds it on its path before the module of that name that it wants"),
    "pickle": (W, "loading a pickle runs what is in it; store weights as safetensors"),
    "torchscript": (W, "a program of its own, in a deprecated format"),
    "nested-archive": (W, "an archive inside the archive"),
    "not-judged": (W, "too large, too deep or unreadable; nobody looked at it"),
    "broken-tensors": (C, "the header of the safetensors file lies about its tensors"),
    "yaml-tag": (C, "a YAML tag that makes the reader create objects of its own language"),
    # What TorchServe would load.
    "missing-manifest": (C, "TorchServe loads nothing without MAR-INF/MANIFEST.json"),
    "broken-manifest": (C, "MAR-INF/MANIFEST.json is not what torch-model-archiver writes"),
    "foreign-handler": (C, "the manifest names a handler that is neither in the archive nor TorchServe's"),
    "missing-file": (W, "the manifest names a file that is not in the archive"),
    "workflow-archive": (W, "a workflow, which starts other models"),
    "source-unreadable": (W, "Python source that cannot be parsed, so nobody judged it"),
}


def find(rule: str, path: str, detail: str = "") -> Finding:
    """Makes a finding of one of our own rules: what was seen, then why it matters."""
    severity, why = RULES[rule]
    return Finding(rule, severity, path, f"{detail}: {why}" if detail else why)
