"""The sentences about a model that its card and its bill of materials share."""

from imgcls.archive.facts import Facts
from model.spec import ModelSpec

PICTURES = {1: "Grayscale", 3: "RGB", 4: "RGBA"}
WEAKEST = 3  # how many classes are named as the weakest
UNEVEN = 5  # times more images of one class than of another are said


def describe_purpose(spec: ModelSpec) -> str:
    """Says what the model is for."""
    return f"Tells which of {len(spec.classes)} classes an image shows."


def describe_input(spec: ModelSpec) -> str:
    """Says what becomes of an image."""
    kind = f"{PICTURES[spec.channels]} image" if spec.ranges is None else f"Image of {spec.channels} bands (TIFF)"
    return (
        f"{kind}, shorter side resized to {spec.resize} px ({spec.interpolation}), "
        f"centre crop of {spec.size} x {spec.size} px"
    )


def describe_limits(facts: Facts) -> list[str]:
    """Says what not to expect of the model, as far as its files tell."""
    limits = [
        "It answers every image with one of its classes, also one that shows none of them or several.",
        "It sees the centre crop only: what lies beyond it at the longer side does not count.",
    ]
    if facts.spec.channels == 1 and facts.spec.ranges is None:
        limits.append("It sees no colour: every image is made grayscale.")
    limits += [*_describe_weakest(facts), *_describe_uneven(facts)]
    if facts.test_sets:
        limits.append("Its figures hold for images like those of its test sets.")
    else:
        limits.append("Nobody has recorded how often it is right.")
    limits.append(_describe_calibration(facts.spec))
    return limits


def _describe_calibration(spec: ModelSpec) -> str:
    if spec.temperature == 1:
        return "Its probabilities are a softmax: they rank, and were not calibrated."
    return f"Its probabilities were calibrated on validation images, with temperature {spec.temperature:g}."


def _describe_weakest(facts: Facts) -> list[str]:
    """Names the classes with the lowest recall in the first test set, where it has the numbers of each class."""
    name, scores = next(iter(facts.test_sets.items()), ("", {}))
    try:
        found = {label: (numbers["recall"], numbers["support"]) for label, numbers in scores["per_class"].items()}
        ranked = sorted((recall, label) for label, (recall, support) in found.items() if support)
    except (LookupError, TypeError, AttributeError):
        return []
    weakest = [f"{label} ({recall:.0%} found)" for recall, label in ranked[:WEAKEST] if recall < 1]
    return [f"Its weakest classes on the test set {name}: {', '.join(weakest)}."] if weakest else []


def _describe_uneven(facts: Facts) -> list[str]:
    train = facts.record.data.splits.get("train") if facts.record else None
    if not train or not (counts := {label: count for label, count in train.classes.items() if count}):
        return []
    few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[many] < UNEVEN * counts[few]:
        return []
    return [f"It learnt unevenly: {counts[many]:,} images of {many}, {counts[few]:,} of {few}."]
